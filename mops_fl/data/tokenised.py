"""Token ids of many examples, packed into arrays that processes of one machine can share."""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from mops_fl.errors import RunError
from mops_fl.files import made_once, shared_folder


@dataclass(frozen=True)
class Tokenised:
    """One example as token ids."""

    question: tuple[int, ...]
    """Beginning of sequence (where the tokenizer adds one), head, tail."""
    answer: tuple[int, ...]
    """The answer and the end of sequence; a cut answer has no end of sequence."""
    task: str

    @property
    def fed(self) -> int:
        """Tokens that go through a model: all but the last, which is only predicted."""
        return len(self.question) + len(self.answer) - 1


@dataclass(frozen=True, eq=False)
class Packed(Sequence[Tokenised]):
    """Examples at four bytes a token; one becomes a `Tokenised` when it is asked for."""

    ids: np.ndarray
    """Questions and answers in turn, int32, shape (tokens,)."""
    ends: np.ndarray
    """Where each example's question and answer end among them, int64, shape (examples, 2)."""
    tasks: np.ndarray
    """The place in `names` of each example's task, int32, shape (examples,)."""
    names: tuple[str, ...]
    """Tasks."""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Tokenised: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokenised]: ...
    def __getitem__(self, index: int | slice) -> Tokenised | list[Tokenised]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = self.ends[place - 1, 1] if place else 0
        middle, end = self.ends[place]
        question, answer = self.ids[start:middle].tolist(), self.ids[middle:end].tolist()
        return Tokenised(tuple(question), tuple(answer), self.names[self.tasks[place]])


class Packer:
    """Packs examples as they come."""

    def __init__(self) -> None:
        """Begin with none."""
        self._ids, self._ends, self._tasks = array("i"), array("q"), array("i")
        self._names: dict[str, int] = {}

    def add(self, question: Sequence[int], answer: Sequence[int], task: str) -> None:
        """Put one behind the others."""
        for ids in (question, answer):
            self._ids.extend(ids)
            self._ends.append(len(self._ids))
        self._tasks.append(self._names.setdefault(task, len(self._names)))

    def packed(self) -> Packed:
        """All that were added, without a copy."""
        return Packed(
            np.frombuffer(self._ids, np.int32) if self._ids else np.empty(0, np.int32),
            np.array(self._ends, np.int64).reshape(-1, 2),
            np.array(self._tasks, np.int32),
            tuple(self._names),
        )


@dataclass(frozen=True)
class TokenisedCorpus:
    """Token ids of all examples, in their order, and how many of them were cut."""

    examples: Packed
    cut_questions: int
    cut_answers: int
    unknown: frozenset[int]
    """Indices of examples with a token that the model does not have; not to be used."""

    @property
    def skipped(self) -> dict[str, int]:
        """How many examples are not to be used, by reason."""
        reason = "a token that the model does not have"
        return {reason: len(self.unknown)} if self.unknown else {}

    def save(self, folder: Path) -> None:
        """Write it into an empty folder."""
        for name in ("ids", "ends", "tasks"):
            np.save(folder / f"{name}.npy", getattr(self.examples, name))
        cuts, unknown = (self.cut_questions, self.cut_answers), sorted(self.unknown)
        facts = {"names": self.examples.names, "cuts": cuts, "unknown": unknown}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TokenisedCorpus":
        """What `save` wrote, its arrays mapped from the files."""
        arrays = [np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("ids", "ends", "tasks")]
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        packed = Packed(*arrays, tuple(facts["names"]))
        return cls(packed, *facts["cuts"], frozenset(facts["unknown"]))


def made_by_one(name: str, make: Callable[[], TokenisedCorpus]) -> TokenisedCorpus:
    """What `make` gives: of the processes of a launch on one machine, the first makes it.

    The others wait, and all map the same files. Without a folder that they share, or without room
    in it, each makes its own.

    Args:
        name: the same for the same result; a name of a folder.
        make: computes it.
    """
    root = shared_folder()
    if root is None:
        return make()
    made: TokenisedCorpus | None = None
    try:
        with made_once(root / name) as place:
            if place.folder is not None:
                made = make()
                made.save(place.folder)
        return TokenisedCorpus.load(place.target)
    except (RunError, OSError):
        return made or make()
