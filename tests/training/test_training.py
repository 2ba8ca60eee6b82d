"""The local loop, evaluation and pretraining on a tiny LLaMA."""

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from trainables import initial_tensors
from transformers import LlamaForCausalLM

from mops_fl.activity import listening
from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.errors import DataError
from mops_fl.metrics import total
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable
from mops_fl.training.evaluation import evaluate, evaluate_clients
from mops_fl.training.local import LocalData, draw_order, train
from mops_fl.training.pretraining import pretrain_gate, pretrain_prompt
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import GATE, PRETRAINED, PROMPTS

FLAT = {"experts": 3, "prompts-per-expert": 2, "gate-hidden": 8, "local-steps": 4}
CONFIG = Config.from_flat(FLAT)
HIDDEN = 32


@pytest.fixture
def backbone(tiny_llama) -> Backbone:
    return Backbone(LlamaForCausalLM.from_pretrained(tiny_llama))


def examples(count: int, task: str = "task", seed: int = 0) -> list[Tokenised]:
    generator = np.random.default_rng(seed)
    draw = generator.integers
    return [
        Tokenised(
            tuple(draw(0, 256, draw(2, 12)).tolist()),
            tuple(draw(0, 256, draw(1, 8)).tolist()),
            task,
        )
        for _ in range(count)
    ]


def data(rows, config=CONFIG.train, client=0) -> LocalData:
    return LocalData(rows, draw_order(len(rows), config.local_steps * config.batch_size, 0, client))


def initial(gated=True, seed=0):
    return initial_tensors(CONFIG.prompts, HIDDEN, seed, gated)


@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_after_evaluation_and_a_step_all_trainables_moved_and_the_backbone_did_not(backbone, mode):
    layout = replace(CONFIG.prompts, gate_mode=mode)
    mixture = Mixture(backbone, layout, 1, torch.randn(6, HIDDEN))
    rows = examples(3)
    before = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    evaluate(mixture, Trainable([initial()], backbone.device), rows)
    config = replace(CONFIG.train, local_steps=1)
    (result,) = train(mixture, [initial()], [data(rows, config)], config)
    assert result.tensors.keys() == initial().keys()
    for name, value in result.tensors.items():
        changed = value != initial()[name]
        assert changed.any(), name
    assert (result.tensors[PROMPTS] != initial()[PROMPTS]).all()
    for name, weight in backbone.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_local_steps_are_adamw_on_the_mean_answer_loss(backbone):
    """Against the same steps written with torch's optimiser on a loss from `evaluate`'s path."""
    mixture = Mixture(backbone, CONFIG.prompts, 1, None)
    rows = examples(3)
    config = replace(CONFIG.train, local_steps=3, batch_size=2)
    (result,) = train(mixture, [initial()], [data(rows, config)], config)

    from mops_fl.models.mixture import collate

    trainable = Trainable([initial()], backbone.device)
    optimiser = torch.optim.AdamW(list(trainable.tensors.values()), lr=1e-3, weight_decay=0)
    order = data(rows, config).order
    nll_sum = tokens = 0
    for step in range(3):
        batch = collate([rows[i] for i in order[2 * step : 2 * step + 2]], backbone.device)
        states = mixture.prefix_states(batch)
        nll, _ = mixture.nll(trainable, batch, states, mixture.gate_features(states, batch))
        optimiser.zero_grad()
        (nll.sum() / len(batch.targets)).backward()
        optimiser.step()
        nll_sum += nll.sum().item()
        tokens += len(batch.targets)
    for name, value in result.tensors.items():
        np.testing.assert_allclose(value, trainable.tensors[name][0].detach(), rtol=1e-5, atol=1e-6)
    assert result.tally.tokens == tokens
    assert result.tally.nll == pytest.approx(nll_sum, rel=1e-5)
    assert (result.examples, result.steps) == (3, 3)


