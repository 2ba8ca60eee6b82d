"""How long a cell will take, from the seconds of a step and of a row."""

import pytest

from mops_fl.config import Config
from mops_fl.experiment import estimates
from mops_fl.experiment.estimates import START_SECONDS, Speed, calibrate, estimate
from mops_fl.experiment.plan import Cell

SIZES = {"num-clients": 20, "active-clients": 10, "num-server-rounds": 4, "local-steps": 5}
SIZES |= {"pretrain-data": "none", "num-samples": 2000, "eval-samples": 3, "eval-every": 2}


@pytest.mark.parametrize(
    ("changes", "steps", "evaluated", "share"),
    [
        ({}, 4 * 10 * 5, 3 * 20, 2),
        ({"training": "local", "unseen-clients": 0.2}, 4 * 16 * 5, 3 * 20, 2),
        ({"training": "centralised"}, 4 * 5, 3 * 20, 1),
        ({"method": "base"}, 0, 20, 2),
        ({"evaluate-clients": 5}, 4 * 10 * 5, 2 * 5 + 20, 2),
    ],
)
def test_steps_and_rows_are_counted(changes, steps, evaluated, share):
    config = Config.from_flat({**SIZES, **changes})
    found = estimate(config, Speed(load=7.0, step=0.5, row=0.25), 2)
    expected = START_SECONDS + 7 + (0.5 * steps + 0.25 * 3 * evaluated) / share
    assert found == pytest.approx(expected)


def test_configurations_of_one_speed_are_timed_once(monkeypatch):
    asked = []

    def timed(config):
        asked.append(config)
        return Speed(1.0, 1.0, 1.0)

    monkeypatch.setattr(estimates, "calibrate", timed)
    flat = [{**SIZES, "method": m, "seed": s} for m in ("mops", "lora") for s in (0, 1)]
    cells = [Cell(str(values["method"]), (), Config.from_flat(values)) for values in flat]
    assert len(estimates.estimates(cells, 2)) == 4
    assert len(asked) == 2


def test_a_calibration_times_a_real_model(tiny_llama):
    values = {"model": str(tiny_llama), "dtype": "float32", "num-samples": 300, "experts": 2}
    speed = calibrate(Config.from_flat({**SIZES, **values, "num-samples": 400}))
    assert speed.load > speed.step > 0
    assert speed.row > 0


def test_what_was_timed_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    asked = []

    def timed(config):
        asked.append(config)
        return Speed(float(len(asked)), 1.0, 1.0)

    monkeypatch.setattr(estimates, "_timed", timed)
    first, other = (Config.from_flat({**SIZES, "max-length": n}) for n in (64, 65))
    assert calibrate(first) == calibrate(Config.from_flat({**first.flat(), "seed": 7}))
    assert calibrate(other) != calibrate(first)
    assert asked == [first, other]
