"""What the peers of a benchmark are told, and that their work is what ours is."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.numpy import load_file

from experiments.benchmarks.peers.exchange import Answer, Round, Task
from experiments.benchmarks.peers.peft_lora import load_initial, peft_state, train, trainable
from experiments.benchmarks.peers.same_work import check, task_of
from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.training.trainer import Trainer
from strategies import sample_partitions


@pytest.fixture(scope="module")
def config(tiny_llama) -> Config:
    return Config.from_flat(
        {
            **{"method": "lora", "model": str(tiny_llama), "dtype": "float32", "device": "cpu"},
            **{"num-clients": 6, "active-clients": 2, "num-samples": 200, "num-server-rounds": 2},
            **{"local-steps": 3, "batch-size": 2, "lora-rank": 3, "lora-alpha": 5.0},
        }
    )


@pytest.fixture(scope="module")
def task(config, tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    task_of(config, folder).write(folder / "task.json")
    return Task.read(folder / "task.json")


def test_a_peer_takes_the_steps_of_our_clients(config, task):
    initial = load_file(task.initial)
    partitions = sample_partitions(range(6), 2, config.seed, 2)
    ours = Trainer(config).train_cohort(partitions, 2, [initial] * 2, {})
    for own, result in zip(task.rounds[1], ours, strict=True):
        model = load_initial(task)
        assert trainable(model) == sum(value.size for value in initial.values())
        local = train(model, own.rows, task)
        assert (local.steps, local.tokens) == (result.steps, result.tally.tokens)
        assert own.examples == result.examples
        assert local.nll == pytest.approx(result.tally.nll, rel=1e-5)
        expected = peft_state({k: torch.from_numpy(v) for k, v in result.tensors.items()})
        trained = get_peft_model_state_dict(model)
        assert trained.keys() == expected.keys()
        for name, value in trained.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


ANSWER = Answer(10, [Round(1.0, 0.5, 4, 30.0, 10), Round(1.0, 0.5, 4, 20.0, 10)], {"torch": "2"})


def test_answers_travel_as_they_are(tmp_path):
    ANSWER.write(tmp_path / "answer.json")
    assert Answer.read(tmp_path / "answer.json") == ANSWER


def test_a_slower_peer_did_the_same_work():
    slower = replace(ANSWER, rounds=[replace(own, seconds=9.0) for own in ANSWER.rounds])
    check({"ours": ANSWER, "peer": slower})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 5}, "steps of peer and ours in round 2: 5 and 4"),
        ({"tokens": 11, "nll": 22.0}, "tokens of peer and ours in round 2: 11 and 10"),
        ({"nll": 21.0}, "losses of peer and ours in round 2: 2.1000 and 2.0000"),
    ],
)
def test_other_work_is_refused(change, message):
    other = replace(ANSWER, rounds=[ANSWER.rounds[0], replace(ANSWER.rounds[1], **change)])
    with pytest.raises(RunError, match=message):
        check({"ours": ANSWER, "peer": other})


def test_another_number_of_trained_parameters_is_refused():
    with pytest.raises(RunError, match="trained parameters of peer and ours: 11 and 10"):
        check({"ours": ANSWER, "peer": replace(ANSWER, trainable=11)})
