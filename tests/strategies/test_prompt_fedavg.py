"""Sampling, averaging and refusing, with real Flower messages and no network."""

import dataclasses
import re

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.task_identity import TaskIdentity
from trainables import sizes

from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.metrics import GateSum, Tally, merge
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    GATE_HIDDEN,
    GATE_OUTPUT,
    METRICS,
    PROMPTS,
    from_array_record,
    num_bytes,
    to_array_record,
)
from mops_fl.wire.replies import Description, Evaluated, Trained
from strategies import (
    Centralised,
    Client,
    Local,
    PromptFedAvg,
    Roster,
    admit,
    sample_partitions,
)
from strategies.averaging import weighted_mean

SIZES = sizes(3)

NODES = {partition: 1000 + 7 * (partition * 3 % 10) for partition in range(10)}
FLAT = {"num-clients": 10, "active-clients": 5, "num-server-rounds": 4, "eval-every": 3}
FLAT |= {"local-steps": 2, "experts": 2}
EXAMPLES = {partition: 3 + 5 * partition for partition in range(10)}
RUN = "0" * 32


class Watcher:
    def __init__(self):
        self.train, self.evaluate = [], []

    def on_train(self, result):
        self.train.append(result)

    def on_evaluate(self, result):
        self.evaluate.append(result)


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def description(partition: int, **changes) -> Description:
    facts = {
        "partition": partition,
        "tasks": ("even", "odd"),
        "train": (EXAMPLES[partition], 0),
        "test": (5, 5),
        "validation": (0, 0),
        "unseen_tasks": 0,
        "own_data": False,
        "sizes": SIZES,
        "injection_layer": 1,
        "model_digest": "1" * 64,
        "tokenizer_digest": "2" * 64,
        "data_digest": "3" * 64,
        "skipped": {},
        "cut_questions": 0,
        "cut_answers": 0,
        "device": "cpu",
        "dtype": "float32",
    }
    return Description(**{**facts, **changes})


CLIENTS = {partition: Client(node, description(partition)) for partition, node in NODES.items()}


def reply(
    asked: Message, content: RecordDict | None = None, error: Error | None = None, node: int = 0
) -> Message:
    """An answer to a message, by the node that was asked unless another is named."""
    to = asked.metadata
    node = node or to.dst_node_id
    metadata = Metadata(1, "reply", node, 1, to.message_id, "", 0.0, 1.0, to.message_type)
    return make_message(metadata, content, error)


def trained(partition: int, prompts, **changes) -> RecordDict:
    tensors = {PROMPTS: np.asarray(prompts, np.float32)}
    facts = {"examples": EXAMPLES[partition], "steps": 2, "tally": Tally(1.5, 4), "seconds": 0.5}
    return Trained(**{"tensors": tensors, **facts, **changes}).content()


def strategy(
    method="fedprompt",
    first_round=0,
    last_trained=None,
    cls=PromptFedAvg,
    clients=CLIENTS,
    **changes,
):
    config = Config.from_flat({**FLAT, "method": method, **changes})
    roster = Roster(clients)
    return cls(config, RUN, roster, ArrayRecord(), Watcher(), first_round, last_trained)


def sent(messages) -> dict[int, Message]:
    """The messages by partition, with the ids that a Grid gives them."""
    partition_of = {node: partition for partition, node in NODES.items()}
    by_partition = {partition_of[m.metadata.dst_node_id]: m for m in messages}
    for partition, message in by_partition.items():
        message.metadata.__dict__["_message_id"] = f"{message.metadata.message_type}-{partition}"
    return by_partition


def configure(made, server_round=1, shape=(2, 3)) -> dict[int, Message]:
    arrays = to_array_record({PROMPTS: np.zeros(shape, np.float32)})
    return sent(made.configure_train(server_round, arrays, ConfigRecord(), None))


