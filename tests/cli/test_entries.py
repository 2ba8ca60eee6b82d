"""Entries of a comparison: what they say, what they are called, where they are written."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_run

from mops_fl.cli.compare import _matched, _write_summary
from mops_fl.cli.entries import (
    Entry,
    Planned,
    distinct,
    folder_names,
    parse_methods,
    parse_seeds,
    plan,
)
from mops_fl.cli.options import configure
from mops_fl.errors import ConfigError, RunError
from mops_fl.methods import method_of
from mops_fl.models.weights import model_facts


def configured(values, method):
    return configure(None, None, values, method=method)


@pytest.mark.parametrize(
    ("text", "method", "values", "label"),
    [
        (" mops ", "mops", (), "mops"),
        ("mops:gate-sync=local", "mops", ("gate-sync=local",), "mops gate-sync=local"),
        (
            "mops : gate-sync = local : experts=2",
            *("mops", ("gate-sync=local", "experts=2"), "mops gate-sync=local experts=2"),
        ),
        (
            "mops:compression=2:4+nf4:experts=2",
            *("mops", ("compression=2:4+nf4", "experts=2"), "mops compression=2:4+nf4 experts=2"),
        ),
        ("mops:data-path=a=b", "mops", ("data-path=a=b",), "mops data-path=a=b"),
    ],
)
def test_an_entry(text, method, values, label):
    entry = Entry.parse(text)
    assert (entry.method, entry.values, entry.label) == (method, values, label)


def test_an_entrys_values_win_and_are_of_their_keys_type():
    base = ["learning-rate=0.5", "experts=3"]
    entry = Entry.parse("mops:learning-rate=1:pretrain-gate-steps=0")
    config = entry.config(lambda own, method: configured([*base, *own], method))
    assert (config.train.learning_rate, config.prompts.experts) == (1.0, 3)
    assert config.prompts.pretrain_gate_steps == 0


def test_equal_entries_are_one():
    text = "mops,mops:learning-rate=1e-2,mops:learning-rate=0.01, mops,mops:gate-sync=fedavg"
    entries = distinct(parse_methods(text), configured)
    assert [entry.label for entry in entries.values()] == ["mops", "mops learning-rate=1e-2"]


def test_folder_names_are_safe_and_no_two_alike():
    texts = ("mops", "mops:gate-sync=local", "mops:compression=2:4", "mops:compression=2-4")
    names = folder_names([Entry.parse(text) for text in texts])
    assert names[:2] == ["mops", "mops-gate-sync-local"]
    alike = [*texts, "mops:model=A", "mops:model=a", f"mops:model={'x' * 500}", "mops:model=../ä"]
    names = folder_names([Entry.parse(text) for text in alike])
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) for name in names)


def test_seeds_are_each_once():
    assert parse_seeds("2, 0,2,") == [2, 0]
    with pytest.raises(ConfigError, match="must be whole numbers of at least 0"):
        parse_seeds("1.5")


def write(folder, config, **facts):
    return write_run(folder, method=config.method, config=config.flat(), **facts)


def test_what_is_there_is_taken_carried_on_or_refused(tmp_path):
    config = configured([], "mops")

    def planned(resume=True, config=config):
        return plan("mops", config, tmp_path, "one", resume)

    new = planned()
    assert not new.done
    assert not new.config.resume
    folder = write(tmp_path / "one", new.config)
    assert planned().done
    with pytest.raises(RunError, match="exists"):
        planned(resume=False)
    for other in (configured(["experts=2"], "mops"), configured(["seed=3"], "mops")):
        with pytest.raises(RunError, match=r"another configuration \((experts|seed)\): carry on"):
            planned(config=other)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "stopped"}))
    assert not planned().done
    assert planned().config.resume
    assert Path(planned().config.run_dir) == folder


def test_a_summary_is_a_file_as_well(tmp_path):
    runs = [write_run(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    config = configured([], "mops")
    planned = [Planned("mops", replace(config, run_dir=str(run)), True) for run in runs]
    _write_summary(planned, tmp_path / "summary.csv")
    rows = pd.read_csv(tmp_path / "summary.csv")
    assert set(rows["entry"]) == {"mops"}
    assert "perplexity" in set(rows["measure"])
    assert (rows["seeds"] == 2).any()


def test_sizes_are_chosen_so_that_methods_train_as_many_numbers(tiny_llama):
    def configure_tiny(own, method):
        return configured([f"model={tiny_llama}", "dtype=float32", *own], method)

    entries = distinct(parse_methods("mops, fedprompt, lora, base"), configure_tiny)
    sizes = model_facts(next(iter(entries)).backbone).sizes
    matched = _matched(entries, "mops")
    counts = {
        entry.method: method_of(config.method).parameters(config, sizes)
        for config, entry in matched.items()
    }
    assert counts["base"] == 0
    assert counts["fedprompt"] == pytest.approx(counts["mops"], rel=0.02)
    assert counts["lora"] == pytest.approx(counts["mops"], rel=0.1)
    with pytest.raises(ConfigError, match="--match-parameters ia3: no entry"):
        _matched(entries, "ia3")
