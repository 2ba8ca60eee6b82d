"""One instruction example, what its fields may be, and the collection of a source's usable rows."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mops_fl.metrics import TOTAL

DEFAULT_TASK = "default"
"""The task of rows without a category. It is no file's name: every client's is the same one."""

RENAMED_TASK = f"{TOTAL} (category)"
"""What a category is called whose name is that of the sum over tasks."""

LONGEST_TASK = 200
"""Characters that the name of a category has at most."""

_LISTED, _SHOWN = 12, 100
"""Names that a message lists at most, and characters of each."""


class UnusableError(Exception):
    """A row that cannot be used: the text is the reason, without any value of the row."""


@dataclass(frozen=True, slots=True)
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
    remarks: list[str] = field(default_factory=list)
    """What was taken for what, in the reader's words."""
    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    other_tasks: int = 0
    """Rows of tasks that were not asked for."""
    faults: dict[str, str] = field(default_factory=dict)
    """Why a task has no rows at all, where that is known."""

    @property
    def read(self) -> int:
        """Rows seen, usable or not."""
        return len(self.examples) + self.skipped.total() + self.other_tasks

    def add(
        self, instruction: object, context: object, answer: object, task: str, owner: str = ""
    ) -> None:
        """Keep a row with the white space around its texts removed.

        Raises:
            UnusableError: the instruction or the answer is empty, or a value is not text.
        """
        question = text_of("instruction", instruction), text_of("context", context)
        reference = text_of("answer", answer)
        for name, text in (("instruction", question[0]), ("answer", reference)):
            if not text:
                raise UnusableError(f"empty {name}")
        self.examples.append(Example(*question, reference, task, owner))

    def note(self) -> str:
        """`` (3 rows skipped: 2 empty answer, 1 context is not text)``, or nothing."""
        return f" ({self.skipped_text()})" if self.skipped else ""

    def skipped_text(self) -> str:
        """``3 rows skipped: 2 empty answer, 1 context is not text``, the most frequent first."""
        ordered = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        reasons = listed([f"{count:,} {reason}" for reason, count in ordered])
        return f"{self.skipped.total():,} rows skipped: {reasons}"


def in_order(
    named: tuple[str, ...], default: Iterable[str], unseen: tuple[str, ...]
) -> tuple[str, ...]:
    """Tasks in expert order, the unseen ones last: those named, else the default ones."""
    return (*(named or (task for task in default if task not in unseen)), *unseen)


def is_missing(value: object) -> bool:
    """Whether a value stands for nothing: null, or the NaN that exporters write for it."""
    return value is None or value != value


def text_of(name: str, value: object) -> str:
    """A row's text without the white space around it; empty for a missing value.

    Raises:
        UnusableError: it is not text, or not text that UTF-8 can hold; `name` says which it is.
    """
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise UnusableError(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableError(f"{name} has half a character (a lone surrogate)") from None
    return value.strip()


def task_of(category: object) -> str:
    """The task that a category means: text on one line, which is never the name of the total.

    Raises:
        UnusableError: it is neither text, a number nor a truth value, or is no name.
    """
    if isinstance(category, bool | int | float) and not is_missing(category):
        category = json.dumps(category)
    name = " ".join(text_of("category", category).split())
    if not name:
        return DEFAULT_TASK
    if len(name) > LONGEST_TASK:
        raise UnusableError(f"category is longer than {LONGEST_TASK} characters")
    if any(character < " " or "\x7f" <= character < "\xa0" for character in name):
        raise UnusableError("category has control characters")
    return RENAMED_TASK if name == TOTAL else name


def owner_of(value: object, column: str) -> str:
    """The owner that a value of `column` names, as text.

    Raises:
        UnusableError: the value is neither text nor a whole number, or is empty.
    """
    name = f"partition-column={column}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) and not is_missing(value):
        raise UnusableError(f"{name} is neither text nor a whole number")
    owner = text_of(name, value)
    if not owner:
        raise UnusableError(f"{name} has no value")
    return owner


def listed(names: Collection[str]) -> str:
    """Names for a message: printable, short, and only the first of many."""
    shown = [
        "".join(c if c.isprintable() else "?" for c in name[:_SHOWN]) + "…" * (len(name) > _SHOWN)
        for name in list(names)[:_LISTED]
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", … ({more:,} more)" if more else "")
