"""Sampling, averaging and refusing, with real Flower messages and no network."""

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message

from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.metrics import GateSum, Tally
from mops_fl.wire.records import (
    ARRAYS,
    EXAMPLES,
    GATE_HIDDEN,
    GATE_OUTPUT,
    METRICS,
    PROMPTS,
    SECONDS,
    STEPS,
    from_array_record,
    put_gate_sums,
    put_tallies,
    to_array_record,
)
from strategies import STRATEGIES, FedPrompt, MoPs, sample_partitions

NODES = {partition: 1000 + 7 * (partition * 3 % 10) for partition in range(10)}
FLAT = {"num-clients": 10, "active-clients": 5, "num-server-rounds": 4, "eval-every": 3}


class Watcher:
    def __init__(self):
        self.train, self.evaluate = [], []

    def on_train(self, result):
        self.train.append(result)

    def on_evaluate(self, result):
        self.evaluate.append(result)


def reply(node: int, content: RecordDict | None = None, error: Error | None = None) -> Message:
    metadata = Metadata(
        run_id=1, message_id=str(node), src_node_id=node, dst_node_id=1, reply_to_message_id="",
        group_id="", created_at=0.0, ttl=1.0, message_type=MessageType.TRAIN,
    )  # fmt: skip
    return make_message(metadata, content, error)


def train_reply(partition: int, prompts, examples=3, nll=1.5, **arrays) -> Message:
    metrics = MetricRecord({EXAMPLES: examples, STEPS: 2, SECONDS: 0.5})
    put_tallies(metrics, {"all": Tally(nll, 4)})
    tensors = to_array_record({PROMPTS: np.asarray(prompts, np.float32), **arrays})
    return reply(NODES[partition], RecordDict({ARRAYS: tensors, METRICS: metrics}))


def strategy(cls=FedPrompt, first_round=0, **changes):
    config = Config.from_flat({**FLAT, **changes})
    made = cls(config, NODES, ArrayRecord(), Watcher(), first_round)
    # Flower asks for the run's task identity when it makes messages; sending is not tested here.
    made._construct_messages = lambda content, nodes, kind: [(content, n, kind) for n in nodes]
    return made


def configure(made, server_round=1, shape=(2, 3)):
    arrays = to_array_record({PROMPTS: np.zeros(shape, np.float32)})
    messages = made.configure_train(server_round, arrays, ConfigRecord(), None)
    partition_of = {node: partition for partition, node in NODES.items()}
    return [partition_of[node] for _, node, _ in messages]


def test_the_average_is_numpys_weighted_mean_in_any_order_of_replies():
    generator = np.random.default_rng(0)
    made = strategy()
    asked = configure(made)
    values = {p: generator.normal(size=(2, 3)).astype(np.float32) for p in asked}
    weights = {p: int(generator.integers(1, 50)) for p in asked}
    replies = [train_reply(p, values[p], weights[p]) for p in asked]
    arrays, _ = made.aggregate_train(1, replies)
    expected = sum(values[p] * weights[p] for p in asked) / sum(weights.values())
    np.testing.assert_allclose(from_array_record(arrays)[PROMPTS], expected, rtol=1e-5, atol=1e-7)
    again = strategy()
    configure(again)
    backwards, _ = again.aggregate_train(1, replies[::-1])
    one, other = (from_array_record(a)[PROMPTS] for a in (arrays, backwards))
    assert (one == other).all()
    assert one.dtype == np.float32


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda p: reply(NODES[p], error=Error(1, "no space left")), "no space left"),
        (lambda p: train_reply(p, np.full((2, 3), np.nan)), "prompts has NaN"),
        (lambda p: train_reply(p, np.full((2, 3), np.inf)), "prompts has NaN or infinite"),
        (lambda p: train_reply(p, np.zeros((3, 2))), r"shape \(3, 2\) instead of \(2, 3\)"),
        (lambda p: train_reply(p, np.zeros((2, 3)), more=np.zeros(1)), "tensors"),
        (lambda p: train_reply(p, np.zeros((2, 3)), examples=0), "num-examples=0"),
        (lambda p: train_reply(p, np.zeros((2, 3)), nll=float("nan")), "loss of task 'all' is nan"),
    ],
)
def test_a_bad_reply_is_refused_by_name_and_does_not_poison_the_average(bad, reason):
    import re

    made = strategy()
    asked = configure(made)
    good = {p: np.full((2, 3), float(p)) for p in asked[1:]}
    replies = [bad(asked[0]), *(train_reply(p, v) for p, v in good.items())]
    arrays, _ = made.aggregate_train(1, replies)
    np.testing.assert_allclose(
        from_array_record(arrays)[PROMPTS], np.mean(list(good.values()), axis=0), rtol=1e-6
    )
    (result,) = made.observer.train
    assert list(result.failures) == [asked[0]]
    assert re.search(reason, result.failures[asked[0]])
    assert [row.partition for row in result.rows] == asked[1:]


