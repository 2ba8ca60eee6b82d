"""What is done to a backbone's weights, as one word of the configuration. No torch here.

``none``, ``unstructured-<percent>``, ``<N>:<M>`` (N of every M consecutive weights of a row
pruned), ``int8``, ``nf4``, and a pruning held in a quantisation: ``2:4+nf4``.
"""

import math
import re
from dataclasses import dataclass, replace

from mops_fl.errors import ConfigError

QUANTISATIONS = ("int8", "nf4")

FORMS = "none, unstructured-<percent>, <N>:<M>, int8, nf4, or <pruning>+int8 or <pruning>+nf4"

_UNSTRUCTURED = re.compile(r"unstructured-(\d+(?:\.\d+)?)")
_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Compression:
    """One compression; without arguments, none at all.

    Raises:
        ConfigError: a value is out of range, or sparsity and pattern disagree.
    """

    sparsity: float = 0.0
    """Fraction of each pruned matrix that is zero; 0 for no pruning."""
    n: int = 0
    """Weights pruned in every group of `m`; 0 for an unstructured mask."""
    m: int = 0
    """Consecutive weights of a row that form a group; 0 for an unstructured mask."""
    quantisation: str = ""
    """`int8` (LLM.int8()), `nf4`, or empty."""

    def __post_init__(self) -> None:
        if self.quantisation not in ("", *QUANTISATIONS):
            raise ConfigError(
                f"compression with quantisation={self.quantisation!r}: must be one of "
                + ", ".join(QUANTISATIONS)
            )
        if self.n or self.m:
            _check_n_of_m(self.n, self.m)
            if not math.isclose(self.sparsity, self.n / self.m):
                raise ConfigError(
                    f"compression={self.n}:{self.m} with sparsity={self.sparsity}: this pattern "
                    f"has sparsity {self.n / self.m}"
                )
        elif self.sparsity and not 0.01 <= self.sparsity <= 0.99:
            raise ConfigError(
                f"compression=unstructured-{100 * self.sparsity:g}: "
                "the percentage must be from 1 to 99"
            )

    @property
    def pruning(self) -> str:
        """The part that SparseGPT does, as text; empty when nothing is pruned."""
        if self.m:
            return f"{self.n}:{self.m}"
        return f"unstructured-{100 * self.sparsity:g}" if self.sparsity else ""

    @property
    def pruned_only(self) -> "Compression":
        """The same pruning without quantisation, which is done on loading."""
        return replace(self, quantisation="")

    def __str__(self) -> str:
        return "+".join(part for part in (self.pruning, self.quantisation) if part) or "none"


def parse(text: str) -> Compression:
    """The compression that a configuration value names.

    Raises:
        ConfigError: the text is not one of the forms, or names an impossible pattern.
    """
    if text == "none":
        return Compression()
    first, *rest = text.split("+")
    if first in QUANTISATIONS and not rest:
        return Compression(quantisation=first)
    pruning = _parse_pruning(first)
    if pruning is None or len(rest) > 1 or any(part not in QUANTISATIONS for part in rest):
        raise ConfigError(f"compression={text!r}: must be {FORMS}")
    return replace(pruning, quantisation="".join(rest))


def _parse_pruning(text: str) -> Compression | None:
    if match := _UNSTRUCTURED.fullmatch(text):
        percent = float(match[1])
        if not 1 <= percent <= 99:
            raise ConfigError(f"compression={text!r}: the percentage must be from 1 to 99")
        return Compression(sparsity=percent / 100)
    if match := _N_OF_M.fullmatch(text):
        n, m = int(match[1]), int(match[2])
        _check_n_of_m(n, m)
        return Compression(sparsity=n / m, n=n, m=m)
    return None


def _check_n_of_m(n: int, m: int) -> None:
    if not 1 <= n < m:
        raise ConfigError(
            f"compression={n}:{m}: N of every M weights are pruned, so N must be at least 1 and "
            "less than M"
        )
