"""How far the clients' versions of an expert are apart before they are averaged."""

from collections.abc import Sequence

import numpy as np

from mops_fl.wire.rounds import Drift


def expert_drift(start: np.ndarray, versions: Sequence[np.ndarray], experts: int) -> list[Drift]:
    """The drift of each expert.

    Args:
        start: the prompts that all clients were given, [K, d].
        versions: what each client made of them.
        experts: E, which divides K.

    Returns:
        One an expert; none with fewer than two clients.
    """
    if len(versions) < 2:
        return []
    # [n, E, K / E * d]
    made = np.stack(versions).astype(np.float64).reshape(len(versions), experts, -1)
    updates = made - start.astype(np.float64).reshape(experts, -1)
    pairs = zip(_mean_cosine(made), _mean_cosine(updates), strict=True)
    return [Drift(cosine, update) for cosine, update in pairs]


def _mean_cosine(vectors: np.ndarray) -> list[float]:
    """Over all pairs of n vectors, [n, E, size] to [E]; a zero vector is orthogonal to all."""
    count, norms = len(vectors), np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    # the square of a sum is all products: those of two, twice, and those of one with itself
    both = (units.sum(0) ** 2).sum(-1) - (units**2).sum((0, -1))
    return np.clip(both / (count * (count - 1)), -1, 1).tolist()
