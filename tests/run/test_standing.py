"""Whether a run still goes on, told from its folder and from the lock of whoever writes it."""

import os
import time

import pytest
from synthetic import write_run

import mops_fl.server_app
from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.files import cache_folder, held
from mops_fl.run.standing import GRACE_SECONDS, SETTLING_SECONDS, is_written, standing


def aged(run, seconds):
    then = time.time() - seconds
    os.utime(run / "run.json", (then, then))
    return run


def own_folder(folder, **facts):
    run = folder / "run"
    return write_run(run, config={"run-dir": str(run)}, **facts)


def test_the_lock_is_the_one_that_the_serverapp_holds(tmp_path, monkeypatch):
    run = own_folder(tmp_path, status="running")
    seen = []

    def record(config, path, grid):
        seen.append(standing(run))

    class Context:
        run_config = Config.from_flat({"run-dir": str(run)}).flat()

    monkeypatch.setattr(mops_fl.server_app, "_record", record)
    assert standing(aged(run, 999)).status == "running"  # nobody knows: there is no lock yet
    mops_fl.server_app.main(None, Context())
    assert [(each.status, each.over) for each in seen] == [("running", False)]
    died = standing(run)
    assert (died.status, died.over) == ("died", True)
    assert died.silent == pytest.approx(999, abs=60)


def lock_of(run):
    """The file of the lock, which somebody held once."""
    import hashlib

    name = hashlib.sha256(str(run).encode()).hexdigest()[:16]
    path = cache_folder() / "locks" / name
    with held(path):
        pass
    return path


def test_who_asks_is_no_writer(tmp_path):
    run = own_folder(tmp_path)
    facts = standing(run).facts
    with lock_of(run).open("rb") as other:
        import fcntl

        fcntl.flock(other, fcntl.LOCK_SH)
        assert is_written(run, facts) is False
    with held(lock_of(run)):
        assert is_written(run, facts) is True


def test_a_launcher_has_time_to_say_how_it_ended(tmp_path):
    run = own_folder(tmp_path, status="running")
    lock_of(run)
    assert not standing(run).over
    assert standing(aged(run, GRACE_SECONDS + 1)).status == "died"
    (run / "progress.json").write_text("{}")
    assert standing(run).status == "running"


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_an_end_settles(tmp_path, status):
    run = own_folder(tmp_path, status=status)
    assert not standing(run).over
    assert standing(aged(run, SETTLING_SECONDS + 1)).over
    with held(lock_of(run)):
        assert not standing(run).over


def test_a_completed_run_is_over_when_its_figures_are_drawn(tmp_path):
    run = own_folder(tmp_path)
    with held(lock_of(run)):
        assert not standing(run).over
    assert standing(run).over


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="not a run folder: there is no such folder"):
        standing(tmp_path / "nowhere")
