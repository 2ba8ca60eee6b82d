"""A worker without Ray: failures stay with their client, and cohorts fit into memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tasks import assert_close, configured, task, tensors_of, values

from mops_fl.engine.worker import CohortWorker
from mops_fl.errors import DataError
from mops_fl.metrics import total
from mops_fl.models.backbone import load_backbone
from mops_fl.models.mixture import Mixture
from mops_fl.training import messages
from mops_fl.training.tasks import NotStartedError
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import CONFIG, PRETRAINED, PROMPTS
from mops_fl.wire.requests import TRAIN


class TestFailures:
    def check(self, config, answers, culprit: int, reason: str) -> None:
        trainer = Trainer(config)
        for partition, answer in enumerate(answers):
            if partition == culprit:
                assert reason in answer.reply.error.reason
            else:
                alone = trainer.train(partition, 1, values(config), {})
                assert_close(tensors_of(answer), alone.tensors)

    def test_bad_tensors(self, config):
        tasks = [task(p, values(config)) for p in range(4)]
        tasks[2] = task(2, {**values(config), PROMPTS: np.zeros((2, 2))})
        answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
        self.check(config, answers, 2, "prompts: numpy.ndarray of float32, shape (2, 2) instead")

    def test_a_message_without_a_round(self, config):
        tasks = [task(p, values(config)) for p in range(3)]
        del tasks[1].message.content[CONFIG]
        answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
        self.check(config, answers, 1, "a train message: records")

    @pytest.mark.parametrize("part", ["backbone", "tokenised"])
    @pytest.mark.parametrize("kind", ["train", "evaluate", "query.describe", "query.pretrain"])
    def test_what_cannot_be_loaded_is_the_workers_failure(self, config, monkeypatch, part, kind):
        def load(_trainer):
            calls.append(part)
            raise torch.OutOfMemoryError("CUDA out of memory")

        calls: list[str] = []
        monkeypatch.setattr(Trainer, part, property(load))
        with pytest.raises(NotStartedError, match="OutOfMemoryError: CUDA out of memory"):
            CohortWorker(config, "cpu", 1).serve([task(p, values(config), kind) for p in range(4)])
        assert len(calls) == 1

    def test_no_data(self, config, monkeypatch):
        whole = Trainer._local_data

        def empty(self, partition, *arguments):
            if partition == 0:
                raise DataError("no training examples for 0/1")
            return whole(self, partition, *arguments)

        monkeypatch.setattr(Trainer, "_local_data", empty)
        answers = (
            CohortWorker(config, "cpu", 1)
            .serve([task(p, values(config)) for p in range(3)])
            .answers
        )
        monkeypatch.undo()
        self.check(config, answers, 0, "no training examples for 0/1")
        assert answers[0].reply.error.reason == "no training examples for 0/1"

    def test_values_that_are_not_finite(self, config):
        tasks = [task(p, values(config)) for p in range(3)]
        bad = {name: np.full_like(value, np.nan) for name, value in values(config).items()}
        tasks[1] = task(1, bad)
        answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
        self.check(config, answers, 1, "has NaN or infinite values")

    def test_a_reply_that_cannot_be_made_trains_no_neighbour_twice(self, config, monkeypatch):
        calls = []

        def trained(work, context, result):
            calls.append(work.partition)
            if calls[-1] == 1:
                raise OSError("the disk is full")
            return action.reply(work, context, result)

        action = messages.ACTIONS[TRAIN]
        monkeypatch.setitem(messages.ACTIONS, TRAIN, replace(action, reply=trained))
        answers = (
            CohortWorker(config, "cpu", 1)
            .serve([task(p, values(config)) for p in range(3)])
            .answers
        )
        assert calls == [0, 1, 2]
        assert answers[1].reply.error.reason == "OSError: the disk is full"

    def test_another_round_or_pretrained_prompt_is_another_cohort(self, tiny_llama):
        config = configured(tiny_llama, pretrain_prompt_steps=1)
        first, second = ({PRETRAINED: values(config, n)[PROMPTS]} for n in (7, 8))
        tasks = [task(p, values(config), frozen=(first, second)[p % 2]) for p in range(4)]
        answers = CohortWorker(config, "cpu", 1).serve(tasks).answers
        trainer = Trainer(config)
        for partition, answer in enumerate(answers):
            frozen = (first, second)[partition % 2]
            alone = trainer.train(partition, 1, values(config), frozen)
            assert_close(tensors_of(answer), alone.tensors)


class TestMemory:
    @pytest.fixture
    def scarce(self, monkeypatch):
        """Forward passes of more rows than `fits` run out of memory."""
        whole, seen = Mixture.nll, []

        def nll(mixture, trainable, batch, *rest):
            if len(batch) > scarce.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            seen.append(len(batch))
            return whole(mixture, trainable, batch, *rest)

        class scarce:  # noqa: N801
            fits = 99
            rows = seen

        monkeypatch.setattr(Mixture, "nll", nll)
        load_backbone.cache_clear()
        yield scarce
        load_backbone.cache_clear()

    def test_a_cohort_is_halved_until_it_fits_and_says_so_once(self, config, scarce):
        scarce.fits = 2
        worker = CohortWorker(config, "cpu", 1)
        tasks = [task(p, values(config)) for p in range(6)]
        served = worker.serve(tasks)
        assert max(scarce.rows) <= 2
        assert not any(answer.reply.has_error() for answer in served.answers)
        (warning,) = served.warnings
        assert "6 examples in one forward need more memory" in warning
        trainer = Trainer(config)
        for partition, answer in enumerate(served.answers):
            alone = trainer.train(partition, 1, values(config), {})
            assert_close(tensors_of(answer), alone.tensors)
        scarce.fits = 0
        again = worker.serve(tasks)
        assert all("out of memory" in answer.reply.error.reason for answer in again.answers)
        assert again.warnings == []

    def test_later_cohorts_are_no_larger(self, config, scarce):
        scarce.fits = 3
        worker = CohortWorker(config, "cpu", 1)
        worker.serve([task(p, values(config)) for p in range(6)])
        scarce.fits = 99
        scarce.rows.clear()
        worker.serve([task(p, values(config)) for p in range(6)])
        assert 1 < max(scarce.rows) < 6

    def test_a_batch_of_one_client_and_an_evaluation_are_halved_too(self, tiny_llama, scarce):
        config = configured(tiny_llama, batch_size=5)
        whole = Trainer(config)
        expected = whole.train(0, 1, values(config), {})
        losses = total(whole.evaluate(0, values(config), {}).test.tallies)
        scarce.fits = 1
        halved = Trainer(config)
        found = halved.train(0, 1, values(config), {})
        assert_close(found.tensors, expected.tensors)
        assert found.tally.tokens == expected.tally.tokens
        assert found.tally.nll == pytest.approx(expected.tally.nll, rel=1e-4)
        again = total(halved.evaluate(0, values(config), {}).test.tallies)
        assert again.nll == pytest.approx(losses.nll, rel=1e-4)
        assert len(halved.take_warnings()) == 1

    def test_a_lost_device_is_not_answered_client_by_client(self, config, monkeypatch):
        def lost(*_):
            raise torch.AcceleratorError("an illegal memory access was encountered")

        monkeypatch.setattr(Trainer, "train_cohort", lost)
        with pytest.raises(torch.AcceleratorError):
            CohortWorker(config, "cpu", 1).serve([task(p, values(config)) for p in range(2)])
