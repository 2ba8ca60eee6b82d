"""Who holds what: the parts of every client, and the server's rows."""

import hashlib
import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mops_fl.config import Config, DataConfig
from mops_fl.data import Corpus, Example, Share, evaluated, load_corpus, split, unseen_partitions
from mops_fl.errors import ConfigError, DataError
from partitions import own_share, server_rows, shares

NO_SERVER = {"pretrain_data": "pooled", "server_fraction": 0.0}
KINDS = ("dirichlet", "iid", "pathological", "natural-id")
TASKS = tuple(f"task{number}" for number in range(7))
UNSEEN = ("new", "newer")


def config(kind: str = "dirichlet", **flat: object) -> Config:
    keys = {key.replace("_", "-"): value for key, value in flat.items()}
    fixed = {"num-samples": 0, "num-clients": 20, "active-clients": 1, "partition": kind}
    column = {"partition-column": "user"} if kind == "natural-id" else {}
    return Config.from_flat({"min-client-samples": 5, **fixed, **column, **keys})


def corpus(number: int = 1000, unseen: int = 0, owners: int = 20) -> Corpus:
    """Tasks in turn, in blocks of owners, and then rows of unseen tasks."""
    examples = [
        Example(f"do {i}", "", f"done {i}", TASKS[i % 7], f"owner{i * owners // number}")
        for i in range(number)
    ]
    examples += [Example(f"new {i}", "", "x", UNSEEN[i % 2], "other") for i in range(unseen)]
    new = UNSEEN if unseen else ()
    return Corpus(tuple(examples), (*TASKS, *new), {}, "", unseen_tasks=new)


def fractions(test: float, validation: float = 0.0) -> DataConfig:
    keys = {"test-fraction": test, "validation-fraction": validation}
    return Config.from_flat(keys).data


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    test=st.floats(0.001, 0.6),
    validation=st.sampled_from([0.0, 0.01, 0.2, 0.39]),
    source=st.sampled_from(["server", "pooled", "own", "none"]),
    server=st.floats(0.001, 0.4),
    unseen=st.integers(0, 70),
)
@settings(max_examples=40)
def test_parts_are_a_partition_of_the_corpus(
    kind: str,
    seed: int,
    test: float,
    validation: float,
    source: str,
    server: float,
    unseen: int,
) -> None:
    """No row is in two parts, none is lost, and each is where its task belongs."""
    keys = {"test_fraction": test, "validation_fraction": validation, "server_fraction": server}
    settled = config(kind, seed=seed, pretrain_data=source, min_client_samples=2, **keys)
    data = corpus(unseen=unseen)
    found, servers = shares(data, settled), server_rows(data, settled)
    parts = [part for s in found for part in (s.train, s.test, s.validation, s.unseen)]
    assert sorted(itertools.chain(servers, *parts)) == list(range(1000 + unseen))
    assert all(list(part) == sorted(part) for part in parts)
    # whatever the server pretrains on, so that runs that differ in it alone are on the same rows
    assert servers == server_rows(data, replace(settled, prompts=config().prompts))
    assert servers
    trained = [row for s in found for row in (*s.train, *s.test, *s.validation)]
    assert {*trained, *servers} == set(range(1000))
    sizes = [len(share.unseen) for share in found]
    assert max(sizes) - min(sizes) <= 1
    assert all(share.train and share.test for share in found)
    for share in found:
        rows = len(share.train) + len(share.test) + len(share.validation)
        assert bool(share.validation) == (validation > 0 and rows - len(share.test) > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_validation_nor_unseen_tasks_change_the_test_part(kind: str) -> None:
    plain = shares(corpus(), config(kind))
    held_back = shares(corpus(), config(kind, validation_fraction=0.3))
    assert [share.test for share in held_back] == [share.test for share in plain]
    beside = shares(corpus(unseen=55), config(kind))
    assert [replace(share, unseen=()) for share in beside] == plain


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("dirichlet", "394dc4950c6c6db5"),
        ("iid", "52a8bcd69af8775a"),
        ("pathological", "b2da4392be6e3052"),
        ("natural-id", "7f8a8ccdb12e0ee0"),
    ],
)
def test_shares_without_a_server_are_those_that_were_recorded(kind: str, digest: str) -> None:
    found = shares(corpus(), config(kind, seed=7, min_client_samples=10, **NO_SERVER))
    text = json.dumps([[share.train, share.test] for share in found])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_the_server_has_its_share_of_every_task() -> None:
    data = corpus(unseen=50)
    found = server_rows(data, config(server_fraction=0.1))
    counts = [sum(data.task_numbers[row] == number for row in found) for number in range(9)]
    assert counts == [14] * 7 + [0, 0]
    assert found != server_rows(data, config(server_fraction=0.1, seed=1))
    assert found == server_rows(corpus(), config("iid", server_fraction=0.1))


@pytest.mark.parametrize(
    ("rows", "fraction", "drawn"), [(2, 0.9, 0), (3, 0.01, 1), (3, 0.99, 1), (30, 0.99, 28)]
)
def test_a_small_task_is_not_the_servers_alone(rows: int, fraction: float, drawn: int) -> None:
    examples = tuple(Example("x", "", "y", task) for task in ["a"] * rows + ["b"] * 10)
    data = Corpus(examples, ("a", "b"), {}, "")
    found = server_rows(data, config(server_fraction=fraction))
    assert sum(row < rows for row in found) == drawn


