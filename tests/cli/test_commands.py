"""The command line without Flower: options, precedence, refusals, and the reading commands."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from synthetic import LABELS, write_run, write_table

from mops_fl.cli.options import configure
from mops_fl.cli.run import Native, RunFailedError, ask_torch, check, placed, resumed
from mops_fl.config import Config
from mops_fl.errors import ConfigError, RunError
from mops_fl.flower.home import Resources

COMMAND = Path(sys.executable).with_name("mops-fl")
COMPARE = import_module("mops_fl.cli.compare")


def test_help_is_quick_and_imports_nothing_heavy():
    start = time.monotonic()
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 20
    assert all(name in done.stdout for name in ("simulate", "compare", "plot", "show", "partition"))
    code = (
        "import sys, mops_fl.cli\n"
        "sys.exit(bool({'torch', 'flwr', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_launcher_and_what_flower_loads_import_no_torch():
    code = (
        "import sys, mops_fl.cli.run, mops_fl.base.source\n"
        "import mops_fl.client_app, mops_fl.server_app\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_launcher_asks_torch_without_loading_it(monkeypatch):
    """For a processor without bfloat16, whichever this one is."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    code = (
        "import sys\n"
        "from mops_fl.cli.run import Resources, ask_torch\n"
        "from mops_fl.config import Config\n"
        "for dtype in ('auto', 'bfloat16'):\n"
        "    config = Config.from_flat({'device': 'cpu', 'dtype': dtype})\n"
        "    print(ask_torch(config, Resources(100, 1, 0.0, 2)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "Native(dtype='float32', emulated=False)",
        "Native(dtype='bfloat16', emulated=True)",
    ]


def test_a_device_that_is_not_there_is_found_before_flower_starts():
    config = Config.from_flat({"device": "cuda:99"})
    with pytest.raises(ConfigError, match="device='cuda:99'"):
        ask_torch(config, ONE_MACHINE)


ONE_MACHINE = Resources(clients=6, cpus_per_client=1, gpus_per_client=0.0, workers=2)


@pytest.mark.parametrize(
    ("asked", "answer", "resources", "chosen", "warned"),
    [
        ("auto", Native("float32", False), ONE_MACHINE, "float32", False),
        ("auto", Native("bfloat16", False), ONE_MACHINE, "bfloat16", False),
        ("bfloat16", Native("bfloat16", True), ONE_MACHINE, "bfloat16", True),
        ("auto", Native("float32", False), replace(ONE_MACHINE, ray_address="x:1"), "auto", False),
    ],
)
def test_the_type_is_said_and_an_emulated_one_warned_of(
    tiny_llama, monkeypatch, capsys, asked, answer, resources, chosen, warned
):
    monkeypatch.setattr("mops_fl.cli.run.ask_torch", lambda *_: answer)
    flat = {"num-clients": 6, "active-clients": 2, "num-samples": 120}
    config = Config.from_flat({**flat, "model": str(tiny_llama), "dtype": asked})
    assert check([config], resources) == chosen
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == warned
    assert all("dtype=bfloat16 is emulated here" in line for line in lines)


