"""Whole simulations with both engines on the tiny LLaMA, through the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.golden import curves
from experiments.golden.curves import Case, same_bits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[curves.Case, int], Path]:
    """Runs a golden case through Flower and Ray, once: its run folder.

    Cohorts are shared by two workers where nothing else is said.
    """
    folder, done = tmp_path_factory.mktemp("golden"), {}

    def run(case: curves.Case, workers: int = 0) -> Path:
        workers = workers or (2 if case.engine == "cohort" else 1)
        if (case, workers) not in done:
            done[case, workers] = curves.run(case, tiny_llama, folder, workers=workers)
        return done[case, workers]

    return run


METHODS = (("mops", "attention"), ("mops", "hidden"), ("fedprompt", "attention"))


@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_cohorts_give_the_numbers_of_single_clients(federation, method, mode):
    cohort, clients = (federation(Case(e, method, mode)) for e in ("cohort", "clients"))
    assert "engine: cohorts of 2 clients on 2 workers (cpu)" in (cohort / "flower.log").read_text()
    assert "engine: cohorts" not in (clients / "flower.log").read_text()
    for name in ("rounds.csv", "partition.csv", *(["gate.csv"] if method == "mops" else [])):
        ours, theirs = (pd.read_csv(run / name) for run in (cohort, clients))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-4)
    ours, theirs = (pd.read_csv(run / "clients.csv") for run in (cohort, clients))
    pd.testing.assert_frame_equal(
        ours.drop(columns="seconds"), theirs.drop(columns="seconds"), rtol=1e-4
    )
    assert np.isfinite(ours["nll"]).all()


def test_the_number_of_workers_changes_nothing(federation):
    case = Case("cohort", "mops")
    assert same_bits(federation(case, 1), federation(case, 2)) == []


@pytest.mark.parametrize("case", curves.CASES, ids=lambda case: case.name)
def test_a_federation_gives_its_golden_curve(federation, case):
    assert curves.difference(federation(case), case.file) == ""