def test_too_few_valid_replies_stop_the_run_with_the_cause():
    made = strategy(**{"min-reply-fraction": 0.8})
    asked = configure(made)
    replies = [train_reply(p, np.zeros((2, 3))) for p in asked[2:]]
    replies.append(reply(NODES[asked[1]], error=Error(1, "disk on fire")))
    with pytest.raises(RunError, match="3 of 5 clients gave a valid train reply, fewer than the 4"):
        made.aggregate_train(1, replies)
    assert not made.observer.train


def test_sampling_follows_the_seed_over_partitions_and_not_nodes():
    first = [sample_partitions(range(100), 10, 5, r) for r in range(1, 30)]
    assert first == [sample_partitions(reversed(range(100)), 10, 5, r) for r in range(1, 30)]
    assert first != [sample_partitions(range(100), 10, 6, r) for r in range(1, 30)]
    assert len({tuple(picked) for picked in first}) == len(first)
    assert all(len(set(picked)) == 10 for picked in first)
    assert len({p for picked in first for p in picked}) > 90


def test_a_resumed_strategy_goes_on_as_the_first_would_have():
    made, resumed = strategy(), strategy(first_round=2)
    assert configure(made, 3) == configure(resumed, 1)
    arrays = ArrayRecord()
    asked = [
        r for r in range(1, 5) if list(made.configure_evaluate(r, arrays, ConfigRecord(), None))
    ]
    assert asked == [3, 4]
    assert list(resumed.configure_evaluate(1, arrays, ConfigRecord(), None))


def test_evaluation_sums_losses_and_gates_exactly():
    made = strategy(**{"eval-every": 1})
    made.configure_evaluate(1, ArrayRecord(), ConfigRecord(), None)
    replies = []
    for partition in range(10):
        metrics = MetricRecord()
        task = "even" if partition % 2 == 0 else "odd"
        put_tallies(metrics, {task: Tally(0.5 * partition + 0.25, partition + 1)})
        put_gate_sums(metrics, {task: GateSum((1.0, 2.0), 3)})
        replies.append(reply(NODES[partition], RecordDict({METRICS: metrics})))
    made.aggregate_evaluate(1, replies[::-1])
    (result,) = made.observer.evaluate
    assert result.tallies == {"even": Tally(11.25, 25), "odd": Tally(13.75, 30)}
    assert result.gate["odd"] == GateSum((5.0, 10.0), 15)


@pytest.mark.parametrize(
    ("sync", "names"),
    [
        ("fedavg", {PROMPTS, GATE_HIDDEN, GATE_OUTPUT}),
        ("local", {PROMPTS}),
        ("frozen", {PROMPTS}),
    ],
)
def test_what_each_method_averages(sync, names):
    config = Config.from_flat({**FLAT, "gate-sync": sync})
    assert set(MoPs.averaged(config)) == names
    assert FedPrompt.averaged(config) == (PROMPTS,)
    assert {name: cls.gated for name, cls in STRATEGIES.items()} == {
        "mops": True,
        "fedprompt": False,
    }


def test_bytes_are_those_of_the_tensors_sent():
    made = strategy()
    made.frozen = to_array_record({"pretrained": np.zeros((4, 3), np.float32)})
    asked = configure(made)
    made.aggregate_train(1, [train_reply(p, np.zeros((2, 3))) for p in asked])
    (result,) = made.observer.train
    header = result.bytes_up - 5 * 2 * 3 * 4
    assert 0 <= header < 5 * 200
    assert result.bytes_down >= 5 * (2 * 3 + 4 * 3) * 4
