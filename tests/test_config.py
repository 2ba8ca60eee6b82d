"""Parsing and refusing configurations."""

import tomllib
from pathlib import Path

import pytest

from mops_fl.config import Config, app_folder, defaults, parse_assignment
from mops_fl.errors import ConfigError

PRESETS = sorted((app_folder() / "experiments").glob("*.toml"))


def test_defaults_are_a_configuration_and_flat_gives_them_back():
    assert Config.from_flat({}).flat() == dict(defaults())


def test_values_reach_their_typed_places():
    config = Config.from_flat({"alpha": 1, "tasks": "a, b,", "experts": 4, "seed": 9})
    assert config.partition.alpha == 1.0
    assert config.data.task_list == ("a", "b")
    assert config.prompts.num_prompts == 40
    assert config.flat()["seed"] == 9


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"metod": "mops"}, "unknown configuration key metod='mops': did you mean method?"),
        ({"xyz": 1}, "unknown configuration key xyz=1: known keys: method, "),
        ({"method": "fedavg"}, "method='fedavg': must be one of mops, fedprompt"),
        ({"dataset": "dolyl"}, "dataset='dolyl': must be one of skills, dolly"),
        ({"experts": "seven"}, "experts='seven': must be a whole number"),
        ({"experts": 7.5}, "experts=7.5: must be a whole number"),
        ({"experts": True}, "experts=True: must be a whole number"),
        ({"experts": 0}, "experts=0: must be at least 1"),
        ({"alpha": 0}, "alpha=0.0: must be more than 0"),
        ({"alpha": float("nan")}, "alpha=nan: must be more than 0"),
        ({"learning-rate": float("inf")}, "learning-rate=inf: must be more than 0"),
        ({"test-fraction": 1.0}, "test-fraction=1.0: must be more than 0 and less than 1"),
        ({"min-reply-fraction": 1.1}, "must be more than 0 and at most 1"),
        ({"resume": "yes"}, "resume='yes': must be true or false"),
        ({"active-clients": 101}, "active-clients=101 is more than num-clients=100"),
        ({"dataset": "jsonl"}, "dataset=jsonl needs data-path: a JSONL file"),
        ({"dataset": "superni"}, "dataset=superni needs data-path: a folder"),
        ({"partition": "natural-id"}, "partition-column names the column"),
        ({"partition-column": "user"}, "partition-column names the column"),
        ({"num-samples": 999}, "num-samples=999 is too few for num-clients=100 .* at least 1000"),
        ({"resume": True}, "resume=true needs run-dir"),
        ({"unseen-clients": 1.0}, "unseen-clients=1.0: must be at least 0 and less than 1"),
        (
            {"unseen-clients": 0.95},
            "unseen-clients=0.95 of num-clients=100 leaves 5 clients that train, fewer than "
            "active-clients=10: choose smaller unseen-clients or active-clients",
        ),
        (
            {"unseen-clients": 0.1, "num-clients": 1, "active-clients": 1},
            "num-clients=1 leaves 0 clients",
        ),
        ({"unseen-tasks": "b,c", "tasks": "a, b"}, "tasks and unseen-tasks both name b: a task"),
        (
            {"test-fraction": 0.6, "validation-fraction": 0.4},
            "test-fraction=0.6 and validation-fraction=0.4 leave nothing to train on",
        ),
        ({"validation-fraction": -0.1}, "validation-fraction=-0.1: must be at least 0 and less"),
        ({"server-fraction": -0.1}, "server-fraction=-0.1: must be at least 0 and less than 1"),
        ({"server-fraction": 0.0}, "pretrain-data=server with server-fraction=0"),
        ({"pretrain-data": "all"}, "pretrain-data='all': must be one of server, pooled, own, none"),
        (
            {"server-data": "x", "pretrain-data": "own", "dataset": "dolly"},
            "server-data=x with pretrain-data=own",
        ),
        ({"server-data": "x"}, "server-data=x with dataset=skills, which is generated"),
        (
            {"keep": "best", "validation-fraction": 0.1, "evaluate-clients": 5},
            "keep=best with evaluate-clients=5",
        ),
        ({"training": "centralised", "gate-sync": "local"}, "training=centralised with gate-sync"),
        ({"keep": "best"}, "keep=best needs validation-fraction above 0"),
        (
            {
                **{"keep": "best", "validation-fraction": 0.1, "personal-steps": 2},
                "gate-sync": "local",
            },
            "keep=best and personal-steps with gate-sync=local",
        ),
        ({"gate-top": 8}, "gate-top=8 is more than experts=7"),
        (
            {"method": "fedavg"},
            "method='fedavg': must be one of mops, fedprompt, prompt-tuning, lo",
        ),
        ({"training": "alone"}, "training='alone': must be one of federated, local, centralised"),
        ({"lora-rank": 0}, "lora-rank=0: must be at least 1"),
        ({"sparse-kernels": True, "compression": "3:4", "dtype": "bfloat16"}, "compression=3:4"),
        ({"sparse-kernels": True, "compression": "2:4", "dtype": "float32"}, "dtype=float32"),
        ({"sparse-kernels": True, "dtype": "float16", "device": "cpu"}, "device=cpu"),
    ],
)
def test_bad_values_are_refused_with_field_value_and_fix(flat, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        Config.from_flat(flat)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpha=1", ("alpha", 1.0)),
        (" experts = 3 ", ("experts", 3)),
        ("resume=True", ("resume", True)),
        ("tasks='a,b'", ("tasks", "a,b")),
        ("data-path=a=b.jsonl", ("data-path", "a=b.jsonl")),
    ],
)
def test_assignments_take_the_type_of_their_key(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["alpha", "alpha=x", "experts=1.5", "resume=1"])
def test_bad_assignments_are_refused(text):
    with pytest.raises(ConfigError):
        parse_assignment(text)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_sparse_kernels_go_with_types_that_the_gpu_may_have(dtype):
    flat = {"sparse-kernels": True, "compression": "2:4", "dtype": dtype}
    assert Config.from_flat(flat).backbone.dtype == dtype
    with pytest.raises(ConfigError, match=f"device=cpu, dtype={dtype}"):
        Config.from_flat({**flat, "device": "cpu"})


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_configurations(preset: Path):
    Config.from_flat(tomllib.loads(preset.read_text()))


def test_the_paper_preset_states_the_paper_and_leaves_nothing_to_chance():
    flat = tomllib.loads((app_folder() / "experiments" / "paper.toml").read_text())
    assert set(flat) >= set(defaults()) - {"run-dir", "resume"}
    config = Config.from_flat(flat)
    federation, prompts, train = config.federation, config.prompts, config.train
    steps = federation.num_server_rounds * federation.active_clients * train.local_steps
    assert steps == 50_000
    assert (config.partition.num_clients, federation.active_clients) == (100, 10)
    assert (prompts.experts, prompts.prompts_per_expert, prompts.injection_layer) == (7, 10, 10)
    assert (train.batch_size, train.learning_rate, train.local_steps) == (1, 1e-3, 250)
    assert (config.data.num_samples, config.data.test_fraction) == (5000, 0.1)
    assert prompts.pretrain_prompt_steps == 20