def test_the_average_is_flowers_in_any_order_of_replies():
    generator = np.random.default_rng(0)
    made = strategy()
    asked = configure(made)
    values = {p: generator.normal(size=(2, 3)).astype(np.float32) for p in asked}
    contents = {p: trained(p, values[p]) for p in asked}
    replies = [reply(asked[p], contents[p]) for p in asked]
    arrays, _ = made.aggregate_train(1, replies)
    ours = from_array_record(arrays)[PROMPTS]
    total = sum(EXAMPLES[p] for p in asked)
    expected = sum(values[p] * EXAMPLES[p] for p in asked) / total
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    flowers = aggregate_arrayrecords([contents[p] for p in sorted(asked)], "num-examples")
    assert (ours == flowers[PROMPTS].numpy()).all()
    again = strategy()
    configure(again)
    backwards, _ = again.aggregate_train(1, replies[::-1])
    assert (from_array_record(backwards)[PROMPTS] == ours).all()
    assert ours.dtype == np.float32


def test_the_mean_of_one_client_is_its_own():
    value = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    assert (weighted_mean([{PROMPTS: value}], [7])[PROMPTS] == value).all()


def changed(partition, **changes):
    return trained(partition, np.zeros((2, 3)), **changes)


def odd(partition, change) -> RecordDict:
    content = changed(partition)
    change(content)
    return content


BAD = [
    (lambda p: Error(1, "no space left"), "no space left"),
    (lambda p: trained(p, np.full((2, 3), np.nan)), "prompts has NaN"),
    (lambda p: trained(p, np.full((2, 3), np.inf)), "prompts has NaN or infinite"),
    (
        lambda p: trained(p, np.zeros((3, 2))),
        r"shape \(3, 2\) instead of float32",
    ),
    (lambda p: changed(p, tensors={PROMPTS: np.zeros((2, 3)), "x": np.zeros(1)}), "tensors"),
    (lambda p: changed(p, examples=10**15), "num-examples=1000000000000000 instead of"),
    (lambda p: changed(p, tally=Tally(float("nan"), 4)), "nll=nan instead of"),
    (lambda p: changed(p, steps=3), "steps=3 instead of 2"),
    (lambda p: odd(p, lambda c: c[METRICS].pop("seconds")), "no seconds"),
    (lambda p: odd(p, lambda c: c.pop(METRICS)), "records"),
    (lambda p: odd(p, lambda c: c.update({"a": MetricRecord({"num-examples": 9})})), "records"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_reply_is_refused_by_name_and_does_not_poison_the_average(bad, reason):
    made = strategy()
    asked = configure(made)
    first, *others = asked
    answer = bad(first)
    is_error = isinstance(answer, Error)
    replies = [reply(asked[first], *((None, answer) if is_error else (answer,)))]
    replies += [reply(asked[p], trained(p, np.full((2, 3), float(p)))) for p in others]
    arrays, _ = made.aggregate_train(1, replies)
    weights = [EXAMPLES[p] for p in others]
    np.testing.assert_allclose(
        from_array_record(arrays)[PROMPTS][0, 0], np.average(others, weights=weights), rtol=1e-6
    )
    (result,) = made.observer.train
    assert list(result.failures) == [first]
    assert re.search(reason, result.failures[first])
    assert [row.partition for row in result.rows] == others
    assert [row.examples for row in result.rows] == weights


def test_a_reply_belongs_to_the_message_that_it_answers():
    """Flower answers for a node that is gone, from the SuperLink: node 1."""
    made = strategy()
    asked = configure(made)
    gone, silent, *others = asked
    made.config.federation.__dict__["min_reply_fraction"] = 0.5
    replies = [reply(asked[p], changed(p)) for p in others]
    replies.append(reply(asked[gone], error=Error(3, "Node unavailable"), node=1))
    stranger = reply(asked[others[0]], changed(others[0]))
    stranger.metadata.__dict__["_reply_to_message_id"] = "another round's"
    twice = reply(asked[others[0]], trained(others[0], np.ones((2, 3))))
    made.aggregate_train(1, [*replies, stranger, twice])
    (result,) = made.observer.train
    assert result.failures == {gone: "Node unavailable", silent: "no reply"}
    assert len(result.rows) == len(others)


def test_too_few_valid_replies_stop_the_run_with_the_cause():
    made = strategy(**{"min-reply-fraction": 0.8})
    asked = configure(made)
    _, second, *others = asked
    replies = [reply(asked[p], changed(p)) for p in others]
    replies.append(reply(asked[second], error=Error(1, "disk on fire")))
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
    assert list(configure(made, 3)) == list(configure(resumed, 1))
    arrays = ArrayRecord()
    asked = [
        r for r in range(1, 5) if list(made.configure_evaluate(r, arrays, ConfigRecord(), None))
    ]
    assert asked == [3, 4]
    assert list(resumed.configure_evaluate(1, arrays, ConfigRecord(), None))


def test_each_client_is_told_the_round_in_which_it_last_trained():
    made = strategy(last_trained={0: 1, 3: 2}, first_round=2)
    evaluated = sent(made.configure_evaluate(1, ArrayRecord(), ConfigRecord(), None))
    told = {p: m.content[CONFIG]["last-trained"] for p, m in evaluated.items()}
    assert told == {**dict.fromkeys(range(10), 0), 0: 1, 3: 2}
    asked = configure(made)
    absent, *others = asked
    made.aggregate_train(1, [reply(asked[p], changed(p)) for p in others])
    evaluated = sent(made.configure_evaluate(1, ArrayRecord(), ConfigRecord(), None))
    told = {p: m.content[CONFIG]["last-trained"] for p, m in evaluated.items()}
    assert told == {**dict.fromkeys(range(10), 0), 0: 1, 3: 2, **dict.fromkeys(others, 3)} | {
        absent: {0: 1, 3: 2}.get(absent, 0)
    }


def evaluated(partition: int, nll=None, tokens=None) -> RecordDict:
    tally = Tally(nll or 0.5 * partition + 0.25, tokens or partition + 1)
    task = "even" if partition % 2 == 0 else "odd"
    gate = GateSum((1.0, 2.0), (1, 2), 1.5, 3)
    return Evaluated({task: tally}, {task: gate}, {}).content()


def evaluate(made, server_round=1) -> dict[int, Message]:
    return sent(made.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), None))


