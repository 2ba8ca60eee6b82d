"""Whole simulations with both engines on the tiny LLaMA, through the command line."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VALUES = {"num-server-rounds": 3, "learning-rate": 0.005, "cohort-size": 2}
TABLES = ("rounds.csv", "gate.csv", "partition.csv")


@pytest.fixture(scope="module")
def simulate(tiny_llama, tmp_path_factory):
    """Runs once for each engine and number of workers: the run folder."""
    os.environ["MOPS_FL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    folder, done = tmp_path_factory.mktemp("engines"), {}

    def run(engine: str, workers: int) -> Path:
        if (engine, workers) not in done:
            values = {**VALUES, "engine": engine, "model": tiny_llama}
            name = f"{engine}-{workers}"
            done[engine, workers] = small_run.simulate(folder, name, values, workers)
        return done[engine, workers]

    return run


def test_cohorts_give_the_numbers_of_single_clients(simulate):
    cohort, clients = simulate("cohort", 2), simulate("clients", 2)
    assert "engine: cohorts of 2 clients on 2 workers (cpu)" in (cohort / "flower.log").read_text()
    assert "engine: cohorts" not in (clients / "flower.log").read_text()
    for name in TABLES:
        ours, theirs = (pd.read_csv(run / name) for run in (cohort, clients))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-4)
    ours, theirs = (pd.read_csv(run / "clients.csv") for run in (cohort, clients))
    pd.testing.assert_frame_equal(
        ours.drop(columns="seconds"), theirs.drop(columns="seconds"), rtol=1e-4
    )
    assert np.isfinite(ours["nll"]).all()


def test_the_number_of_workers_changes_nothing(simulate):
    one, two = simulate("cohort", 1), simulate("cohort", 2)
    assert [(one / n).read_text() for n in TABLES] == [(two / n).read_text() for n in TABLES]
