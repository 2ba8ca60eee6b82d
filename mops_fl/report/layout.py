"""What a page is made of: sections of blocks. Each kind of block has a macro in `templates`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mops_fl.report.lines import Chart


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each row is its heading."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """What is left out, or how to read it."""
    prose: bool = False
    """Cells hold words, not numbers."""
    looks: Sequence[int] = ()
    """The look of the line that each row is of; empty for none."""
    titled: bool = True
    """Whether the caption is shown: the heading above may say it."""


@dataclass(frozen=True)
class Behind:
    """What is shown when it is asked for."""

    kind: ClassVar[str] = "behind"
    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Key:
    """What a look stands for."""

    look: int
    label: str


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, of the same lines."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]
    keys: Sequence[Key]
    note: str = ""
    small: bool = False


@dataclass(frozen=True)
class Heat:
    """A table of weights in hundredths, which changes with a slider."""

    kind: ClassVar[str] = "heat"
    name: str
    """Names it in the page, a word."""
    title: str
    look: int
    tasks: Sequence[str]
    experts: Sequence[int]
    frames: Mapping[str, Sequence]
    """``rounds``: the numbers of R rounds; ``weights``: for each of them the weights of all tasks
    and experts, task by task, in hundredths; None where there is none."""
    note: str = ""

    @property
    def last(self) -> Sequence[Sequence[int | None]]:
        """The weights of the last round, by task and expert."""
        flat, width = self.frames["weights"][-1], len(self.experts)
        return [flat[start : start + width] for start in range(0, len(flat), width)]


@dataclass(frozen=True)
class Strip:
    """A row of cells that are filled more or less."""

    label: str
    runs: Mapping[str, str]
    """For each level, the path of the cells that have it; a cell is one unit square."""
    numbers: Sequence[str]


@dataclass(frozen=True)
class Strips:
    """Rows of cells over one axis, with numbers beside them."""

    kind: ClassVar[str] = "strips"
    title: str
    says: str
    heading: str
    """Of the labels."""
    first: str
    last: str
    """The ends of the axis."""
    numbers: Sequence[str]
    """Headings of the numbers."""
    cells: int
    """Of each strip."""
    strips: Sequence[Strip]
    key: Sequence[tuple[str, str]]
    """Levels, and what each stands for."""
    note: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str
    warns: bool = False


Block = Table | Behind | Charts | Heat | Strips | Note


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    """Names it in the page's address, a word."""
    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)
