"""A trainer's rows: what the model has no token for is nobody's."""

import json
import shutil

import numpy as np
import pytest
from trainables import initial_tensors

from mops_fl.config import Config
from mops_fl.training import trainer as trainer_module
from mops_fl.training.kept import kept
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED


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
        values = {"model": str(tiny_llama), "dtype": "float32", "num-samples": 1000, "seed": 12}
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
    assert np.isfinite(pretrained(own_data=True)).all()
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
