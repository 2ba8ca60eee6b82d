"""What an owner writes down for a node, and what of it is refused."""

import pytest

from mops_fl.config import defaults
from mops_fl.errors import ConfigError
from mops_fl.node.node_config import FACTS, KEYS, NodeConfig


@pytest.mark.parametrize(
    ("flat", "named"),
    [
        ({}, "partition-id=None"),
        ({"partition-id": "0"}, "partition-id='0'"),
        ({"partition-id": True}, "partition-id=True"),
        ({"partition-id": -1}, "partition-id=-1"),
        ({"partition-id": 0, "data-path": "a.jsonl"}, "own-data=None with data-path"),
        ({"partition-id": 0, "own-data": True}, "own-data=True with no data-path"),
        ({"partition-id": 0, "own-data": "yes", "data-path": "a.jsonl"}, "own-data='yes'"),
        ({"partition-id": 0, "nois": 1.0}, "nois=1.0: known keys"),
        ({"partition-id": 0, "noise": 1.0}, "set clip-norm"),
        ({"partition-id": 0, "clip-norm": -1.0}, "clip-norm=-1.0"),
        ({"partition-id": 0, "max-local-steps": 2.5}, "max-local-steps=2.5"),
        ({"partition-id": 0, "allow-methods": "mops,sorcery"}, "there is no sorcery"),
        ({"partition-id": 0, "dtype": "float3"}, "dtype='float3'"),
        ({"partition-id": 0, "share-metrics": "gate"}, "share-metrics='gate'"),
        ({"partition-id": 0, "threads": -1}, "threads=-1"),
        ({"partition-id": 0, "model": 7}, "model=7"),
        ({"partition-id": 0, "own-data": True, "dataset": "jsonl"}, "needs data-path"),
    ],
)
def test_wrong_values_are_named(flat, named):
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        NodeConfig.from_flat(flat)


def test_facts_come_from_the_node_or_its_installation_and_never_from_the_server():
    server = {
        "model": "/srv/other",
        "data-path": "/etc/passwd",
        "dataset": "jsonl",
        "compression": "2:4",
        "calibration": "jsonl",
        "calibration-path": "/srv/calibration.jsonl",
        "prefix-store-gb": 1e6,
        "device": "cuda:7",
        "local-steps": 17,
    }
    node = NodeConfig.from_flat({"partition-id": 3, "dtype": "float32"})

    flat = node.configured(server).flat()

    assert flat["local-steps"] == 17
    assert {key: flat[key] for key in FACTS} == {
        **{key: defaults()[key] for key in FACTS},
        "dtype": "float32",
    }


def test_every_key_is_taken_as_it_is_listed():
    values = {"own-data": True, "dataset": "jsonl", "data-path": "a", "clip-norm": 1.0}
    values |= {"calibration-path": "b", "noise": 0.5, "max-norm": 3}
    flat = {"partition-id": 0, **values}
    assert set(flat) <= set(KEYS)
    node = NodeConfig.from_flat(flat)
    assert node.policy.max_norm == 3.0
    assert node.own_data
