"""Train and test parts of every client."""

import itertools

import pytest

from mops_fl.config import Config
from mops_fl.data import Share, evaluated, load_corpus, split
from mops_fl.errors import DataError
from partitions import shares


@pytest.mark.parametrize("number", [2, 3, 10, 37, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_split_holds_out_a_fraction(number: int, fraction: float) -> None:
    indices = [3 * i for i in range(number)]
    share = split(indices, fraction, seed=0, client=4)
    assert sorted(share.train + share.test) == indices
    assert list(share.train) == sorted(share.train)
    assert list(share.test) == sorted(share.test)
    assert len(share.test) == min(max(1, round(fraction * number)), number - 1)


def test_seed_and_client_decide_the_split() -> None:
    indices = list(range(100))
    assert split(indices, 0.1, 0, 1) == split(indices, 0.1, 0, 1)
    assert split(indices, 0.1, 0, 1) != split(indices, 0.1, 1, 1)
    assert split(indices, 0.1, 0, 1) != split(indices, 0.1, 0, 2)
    assert all(type(index) is int for index in split(indices, 0.1, 0, 1).test)


@pytest.mark.parametrize("number", [0, 1])
def test_no_client_is_without_test_rows(number: int) -> None:
    with pytest.raises(
        DataError, match=rf"client 4 has {number} usable rows, but needs at least 2"
    ):
        split(list(range(number)), 0.1, seed=0, client=4)


def test_evaluated_rows_are_a_fixed_sample_of_each_client() -> None:
    """Over many clients every held-out place is drawn, not the first ones only."""
    share = Share((), tuple(range(100, 200)))
    samples = [evaluated(share, 10, seed=0, client=client) for client in range(100)]
    assert samples == [evaluated(share, 10, seed=0, client=client) for client in range(100)]
    assert all(list(sample) == sorted(set(sample)) and len(sample) == 10 for sample in samples)
    assert set(itertools.chain.from_iterable(samples)) == set(share.test)
    assert evaluated(share, 10, 0, 3) != evaluated(share, 10, 1, 3)
    assert all(type(index) is int for index in samples[0])


@pytest.mark.parametrize("wanted", [0, 100, 101])
def test_all_rows_are_evaluated_where_not_fewer_are_wanted(wanted: int) -> None:
    share = Share((), tuple(range(100, 200)))
    assert evaluated(share, wanted, seed=0, client=0) == share.test


def test_the_clients_test_parts_make_the_global_test_set() -> None:
    config = Config.from_flat({"num-samples": 2000})
    corpus = load_corpus(config.data, seed=0)
    found = shares(corpus, config.data, config.partition, seed=0)
    assert found == shares(corpus, config.data, config.partition, seed=0)
    train = set(itertools.chain.from_iterable(share.train for share in found))
    test = set(itertools.chain.from_iterable(share.test for share in found))
    assert len(found) == 100
    assert not train & test
    assert train | test == set(range(2000))
    assert all(share.train and share.test for share in found)
    assert len(test) == pytest.approx(200, rel=0.15)
