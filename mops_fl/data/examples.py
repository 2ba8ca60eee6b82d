"""One instruction example, and the collection of a source's usable rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mops_fl.errors import DataError


@dataclass(frozen=True)
class Example:
    """A question (instruction and optional context) with its reference answer."""

    instruction: str
    context: str
    """Input that the instruction speaks of; may be empty."""
    answer: str
    task: str
    owner: str = ""
    """Value of the column that names the client; empty when no column was asked for."""


@dataclass
class Rows:
    """The usable examples of a source, and how many of its rows were not usable, by reason."""

    known: tuple[str, ...]
    """Every task that the source has, asked for or not."""
    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(
        self, instruction: object, context: object, answer: object, task: str, owner: str = ""
    ) -> None:
        """Keep a row with the white space around its texts removed, or count why it is unusable."""
        for name, value in (("instruction", instruction), ("context", context), ("answer", answer)):
            if not isinstance(value, str):
                self.skipped[f"{name} is not text"] += 1
                return
            if name != "context" and not value.strip():
                self.skipped[f"empty {name}"] += 1
                return
        question = str(instruction).strip(), str(context).strip()
        self.examples.append(Example(*question, str(answer).strip(), task, owner))

    def note(self) -> str:
        """`` (3 rows skipped: 2 empty answer, 1 context is not text)``, or nothing."""
        if not self.skipped:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f" ({self.skipped.total()} rows skipped: {reasons})"


def require_columns(row: object, columns: Iterable[str], where: str) -> dict[str, object]:
    """The row as a mapping that has these columns.

    Raises:
        DataError: it is not an object or lacks a column; `where` says which row it is.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, but this is {type(row).__name__}")
    missing = [column for column in columns if column not in row]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; columns found: {', '.join(row) or 'none'}"
        )
    return row


def owner_of(row: dict[str, object], column: str, where: str) -> str:
    """The owner that `column` names, as text; empty without a column.

    Raises:
        DataError: the value is neither text nor a whole number, or is empty.
    """
    if not column:
        return ""
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{where}: partition-column={column} holds {value!r}: "
            "every row needs a text or a whole number that names its client"
        )
    return str(value).strip()
