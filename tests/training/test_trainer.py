"""A trainer's rows: what the model has no token for is nobody's."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from instruction_files import write_superni
from trainables import initial_tensors

from mops_fl.config import Config
from mops_fl.data import unseen_partitions
from mops_fl.errors import ConfigError
from mops_fl.training import trainer as trainer_module
from mops_fl.training.kept import kept
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED
from mops_fl.wire.replies import Description


def test_a_row_with_a_token_beyond_the_vocabulary_is_left_out(tiny_llama, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "[PAD]"}))
    rows = [
        {"instruction": f"say {i}", "context": "", "response": f"it is {i}", "category": "a"}
        for i in range(40)
    ]
    for index in (3, 17):
        rows[index]["response"] = "use [PAD] here"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"dtype": "float32", "model": str(model), "dataset": "jsonl", "data-path": str(file)}
    sizes = {"num-samples": 0, "num-clients": 2, "active-clients": 2, "partition": "iid"}
    sizes |= {"pretrain-data": "pooled", "server-fraction": 0.0}
    trainer = Trainer(Config.from_flat({**values, **sizes}))
    held = [trainer.holding(client) for client in (0, 1)]
    assert sum(h.train["a"] + h.test["a"] for h in held) == 38
    assert trainer.tokenised.unknown == {3, 17}


def test_the_pretrained_prompt_is_kept_for_the_same_run_and_no_other(tiny_llama, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return whole(*arguments)

    whole = trainer_module.pretrain_prompt
    monkeypatch.setattr(trainer_module, "pretrain_prompt", counted)

    def pretrained(*, own_data=False, **changes):
        values = {"model": str(tiny_llama), "dtype": "float32", "num-samples": 2000, "seed": 12}
        values |= {"experts": 2, "prompts-per-expert": 2, "pretrain-prompt-steps": 3}
        values |= {"pretrain-gate-steps": 0}
        config = Config.from_flat(
            {**values, **{k.replace("_", "-"): v for k, v in changes.items()}}
        )
        initial = initial_tensors(config.prompts, 32, config.seed, config.method == "mops")
        return Trainer(config, own_data=own_data).pretrain(initial)[PRETRAINED]

    first = pretrained(method="mops")
    assert (pretrained(method="fedprompt") == first).all()
    assert len(calls) == 1
    for changes in (
        {"seed": 13},
        {"learning_rate": 0.002},
        {"pretrain_prompt_steps": 4},
        {"max_length": 100},
        {"batch_size": 2},
    ):
        before = len(calls)
        assert (pretrained(**changes) != first).any()
        assert len(calls) == before + 1
    before = len(calls)
    assert np.isfinite(pretrained(own_data=True, pretrain_data="own")).all()
    assert len(calls) == before + 1


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_damaged_file_is_made_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    made = {"x": np.arange(3, dtype=np.float32)}
    assert (kept({"a": 1}, lambda: made)["x"] == made["x"]).all()
    (file,) = (tmp_path / "pretrained").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(content)
    assert (kept({"a": 1}, lambda: {"x": made["x"] + 1})["x"] == made["x"] + 1).all()


class TestPretrainingData:
    """Which rows a trainer may pretrain on."""

    def trainer(self, tiny_llama, folder, *, own_data=False, **changes):
        rows = [
            {"instruction": f"say {i}", "response": f"row {i}", "category": "abn"[i % 3]}
            for i in range(90)
        ]
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flat = {"dtype": "float32", "model": str(tiny_llama), "dataset": "jsonl"}
        flat |= {"data-path": str(file), "num-samples": 0, "num-clients": 4, "active-clients": 2}
        flat |= {"unseen-tasks": "n", "validation-fraction": 0.2, "min-client-samples": 5}
        changes = {key.replace("_", "-"): value for key, value in changes.items()}
        return Trainer(Config.from_flat({**flat, **changes}), own_data=own_data)

    def held(self, trainer):
        """Rows that the clients hold of each part."""
        clients = range(trainer.config.partition.num_clients)
        parts = {
            "train": [trainer._examples(trainer._trained_on(client)) for client in clients],
            "held out": [trainer.held_out(client)[0] for client in clients],
            "validation": [trainer.held_out(client)[1] for client in clients],
        }
        return {name: {row for rows in part for row in rows} for name, part in parts.items()}

    def test_the_servers_rows_are_no_clients(self, tiny_llama, tmp_path):
        trainer = self.trainer(tiny_llama, tmp_path, server_fraction=0.2)
        rows, tasks = trainer.pretraining_data(0)
        assert tasks == ("a", "b")
        assert Counter(row.task for row in rows) == {"a": 6, "b": 6}
        held = self.held(trainer)
        assert not set(rows) & set.union(*held.values())
        assert len(set(rows)) + sum(map(len, held.values())) == 90
        assert {row.task for row in held["train"] | held["validation"]} == {"a", "b"}
        assert Counter(row.task for row in held["held out"])["n"] == 30

    def test_rows_of_unseen_tasks_count_asheld_out(self, tiny_llama, tmp_path):
        trainer = self.trainer(tiny_llama, tmp_path)
        held = [trainer.holding(client) for client in range(4)]
        assert sum(each.test["n"] for each in held) == 30
        assert not any(each.train["n"] or each.validation["n"] for each in held)
        assert all(sum(each.validation.values()) for each in held)

    def test_pooled_are_the_training_rows_of_clients_that_train(self, tiny_llama, tmp_path):
        values = {"pretrain_data": "pooled", "unseen_clients": 0.5}
        trainer = self.trainer(tiny_llama, tmp_path, **values)
        unseen = unseen_partitions(trainer.config.partition, 0)
        seen = [trainer._examples(trainer._trained_on(c)) for c in range(4) if c not in unseen]
        assert len(seen) == 2
        assert trainer.pretraining_data(0)[0] == [row for rows in seen for row in rows]

    def test_own_are_one_clients_and_none_are_none(self, tiny_llama, tmp_path):
        trainer = self.trainer(tiny_llama, tmp_path, pretrain_data="own")
        assert trainer.pretraining_data(2)[0] == trainer._examples(trainer._trained_on(2))
        trainer = self.trainer(tiny_llama, tmp_path, pretrain_data="none")
        assert trainer.pretraining_data(2) == ([], ("a", "b"))
        initial = initial_tensors(trainer.config.prompts, 32, 0, True)
        after = trainer.pretrain(initial)
        assert after.keys() == initial.keys()
        assert all((after[name] == initial[name]).all() for name in initial)

    @pytest.mark.parametrize("own_data", [False, True])
    def test_a_file_of_the_servers(self, tiny_llama, tmp_path, own_data):
        file = tmp_path / "server.jsonl"
        rows = [{"prompt": str(i), "completion": "x", "task": "cn"[i % 2]} for i in range(10)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        trainer = self.trainer(tiny_llama, tmp_path, server_data=str(file), own_data=own_data)
        found, tasks = trainer.pretraining_data(0)
        assert (len(found), tasks) == (5, ("c",))
        if not own_data:
            assert sum(map(len, self.held(trainer).values())) == 90

    @pytest.mark.parametrize("source", ["server", "pooled"])
    def test_what_one_clients_own_data_cannot_give(self, tiny_llama, tmp_path, source):
        trainer = self.trainer(tiny_llama, tmp_path, own_data=True, pretrain_data=source)
        with pytest.raises(ConfigError, match=f"pretrain-data={source} where a client has its own"):
            trainer.pretraining_data(0)


def test_unseen_tasks_have_the_names_that_the_data_give_them(tiny_llama, tmp_path):
    folder = write_superni(tmp_path / "superni", ("task001", "task002", "task044"), 30)
    flat = {"model": str(tiny_llama), "dtype": "float32", "dataset": "superni", "num-samples": 0}
    flat |= {"data-path": str(folder), "num-clients": 2, "active-clients": 1, "max-length": 64}
    flat |= {"tasks": "task001,task002", "unseen-tasks": "task044"}
    trainer = Trainer(Config.from_flat(flat))
    told = Description.read(trainer.description(0).content(), 2)
    assert told.trained_tasks == ("task001_toy", "task002_toy")
    assert told.tasks[-1] == "task044_toy"
    assert (told.train[-1], told.test[-1], told.own_data) == (0, 15, False)
