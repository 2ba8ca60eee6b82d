"""A tiny random model with generated rows, as the client under attack."""

import numpy as np
import pytest

from experiments.golden.tiny import save_tiny_llama
from experiments.leakage.victim import Victim
from mops_fl.config import Config


@pytest.fixture(scope="session")
def victim(tmp_path_factory):
    """Four experts of two vectors; nothing is pretrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOPS_FL_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = save_tiny_llama(tmp_path_factory.mktemp("leaky-llama"), hidden_size=64)
        made = Victim(
            Config.from_flat(
                {
                    **{"model": str(model), "dtype": "float32", "device": "cpu"},
                    **{"num-samples": 400, "num-clients": 10, "prefix-store-gb": 0.0},
                    **{"experts": 4, "prompts-per-expert": 2, "pretrain-data": "none"},
                }
            )
        )
        assert made.start
        assert made.mixture
        return made


@pytest.fixture(scope="session")
def rows(victim):
    """Of clients and of nobody."""
    return victim.rows(longest=200)[:160]


@pytest.fixture(scope="session")
def public(victim, rows):
    """The attacker's rows, which are none of `rows`."""
    return [row for row in victim.rows(longest=200) if row not in rows][:150]


@pytest.fixture(scope="session")
def features(victim, public):
    return victim.features(public)


@pytest.fixture
def draw():
    return np.random.default_rng(0)
