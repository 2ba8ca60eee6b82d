"""Writing figures, and the text of others in them."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mops_fl.errors import RunError
from mops_fl.files import replacing
from mops_fl.labels import one_line

_DPI = 200
_MOST_PIXELS = 30_000
"""A side at most; matplotlib draws no picture of 65,536 or more."""


def plain(text: str, limit: int) -> str:
    """At most `limit` characters of `text` as they stand: what dollar signs frame is no formula."""
    return one_line(text, limit).replace("$", r"\$")


def fitting(text: str, width: float, size: float) -> str:
    """As `plain`, with as many letters of `size` points as fit into `width` inches."""
    limit = len(text)
    while limit > 8 and text_width(one_line(text, limit), size) > width:
        limit -= 1 + limit // 20
    return plain(text, limit)


def text_width(text: str, size: float) -> float:
    """Inches that a line of letters of `size` points takes, as it stands."""
    with _drawing():
        font = FontProperties(size=size)
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def lay_out(figure: Figure) -> None:
    """Give everything the place that it has when the figure is saved."""
    with _drawing():
        figure.draw_without_rendering()


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole, in the format that the ending of `path` names.

    Raises:
        RunError: there is no such format, or `path` cannot be written.
    """
    kind = path.suffix.lstrip(".").lower()
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in kinds:
        raise RunError(f"cannot draw {path}: its ending must be one of {', '.join(sorted(kinds))}")
    dpi = min(_DPI, _MOST_PIXELS / max(figure.get_size_inches()))
    with replacing(path) as temporary, _drawing():
        figure.savefig(temporary, format=kind, dpi=dpi)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Letters that the font lacks are drawn as boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
