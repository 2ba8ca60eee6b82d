"""Writing figures, and the text of others in them."""

import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mops_fl.errors import RunError
from mops_fl.files import replacing
from mops_fl.labels import one_line

_DPI = 200
_MOST_PIXELS = 30_000
"""A side at most; matplotlib draws no picture of 65,536 or more."""


def plain(text: str, limit: int) -> str:
    """At most `limit` characters of `text` as they stand: what dollar signs frame is no formula."""
    return one_line(text, limit).replace("$", r"\$")


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
    with replacing(path) as temporary, warnings.catch_warnings():
        # letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format=kind, dpi=dpi)
