"""How the losses of clients lie, by hand and against numpy."""

import math

import numpy as np
import pandas as pd
import pytest

from mops_fl.run.spread import Spread, client_losses, perplexity


def spread(losses, rows=None) -> Spread:
    return Spread.of(pd.Series(losses), pd.Series(rows if rows is not None else [1] * len(losses)))


def test_the_worst_have_the_highest_loss():
    found = spread([3.0, 1.0, 2.0, 9.0], rows=[3, 5, 7, 11])
    assert (found.worst.loss, found.worst.clients, found.worst.rows) == (9.0, 1, 11)
    assert (found.best.loss, found.best.clients, found.best.rows) == (1.0, 1, 5)
    assert (found.every.loss, found.every.clients, found.every.rows) == (3.75, 4, 26)
    assert found.every.perplexity == pytest.approx(math.exp(3.75))


@pytest.mark.parametrize(("clients", "tenth"), [(1, 1), (10, 1), (11, 2), (30, 3), (100, 10)])
def test_a_tenth_is_rounded_up(clients, tenth):
    losses = np.random.default_rng(0).permutation(clients).astype(float)
    found = spread(losses)
    assert (found.worst.clients, found.best.clients) == (tenth, tenth)
    assert found.worst.loss == np.sort(losses)[-tenth:].mean()
    assert found.best.loss == np.sort(losses)[:tenth].mean()
    if clients > 1:
        assert found.sd == pytest.approx(np.std(losses, ddof=1))
    else:
        assert math.isnan(found.sd)


def test_a_loss_beyond_floats_is_the_worst():
    found = spread([1.0, math.inf, 2.0])
    assert found.worst.perplexity == math.inf
    assert found.best.perplexity == pytest.approx(math.e)
    assert spread([1e6]).every.perplexity == math.inf


def test_a_clients_loss_is_that_of_its_tokens():
    rows = [(3, "a", 2.0, 1), (3, "b", 4.0, 3), (5, "a", 8.0, 4), (6, "a", 0.0, 0)]
    table = pd.DataFrame(rows, columns=["partition", "task", "nll", "tokens"])
    assert client_losses(table).to_dict() == {3: 1.5, 5: 2.0}
    assert perplexity(table) == pytest.approx(math.exp(14 / 8))
    assert math.isnan(perplexity(table[:0]))
