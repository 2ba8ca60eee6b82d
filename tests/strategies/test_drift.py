"""Expert drift against its definition, pair by pair."""

from itertools import combinations

import numpy as np
import pytest

from strategies.drift import expert_drift


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_drift_is_the_mean_cosine_over_pairs_of_clients():
    draw = np.random.default_rng(0)
    start = draw.standard_normal((6, 4), np.float32)
    versions = [start + draw.standard_normal((6, 4), np.float32) for _ in range(4)]
    found = expert_drift(start, versions, 3)
    assert len(found) == 3
    for expert, drift in enumerate(found):
        own = slice(2 * expert, 2 * expert + 2)
        made = [version[own].ravel() for version in versions]
        moved = [(version - start)[own].ravel() for version in versions]
        for value, vectors in ((drift.cosine, made), (drift.update_cosine, moved)):
            pairs = [cosine(*pair) for pair in combinations(vectors, 2)]
            assert value == pytest.approx(np.mean(pairs), rel=1e-5)


def test_clients_that_agree_and_clients_that_part():
    start = np.ones((2, 3), np.float32)
    step = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], np.float32)
    together, still = expert_drift(start, [start + step] * 3, 2)
    assert (together.cosine, together.update_cosine) == pytest.approx((1, 1))
    # nothing moved: no direction to agree on
    assert still.update_cosine == 0
    (apart, _) = expert_drift(start, [start + step, start - step], 2)
    assert apart.update_cosine == pytest.approx(-1)


def test_one_client_has_no_drift():
    assert expert_drift(np.ones((2, 3)), [np.ones((2, 3))], 2) == []
