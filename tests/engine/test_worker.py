"""A worker without Ray: a cohort replies as its clients alone."""

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Context, MessageType, RecordDict
from tasks import (
    ASSIGNMENT,
    FLAT,
    HIDDEN,
    RUN,
    assert_close,
    configured,
    instruction,
    task,
    tensors_of,
    values,
)

from mops_fl.engine.worker import CohortWorker
from mops_fl.errors import RunError
from mops_fl.files import cache_folder
from mops_fl.metrics import total
from mops_fl.training import local_gate
from mops_fl.training.tasks import Task
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import (
    GATE,
    METRICS,
    PRETRAINED,
    PROMPTS,
    from_array_record,
    to_array_record,
)
from mops_fl.wire.replies import Description, Evaluated, EvaluationAsked
from mops_fl.wire.requests import PRETRAIN, Assignment, PretrainRequest


@pytest.mark.parametrize("method", ["mops", "fedprompt"])
@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_a_cohort_replies_as_its_clients_alone(tiny_llama, method, mode):
    config = configured(tiny_llama, method=method, gate_mode=mode, pretrain_prompt_steps=1)
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
        assert metrics["num-examples"] == alone.examples
        assert metrics["tokens"] == alone.tally.tokens
        assert metrics["nll"] == pytest.approx(alone.tally.nll, rel=1e-4)
        assert answer.reply.metadata.reply_to_message_id == f"message-{partition}"
        assert answer.reply.metadata.src_node_id == 10 + partition
        sizes.add(alone.examples)
        lengths |= {len(e.question) for e in trainer._examples(trainer._trained_on(partition))}
    assert len(sizes) > 1
    assert len(lengths) > 1


@pytest.mark.parametrize("training", ["federated", "centralised"])
@pytest.mark.parametrize("method", ["prompt-tuning", "lora", "ia3", "mops"])
def test_every_methods_cohort_replies_as_its_clients_alone(tiny_llama, method, training):
    config = configured(tiny_llama, method=method, training=training, gate_top=1)
    trainer = Trainer(config)
    start = trainer.method.initial(config, trainer.model_facts.sizes, 0)
    worker = CohortWorker(config, "cpu", 1)
    for partition, answer in enumerate(worker.serve([task(p, start) for p in range(4)]).answers):
        alone = trainer.train(partition, 1, start, {})
        assert_close(tensors_of(answer), alone.tensors)
        metrics = answer.reply.content.metric_records[METRICS]
        assert metrics["nll"] == pytest.approx(alone.tally.nll, rel=1e-4)
        assert metrics["num-examples"] == alone.examples


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
            state=RecordDict(
                {
                    "local-gate": to_array_record(gates[partition]),
                    "local-gate-round": ConfigRecord({"server-round": 1}),
                }
            ),
            assignment=Assignment(RUN, 1, 1, 2),
        )
        for partition in range(6)
    ]
    answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
    trainer = Trainer(config)
    for partition, answer in enumerate(answers):
        alone = trainer.evaluate(partition, {**start, **gates[partition]}, {})
        rows = dict.fromkeys(trainer.corpus.tasks, 100)
        asked = EvaluationAsked(rows, {}, config.data.max_length, config.prompts.experts, None)
        found = Evaluated.read(answer.reply.content, asked)
        tallies, sums = found.tallies, found.gate
        assert {t: v.tokens for t, v in tallies.items()} == {
            t: v.tokens for t, v in alone.test.tallies.items()
        }
        assert total(tallies).nll == pytest.approx(total(alone.test.tallies).nll, rel=1e-4)
        for name, gate in alone.test.gate.items():
            assert sums[name].examples == gate.examples
            assert sums[name].weights == pytest.approx(gate.weights, rel=1e-3)


def test_a_local_gate_is_kept_for_the_next_round_and_for_a_resumed_run(tiny_llama):
    config = configured(tiny_llama, gate_sync="local")
    start = values(config)
    frozen = {name: start[name] for name in GATE}
    tasks = [task(p, {PROMPTS: start[PROMPTS]}, frozen=frozen) for p in (0, 3)]
    answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
    for partition, answer in zip((0, 3), answers, strict=True):
        assert tensors_of(answer).keys() == {PROMPTS}
        kept = from_array_record(answer.state["local-gate"])
        assert kept.keys() == set(GATE)
        assert all((kept[name] != start[name]).any() for name in GATE)
        context = Context(1, 1, {}, answer.state, {})
        for state in (answer.state, RecordDict()):
            context = Context(1, 1, {}, state, {})
            found = local_gate.kept(context, partition, Assignment(RUN, 5, 1, 2))
            assert all((found[name] == kept[name]).all() for name in GATE)
    with pytest.raises(RunError, match="client 0 trained its gate in round 4, and it is not"):
        local_gate.kept(context, 0, Assignment(RUN, 5, 4, 2))


def test_only_gates_that_may_be_wanted_are_kept(tiny_llama):
    gate = {name: value for name, value in values(configured(tiny_llama)).items() if name in GATE}
    context = Context(1, 1, {}, RecordDict(), {})
    for current, last in ((1, 0), (2, 1), (4, 2), (1000, 2), (1002, 1000)):
        local_gate.keep(gate, context, 7, Assignment("1" * 32, current, last, 2))
    folder = cache_folder() / "gates" / ("1" * 32) / "0007"
    assert {file.name for file in folder.iterdir()} == {
        "round-1000.safetensors",
        "round-1002.safetensors",
    }


def test_queries_are_answered(tiny_llama):
    config = configured(
        tiny_llama, pretrain_prompt_steps=2, pretrain_gate_steps=2, server_fraction=0.1
    )
    worker = CohortWorker(config, "cpu", 1)
    kind = f"{MessageType.QUERY}.describe"
    asked = [task(p, values(config), kind) for p in range(6)]
    answers = worker.serve(asked).answers
    described = [Description.read(answer.reply.content, 6) for answer in answers]
    assert [each.partition for each in described] == list(range(6))
    assert described[0].sizes.hidden_size == HIDDEN
    held = sum(each.examples + sum(each.test) for each in described)
    # the server has a tenth of each of seven tasks
    assert 0.8 * FLAT["num-samples"] < held < FLAT["num-samples"]
    kind = f"{MessageType.QUERY}.pretrain"
    initial = task(0, values(config), kind)
    request = PretrainRequest(values(config), described[0].tasks)
    initial = replace(initial, message=instruction(request.content(), kind, 0))
    (answer,) = worker.serve([initial]).answers
    assert tensors_of(answer).keys() == {PROMPTS, PRETRAINED, *GATE}
    (answer,) = worker.serve([task(0, values(config), f"{MessageType.QUERY}.other")]).answers
    assert "no client answers" in answer.reply.error.reason


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE, PRETRAIN])
def test_other_code_than_the_servers_computes_nothing(tiny_llama, kind):
    config = configured(tiny_llama, method="fedprompt", pretrain_data="pooled")
    tensors = values(config, gated=False)
    other = task(1, tensors, kind, assignment=replace(ASSIGNMENT, code="0" * 64))
    if kind == PRETRAIN:
        content = PretrainRequest(tensors, ("a",), code="0" * 64).content()
        other = Task(instruction(content, kind, 1), other.context)
    (answer,) = CohortWorker(config, "cpu", 1).serve([other]).answers
    assert "is another than the server's" in answer.reply.error.reason