def test_the_proximal_term_is_half_mu_times_the_squared_distance(backbone):
    """FedProx: against autograd of the whole loss."""
    mixture = Mixture(backbone, CONFIG.prompts, 1, None)
    rows = examples(3)
    config = replace(CONFIG.train, local_steps=3, learning_rate=0.05, proximal=0.7)
    (result,) = train(mixture, [initial()], [data(rows, config)], config)

    from mops_fl.models.mixture import collate

    trainable = Trainable([initial()], backbone.device)
    start = {name: value.detach().clone() for name, value in trainable.tensors.items()}
    optimiser = torch.optim.AdamW(list(trainable.tensors.values()), lr=0.05, weight_decay=0)
    for index in data(rows, config).order:
        batch = collate([rows[index]], backbone.device)
        states = mixture.prefix_states(batch)
        nll, _ = mixture.nll(trainable, batch, states, mixture.gate_features(states, batch))
        away = sum((trainable.tensors[name] - start[name]).square().sum() for name in start)
        optimiser.zero_grad()
        (nll.sum() / len(batch.targets) + 0.7 / 2 * away).backward()
        optimiser.step()
    (free,) = train(mixture, [initial()], [data(rows, config)], replace(config, proximal=0.0))
    for name, value in result.tensors.items():
        np.testing.assert_allclose(value, trainable.tensors[name][0].detach(), rtol=1e-4, atol=1e-5)
        assert not np.allclose(value, free.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_cohort_trains_as_its_clients_alone(backbone, batch_size):
    mixture = Mixture(backbone, CONFIG.prompts, 1, torch.randn(6, HIDDEN))
    config = replace(CONFIG.train, batch_size=batch_size)
    held = [data(examples(n, seed=n), config, client=n) for n in (2, 5, 9)]
    clients = [initial(seed=n) for n in (1, 2, 3)]
    together = train(mixture, clients, held, config)
    for values, own, result in zip(clients, held, together, strict=True):
        (alone,) = train(mixture, [values], [own], config)
        assert result.tally.tokens == alone.tally.tokens
        assert result.tally.nll == pytest.approx(alone.tally.nll, rel=1e-5)
        for name, value in alone.tensors.items():
            np.testing.assert_allclose(result.tensors[name], value, rtol=1e-4, atol=2e-5)


def test_a_frozen_gate_is_left_alone(backbone):
    mixture = Mixture(backbone, CONFIG.prompts, 1, None)
    (result,) = train(mixture, [initial()], [data(examples(3))], CONFIG.train, trained={PROMPTS})
    assert set(result.tensors) == {PROMPTS}


def test_training_lowers_the_loss(backbone):
    mixture = Mixture(backbone, CONFIG.prompts, 1, None)
    rows = examples(2)
    config = replace(CONFIG.train, local_steps=60, learning_rate=0.05)
    start = total(evaluate(mixture, Trainable([initial()], backbone.device), rows).tallies)
    (result,) = train(mixture, [initial()], [data(rows, config)], config)
    end = total(evaluate(mixture, Trainable([result.tensors], backbone.device), rows).tallies)
    assert end.perplexity < 0.5 * start.perplexity


def test_order_is_reshuffled_passes():
    order = draw_order(5, 12, 7, 3, 1)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]
    assert order == draw_order(5, 12, 7, 3, 1) != draw_order(5, 12, 7, 3, 2)
    with pytest.raises(DataError, match="no training examples"):
        draw_order(0, 1, 0, "client")


def test_evaluation_is_the_sum_over_tasks_in_any_order(backbone):
    mixture = Mixture(backbone, CONFIG.prompts, 1, None)
    rows = examples(6, "one") + examples(5, "two", seed=1)
    trainable = Trainable([initial()], backbone.device)
    whole = evaluate(mixture, trainable, rows)
    assert {t: s.tokens for t, s in whole.tallies.items()} == {
        t: sum(len(r.answer) for r in rows if r.task == t) for t in ("one", "two")
    }
    alone = [evaluate(mixture, trainable, [row]) for row in rows]
    assert total(whole.tallies).nll == pytest.approx(
        sum(total(a.tallies).nll for a in alone), rel=1e-6
    )
    for gate in whole.gate.values():
        assert math.isclose(sum(gate.mean), 1, rel_tol=1e-5)
    assert whole.gate["one"].examples == 6


def test_prompt_pretraining_lowers_the_loss_it_is_for(backbone):
    layout = replace(CONFIG.prompts, pretrain_prompt_steps=40)
    config = replace(CONFIG.train, learning_rate=0.05)
    rows = examples(2)
    start = initial(gated=False)[PROMPTS]
    trained = pretrain_prompt(backbone, layout, config, rows, start, 0)[PRETRAINED]
    assert trained.shape == start.shape
    at_input = Mixture(backbone, layout, 0, None)
    before, after = (
        total(evaluate(at_input, Trainable([{PROMPTS: p}], backbone.device), rows).tallies)
        for p in (start, trained)
    )
    assert after.perplexity < 0.7 * before.perplexity


