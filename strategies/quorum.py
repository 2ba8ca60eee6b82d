"""How many valid replies are enough, and what is said where there are fewer."""

import math
from collections.abc import Mapping

from mops_fl.config import FederationConfig
from mops_fl.errors import RunError

_TOLD = 5
"""Reasons that a message tells."""


def minimum(asked: int, fraction: float) -> int:
    """Valid replies that are enough."""
    return max(1, math.ceil(fraction * asked - 1e-9))


def require(
    sentence: str,
    valid: int,
    asked: int,
    federation: FederationConfig,
    failures: Mapping[str, str],
    key: str = "min-reply-fraction",
) -> None:
    """Refuse to go on with too few valid replies.

    Args:
        sentence: with a place for how many clients.
        valid: replies.
        asked: clients.
        federation: holds the fraction that is enough.
        failures: reasons by who failed; the first few are told.
        key: of the fraction.

    Raises:
        RunError: there are fewer than `minimum`.
    """
    fraction = getattr(federation, key.replace("-", "_"))
    least = minimum(asked, fraction)
    if valid >= least:
        return
    told = [f"{who}: {reason}" for who, reason in failures.items()]
    if len(told) > _TOLD:
        told[_TOLD:] = [f"and {len(told) - _TOLD} more"]
    short = f"{sentence.format(f'{valid} of {asked} clients')}, fewer than the {least} that "
    raise RunError("; ".join([f"{short}{key}={fraction} asks for", *told]))