def test_evaluation_sums_losses_and_gates_exactly():
    made = strategy("mops", **{"eval-every": 1})
    asked = evaluate(made)
    made.aggregate_evaluate(1, [reply(asked[p], evaluated(p)) for p in reversed(asked)])
    (result,) = made.observer.evaluate
    assert result.tallies == {"even": Tally(11.25, 25), "odd": Tally(13.75, 30)}
    assert result.gate["odd"] == GateSum((5.0, 10.0), (5, 10), 7.5, 15)
    assert list(result.clients) == list(range(10))
    assert result.clients[3] == {"odd": Tally(1.75, 4)}


def test_answer_tokens_that_change_are_refused():
    made = strategy("mops", **{"eval-every": 1})
    asked = evaluate(made)
    made.aggregate_evaluate(1, [reply(asked[p], evaluated(p)) for p in asked])
    asked = evaluate(made, 2)
    replies = [reply(asked[p], evaluated(p, tokens=17 if p == 4 else None)) for p in asked]
    made.aggregate_evaluate(2, replies)
    assert list(made.observer.evaluate[1].failures) == [4]
    assert "as before" in made.observer.evaluate[1].failures[4]


def test_an_evaluation_that_nobody_answers_is_an_error():
    made = strategy("mops", **{"eval-every": 3})
    assert not evaluate(made, 1)
    assert made.aggregate_evaluate(1, []) is None
    evaluate(made, 3)
    with pytest.raises(RunError, match="0 of 10 clients gave a valid evaluate reply"):
        made.aggregate_evaluate(3, [])