def test_a_server_without_rows_is_refused() -> None:
    data = Corpus(tuple(Example("x", "", "y", task) for task in "aabb"), ("a", "b"), {}, "")
    with pytest.raises(ConfigError, match="pretrain-data=server: no task has the 3 examples"):
        server_rows(data, config())


def test_what_is_not_the_clients_is_named_where_the_rest_is_too_few() -> None:
    settled = config(num_clients=48, min_client_samples=20)
    with pytest.raises(ConfigError, match=r"951 examples \(beside 49 of the server and of unseen"):
        shares(corpus(), settled)


def test_own_data_are_not_the_servers() -> None:
    share = own_share(corpus(100, unseen=11), config(validation_fraction=0.2))
    assert [len(p) for p in (share.train, share.test, share.validation)] == [70, 10, 20]
    assert share.unseen == tuple(range(100, 111))


@given(share=st.floats(0.001, 0.999), number=st.integers(2, 50), seed=st.integers(0, 99))
def test_unseen_clients_are_some_and_not_all(share: float, number: int, seed: int) -> None:
    found = [
        unseen_partitions(
            Config.from_flat(
                {
                    **{"num-clients": number, "active-clients": 1, "unseen-clients": share},
                    **{"partition": kind, "partition-column": "x" * (kind == "natural-id")},
                }
            ).partition,
            seed,
        )
        for kind in KINDS
    ]
    assert len(set(found)) == 1
    assert 0 < len(found[0]) < number
    assert found[0] <= set(range(number))
    assert len(found[0]) == min(max(1, round(share * number)), number - 1)


def test_the_seed_draws_the_unseen_clients() -> None:
    settled = config(unseen_clients=0.5).partition
    drawn = {unseen_partitions(settled, seed) for seed in range(20)}
    assert len(drawn) == 20
    assert frozenset.union(*drawn) == set(range(20))
    assert unseen_partitions(config().partition, 0) == frozenset()


@pytest.mark.parametrize("number", [2, 3, 10, 37, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_split_holds_out_a_fraction(number: int, fraction: float) -> None:
    indices = [3 * i for i in range(number)]
    share = split(indices, fractions(fraction), seed=0, client=4)
    assert sorted(share.train + share.test) == indices
    assert list(share.train) == sorted(share.train)
    assert list(share.test) == sorted(share.test)
    assert len(share.test) == min(max(1, round(fraction * number)), number - 1)


def test_seed_and_client_decide_the_split() -> None:
    indices = list(range(100))
    assert split(indices, fractions(0.1), 0, 1) == split(indices, fractions(0.1), 0, 1)
    assert split(indices, fractions(0.1), 0, 1) != split(indices, fractions(0.1), 1, 1)
    assert split(indices, fractions(0.1), 0, 1) != split(indices, fractions(0.1), 0, 2)
    assert all(type(index) is int for index in split(indices, fractions(0.1), 0, 1).test)


@pytest.mark.parametrize("number", [0, 1])
def test_no_client_is_without_test_rows(number: int) -> None:
    with pytest.raises(
        DataError, match=rf"client 4 has {number} usable rows, but needs at least 2"
    ):
        split(list(range(number)), fractions(0.1), seed=0, client=4)


@pytest.mark.parametrize("part", ["test", "validation", "unseen"])
def test_evaluated_rows_are_a_fixed_sample_of_each_client(part: str) -> None:
    """Over many clients every held-out place is drawn, not the first ones only."""
    share = Share(tuple(range(50)), *(tuple(range(low, low + 100)) for low in (100, 200, 300)))
    samples = [getattr(evaluated(share, 10, seed=0, client=client), part) for client in range(100)]
    again = [getattr(evaluated(share, 10, seed=0, client=client), part) for client in range(100)]
    assert samples == again
    assert all(list(sample) == sorted(set(sample)) and len(sample) == 10 for sample in samples)
    assert set(itertools.chain.from_iterable(samples)) == set(getattr(share, part))
    assert samples[3] != getattr(evaluated(share, 10, 1, 3), part)
    assert all(type(index) is int for index in samples[0])


def test_each_part_is_sampled_by_a_stream_of_its_own() -> None:
    """And the sample of the test part is the one that was recorded."""
    share = Share((), *(tuple(range(100)),) * 3)
    found = evaluated(share, 10, seed=0, client=0)
    assert len({found.test, found.validation, found.unseen}) == 3
    assert found.train == ()
    assert found.test == (1, 6, 13, 27, 40, 54, 64, 65, 78, 81)
    assert evaluated(Share((), share.test), 10, seed=0, client=0).test == found.test


@pytest.mark.parametrize("wanted", [0, 100, 101])
def test_all_rows_are_evaluated_where_not_fewer_are_wanted(wanted: int) -> None:
    share = Share((), tuple(range(100, 200)), (1, 2), (7,))
    assert evaluated(share, wanted, seed=0, client=0) == share


def test_the_clients_test_parts_make_the_global_test_set() -> None:
    keys = {"num-samples": 2000, "pretrain-data": "pooled", "server-fraction": 0.0}
    config = Config.from_flat(keys)
    corpus = load_corpus(config.data, seed=0)
    found = shares(corpus, config)
    assert found == shares(corpus, config)
    train = set(itertools.chain.from_iterable(share.train for share in found))
    test = set(itertools.chain.from_iterable(share.test for share in found))
    assert len(found) == 100
    assert not train & test
    assert train | test == set(range(2000))
    assert all(share.train and share.test for share in found)
    assert len(test) == pytest.approx(200, rel=0.15)
