"""The sweep over compressions: its plot and table, from result files only."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from experiments import compression
from experiments.golden.tiny import save_tiny_llama
from mops_fl.config import app_folder
from mops_fl.errors import RunError

SCRIPT = app_folder() / "experiments" / "compression.py"
RESULTS = app_folder() / "experiments" / "results" / "compression.csv"


def plot(results, out) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "plot", str(results), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_on_models_shows_what_the_results_say(tmp_path):
    done = plot(RESULTS, tmp_path / "figure.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    page = (app_folder() / "docs" / "model.md").read_text(encoding="utf-8")
    assert len(done.stdout.splitlines()) == 13
    assert done.stdout in page


def test_seeds_are_pooled_by_tokens(tmp_path):
    table = pd.read_csv(RESULTS).query("compression == '2:4' and dataset == 'dolly'")
    other = table.assign(seed=1, nll=0.0, tokens=table["tokens"] * 3, perplexity=1.0)
    pd.concat([table, other]).to_csv(tmp_path / "two.csv", index=False)
    done = plot(tmp_path / "two.csv", tmp_path / "figure.png")
    assert f"| 2:4 | {40.1488508**0.25:,.2f} |" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[:0], "has no measurement"),
        (lambda table: table.assign(rows=range(len(table))), "mix settings (rows)"),
        (lambda table: table.assign(base=["a"] + ["b"] * (len(table) - 1)), "mix settings (base)"),
        (lambda table: table.assign(data=["a"] + ["b"] * (len(table) - 1)), "mix settings (data)"),
        (lambda table: table.assign(tokens=1.5), "column tokens holds '1.5'"),
    ],
)
def test_results_that_say_nothing_are_refused(tmp_path, change, message):
    change(pd.read_csv(RESULTS)).to_csv(tmp_path / "some.csv", index=False)
    done = plot(tmp_path / "some.csv", tmp_path / "figure.png")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "figure.png").exists()


def rows_of(folder, task):
    text = "".join(
        json.dumps(
            {
                "instruction": f"say {n}",
                "context": "",
                "response": "x" * (n % 9 + 1),
                "category": task,
            }
        )
        + "\n"
        for n in range(200)
    )
    (folder / f"{task}.jsonl").write_text(text)
    return folder / f"{task}.jsonl"


@pytest.fixture
def model(tmp_path):
    return save_tiny_llama(tmp_path / "llama")


@pytest.fixture
def measure(tmp_path, model, monkeypatch):
    """Measure a file of rows on a tiny model; the table."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "results.csv"

    def call(data, compressions="none"):
        compression.measure(
            *(out, str(data), "", "", compressions, "0", str(model), "float32", "cpu"),
            **{"samples": 8, "max_length": 64, "rows": 8, "bench_sparse": False},
        )
        return out.read_text().splitlines()

    return call


@pytest.mark.filterwarnings("ignore:int8 on the CPU")
def test_what_is_measured_is_not_measured_again_and_nothing_else_is_mixed_in(
    measure, model, tmp_path, monkeypatch
):
    first, other = rows_of(tmp_path, "open_qa"), rows_of(tmp_path, "closed_qa")
    table = measure(first)
    assert len(table) == 2
    assert len(measure(first, compressions="none,int8")) == 3
    monkeypatch.setattr(compression, "_load", None)
    assert len(measure(first)) == 3
    with pytest.raises(RunError, match=r"mix settings \(data\)"):
        measure(other)
    save_tiny_llama(model, seed=1)
    with pytest.raises(RunError, match=r"mix settings \(base\)"):
        measure(first)