def test_gate_pretraining_gives_each_task_its_expert_without_answers(backbone):
    layout = replace(CONFIG.prompts, pretrain_gate_steps=300)
    mixture = Mixture(backbone, layout, 1, torch.randn(6, HIDDEN))
    tasks = ("a", "b", "c")
    # three tasks of quite different questions
    rows = [
        Tokenised((40 + 60 * k, 41 + 60 * k, 40 + 60 * k + i % 3), (i,), task)
        for k, task in enumerate(tasks)
        for i in range(8)
    ]
    values = pretrain_gate(mixture, initial(), rows, tasks, 0)
    other_answers = [replace(row, answer=(9, 9, 9)) for row in rows]
    again = pretrain_gate(mixture, initial(), other_answers, tasks, 0)
    assert all((values[name] == again[name]).all() for name in values)
    np.testing.assert_array_equal(values[PROMPTS], initial()[PROMPTS])
    gate = evaluate(mixture, Trainable([values], backbone.device), rows).gate
    for expert, task in enumerate(tasks):
        assert np.argmax(gate[task].mean) == expert
        assert max(gate[task].mean) > 0.5


@pytest.mark.parametrize("method", ["train", "prompt", "gate", "evaluate"])
def test_what_is_called_every_step_changes_no_bit(backbone, method):
    """Steps, and for the gate batches of questions before them, each once and in order."""
    layout = replace(CONFIG.prompts, pretrain_prompt_steps=4, pretrain_gate_steps=3)
    mixture, rows = Mixture(backbone, layout, 1, torch.randn(6, HIDDEN)), examples(5)
    prompts = initial()[PROMPTS]

    def result(**called):
        if method == "train":
            held = [data(rows), data(rows, client=1)]
            found = train(mixture, [initial(), initial(seed=1)], held, CONFIG.train, **called)
            return [value for one in found for value in (*one.tensors.values(), one.tally.nll)]
        if method == "prompt":
            found = pretrain_prompt(backbone, layout, CONFIG.train, rows, prompts, 0, **called)
            return list(found.values())
        if method == "gate":
            return list(pretrain_gate(mixture, initial(), rows, ("task",), 0, **called).values())
        (found,) = evaluate_clients(
            mixture, Trainable([initial()], backbone.device), [rows], **called
        )
        return [found.tallies["task"].nll, *found.gate["task"].mean]

    calls = []
    told = result(on_step=lambda done, of: calls.append((done, of)))
    assert all(np.array_equal(one, other) for one, other in zip(told, result(), strict=True))
    steps = {"train": 4, "prompt": 4, "gate": 1 + 3, "evaluate": 5}[method]
    assert calls[-1] == (steps, steps)
    if method != "evaluate":
        assert calls == [(step + 1, steps) for step in range(steps)]


