"""The sweep over compressions: its plot and table, from result files only."""

import subprocess
import sys

import pandas as pd
import pytest

from mops_fl.config import app_folder

SCRIPT = app_folder() / "experiments" / "compression.py"
RESULTS = app_folder() / "experiments" / "results" / "compression.csv"


def plot(results, out) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "plot", str(results), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_readme_shows_what_the_results_say(tmp_path):
    done = plot(RESULTS, tmp_path / "figure.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    readme = (app_folder() / "README.md").read_text()
    assert len(done.stdout.splitlines()) == 13
    assert done.stdout in readme


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
        (lambda table: table.assign(rows=range(len(table))), "mixes settings"),
    ],
)
def test_results_that_say_nothing_are_refused(tmp_path, change, message):
    change(pd.read_csv(RESULTS)).to_csv(tmp_path / "some.csv", index=False)
    done = plot(tmp_path / "some.csv", tmp_path / "figure.png")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "figure.png").exists()
