"""A report from fixed result files equals the stored one, and mixes nothing."""

import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_run

from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.experiment.plan import Cell, Plan, Published
from mops_fl.experiment.reporting import paired, rows, write_report
from mops_fl.experiment.result_files import Identity, Store

ENDS = {"base": 40.0, "fedprompt": 24.0, "mops": 20.0}
POINT = (("alpha", 0.5),)
SEEDS = (0, 1, 2)


def cell(entry: str, seed: int) -> Cell:
    return Cell(entry, POINT, Config.from_flat({"alpha": 0.5, "method": entry, "seed": seed}))


PLAN = Plan(
    "thing",
    "A thing",
    "fedprompt",
    False,
    tuple(cell(entry, seed) for seed in SEEDS for entry in ENDS),
    (Published("mops", POINT, 12.5),),
)


def keep(
    store: Store,
    folder: Path,
    entry: str,
    seed: int,
    code: str = "a",
    dtype: str = "float32",
    cores: int = 2,
    seconds: float = 12.0,
    **config,
) -> None:
    identity = Identity({"seed": seed, "entry": entry}, {"model": "m"}, code * 64)
    run = write_run(
        folder / f"{entry}-{seed}-{code}",
        method=entry,
        rounds=0 if entry == "base" else 4,
        end=ENDS[entry] + seed,
        start=ENDS["base"] if entry == "base" else 500,
        config={"seed": seed, **config},
        machine={"processor": "a processor", "cores": cores},
        seconds=seconds,
        commit="0123456789abcdef",
        dtype=dtype,
        trainable_parameters=7,
        bytes_per_round=56,
    )
    store.keep(cell(entry, seed), identity, run)


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "results" / "thing")
    for entry in ENDS:
        for seed in SEEDS:
            keep(store, tmp_path / "runs", entry, seed)
    return store


def test_it_is_the_stored_one(store, tmp_path):
    files = write_report(PLAN, store.results(), tmp_path)
    assert [file.name for file in files] == ["thing.md", "thing.csv", "thing-0.5.png"]
    assert files[2].stat().st_size > 10_000
    stored = Path(__file__).parent / "thing.md"
    assert files[0].read_text() == stored.read_text()
    table = files[1].read_text().splitlines()
    assert len(table) == 1 + len(ENDS)
    assert table[0].startswith("point,entry,code,model,dtype,seeds,perplexity")


def test_results_of_two_codes_are_never_in_one_mean(store, tmp_path):
    keep(store, tmp_path / "runs", "mops", 0, code="b")
    made = [(row.entry, row.code, len(row.results)) for row in rows(PLAN, store.results())]
    assert made == [
        ("base", "aaaaaaaa", 3),
        ("fedprompt", "aaaaaaaa", 3),
        ("mops", "aaaaaaaa", 3),
        ("mops", "bbbbbbbb", 1),
    ]
    text = write_report(PLAN, store.results(), tmp_path)[0].read_text()
    # a row of another code has no baseline of that code
    (line,) = (line for line in text.splitlines() if "bbbbbbbb" in line)
    assert line.endswith("|  |  |  |  |")


def test_results_of_other_configurations_are_left_out(store, tmp_path):
    for file in store.folder.glob("*mops-seed2*"):
        file.unlink()
    keep(store, tmp_path / "runs2", "mops", 2, **{"local-steps": 7})
    made = {row.entry: len(row.results) for row in rows(PLAN, store.results())}
    assert made == {"base": 3, "fedprompt": 3, "mops": 2}


def test_what_is_compared_has_one_model_and_type_and_the_same_seeds(store, tmp_path):
    for file in store.folder.glob("*mops-seed[12]*"):
        file.unlink()
    for seed in SEEDS:
        keep(store, tmp_path / "runs3", "fedprompt", seed, code="b", dtype="bfloat16")
    text = write_report(PLAN, store.results(), tmp_path)[0].read_text()
    (line,) = (line for line in text.splitlines() if "| mops |" in line)
    loss = {e: store_loss(store, e) for e in ("mops", "fedprompt")}
    reduction = 1 - loss["mops"] / loss["fedprompt"]
    assert f"{reduction:+.1%}" in line
    assert "cannot be below 1." in text


def test_seconds_are_those_on_one_machine(store, tmp_path):
    for file in store.folder.glob("*mops-seed0*"):
        file.unlink()
    keep(store, tmp_path / "runs2", "mops", 0, cores=64, seconds=9.0)
    written, table, _ = write_report(PLAN, store.results(), tmp_path)
    assert "on a processor, 2 cores; a processor, 64 cores;" in written.read_text()
    assert "Seconds are those on a processor, 2 cores." in written.read_text()
    assert pd.read_csv(table)["seconds"].tolist() == [12.0, 12.0, 12.0]


def store_loss(store: Store, entry: str) -> float:
    (result,) = (
        r
        for r in store.results()
        if (r.entry, r.seed) == (entry, 0) and r.run.facts["dtype"] == "float32"
    )
    return result.run.measures()["perplexity"]


def test_a_client_without_an_evaluation_is_left_out_of_the_pairs(store):
    _, fedprompt, mops = rows(PLAN, store.results())
    table = mops.results[0].run.tables["evaluation.csv"]
    table[:] = [row for row in table if row[1] != 1]
    found = paired(mops, fedprompt)
    assert found.seeds == 3


def test_runs_on_other_rows_are_not_compared(store, tmp_path):
    (_, fedprompt, mops) = rows(PLAN, store.results())
    for result in mops.results:
        result.identity["data"]["rows"] = "others"
    assert paired(mops, fedprompt) is None
    (file,) = store.folder.glob("*mops-seed0*")
    file.write_text(file.read_text().replace('"model":"m"', '"model":"m","rows":"others"'))
    for other in store.folder.glob("*mops-seed[12]*"):
        other.unlink()
    text = write_report(PLAN, store.results(), tmp_path)[0].read_text()
    (line,) = (line for line in text.splitlines() if "| mops |" in line)
    assert line.endswith("|  |  |  |  |")


def test_clients_on_other_rows_are_no_pair(store):
    _, fedprompt, mops = rows(PLAN, store.results())
    table = mops.results[0].run.tables["evaluation.csv"]
    table[:] = [(*row[:4], row[4] + 1) for row in table]
    assert paired(mops, fedprompt) is None


def test_pairs_are_seeds_on_the_same_rows(store):
    _, fedprompt, mops = rows(PLAN, store.results())
    found = paired(mops, fedprompt)
    losses = [
        math.log(r.run.perplexity()[4]) - math.log(o.run.perplexity()[4])
        for r, o in zip(mops.results, fedprompt.results, strict=True)
    ]
    assert found.mean == pytest.approx(sum(losses) / 3)
    assert (found.p, found.least_p, found.seeds) == (0.25, 0.25, 3)
    assert found.low <= found.mean <= found.high


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(RunError, match="thing: no result of its cells yet"):
        write_report(PLAN, [], tmp_path)
