"""What the rounds begin with, by `pretrain-data`, asked of real trainers without Flower."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mops_fl.config import Config
from mops_fl.data import unseen_partitions
from mops_fl.errors import ConfigError
from mops_fl.start import start
from mops_fl.training import messages
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import GATE, PARTITION, PRETRAINED, PROMPTS
from strategies import Client
from strategies.averaging import weighted_mean

FLAT = {
    "dtype": "float32",
    "device": "cpu",
    "num-samples": 120,
    "num-clients": 4,
    "active-clients": 2,
    "experts": 2,
    "prompts-per-expert": 2,
    "max-length": 64,
    "pretrain-prompt-steps": 2,
    "pretrain-gate-steps": 4,
    "unseen-clients": 0.25,
}


class Recorder:
    def on_pretrain(self, bytes_up: int, bytes_down: int) -> None:
        self.bytes = bytes_up, bytes_down


class HereGrid:
    """A Grid whose nodes answer in this process."""

    def __init__(self, trainers: dict[int, Trainer]) -> None:
        self.trainers, self.asked = trainers, []

    def send_and_receive(self, sent, timeout=None):
        replies = []
        for message in sent:
            partition = message.metadata.dst_node_id - 10
            self.asked.append(partition)
            message.metadata.__dict__["_message_id"] = f"message-{partition}"
            context = Context(1, partition + 10, {PARTITION: partition}, RecordDict(), {})
            replies.append(messages.answer(message, context, self.trainers[partition]))
        return replies


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def started(config: Config, trainers: dict[int, Trainer], *, simulated: bool = True):
    """The start, and who was asked for it."""
    grid = HereGrid(trainers)
    clients = {p: Client(p + 10, trainer.description(p)) for p, trainer in trainers.items()}
    return start(config, clients, grid, Recorder(), simulated=simulated), grid.asked


def simulated(tiny_llama, **changes):
    changes = {key.replace("_", "-"): value for key, value in changes.items()}
    config = Config.from_flat({**FLAT, "model": str(tiny_llama), **changes})
    return config, dict.fromkeys(range(4), Trainer(config))


def test_the_servers_rows_and_pooled_ones_are_pretrained_on_once(tiny_llama):
    found = {}
    for source in ("server", "pooled"):
        config, trainers = simulated(tiny_llama, pretrain_data=source)
        found[source], asked = started(config, trainers)
        assert asked == [0]
        assert found[source].keys() == {PROMPTS, PRETRAINED, *GATE}
    assert (found["server"][PRETRAINED] != found["pooled"][PRETRAINED]).any()


def test_own_is_the_mean_of_what_each_client_that_trains_makes_of_its_rows(tiny_llama):
    config, trainers = simulated(tiny_llama, pretrain_data="own")
    found, asked = started(config, trainers)
    unseen = unseen_partitions(config.partition, config.seed)
    assert asked == [p for p in range(4) if p not in unseen]
    assert len(unseen) == 1
    trainer = trainers[0]
    initial = trainer.method.initial(config, trainer.model_facts.sizes, config.seed)
    tasks = trainer.corpus.trained_tasks
    each = [trainer.pretrain(initial, partition, tasks) for partition in asked]
    weights = [sum(trainer.holding(partition).train.values()) for partition in asked]
    for name, value in weighted_mean(each, weights).items():
        np.testing.assert_array_equal(found[name], value)
    assert len({one[PRETRAINED].tobytes() for one in each}) == 3


@pytest.mark.parametrize("method", ["mops", "lora", "base"])
def test_with_nothing_to_pretrain_nobody_is_asked(tiny_llama, method):
    config, trainers = simulated(tiny_llama, pretrain_data="none", method=method)
    found, asked = started(config, trainers)
    assert not asked
    assert PRETRAINED not in found


def rows(path, tasks, count=12):
    of = [tasks[n % len(tasks)] for n in range(count)]
    said = [
        {"instruction": 5 * task, "response": str(n), "category": task} for n, task in enumerate(of)
    ]
    path.write_text("\n".join(map(json.dumps, said)))
    return str(path)


class TestDeployment:
    """Nodes with rows of their own, and other tasks than their neighbours'."""

    def deployed(self, tiny_llama, tmp_path, **changes):
        flat = {**FLAT, "unseen-clients": 0.0, "num-clients": 2, "model": str(tiny_llama)}
        flat |= {"dataset": "jsonl", "num-samples": 0}
        changes = {key.replace("_", "-"): value for key, value in changes.items()}
        trainers = {}
        for partition, tasks in enumerate((["a"], ["b", "c"])):
            path = rows(tmp_path / f"{partition}.jsonl", tasks)
            own = Config.from_flat({**flat, "data-path": path, **changes})
            trainers[partition] = Trainer(own, own_data=True)
        server = {**flat, "data-path": rows(tmp_path / "any.jsonl", ["d"]), **changes}
        return Config.from_flat(server), trainers

    def test_own_data_do_not_close_the_gate_to_all_experts_but_one(self, tiny_llama, tmp_path):
        config, trainers = self.deployed(
            *(tiny_llama, tmp_path), experts=3, pretrain_data="own", pretrain_gate_steps=100
        )
        found, asked = started(config, trainers, simulated=False)
        assert asked == [0, 1]
        gate = {n: v for n, v in found.items() if n != PRETRAINED}
        frozen = {PRETRAINED: found[PRETRAINED]}
        weights = {
            task: own.mean
            for partition, trainer in trainers.items()
            for task, own in trainer.evaluate(partition, gate, frozen).test.gate.items()
        }
        # what the first client alone would make of it gives all of every task to its expert, 0
        others = [weights[task] for task in ("b", "c") if task in weights]
        assert weights["a"][0] > max(gate[0] for gate in others)
        assert all(max(gate[1:]) > 0.2 for gate in others)

    def test_the_server_pretrains_on_a_file_of_its_own(self, tiny_llama, tmp_path):
        path = rows(tmp_path / "server.jsonl", ["a", "b", "c"])
        config, trainers = self.deployed(tiny_llama, tmp_path, server_data=path)
        found, asked = started(config, trainers, simulated=False)
        assert not asked
        assert found.keys() == {PROMPTS, PRETRAINED, *GATE}

    def test_a_clients_own_rows_are_not_the_servers(self, tiny_llama, tmp_path):
        config, trainers = self.deployed(tiny_llama, tmp_path)
        same = replace(config, data=trainers[0].config.data)
        with pytest.raises(ConfigError, match="needs server-data"):
            started(same, trainers, simulated=False)

    def test_vocabulary_needs_no_rows(self, tiny_llama, tmp_path):
        changes = {"method": "prompt-tuning", "prompt_init": "vocab"}
        config, trainers = self.deployed(tiny_llama, tmp_path, **changes)
        found, asked = started(config, trainers, simulated=False)
        assert asked == [0]
        assert found.keys() == {PROMPTS}

    @pytest.mark.parametrize(
        ("source", "fix"), [("pooled", "own or none"), ("server", "needs server-data")]
    )
    def test_what_the_server_cannot_have_is_refused(self, tiny_llama, tmp_path, source, fix):
        config, trainers = self.deployed(tiny_llama, tmp_path, pretrain_data=source)
        with pytest.raises(ConfigError, match=fix):
            started(config, trainers, simulated=False)
