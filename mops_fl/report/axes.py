"""Where values lie on the axes of a drawing, and which of them are written there."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mops_fl.report.wording import short_number

LOG_FROM = 4.0
"""An axis that may be logarithmic is so from this ratio between its largest and smallest value."""
MOST_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A value that is written beside an axis."""

    at: float
    """Units of the drawing."""
    text: str


@dataclass(frozen=True)
class Axis:
    """From `low` at `start` to `high` at `end`, which are in units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(
        cls, values: Iterable[float], start: float, end: float, *, may_log: bool = False
    ) -> "Axis":
        """An axis that has room for all finite `values`; logarithmic ones need positive values."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if may_log and low > 0 and high / low >= LOG_FROM:
            return cls(low / 1.08, high * 1.08, start, end, log=True)
        pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low - pad, high + pad, start, end)

    def place(self, value: float) -> float:
        """Where a finite value lies; what the axis does not reach lies at its end."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self, *, whole: bool = False) -> list[Tick]:
        """Round values on the axis, `MOST_TICKS` at most.

        Args:
            whole: whether only whole numbers have a meaning.
        """
        values = self._powers() if self.log else self._steps(whole)
        return [
            Tick(self.place(value), f"{value:,.0f}" if whole else _plain(value)) for value in values
        ]

    def _steps(self, whole: bool) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / MOST_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _powers(self) -> list[float]:
        """1, 2 and 5 times powers of ten, or fewer of them."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for multiples in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**d for d in decades for m in multiples]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= MOST_TICKS:
                return found if len(found) > 2 else self._steps(whole=False)
        return found[:: math.ceil(len(found) / MOST_TICKS)]


def _plain(value: float) -> str:
    """Without digits that say nothing."""
    if value and (abs(value) >= 1e6 or abs(value) < 0.01):
        return short_number(value) if abs(value) >= 1e6 else f"{value:.0e}"
    return f"{round(value, 4):,g}" if abs(value) < 1000 else f"{value:,.0f}"
