"""A worker without Ray: a cohort replies as its clients alone."""

import pytest
from flwr.app import MessageType, RecordDict
from tasks import FLAT, HIDDEN, assert_close, configured, task, tensors_of, values

from mops_fl.engine.worker import CohortWorker
from mops_fl.metrics import total
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import (
    CONFIG,
    EXAMPLES,
    GATE,
    METRICS,
    PARTITION,
    PRETRAINED,
    PROMPTS,
    from_array_record,
    get_gate_sums,
    get_tallies,
    to_array_record,
)


@pytest.mark.parametrize("method", ["mops", "fedprompt"])
@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_a_cohort_replies_as_its_clients_alone(tiny_llama, method, mode):
    config = configured(tiny_llama, method=method, gate_mode=mode)
    start = values(config, gated=method == "mops")
    frozen = {PRETRAINED: values(config, 7)[PROMPTS]}
    tasks = [task(partition, start, frozen=frozen) for partition in range(6)]
    answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
    trainer = Trainer(config)
    sizes, lengths = set(), set()
    for partition, answer in enumerate(answers):
        alone = trainer.train(partition, 1, start, frozen)
        assert_close(tensors_of(answer), alone.tensors)
        metrics = answer.reply.content.metric_records[METRICS]
        assert metrics[EXAMPLES] == alone.examples
        tally = get_tallies(metrics)["all"]
        assert tally.tokens == alone.tally.tokens
        assert tally.nll == pytest.approx(alone.tally.nll, rel=1e-4)
        assert answer.reply.metadata.reply_to_message_id == f"message-{partition}"
        assert answer.reply.metadata.src_node_id == 10 + partition
        sizes.add(alone.examples)
        lengths |= {len(e.question) for e in trainer._local_data(partition, 1).examples}
    assert len(sizes) > 1
    assert len(lengths) > 1


@pytest.mark.parametrize("own_gates", [False, True])
def test_an_evaluated_cohort_replies_as_its_clients_alone(tiny_llama, own_gates):
    config = configured(tiny_llama, gate_sync="local")
    start = values(config)
    gates = [{name: values(config, own_gates * p)[name] for name in GATE} for p in range(6)]
    tasks = [
        task(
            partition,
            {PROMPTS: start[PROMPTS]},
            MessageType.EVALUATE,
            frozen={name: start[name] for name in GATE},
            state=RecordDict({"local-gate": to_array_record(gates[partition])}),
        )
        for partition in range(6)
    ]
    answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
    trainer = Trainer(config)
    for partition, answer in enumerate(answers):
        alone = trainer.evaluate(partition, {**start, **gates[partition]}, {})
        metrics = answer.reply.content.metric_records[METRICS]
        tallies, sums = get_tallies(metrics), get_gate_sums(metrics)
        assert {t: v.tokens for t, v in tallies.items()} == {
            t: v.tokens for t, v in alone.tallies.items()
        }
        assert total(tallies).nll == pytest.approx(total(alone.tallies).nll, rel=1e-4)
        for name, gate in alone.gate.items():
            assert sums[name].examples == gate.examples
            assert sums[name].weights == pytest.approx(gate.weights, rel=1e-3)


def test_a_local_gate_is_kept_for_the_next_round_and_beside_the_run(tiny_llama, tmp_path):
    config = configured(tiny_llama, gate_sync="local", run_dir=str(tmp_path))
    start = values(config)
    frozen = {name: start[name] for name in GATE}
    tasks = [task(p, {PROMPTS: start[PROMPTS]}, frozen=frozen) for p in (0, 3)]
    answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
    for partition, answer in zip((0, 3), answers, strict=True):
        assert tensors_of(answer).keys() == {PROMPTS}
        kept = from_array_record(answer.state["local-gate"])
        assert kept.keys() == set(GATE)
        assert all((kept[name] != start[name]).any() for name in GATE)
        assert (tmp_path / "gates" / f"{partition:04d}" / "round-001.safetensors").is_file()


def test_queries_are_answered(config):
    worker = CohortWorker(config, "cpu", 1)
    kind = f"{MessageType.QUERY}.describe"
    answers = worker.serve([task(p, values(config), kind) for p in range(6)]).answers
    records = [answer.reply.content.config_records[CONFIG] for answer in answers]
    assert [record[PARTITION] for record in records] == list(range(6))
    assert records[0]["hidden-size"] == HIDDEN
    assert sum(sum(r["train"]) + sum(r["test"]) for r in records) == FLAT["num-samples"]
    kind = f"{MessageType.QUERY}.pretrain"
    (answer,) = worker.serve([task(0, values(config), kind)]).answers
    assert tensors_of(answer).keys() == {PROMPTS, PRETRAINED, *GATE}
    (answer,) = worker.serve([task(0, values(config), f"{MessageType.QUERY}.other")]).answers
    assert "no client answers" in answer.reply.error.reason
