"""The command line without Flower: options, precedence, refusals, and the reading commands."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import write_run

import mops_fl.cli
from mops_fl.cli.options import configure
from mops_fl.cli.run import Native, ask_torch, check
from mops_fl.config import Config
from mops_fl.errors import ConfigError
from mops_fl.flower.home import Resources

COMMAND = Path(sys.executable).with_name("mops-fl")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call `mops-fl` in this process, in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mops-fl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            mops_fl.cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def test_help_is_quick_and_imports_nothing_heavy():
    start = time.monotonic()
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5
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
    assert check(config, resources) == chosen
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
        (["simulate", "--resume", "x", "-c", "seed=1"], "give no other values"),
        (["simulate", "-c", "num-samples=1500", "--clients", "1000"], "at least 10000 are needed"),
        (["simulate", "-c", "model=./missing"], "model='./missing'"),
        (["simulate", "-c", "dataset=jsonl", "-c", "data-path=none.jsonl"], "none.jsonl"),
        (["simulate", "--ray-address", "127.0.0.1:1"], "nobody answers there"),
        (["simulate", "--ray-address", "auto"], "must be HOST:PORT"),
        (["simulate", "-c", "resume=true"], "--resume RUN carries on a run"),
        (["compare", "--methods", ","], "names no method"),
        (["compare", "--methods", "mops,nope"], "method='nope'"),
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
    assert (tmp_path / "p.png").is_file()
