import json

import pytest
import typer
from typer.testing import CliRunner

from mops_fl.cli.compress import compress
from mops_fl.compression.artifact import verify
from mops_fl.errors import ConfigError, DataError, ModelError, MopsError


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(compress)

    def call(base, text, *arguments):
        options = ["--model", str(base), "--compression", text, "--samples", "16", *arguments]
        return CliRunner().invoke(app, ["--max-length", "96", "--device", "cpu", *options])

    return call


def test_it_writes_out_and_says_what_it_cost(run, base, tmp_path):
    out = tmp_path / "out"
    result = run(base, "2:4+int8", "--out", str(out))
    assert result.exit_code == 0, result.exception
    manifest = verify(out)
    assert manifest.compression == "2:4"
    assert len(manifest.calibration["rows"]) == 16
    for part in ("peak memory", " GB", "50.00% of 14 matrices", "16 rows of skills", str(out)):
        assert part in result.output
    assert f"{manifest.perplexity['before']:.2f} → " in result.output
    assert "int8 is applied when the model is loaded" in result.output
    # how far it is goes to standard error
    assert "pruning to 2:4 took" in result.stderr
    assert "perplexity after pruning took" in result.stderr


def test_without_out_it_goes_to_the_cache_once(run, base, monkeypatch, tmp_path):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    first, second = (run(base, "3:4") for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    made = [folder for folder in (tmp_path / "compressed").iterdir() if folder.is_dir()]
    assert len(made) == 1
    assert verify(made[0]).compression == "3:4"
    assert str(made[0]) in first.output


@pytest.mark.parametrize(
    ("text", "arguments", "error", "match"),
    [
        ("5:4", (), ConfigError, "N must be at least 1 and less than M"),
        ("int3", (), ConfigError, "must be none, unstructured"),
        ("nf4", (), ConfigError, "nothing to prune"),
        ("2:5", (), ConfigError, "does not divide"),
        ("2:4", ("--calibration", "pile"), ConfigError, "dataset='pile'"),
        ("2:4", ("--samples", "100000"), DataError, "samples=100000"),
        ("2:4", ("--dtype", "int8"), ConfigError, "dtype='int8'"),
        ("2:4", ("--device", "cuda:99"), ConfigError, "device='cuda:99'"),
    ],
)
def test_bad_input_is_refused(run, base, text, arguments, error, match):
    result = run(base, text, *arguments)
    assert isinstance(result.exception, error)
    assert match in str(result.exception)


def test_an_empty_calibration_set_is_refused(run, base, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    result = run(base, "2:4", "--calibration", "jsonl", "--data-path", str(path))
    assert isinstance(result.exception, DataError)


def test_a_model_that_does_not_exist_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    result = run(tmp_path, "2:4")
    assert isinstance(result.exception, ModelError)
    assert issubclass(ModelError, MopsError)
