"""How well scores tell members from others."""

from dataclasses import dataclass

import numpy as np

ENOUGH = 100
"""Others without which a rate of one in a hundred says nothing."""


@dataclass(frozen=True)
class Merit:
    """Of one attack under one defence."""

    members: int
    others: int
    auc: float
    """Chance that a member scores above another, ties counted half."""
    advantage: float
    """Largest difference of true and false positive rate over all thresholds."""
    tpr: float
    """True positive rate at 1 % false positives; NaN with too few trials."""


def merit(members: np.ndarray, others: np.ndarray) -> Merit:
    """Judge the scores of rows that were in and of rows that were not; higher means in."""
    above = (members[:, None] > others).mean() + (members[:, None] == others).mean() / 2
    rates = [
        (float((members >= limit).mean()), float((others >= limit).mean()))
        for limit in np.unique(np.concatenate((members, others)))
    ]
    tpr = max((true for true, false in rates if false <= 0.01), default=0.0)
    return Merit(
        members=len(members),
        others=len(others),
        auc=float(above),
        advantage=max(0.0, *(true - false for true, false in rates)),
        tpr=tpr if len(others) >= ENOUGH else float("nan"),
    )