class TestTrainer:
    FLAT: ClassVar = {
        **FLAT,
        "num-samples": 120,
        "num-clients": 6,
        "active-clients": 2,
        "pretrain-gate-steps": 3,
        "pretrain-prompt-steps": 2,
    }

    def trainer(self, tiny_llama, **changes) -> Trainer:
        return Trainer(Config.from_flat({**self.FLAT, "model": str(tiny_llama), **changes}))

    def test_clients_share_nothing_and_cover_everything(self, tiny_llama):
        trainer = self.trainer(tiny_llama, **{"pretrain-data": "pooled", "server-fraction": 0.0})
        counted = 0
        for partition in range(6):
            holding = trainer.holding(partition)
            counted += sum(holding.train.values()) + sum(holding.test.values())
        assert counted == 120

    @pytest.mark.parametrize("init", ["random", "vocab"])
    def test_pretrain_train_evaluate(self, tiny_llama, init):
        trainer = self.trainer(tiny_llama, **{"prompt-init": init})
        start = initial_tensors(trainer.config.prompts, HIDDEN, 0, True)
        values = trainer.pretrain(start)
        assert values.keys() == {PROMPTS, PRETRAINED, *GATE}
        assert (values[PROMPTS] == start[PROMPTS]).all() == (init == "random")
        frozen = {PRETRAINED: values.pop(PRETRAINED)}
        result = trainer.train(2, 1, values, frozen)
        again = trainer.train(2, 1, values, frozen)
        other = trainer.train(2, 2, values, frozen)
        assert all((result.tensors[n] == again.tensors[n]).all() for n in values)
        assert not all((result.tensors[n] == other.tensors[n]).all() for n in values)
        evaluation = trainer.evaluate(2, result.tensors, frozen)
        held_out = {t: n for t, n in trainer.holding(2).test.items() if n}
        assert {t: g.examples for t, g in evaluation.test.gate.items()} == held_out

    def test_it_says_what_it_is_doing(self, tiny_llama, tmp_path, monkeypatch):
        monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
        trainer = self.trainer(tiny_llama, **{"pretrain-data": "pooled", "dtype": "float32"})
        values = initial_tensors(trainer.config.prompts, HIDDEN, 0, True)
        heard = []
        with listening(heard.append):
            values = trainer.pretrain(values)
            frozen = {PRETRAINED: values.pop(PRETRAINED)}
            trainer.train_cohort([0, 1], 1, [values, values], frozen)
            trainer.evaluate(2, values, frozen)
        ended = [each for each in heard if each and each.seconds is not None]
        held_out = sum(trainer.holding(2).test.values())
        assert [(each.what, each.done, each.of, each.clients) for each in ended] == [
            ("tokens of 120 rows", 0, 0, 0),
            ("steps of the prompt", 2, 2, 0),
            ("steps of the gate", 6, 6, 0),
            ("steps", 4, 4, 2),
            ("examples", held_out, held_out, 1),
        ]

    def test_eval_samples_bounds_each_client(self, tiny_llama):
        trainer = self.trainer(tiny_llama, **{"eval-samples": 1, "test-fraction": 0.5})
        values = initial_tensors(trainer.config.prompts, HIDDEN, 0, True)
        gate = trainer.evaluate(0, values, {}).test.gate
        assert sum(g.examples for g in gate.values()) == 1

    def own(self, model, path, lines: list[str], **changes) -> Trainer:
        path.write_text("\n".join(lines))
        flat = {**self.FLAT, "model": str(model), "dataset": "jsonl", "data-path": str(path)}
        column = {"partition": "natural-id", "partition-column": "user"}
        return Trainer(Config.from_flat({**flat, **column, **changes}), own_data=True)

    def test_own_data_may_be_few_rows_of_some_tasks(self, tiny_llama, tmp_path):
        lines = ['{"prompt": "a", "response": "b", "task": "one"}'] * 3
        other = ['{"prompt": "a", "response": "b", "task": "other"}']
        trainer = self.own(tiny_llama, tmp_path / "own", lines + other, tasks="two,one")
        holding = trainer.holding(4)
        assert (holding.train, holding.test) == ({"two": 0, "one": 2}, {"two": 0, "one": 1})
        values = initial_tensors(trainer.config.prompts, HIDDEN, 0, True)
        assert trainer.evaluate(4, values, {}).test.tallies.keys() == {"one"}

    def test_own_data_of_one_row_are_trained_on(self, tiny_llama, tmp_path):
        trainer = self.own(tiny_llama, tmp_path / "own", ['{"prompt": "a", "response": "b"}'])
        holding = trainer.holding(4)
        assert (sum(holding.train.values()), sum(holding.test.values())) == (1, 0)
        values = initial_tensors(trainer.config.prompts, HIDDEN, 0, True)
        assert trainer.train(4, 1, values, {}).tally.tokens > 0
        assert trainer.evaluate(4, values, {}).test.tallies == {}

    def test_own_data_of_no_row_are_refused_before_any_work(self, tiny_llama, tmp_path):
        trainer = self.own(tiny_llama, tmp_path / "own", ['{"prompt": "a", "response": ""}'])
        with pytest.raises(DataError, match="has no usable row"):
            trainer.holding(4)


def test_a_pretrained_gate_keeps_learning(backbone):
    """Inputs that hardly differ must not push every hidden unit below zero for good."""
    layout = replace(CONFIG.prompts, pretrain_gate_steps=300, gate_hidden=64)
    mixture = Mixture(backbone, layout, 1, 30 * torch.ones(40, HIDDEN))
    start = initial_tensors(layout, HIDDEN, 0, True)
    rows = examples(12, "a") + examples(12, "b", seed=1)
    values = pretrain_gate(mixture, start, rows, ("a", "b"), 0)
    (result,) = train(mixture, [values], [data(rows)], CONFIG.train)
    for name in GATE:
        moved = (result.tensors[name] != values[name]).any(1)
        assert moved.mean() > 0.25, name
