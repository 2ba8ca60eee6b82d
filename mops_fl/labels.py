"""Showing text that others wrote, tasks and names of runs, and making names of files of it."""

import re


def slug(text: str) -> str:
    """`text` as part of the name of a file, safe on any file system."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")


def one_line(text: str, limit: int) -> str:
    """At most `limit` printable characters of `text`, shortened in the middle."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split()) or "(empty)"
    if len(line) <= limit:
        return line
    end = limit // 3
    return f"{line[: limit - end - 1]}…{line[len(line) - end :]}"
