"""Every preset, through one round over Flower and Ray with a tiny model in place of its own."""

import json
import tomllib

import pytest
import small_run
from instruction_files import write_dolly

from experiments.golden.tiny import save_tiny_llama
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


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_one_round(preset, tmp_path):
    # with the layer at which LLaMA-7B takes its prompts, and the context of its rows
    shape = {"num_hidden_layers": 12, "max_position_embeddings": 2048}
    model = save_tiny_llama(tmp_path / "llama", **shape)
    stated = tomllib.loads(preset.read_text(encoding="utf-8"))
    values = {**LESS, "model": str(model)}
    rows = write_dolly(tmp_path / "rows.jsonl", TASKS, 400)
    for dataset, path in (("dataset", "data-path"), ("calibration", "calibration-path")):
        if stated.get(dataset) == "dolly":  # which would come from the hub
            values[path] = str(rows)
    run = small_run.run(tmp_path, preset.stem, values, f"--config={preset}")
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "completed"
    assert facts["rounds_done"] == 1
    assert facts["config"].items() >= {**stated, **values}.items()