def test_precedence(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text("num-clients = 30\nactive-clients = 5\nalpha = 1\nlocal-steps = 7\n")
    assert configure(file, None, None).partition.num_clients == 30
    config = configure(file, 40, ["active-clients=6", "learning-rate=0.5"])
    assert config.partition.num_clients == 40
    assert config.federation.active_clients == 6
    assert config.partition.alpha == 1.0
    assert config.train.local_steps == 7
    assert configure(file, 40, ["num-clients=50"]).partition.num_clients == 50


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()
    Path("model").mkdir()
    values = ["dataset=jsonl", "data-path=rows.jsonl", "model=model"]
    config = configure(None, None, values)
    assert config.data.data_path == str(tmp_path / "rows.jsonl")
    assert config.backbone.model == str(tmp_path / "model")
    assert configure(None, None, ["model=huggyllama/llama-7b"]).backbone.model == (
        "huggyllama/llama-7b"
    )


def test_every_path_becomes_absolute_without_following_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("blob").touch()
    Path("x.gguf").symlink_to("blob")
    file = tmp_path / "some.toml"
    file.write_text("calibration-path = 'rows.jsonl'\nserver-data = 'server.jsonl'\n")
    values = ["compression=2:4", "calibration=jsonl", "model=x.gguf", "dataset=jsonl"]
    config = configure(file, None, [*values, "data-path=~/rows/x.jsonl"])
    assert config.backbone.calibration_path == str(tmp_path / "rows.jsonl")
    assert config.data.server_data == str(tmp_path / "server.jsonl")
    assert config.data.data_path == str(tmp_path / "rows" / "x.jsonl")
    assert config.backbone.model == str(tmp_path / "x.gguf")


def test_a_folder_here_does_not_replace_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m").mkdir()
    assert configure(None, None, None).backbone.model == "smollm2-135m"
    assert configure(None, None, ["model=smollm2-135m"]).backbone.model == "smollm2-135m"
    here = str(tmp_path / "smollm2-135m")
    assert configure(None, None, ["model=./smollm2-135m"]).backbone.model == here


def test_a_folder_here_with_the_name_of_a_hub_id_is_taken_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    here = tmp_path / "org" / "name"
    assert configure(None, None, ["model=org/name"]).backbone.model == str(here)
    assert f"model=org/name is the folder {here}, not a model of the hub" in capsys.readouterr().out
    configure(None, None, ["model=./org/name"])
    assert capsys.readouterr().out == ""


def test_compress_finds_its_files_from_here(run, tmp_path, monkeypatch):
    seen = []

    def load(data, *_, **__):
        seen.append(data.data_path)
        raise ConfigError("enough")

    monkeypatch.setattr("mops_fl.compression.calibration.load_calibration", load)
    monkeypatch.setattr("mops_fl.base.tokenizer.load_tokenizer", lambda backbone: None)
    options = ["--model", "m", "--compression", "2:4", "--calibration", "jsonl"]
    code, _, err = run("compress", *options, "--data-path", "rows.jsonl")
    assert (code, seen) == (2, [str(tmp_path / "rows.jsonl")]), err


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/"])
def test_the_name_of_a_run_is_that_of_a_folder(tmp_path, name):
    with pytest.raises(RunError, match="without slashes"):
        placed(configure(None, None, None), tmp_path, name)


def test_a_run_folder_is_named_through_the_link_that_was_given(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    config = placed(configure(None, None, None), tmp_path / "link", "one")
    assert config.run_dir == str(tmp_path / "link" / "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "Expected|Invalid|Unclosed"),
        ("[train]\nlocal-steps = 3\n", "train is a dict; the file holds flat keys"),
        ("run-dir = 'x'\n", "run-dir cannot be given as a value: --runs-dir and --name"),
        ("local-stepz = 3\n", "did you mean local-steps"),
    ],
)
def test_bad_config_file(tmp_path, text, message):
    file = tmp_path / "some.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        configure(file, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "-c", "method=nope"], "method='nope': must be one of mops, fedprompt"),
        (["simulate", "-c", "nope"], "'nope' is not of the form key=value"),
        (["simulate", "--config", "missing.toml"], "missing.toml"),
        (["simulate", "--clients", "5"], "active-clients=10 is more than num-clients=5"),
        (["simulate", "--name", "a/b"], "without slashes"),
        (["simulate", "--resume", "missing"], "no such folder"),
        (["simulate", "--resume", "x", "-c", "seed=1"], "so seed cannot be given"),
        (["simulate", "-c", "num-samples=1500", "--clients", "1000"], "at least 10000 are needed"),
        (["simulate", "-c", "model=./missing"], "model='./missing'"),
        (["simulate", "-c", "dataset=jsonl", "-c", "data-path=none.jsonl"], "none.jsonl"),
        (["simulate", "--ray-address", "127.0.0.1:1"], "nobody answers there"),
        (["simulate", "--ray-address", "auto"], "must be HOST:PORT"),
        (["simulate", "-c", "resume=true"], "--resume RUN carries on a run"),
        (["compare", "--methods", ","], "names no method"),
        (["compare", "--methods", "mops,nope"], "method='nope'"),
        (
            ["compare", "--methods", "mops:gate-sink=local"],
            "--methods 'mops gate-sink=local': unknown configuration key gate-sink='local': did",
        ),
        (
            ["compare", "--methods", "mops,mops:local-steps=two"],
            "--methods 'mops local-steps=two': local-steps='two': must be a whole number",
        ),
        (["compare", "--methods", "mops:hm"], "'mops hm': 'hm' is not of the form key=value"),
        (["compare", "--methods", "mops:seed=1"], "seed is no key of an entry"),
        (["compare", "--methods", "mops:method=fedprompt"], "method is no key of an entry"),
        (["compare", "--methods", "mops:run-dir=x"], "run-dir cannot be given as a value"),
        (["compare", "--seeds", "0,x"], "--seeds '0,x': must be whole numbers"),
        (["compare", "--seeds", "-1"], "must be whole numbers"),
        (["compare", "--seeds", ","], "must be whole numbers"),
        (["compare", "--resume"], "--resume needs --name"),
        (["show", "missing"], "no such folder"),
        (["plot", "missing", "--out", "x.png"], "no such folder"),
        (["partition", "-c", "alpha=0"], "alpha=0.0: must be more than 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_existing_run_folder_is_refused(run, tmp_path):
    write_run(tmp_path / "runs" / "one")
    code, _, err = run("simulate", "--name", "one")
    assert code == 2
    assert "exists: give another --name" in err
    code, _, err = run("simulate", "--resume", tmp_path / "runs" / "one")
    assert code == 2
    assert "is completed: there is nothing to resume" in err


def test_a_runs_dir_that_cannot_be(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("simulate", "--runs-dir", "file/runs")
    assert code == 2
    assert "--runs-dir" in err


def test_show(run, tmp_path):
    write_run(tmp_path / "one", rounds=2)
    code, out, _ = run("show", "one")
    assert code == 0
    for text in ("completed", "alpha", "0.5", "500.00", "sort", "local steps"):
        assert text in out


def test_show_marks_rounds_on_fewer_tokens(run, tmp_path):
    folder = write_run(tmp_path / "one", rounds=1)
    _, out, _ = run("show", "one")
    assert "in brackets: share of the held-out tokens" not in out
    said = [
        (0, "all", 77.0, 1.0),
        (0, "a", 77.0, 1.0),
        (1, "all", 55.0, 0.999),
        (1, "a", 55.0, 0.5),
    ]
    rows = [(number, task, 1.0, 1, value, share) for number, task, value, share in said]
    write_table(folder / "rounds.csv", rows)
    _, out, _ = run("show", "one")
    assert out.count("in brackets: share of the held-out tokens") == 2
    lines = [line.split() for line in out.splitlines()]
    assert ["a", "77.00", "55.00", "(50", "%)"] in lines
    assert ["1", "55.00", "(99", "%)"] in lines
    assert ["0", "77.00"] in lines


def test_show_takes_every_label_as_it_stands(run, tmp_path):
    write_run(tmp_path / "[b]one", tasks=LABELS)
    code, out, err = run("show", "[b]one")
    assert (code, err) == (0, "")
    for text in ("[b]one", "None", "1e5", "(empty)", "[bold]", "[/x]", "$x_2$", ":smile:", "a b"):
        assert f" {text} " in out
    assert "\x1b" not in out


def test_show_a_run_without_a_gate_whose_tasks_look_like_nothing(run, tmp_path):
    write_run(tmp_path / "one", method="fedprompt", tasks=("None", "NA"))
    code, out, _ = run("show", "one")
    assert code == 0
    assert "None" in out


def test_show_leaves_blank_what_was_not_evaluated(run, tmp_path):
    said = [(0, "all", 77.0), (0, "b", 66.0), (4, "all", 55.0), (4, "a", 44.0)]
    rows = [(number, task, 1.0, 1, value, 1.0) for number, task, value in said]
    write_table(write_run(tmp_path / "one") / "rounds.csv", rows)
    _, out, _ = run("show", "one")
    lines = [line.split() for line in out.splitlines()]
    assert ["b", "66.00"] in lines
    assert ["a", "44.00"] in lines
    a, b = (next(line for line in out.splitlines() if line.startswith(f" {t} ")) for t in "ab")
    assert a.index("44.00") > b.index("66.00")


def test_show_a_folder_of_a_version_without_evaluations(run, tmp_path):
    (write_run(tmp_path / "one") / "evaluate.csv").unlink()
    code, out, _ = run("show", "one")
    assert code == 0
    assert "local steps" in out


def broken(*_arguments, **_options):
    raise KeyError("count")


def executed(monkeypatch, command: str) -> list:
    """Let `command` find its runs completed, without running them; the configurations checked."""
    checked: list = []
    module = import_module(f"mops_fl.cli.{command}")

    def check(configs, _resources):
        checked.extend(configs)
        return "float32"

    def execute(config, _resources, dtype, _trackers):
        assert dtype == "float32"
        return write_run(Path(config.run_dir), method=config.method, config=config.flat())

    monkeypatch.setattr(module, "check", check)
    monkeypatch.setattr(module, "execute", execute)
    return checked


@pytest.mark.parametrize("fault", ["mops_fl.run.results.read_run_table", "mops_fl.run.plots.save"])
def test_what_is_told_of_completed_runs_never_makes_them_failed(run, monkeypatch, tmp_path, fault):
    executed(monkeypatch, "compare")
    monkeypatch.setattr(fault, broken)
    code, out, err = run("compare", "--name", "x")
    assert code == 0
    assert err.count("mops-fl: completed, but ") == err.count("'count'") >= 1
    for name in ("mops-x", "fedprompt-x"):
        assert str(tmp_path / "runs" / name) in out
        assert str(tmp_path / "runs" / name) in err


def test_a_completed_run_without_its_figure_is_completed(run, monkeypatch, tmp_path):
    executed(monkeypatch, "simulate")
    code, out, err = run("simulate", "--name", "one")
    assert code == 0
    assert f"{tmp_path / 'runs' / 'one'}\n" in out
    assert "500.00 before training" in out
    assert "mops-fl: completed, but it has no figure" in err
    monkeypatch.setattr("mops_fl.run.results.read_run_table", broken)
    code, out, err = run("simulate", "--name", "two")
    assert code == 0
    assert f"{tmp_path / 'runs' / 'two'}\n" in out
    assert "its perplexity cannot be shown: 'count'" in err


def test_compare_checks_every_configuration_before_the_first_run(run, monkeypatch):
    checked = executed(monkeypatch, "compare")
    assert run("compare", "--name", "x")[0] == 0
    assert [config.method for config in checked] == ["mops", "fedprompt"]


def variants(monkeypatch, *, fail_at: int | None = None) -> list:
    """Let `compare` write its runs without running them; the configurations that it ran."""
    ran: list = []

    def execute(config, _resources, _dtype, _trackers):
        if len(ran) == fail_at:
            raise RunFailedError("the disk is full")
        ran.append(config)
        folder = Path(config.run_dir)
        if config.resume:
            shutil.rmtree(folder)
        end = 20 + config.seed + (config.method == "fedprompt")
        return write_run(folder, method=config.method, config=config.flat(), end=end)

    monkeypatch.setattr(COMPARE, "check", lambda *_: "float32")
    monkeypatch.setattr(COMPARE, "execute", execute)
    return ran


def test_every_entry_with_every_seed(run, monkeypatch, tmp_path):
    ran = variants(monkeypatch)
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    methods = "mops, mops:gate-sync=local, fedprompt, mops:gate-sync=local"
    code, out, err = run("compare", "--methods", methods, "--seeds", "0,1", "--name", "x")
    assert (code, err) == (0, "")
    assert [Path(config.run_dir).name for config in ran] == [
        *("mops-x-seed0", "mops-x-seed1"),
        *("mops-gate-sync-local-x-seed0", "mops-gate-sync-local-x-seed1"),
        *("fedprompt-x-seed0", "fedprompt-x-seed1"),
    ]
    assert [config.prompts.gate_sync for config in ran[2:4]] == ["local", "local"]
    assert [config.seed for config in ran] == [0, 1] * 3
    last = out[out.index("summary: mean ± sample standard deviation over n seeds") :]
    assert re.search(r"^ fedprompt +2 +\d+\.\d\d ± \d\.\d\d", last, re.MULTILINE)
    assert "parameters" not in last
    (legend,) = shown[0].legends
    labels = [text.get_text() for text in legend.texts]
    assert labels == ["mops", "mops gate-sync=local", "fedprompt"]


def test_a_bad_entry_is_refused_before_anything_runs(run, monkeypatch):
    ran = variants(monkeypatch)
    code, _, err = run("compare", "--methods", "mops,mops:gate-sync=never")
    assert code == 2
    assert "--methods 'mops gate-sync=never': gate-sync='never': must be one of" in err
    assert not ran


def test_a_comparison_is_carried_on_where_it_stopped(run, monkeypatch, tmp_path):
    ran = variants(monkeypatch, fail_at=2)
    arguments = ("compare", "--seeds", "0,1", "--name", "x")
    assert run(*arguments)[0] == 1
    unfinished = tmp_path / "runs" / "mops-x-seed1" / "run.json"
    facts = json.loads(unfinished.read_text())
    unfinished.write_text(json.dumps({**facts, "status": "stopped"}))
    assert run(*arguments)[0] == 2
    ran = variants(monkeypatch)
    code, out, err = run(*arguments, "--resume")
    assert code == 0, err
    names = [(Path(config.run_dir).name, config.resume) for config in ran]
    assert names == [
        *(("mops-x-seed1", True), ("fedprompt-x-seed0", False), ("fedprompt-x-seed1", False)),
    ]
    assert str(tmp_path / "runs" / "mops-x-seed0") in out
    ran.clear()
    assert run(*arguments, "--resume")[0] == 0
    assert not ran


def test_a_comparison_is_not_carried_on_with_other_values(run, monkeypatch):
    ran = variants(monkeypatch)
    assert run("compare", "--name", "x")[0] == 0
    ran.clear()
    code, _, err = run("compare", "--name", "x", "--resume", "-c", "local-steps=3")
    assert code == 2
    assert "is a run of another configuration (local-steps)" in err
    assert not ran


def test_each_data_is_checked(run, monkeypatch):
    variants(monkeypatch)
    checked = []

    def check(configs, resources):
        told = [(each.method, each.partition.num_clients, each.seed) for each in configs]
        checked.append((told, resources.clients))
        return "float32"

    monkeypatch.setattr(COMPARE, "check", check)
    methods = "mops,fedprompt,mops:num-clients=50"
    assert run("compare", "--methods", methods, "--seeds", "0,1", "--name", "x")[0] == 0
    assert checked == [
        ([("mops", 100, 0), ("fedprompt", 100, 0)], 100),
        ([("mops", 100, 1), ("fedprompt", 100, 1)], 100),
        ([("mops", 50, 0)], 50),
        ([("mops", 50, 1)], 50),
    ]


def test_show_tells_by_client_what_never_trained_and_how_the_mixture_fares(run, tmp_path):
    facts = {"unseen_clients": [1], "trainable_parameters": 40320, "bytes_per_round": 2_500_000}
    folder = write_run(tmp_path / "one", rounds=1, kept_round=1, **facts)
    rows = [(n, p, "sort", 10.0 * (n + p + 1), 10) for n in range(2) for p in range(2)]
    write_table(folder / "evaluation.csv", rows)
    write_table(folder / "partition.csv", [(0, "sort", 9, 3), (1, "sort", 9, 4)])
    write_table(folder / "validation.csv", rows)
    write_table(folder / "personal.csv", [(1, 0, "sort", 10.0, 10)])
    write_table(folder / "entropy.csv", [(1, "sort", 0.25)])
    write_table(folder / "drift.csv", [(1, 0, 0.875, 0.125)])
    code, out, err = run("show", "one")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["mops", "1", "7.39", "(1/3)", "7.39", "(1/3)", "7.39", "(1/3)"] in lines
    assert ["mops,", "unseen", "1", *["20.09", "(1/4)"] * 3] in lines
    assert ["mops", "7.39", "2.72", "7.39", "(1/3)", "2.72", "(1/3)"] in lines
    assert ["1", "0.250", "0.875", "0.125"] in lines
    assert "entropy (of 1.946)" in out
    assert "perplexity on validation rows" in out
    assert lines[-2][0] == "mops"
    assert lines[-2][2:] == ["7.39", "20.09", "40,320", "2.50", "12.5"]
    assert "a mean of perplexities is no perplexity" in out


def test_show_a_run_that_trained_nothing(run, tmp_path):
    (write_run(tmp_path / "one", rounds=0) / "train.csv").unlink()
    code, out, err = run("show", "one")
    assert (code, err) == (0, "")
    assert "local steps" in out


def test_a_failed_run_can_be_carried_on_and_a_completed_one_not(tmp_path):
    folder = write_run(tmp_path / "one")
    facts = json.loads((folder / "run.json").read_text())
    with pytest.raises(RunError, match="is completed"):
        resumed(folder)
    (folder / "run.json").write_text(json.dumps({**facts, "status": "failed"}))
    assert resumed(folder).resume
    changed = resumed(folder, ["min-reply-fraction=0.3", "round-timeout=60"])
    assert changed.federation.min_reply_fraction == 0.3
    assert changed.federation.round_timeout == 60.0


def test_plot(run, tmp_path):
    for method in ("mops", "fedprompt"):
        write_run(tmp_path / method, method=method)
    code, out, _ = run("plot", "mops", "fedprompt", "--out", "all.png", "--per-task")
    assert (code, out) == (0, f"{tmp_path / 'all.png'}\n")
    assert (tmp_path / "all.png").is_file()


def test_partition(run, tmp_path):
    code, out, _ = run("partition", "--clients", "10", "-c", "num-samples=200", "--out", "p.png")
    assert code == 0
    assert "dirichlet over tasks, alpha = 0.1, 10 clients" in out
    assert "tasks: 0 " in out
    assert "7 rows are the server's, to pretrain on" in out
    assert "unseen" not in out
    assert "validation" not in out
    assert (tmp_path / "p.png").is_file()


def test_partition_shows_what_is_held_back(run):
    keys = ("num-samples=200", "active-clients=2", "unseen-clients=0.2", "unseen-tasks=sort")
    keys += ("validation-fraction=0.2", "pretrain-data=pooled", "server-fraction=0.0")
    values = [word for key in keys for word in ("-c", key)]
    code, out, err = run("partition", "--clients", "10", *values)
    assert code == 0, err
    assert "5 numbers, 6 sort\nunseen tasks, only evaluated: sort\n" in out
    assert "* 2 unseen clients, which never train" in out
    assert sum(line.split()[1:2] == ["*"] for line in out.splitlines()) == 2
    (validation,) = re.findall(r"^(\d+) rows beside train and test are for validation$", out, re.M)
    total = next(line.split() for line in out.splitlines() if line.split()[:1] == ["all"])
    assert int(total[7]) == 34
    assert int(total[8]) + int(total[9]) + int(validation) == 234
    assert "server" not in out


def test_partition_says_what_was_read(run, tmp_path):
    rows = ['{"instruction": "do", "input": null, "output": "done", "task": "[/b] $x"}'] * 30
    (tmp_path / "r.json").write_text("\n".join(rows + ['{"output": "x", "task": "b"}'] * 10))
    data = ("-c", "dataset=jsonl", "-c", "data-path=r.json")
    code, out, err = run("partition", "--clients", "2", "-c", "active-clients=2", *data)
    assert code == 0, err
    assert out.startswith(
        "data: jsonl r.json: 40 rows; instruction=instruction, answer=output, task=task; 2 tasks: "
        "[/b] $x, b; 10 rows skipped: 10 empty instruction; all 30 taken, fewer "
        "than num-samples=5000\n"
        "warning: 25% of the data cannot be used: 10 rows skipped: 10 empty instruction\n"
    )
    assert "tasks: 0 [/b] $x, 1 b" in out