@pytest.mark.parametrize(
    ("sync", "names"),
    [
        ("fedavg", {PROMPTS, GATE_HIDDEN, GATE_OUTPUT}),
        ("local", {PROMPTS}),
        ("frozen", {PROMPTS}),
    ],
)
def test_what_each_method_averages(sync, names):
    assert set(strategy("mops", **{"gate-sync": sync}).averaged) == names
    assert strategy(**{"gate-sync": sync}).averaged == (PROMPTS,)
    assert strategy("base").averaged == ()


def test_bytes_are_those_of_the_tensors_sent():
    made = strategy()
    made.frozen = to_array_record({"pretrained": np.zeros((4, 3), np.float32)})
    asked = configure(made)
    contents = {p: changed(p) for p in asked}
    made.aggregate_train(1, [reply(asked[p], contents[p]) for p in asked])
    (result,) = made.observer.train
    assert result.bytes_up == sum(num_bytes(c[ARRAYS]) for c in contents.values())
    assert 5 * (2 * 3 + 4 * 3) * 4 <= result.bytes_down < 5 * 500


class TestAlone:
    def start(self, made):
        return to_array_record(made.initial({PROMPTS: np.zeros((2, 3), np.float32)}))

    def test_local_clients_all_train_and_keep_their_own(self):
        made = strategy(cls=Local)
        arrays = self.start(made)
        asked = sent(made.configure_train(1, arrays, ConfigRecord(), None))
        assert list(asked) == list(range(10))
        replies = [reply(asked[p], trained(p, np.full((2, 3), p + 1.0))) for p in asked if p != 4]
        after, _ = made.aggregate_train(1, replies)
        again = sent(made.configure_train(2, after, ConfigRecord(), None))
        for partition, message in again.items():
            own = from_array_record(message.content[ARRAYS])
            # client 4 gave no valid reply, and goes on from what it had
            assert own.keys() == {PROMPTS}
            assert (own[PROMPTS] == (0 if partition == 4 else partition + 1)).all()
        asked = sent(made.configure_evaluate(3, after, ConfigRecord(), None))
        assert (from_array_record(asked[7].content[ARRAYS])[PROMPTS] == 8).all()

    def test_a_client_that_was_not_there_at_the_start_has_no_tensors(self):
        arrays = self.start(strategy(cls=Local))
        other = Client(9, dataclasses.replace(description(9), partition=10))
        made = strategy(cls=Local, clients={**CLIENTS, 10: other})
        with pytest.raises(RunError, match="client 10 was not there when the run began"):
            made.configure_evaluate(4, arrays, ConfigRecord(), None)

    def test_unseen_tasks_are_in_no_total(self):
        clients = {
            p: dataclasses.replace(c, description=description(p, unseen_tasks=1))
            for p, c in CLIENTS.items()
        }
        made = strategy("mops", clients=clients, **{"eval-every": 1})
        assert made.unseen_tasks == ["odd"]
        asked = evaluate(made)
        metrics = made.aggregate_evaluate(1, [reply(asked[p], evaluated(p)) for p in asked])
        assert metrics["tokens"] == made.observer.evaluate[0].tallies["even"].tokens

    def test_what_trains_nothing_is_evaluated_on_all_clients_at_once(self):
        made = strategy("base", **{"evaluate-clients": 4, "eval-every": 1})
        assert list(evaluate(made, 0)) == list(range(10))

    def test_centralised_is_one_worker_with_the_rows_of_all(self):
        made = strategy(cls=Centralised)
        asked = sent(made.configure_train(1, self.start(made), ConfigRecord(), None))
        assert list(asked) == [0]
        rows = sum(EXAMPLES.values())
        after, _ = made.aggregate_train(1, [reply(asked[0], changed(0, examples=rows))])
        assert from_array_record(after).keys() == {PROMPTS}
        assert not made.observer.train[0].failures

    def test_clients_that_are_unseen_are_asked_to_evaluate_only(self):
        for cls in (PromptFedAvg, Local, Centralised):
            made = strategy(cls=cls, **{"unseen-clients": 0.3})
            assert len(made.trainees) == 7
            for server_round in range(1, 5):
                assert set(made.active(server_round)) <= set(made.trainees)
            arrays = self.start(made)
            asked = sent(made.configure_evaluate(4, arrays, ConfigRecord(), None))
            assert list(asked) == list(range(10))

    def test_unseen_clients_are_in_no_sum(self):
        made = strategy("mops", **{"eval-every": 1, "unseen-clients": 0.3})
        asked = evaluate(made)
        made.aggregate_evaluate(1, [reply(asked[p], evaluated(p)) for p in asked])
        (result,) = made.observer.evaluate
        assert list(result.clients) == list(range(10))
        seen = [result.clients[p] for p in made.trainees]
        assert result.tallies == merge(seen)
        assert sum(gate.examples for gate in result.gate.values()) == 3 * len(seen)


