"""Experiments' files: cells, presets, filters, and what is refused."""

from pathlib import Path

import pytest

from mops_fl.config import app_folder
from mops_fl.errors import ConfigError
from mops_fl.experiment.plan import read_plan

GRIDS = sorted((app_folder() / "experiments" / "grids").glob("*.toml"))
NAMES = [file.stem for file in GRIDS if file.stem != "common"]

FILE = """
title = "A thing"
entries = ["fedprompt", "mops:gate-sync=local"]
seeds = [3, 4]

[grid]
alpha = [0.1, 1.0]
compression = ["none", "2:4"]

[values]
local-steps = 5

[presets.small.values]
num-server-rounds = 2

[presets.large]
seeds = [7]
points = [{ alpha = 2.0, compression = "none" }]

[[published]]
entry = "fedprompt"
alpha = 0.1
compression = "2:4"
perplexity = 5.0
"""


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "common.toml").write_text(
        "[presets.small.values]\nlocal-steps = 1\nnum-server-rounds = 9\nexperts = 3\n"
    )
    path = tmp_path / "thing.toml"
    path.write_text(FILE)
    return path


def test_cells_are_the_product_one_seed_after_the_other(file):
    plan = read_plan(file)
    assert (plan.name, plan.title, plan.baseline) == ("thing", "A thing", "fedprompt")
    assert len(plan.cells) == 2 * 2 * 2 * 2
    assert [cell.config.seed for cell in plan.cells] == [3] * 8 + [4] * 8
    first, second = plan.cells[0], plan.cells[1]
    assert first.point == (("alpha", 0.1), ("compression", "none"))
    assert second.config.prompts.gate_sync == "local"
    assert second.name == "0.1-none-mops-gate-sync-local-seed3"
    # common < the file's values < those of its preset
    assert first.config.train.local_steps == 5
    assert first.config.federation.num_server_rounds == 2
    assert first.config.prompts.experts == 3
    assert plan.published[0].point == (("alpha", 0.1), ("compression", "2:4"))


def test_a_preset_may_state_other_points_and_seeds(file):
    plan = read_plan(file, preset="large")
    assert {cell.point for cell in plan.cells} == {(("alpha", 2.0), ("compression", "none"))}
    assert {cell.config.seed for cell in plan.cells} == {7}
    assert {cell.config.seed for cell in read_plan(file, seeds=[5, 6]).cells} == {5, 6}


def test_only_some_cells(file):
    plan = read_plan(file, only=["alpha=1", "compression=2:4", "compression=none", "seed=3"])
    assert {(c.config.seed, dict(c.point)["alpha"]) for c in plan.cells} == {(3, 1.0)}
    assert len(plan.cells) == 4
    (cell,) = {c.entry for c in read_plan(file, only=["entry=mops:gate-sync=local"]).cells}
    assert cell == "mops:gate-sync=local"


def test_a_value_for_a_key_of_the_grid_is_where_the_cells_lie(file):
    plan = read_plan(file, values={"alpha": 5.0})
    assert {dict(cell.point)["alpha"] for cell in plan.cells} == {5.0}
    assert len(plan.cells) == 8


def test_cells_that_are_not_wanted_need_no_rows(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text('title = "a"\nentries = ["mops"]\n[grid]\ndataset = ["skills", "superni"]\n')
    with pytest.raises(ConfigError, match="dataset=superni needs data-path"):
        read_plan(path)
    assert len(read_plan(path, only=["dataset=skills"]).cells) == 5
    assert len(read_plan(path, running=False).cells) == 10


def test_values_of_the_command_win_and_data_have_places(file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    values = {"local-steps": 9, "dataset": "dolly"}
    plan = read_plan(file, values=values, data={"dolly": str(rows)})
    assert {cell.config.train.local_steps for cell in plan.cells} == {9}
    assert {cell.config.data.data_path for cell in plan.cells} == {str(rows)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "A thing"', "", "has no title"),
        ('title = "A thing"', "title = 5", "title must be a str"),
        ("local-steps", "local-step", "local-step.*did you mean local-steps"),
        ("alpha = [0.1, 1.0]", "alpha = 0.1", "grid.alpha must be a list"),
        (
            '"fedprompt", ',
            '"fedpromt", ',
            "thing.toml, fedpromt at alpha=0.1, compression=none",
        ),
        ("seeds = [7]", "sedes = [7]", "preset large: unknown key sedes"),
        ("perplexity = 5.0", "", "a published figure has entry, perplexity, alpha, compression"),
        ("points = [{ alpha = 2.0", "points = [{ beta = 1.0 }, { alpha = 2.0", "the same keys"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(file, old, new, message):
    assert old in FILE
    file.write_text(FILE.replace(old, new))
    preset = "large" if "points" in old else "small"
    with pytest.raises(ConfigError, match=message):
        read_plan(file, preset=preset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "--preset huge: .* has small, large"),
        ({"only": ["alpha=7"]}, "--only alpha=7: no cell"),
        ({"only": ["alfa=7"]}, "--only alfa=…: unknown configuration key"),
    ],
)
def test_options_that_fit_nothing_are_refused(file, options, message):
    with pytest.raises(ConfigError, match=message):
        read_plan(file, **options)


@pytest.mark.parametrize("preset", ["small", "medium", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_can_be_read(name, preset, tmp_path):
    path = app_folder() / "experiments" / "grids" / f"{name}.toml"
    plan = read_plan(path, preset=preset, data={"superni": str(tmp_path)})
    assert len({cell.config for cell in plan.cells}) == len(plan.cells)
    entries = {cell.entry for cell in plan.cells}
    assert {figure.entry for figure in plan.published} <= entries
    if len(entries) > 1:
        assert plan.baseline in entries
