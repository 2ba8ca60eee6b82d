"""Malicious clients: what they send is an attack, valid, and never the end of a run."""

import numpy as np
import pytest
from flwr.app import MessageType
from tasks import configured, task

from mops_fl.data import malicious_partitions, unseen_partitions
from mops_fl.engine.worker import CohortWorker
from mops_fl.training.attack import attacked
from mops_fl.training.trainer import Trainer
from mops_fl.wire.parsing import LARGEST_VALUE
from mops_fl.wire.records import PRETRAINED
from mops_fl.wire.replies import Evaluated, EvaluationAsked, Trained, TrainingAsked

METHODS = ("mops", "fedprompt", "prompt-tuning", "lora", "ia3")


def read(answer, shapes, config, experts: int = 0) -> Trained:
    """As a server reads it: what it refuses raises."""
    content = answer.reply.content
    examples = content.metric_records["metrics"]["num-examples"]
    tokens = config.train.local_steps * config.data.max_length
    steps = config.train.local_steps
    return Trained.read(content, TrainingAsked(shapes, examples, steps, tokens, experts))


def shapes_of(tensors):
    return {name: value.shape for name, value in tensors.items()}


def test_the_seed_draws_them_from_those_that_train(tiny_llama):
    values = {"num_clients": 10, "unseen_clients": 0.5, "malicious_clients": 4}
    drawn = {
        seed: malicious_partitions(configured(tiny_llama, seed=seed, **values)) for seed in range(8)
    }
    assert len(set(drawn.values())) > 1
    for seed, malicious in drawn.items():
        config = configured(tiny_llama, seed=seed, **values)
        assert malicious == malicious_partitions(config)
        assert len(malicious) == 4
        assert not malicious & unseen_partitions(config.partition, seed)


@pytest.mark.parametrize("attack", ["noise", "sign-flip", "scale"])
def test_only_the_malicious_send_an_attack(tiny_llama, attack):
    values = {"attack": attack, "attack_scale": 3.0, "method": "fedprompt"}
    config = configured(tiny_llama, malicious_clients=2, **values)
    honest = Trainer(configured(tiny_llama, **values))
    start = honest.method.initial(config, honest.model_facts.sizes, 0)
    answers = CohortWorker(config, "cpu", 1).serve([task(p, start) for p in range(6)]).answers
    malicious = malicious_partitions(config)
    for partition, answer in enumerate(answers):
        sent = read(answer, shapes_of(start), config).tensors["prompts"] - start["prompts"]
        update = honest.train(partition, 1, start, {}).tensors["prompts"] - start["prompts"]
        if partition not in malicious:
            np.testing.assert_allclose(sent, update, rtol=1e-3, atol=1e-5)
            continue
        ratio = np.linalg.norm(sent) / np.linalg.norm(update)
        cosine = (sent * update).sum() / np.linalg.norm(sent) / np.linalg.norm(update)
        assert ratio == pytest.approx(3, rel=1e-2)
        expected = {"noise": 0, "sign-flip": -1, "scale": 1}[attack]
        assert cosine == pytest.approx(expected, abs=0.5 if attack == "noise" else 1e-3)


def test_an_attack_stays_in_the_range_that_a_server_accepts(tiny_llama):
    config = configured(tiny_llama, attack="scale", attack_scale=1e30).aggregation
    sent = {"prompts": np.zeros((2, 3), np.float32)}
    made = {"prompts": np.full((2, 3), -2.0, np.float32), "gate.output": np.ones(2, np.float32)}
    spoilt = attacked(sent, made, config, 0, 1)
    assert (spoilt["prompts"] == -LARGEST_VALUE).all()
    assert spoilt["gate.output"] is made["gate.output"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_tensors_as_large_as_they_may_be_are_trained_and_evaluated(tiny_llama, method, dtype):
    config = configured(tiny_llama, method=method, dtype=dtype)
    trainer = Trainer(config)
    draw = np.random.default_rng(0)
    start = {
        name: draw.choice([-LARGEST_VALUE, LARGEST_VALUE], shape).astype(np.float32)
        for name, shape in trainer.method.all_shapes(config, trainer.model_facts.sizes).items()
        if name != PRETRAINED
    }
    worker = CohortWorker(config, "cpu", 1)
    for answer in worker.serve([task(p, start) for p in range(4)]).answers:
        read(answer, shapes_of(start), config)
    for p, answer in enumerate(
        worker.serve([task(p, start, MessageType.EVALUATE) for p in range(4)]).answers
    ):
        described = trainer.description(p)
        rows = dict(zip(described.tasks, described.test, strict=True))
        experts = 3 if trainer.method.gated else 0
        asked = EvaluationAsked(
            rows=rows,
            validation=dict.fromkeys(rows, 0),
            tokens_a_row=config.data.max_length,
            experts=experts,
            known=None,
            known_validation=None,
        )
        assert sum(t.nll for t in Evaluated.read(answer.reply.content, asked).tallies.values()) > 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_client_with_such_tensors_leaves_its_cohort_alone(tiny_llama, method, dtype):
    config = configured(tiny_llama, method=method, dtype=dtype)
    trainer = Trainer(config)
    sound = trainer.method.initial(config, trainer.model_facts.sizes, 0)
    spoilt = {name: np.full_like(value, LARGEST_VALUE) for name, value in sound.items()}
    answers = CohortWorker(config, "cpu", 1).serve([task(0, spoilt), task(1, sound)]).answers
    read(answers[0], shapes_of(sound), config)
    own, alone = read(answers[1], shapes_of(sound), config), trainer.train(1, 1, sound, {})
    # what half precision rounds, AdamW widens: there the losses tell
    assert own.tally.nll == pytest.approx(alone.tally.nll, rel=1e-4 if dtype == "float32" else 1e-2)
    for name, value in own.tensors.items() if dtype == "float32" else ():
        np.testing.assert_allclose(value, alone.tensors[name], rtol=1e-3, atol=1e-4)


def test_a_client_that_cannot_train_is_named(tiny_llama):
    config = configured(tiny_llama, method="fedprompt", dtype="float16")
    trainer = Trainer(config)
    sound = trainer.method.initial(config, trainer.model_facts.sizes, 0)
    spoilt = {name: np.full_like(value, LARGEST_VALUE) for name, value in sound.items()}
    worker = CohortWorker(config, "cpu", 1)
    (warning,) = worker.serve([task(0, sound), task(2, spoilt)]).warnings
    assert "gradients of client 2 were not finite" in warning
    assert worker.serve([task(0, sound), task(1, sound)]).warnings == []


def test_the_mean_gate_travels_where_it_counts_only(tiny_llama):
    config = configured(tiny_llama, aggregation="gate-weighted", local_steps=1)
    trainer = Trainer(config)
    start = trainer.method.initial(config, trainer.model_facts.sizes, 0)
    answers = CohortWorker(config, "cpu", 1).serve([task(p, start) for p in range(3)]).answers
    gates = [read(answer, shapes_of(start), config, 3).gate for answer in answers]
    assert len(set(gates)) == 3
    for partition, gate in enumerate(gates):
        assert sum(gate) == pytest.approx(1)
        assert gate == pytest.approx(trainer.train(partition, 1, start, {}).gate)
    plain = Trainer(configured(tiny_llama, local_steps=1))
    assert plain.train(0, 1, start, {}).gate == ()
