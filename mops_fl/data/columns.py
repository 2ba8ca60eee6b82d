"""Recognising a file's schema by its columns.

Dolly's (`instruction, context, response, category`), Alpaca's (`instruction, input, output`),
question and answer, prompt and completion, or a list of chat turns: a column's meaning is told by
its name. Lower and upper case are the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mops_fl.data.chat import question_and_answer
from mops_fl.data.examples import is_missing, listed
from mops_fl.errors import DataError

Row = Mapping[str, object]

QUESTIONS = ("instruction", "prompt", "question", "query", "input")
CONTEXTS = ("context", "input")
ANSWERS = ("response", "output", "completion", "answer")
CHATS = ("messages", "conversations")
TASKS = ("category", "task")
"""Names of columns for each meaning, the likeliest first."""


@dataclass(frozen=True)
class Columns:
    """Which column means what; an empty name where there is no such column."""

    question: str
    context: str
    answer: str
    chat: str
    """Turns that hold question and answer both."""
    task: str

    def texts(self, row: Row) -> tuple[object, object, object]:
        """Instruction, context and answer of a row, as they stand there.

        Raises:
            UnusableError: the turns of a chat cannot be read.
        """
        if self.chat:
            question, answer = question_and_answer(row.get(self.chat))
            return question, None, answer
        return cell(row, self.question), cell(row, self.context), cell(row, self.answer)

    def remark(self) -> str:
        """What was taken for what, such as ``instruction=prompt, answer=completion``."""
        if self.chat:
            return f"instruction and answer=turns of {self.chat}"
        taken = {"instruction": self.question, "context": self.context, "answer": self.answer}
        taken |= {"task": self.task}
        return ", ".join(f"{meaning}={listed([name])}" for meaning, name in taken.items() if name)


def cell(row: Row, column: str) -> object:
    """A row's value in a column; None where there is no such column."""
    return row.get(column) if column else None


def recognise(rows: Sequence[Row], where: str) -> Columns:
    """The meaning of the columns that most rows have a value in.

    Raises:
        DataError: no columns of a question and its answer are among them; `where` names the file.
    """
    counts = Counter(name for row in rows for name, value in row.items() if not is_missing(value))

    def find(names: tuple[str, ...], taken: str = "") -> str:
        """The likeliest column that half the rows have, or the one that most have."""
        found = [c for name in names for c in counts if c != taken and c.strip().lower() == name]
        common = [column for column in found if 2 * counts[column] >= len(rows)]
        return common[0] if common else max(found, key=counts.__getitem__, default="")

    question, answer, chat, task = find(QUESTIONS), find(ANSWERS), find(CHATS), find(TASKS)
    if question and answer:
        return Columns(question, find(CONTEXTS, taken=question), answer, "", task)
    if chat:
        return Columns("", "", "", chat, task)
    columns = dict.fromkeys(name for row in rows for name in row)
    raise DataError(
        f"{where}: no columns of a question and its answer; columns found: "
        f"{listed(columns) or 'none'}. A question is in a column {', '.join(QUESTIONS)}, its "
        f"answer in {', '.join(ANSWERS)}; or both are turns of a chat in {' or '.join(CHATS)}"
    )
