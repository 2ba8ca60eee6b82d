"""Every preset with a tiny model in place of its own, and one of them through Flower and Ray."""

import json
import tomllib
from pathlib import Path

import pytest
import small_run
from instruction_files import write_dolly

from experiments.golden.tiny import save_tiny_llama
from mops_fl.cli import options
from mops_fl.cli.run import check
from mops_fl.compression.artifact import verify
from mops_fl.config import app_folder
from mops_fl.data.dolly import TASKS

PRESETS = sorted((app_folder() / "experiments").glob("*.toml"))

LESS = {
    "num-clients": 20,
    "active-clients": 4,
    "num-server-rounds": 1,
    "local-steps": 2,
    "num-samples": 300,
    "eval-samples": 1,
    "calibration-samples": 16,
    "pretrain-prompt-steps": 2,
    "pretrain-gate-steps": 5,
}


def stated(preset: Path) -> dict:
    return tomllib.loads(preset.read_text(encoding="utf-8"))


@pytest.fixture
def values(tmp_path):
    """What takes the place of a preset's values, by its name."""
    # with the layer at which LLaMA-7B takes its prompts, and the context of its rows
    shape = {"num_hidden_layers": 12, "max_position_embeddings": 2048}
    model = save_tiny_llama(tmp_path / "llama", **shape)
    rows = write_dolly(tmp_path / "rows.jsonl", TASKS, 400)

    def less(preset: Path) -> dict:
        # rows of dolly would come from the hub
        paths = {"dataset": "data-path", "calibration": "calibration-path"}
        own = {p: str(rows) for key, p in paths.items() if stated(preset).get(key) == "dolly"}
        return {**LESS, "model": str(model), **own}

    return less


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_model_data_and_partition_are_accepted(preset, values):
    given = values(preset)
    config = options.configure(preset, None, [f"{key}={value}" for key, value in given.items()])
    assert config.flat().items() >= {**stated(preset), **given}.items()
    check([config], options.resources(config, 1, 0, 1, ""))


@pytest.mark.slow
def test_the_paper_s_protocol_for_one_round(values, tmp_path, monkeypatch):
    """On a backbone that is pruned once before Flower starts, and found by every process."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    preset = app_folder() / "experiments" / "paper.toml"
    run = small_run.run(tmp_path, "paper", values(preset), f"--config={preset}", "--workers=1")
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "completed"
    assert facts["rounds_done"] == 1
    assert facts["config"].items() >= {**stated(preset), **values(preset)}.items()
    (made,) = (path for path in (tmp_path / "cache" / "compressed").iterdir() if path.is_dir())
    manifest = verify(made)
    assert manifest.compression == "3:4"
    assert manifest.sparsity == pytest.approx(0.75)
