"""The rules of aggregation against Flower's own strategies on the same replies."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from mops_fl.config import Config
from mops_fl.errors import ConfigError
from mops_fl.wire.records import PROMPTS
from strategies.aggregation import AGGREGATIONS, Contribution, clipped
from strategies.averaging import weighted_mean

SHAPES = {PROMPTS: (4, 3), "gate.hidden": (2, 3), "gate.output": (2, 2)}
ROUNDS = 3


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def rule(name: str, **values):
    config = Config.from_flat({"aggregation": name, **values})
    return AGGREGATIONS[name](config.aggregation)


def tensors(draw: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {n: scale * draw.standard_normal(shape, np.float32) for n, shape in SHAPES.items()}


def rounds(clients: int = 7) -> list[list[Contribution]]:
    """Replies of several rounds."""
    draw = np.random.default_rng(3)
    return [
        [Contribution(tensors(draw), int(draw.integers(1, 50))) for _ in range(clients)]
        for _ in range(ROUNDS)
    ]


def message(reply: Contribution, node: int) -> Message:
    arrays = ArrayRecord({name: Array(value) for name, value in reply.tensors.items()})
    metrics = MetricRecord({"num-examples": reply.examples})
    metadata = Metadata(1, f"m{node}", node, 1, "asked", "", 0.0, 1.0, "train")
    return make_message(metadata, RecordDict({"arrays": arrays, "metrics": metrics}), None)


class Nodes:
    """A grid of so many nodes."""

    def get_node_ids(self):
        return range(7)


def theirs(strategy, start, replies) -> list[dict[str, np.ndarray]]:
    """What a strategy of Flower's makes of the same rounds."""
    found, arrays = [], ArrayRecord({name: Array(value) for name, value in start.items()})
    strategy.current_arrays = arrays
    for number, own in enumerate(replies, 1):
        strategy.configure_train(number, arrays, ConfigRecord(), Nodes())
        messages = [message(reply, node) for node, reply in enumerate(own)]
        arrays, _ = strategy.aggregate_train(number, messages)
        found.append({name: arrays[name].numpy() for name in SHAPES})
    return found


@pytest.mark.parametrize(
    ("made", "strategy"),
    [
        (rule("fedavg"), flower.FedAvg()),
        (rule("fedavgm"), flower.FedAvgM(server_momentum=0.9)),
        (
            rule("fedavgm", **{"server-learning-rate": 0.3, "server-momentum": 0.5}),
            flower.FedAvgM(server_learning_rate=0.3, server_momentum=0.5),
        ),
        (rule("fedadam"), flower.FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        (
            rule("fedadam", **{"server-learning-rate": 0.2, "server-beta2": 0.9}),
            flower.FedAdam(eta=0.2, beta_1=0.9, beta_2=0.9, tau=1e-3),
        ),
        (rule("median"), flower.FedMedian()),
        (rule("trimmed-mean"), flower.FedTrimmedAvg(beta=0.2)),
        (
            rule("multi-krum", **{"krum-malicious": 2}),
            flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_rule_is_flowers(made, strategy):
    start, replies = tensors(np.random.default_rng(1)), rounds()
    expected, sent = theirs(strategy, start, replies), start
    for number, own in enumerate(replies, 1):
        sent = made(number, sent, own)
        for name, value in expected[number - 1].items():
            assert sent[name].dtype == np.float32
            np.testing.assert_allclose(sent[name], value, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_rule_that_is_resumed_goes_on_with_the_same_numbers(name):
    gate = (0.25, 0.75)
    replies = [[Contribution(r.tensors, r.examples, gate) for r in own] for own in rounds()]
    whole, sent = rule(name), tensors(np.random.default_rng(1))
    for number, own in enumerate(replies[:-1], 1):
        sent = whole(number, sent, own)
    resumed = rule(name)
    resumed.state = {key: value.copy() for key, value in whole.state.items()}
    ours, again = (made(ROUNDS, sent, replies[-1]) for made in (whole, resumed))
    assert all((ours[key] == again[key]).all() for key in SHAPES)


@pytest.mark.parametrize("gate", [(0.5, 0.5), (0.3, 0.7), (0.0, 1.0)])
def test_gate_weighted_is_fedavg_where_all_gates_are_alike(gate):
    (replies, *_) = rounds()
    own = [Contribution(reply.tensors, reply.examples, gate) for reply in replies]
    made = rule("gate-weighted", experts=2)(1, {}, own)
    mean = weighted_mean([r.tensors for r in replies], [r.examples for r in replies])
    assert all((made[name] == mean[name]).all() for name in SHAPES)


def test_gate_weighted_weighs_each_expert_by_its_use():
    (replies, *_) = rounds()
    draw = np.random.default_rng(5)
    gates = draw.dirichlet([1, 1], size=len(replies))
    own = [
        Contribution(r.tensors, r.examples, tuple(g)) for r, g in zip(replies, gates, strict=True)
    ]
    made = rule("gate-weighted")(1, {}, own)
    for expert, rows in enumerate((slice(0, 2), slice(2, 4))):
        weights = np.array([r.examples for r in replies]) * gates[:, expert]
        values = np.stack([r.tensors[PROMPTS][rows] for r in replies])
        expected = np.tensordot(weights / weights.sum(), values, 1)
        np.testing.assert_allclose(made[PROMPTS][rows], expected, rtol=1e-5, atol=1e-6)


def test_an_update_is_clipped_over_all_tensors_together():
    draw = np.random.default_rng(0)
    start, made = tensors(draw), tensors(draw)

    def length(value):
        return np.sqrt(sum(np.square(value[name] - start[name]).sum() for name in SHAPES))

    short = clipped(start, made, 0.5)
    assert length(short) == pytest.approx(0.5, rel=1e-5)
    for name in SHAPES:
        np.testing.assert_allclose(
            (short[name] - start[name]) / 0.5, (made[name] - start[name]) / length(made), atol=1e-6
        )
    assert clipped(start, made, 100.0) is made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aggregation": "mean"}, "aggregation='mean': must be one of fedavg, fedavgm"),
        ({"aggregation": "median", "training": "local"}, "aggregation=median with training=local"),
        ({"clip-norm": 1.0, "training": "centralised"}, "clip-norm=1 with training=centralised"),
        ({"aggregation": "gate-weighted", "method": "lora"}, "which only mops has"),
        (
            {"aggregation": "multi-krum", "krum-malicious": 4},
            "of 11 clients or more a round",
        ),
        ({"malicious-clients": 1, "training": "local"}, "malicious-clients=1 with training=local"),
        ({"malicious-clients": 101}, "malicious-clients=101 is more than the 100 clients"),
        ({"trim-fraction": 0.5}, "trim-fraction=0.5: must be at least 0 and less than 0.5"),
        ({"proximal": -1.0}, "proximal=-1.0: must be at least 0"),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_flat(values)
