"""Numbers and names as a page shows them."""

import math
from collections.abc import Sequence
from typing import TypeVar

from mops_fl.labels import one_line

Item = TypeVar("Item")

BLANK = "–"
"""Stands where there is no number."""


def number(value: float, digits: int = 2) -> str:
    """With thousands apart, or `BLANK` where it is not known."""
    if math.isnan(value):
        return BLANK
    if math.isinf(value):
        return "∞"
    return f"{value:,.{digits}f}"


def deviating(mean: float, sd: float, digits: int = 2) -> str:
    """A mean, and its standard deviation where there is one."""
    text = number(mean, digits)
    return text if math.isnan(sd) or math.isnan(mean) else f"{text} ± {number(sd, digits)}"


def short_number(value: float) -> str:
    """Four digits at most: for axes and the ends of lines."""
    if not math.isfinite(value):
        return number(value)
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def byte_unit(most: float) -> tuple[float, str]:
    """What to divide bytes by, and the unit's name."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, unit
    return 1.0, "bytes"


def second_unit(most: float) -> tuple[float, str]:
    """What to divide seconds by, and the unit's name."""
    for size, unit in ((2 * 3600.0, "hours"), (2 * 60.0, "minutes")):
        if most >= size:
            return {"hours": 3600.0, "minutes": 60.0}[unit], unit
    return 1.0, "seconds"


def size(count: float) -> str:
    """A number of bytes."""
    if math.isnan(count):
        return BLANK
    factor, unit = byte_unit(count)
    return f"{count / factor:,.0f} {unit}" if factor == 1 else f"{count / factor:,.2f} {unit}"


def duration(seconds: float) -> str:
    """A number of seconds."""
    if math.isnan(seconds):
        return BLANK
    factor, unit = second_unit(seconds)
    return f"{seconds / factor:,.1f} {unit}"


def listed(texts: Sequence[str], most: int = 6) -> str:
    """Some of them by name, and how many more there are."""
    shown = ", ".join(one_line(text, 40) for text in texts[:most])
    rest = len(texts) - most
    return f"{shown} and {rest} more" if rest > 0 else shown


def plural(count: int, noun: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return [*items]
    step = (len(items) - 1) / (most - 1)
    return [items[round(index * step)] for index in range(most)]


def left_out(shown: int, of: int, what: str) -> str:
    """A sentence where not all of something is shown; else nothing."""
    return "" if shown >= of else f"{shown:,} of {of:,} {what} are listed, evenly."
