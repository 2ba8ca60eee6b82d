"""Golden curves: what counts as the same, and what has a curve."""

import pandas as pd
import pytest

from experiments.golden import curves


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table, ""),
        (lambda table: table.assign(nll=table["nll"] * 1.0001), ""),
        (lambda table: table.assign(nll=table["nll"] * 1.001), "a sum of losses is off by 1.0e-03"),
        (lambda table: table.assign(tokens=1), "rounds, tasks or answer tokens differ"),
        (lambda table: table.iloc[:-1], "rounds, tasks or answer tokens differ"),
    ],
)
def test_a_difference_is_found(tmp_path, change, found):
    file = curves.CASES[0].file
    change(pd.read_csv(file)).to_csv(tmp_path / "rounds.csv", index=False)
    assert curves.difference(tmp_path, file) == found


def test_every_engine_method_and_gate_mode_has_a_curve_that_falls():
    assert {case.file for case in curves.CASES} == set(curves.HERE.glob("*.csv"))
    for case in curves.CASES:
        table = pd.read_csv(case.file).query("task == 'all'").set_index("round")["perplexity"]
        assert list(table.index) == list(range(curves.ROUNDS + 1))
        assert table.iloc[-1] < table.iloc[0]
