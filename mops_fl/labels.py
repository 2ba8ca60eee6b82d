"""Showing text that others wrote: tasks, names of runs."""


def one_line(text: str, limit: int) -> str:
    """At most `limit` printable characters of `text`, shortened in the middle."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split()) or "(empty)"
    if len(line) <= limit:
        return line
    end = limit // 3
    return f"{line[: limit - end - 1]}…{line[len(line) - end :]}"