def test_a_sample_of_clients_is_evaluated_and_all_at_the_end():
    made = strategy(**{"evaluate-clients": 4, "eval-every": 1})
    first, second, last = (list(evaluate(made, server_round)) for server_round in (1, 2, 4))
    assert first == second
    assert len(first) == 4
    assert last == list(range(10))


class TestAdmission:
    def described(self, **changes):
        """Ten descriptions by node; `changes` holds other facts by partition: p3=dict(...)."""
        found = {}
        for partition, node in NODES.items():
            own = description(partition)
            found[node] = dataclasses.replace(own, **changes.get(f"p{partition}", {}))
        return found

    def admit(self, *, mixed=False, **changes):
        config = Config.from_flat({**FLAT, "mixed-backbones": mixed})
        return admit(config, self.described(**changes))

    def test_all_who_fit_together_take_part(self):
        clients, refused = self.admit()
        assert {p: client.node for p, client in clients.items()} == NODES
        assert list(clients) == list(range(10))
        assert refused == {}

    @pytest.mark.parametrize(
        ("facts", "named"),
        [
            ({"model_digest": "f" * 64}, "model-digest"),
            ({"tokenizer_digest": "f" * 64}, "tokenizer-digest"),
            ({"injection_layer": 2}, "injection-layer"),
            ({"sizes": dataclasses.replace(SIZES, num_layers=5)}, "num-layers"),
        ],
    )
    def test_another_backbone_is_refused_unless_allowed(self, facts, named):
        clients, refused = self.admit(p0=facts)
        assert list(clients) == list(range(1, 10))
        ((who, reason),) = refused.items()
        assert who == "client 0"
        assert named in reason
        assert "mixed-backbones=true" in reason
        assert not self.admit(mixed=True, p0=facts)[1]

    def test_tensors_must_fit_all_the_same(self):
        _, refused = self.admit(mixed=True, p7={"sizes": sizes(4)})
        assert list(refused) == ["client 7"]

    def test_two_nodes_with_one_partition_id_are_both_refused(self):
        clients, refused = self.admit(p4={"partition": 5})
        assert sorted(clients) == [0, 1, 2, 3, 6, 7, 8, 9]
        assert refused.keys() == {f"node {NODES[4]}", f"node {NODES[5]}"}

    def test_nobody(self):
        assert admit(Config.from_flat(FLAT), {}) == ({}, {})


def test_a_client_that_is_not_there_is_never_asked():
    made = strategy(clients={p: c for p, c in CLIENTS.items() if p not in (2, 5)})
    asked = {p for r in range(1, 5) for p in configure(made, r)}
    assert not asked & {2, 5}
    few = strategy(clients={p: CLIENTS[p] for p in (1, 8)})
    assert sorted(configure(few)) == [1, 8]


def test_weights_are_what_clients_described_before_round_one():
    clients = {
        p: dataclasses.replace(c, description=description(p, train=(1, 1)))
        for p, c in CLIENTS.items()
    }
    made = strategy(clients=clients)
    asked = configure(made)
    replies = [reply(asked[p], trained(p, np.full((2, 3), p), examples=2)) for p in asked]
    arrays, _ = made.aggregate_train(1, replies)
    assert from_array_record(arrays)[PROMPTS][0, 0] == pytest.approx(np.mean(list(asked)))
