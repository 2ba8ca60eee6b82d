"""What TensorBoard, and whatever has wandb's interface, are told of a run: what its tables say."""

import json
import math
import sys
from types import ModuleType

import pytest
from synthetic import LABELS, write_run, write_table

from mops_fl.errors import ConfigError
from mops_fl.run import read
from mops_fl.run.scalars import scalars
from mops_fl.run.trackers import Following, check_trackers

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


class FakeRun:
    """A run of wandb."""

    def __init__(self, calls):
        self.calls = calls

    def log(self, data, step):
        self.calls.append(("log", step, data))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """A module with the interface of wandb that is used; its calls."""
    return fake(monkeypatch, "wandb")


def fake(monkeypatch, name):
    module, calls = ModuleType(name), []

    def init(**options):
        calls.append(("init", options))
        return FakeRun(calls)

    module.init = init
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


def mixture(run, rounds: int):
    write_table(run / "entropy.csv", ((k, "sort", 0.5 + k) for k in range(rounds + 1)))
    write_table(run / "load.csv", ((k, "sort", e, 0.5) for k in range(rounds + 1) for e in (0, 1)))
    write_table(
        run / "drift.csv", ((k, e, 0.9, -0.1) for k in range(1, rounds + 1) for e in (0, 1))
    )
    return run


def pass_on(run, *names):
    """Follow a run as it stands; what was warned of."""
    warned = []
    following = Following(run, names, warned.append)
    following.step()
    following.close()
    return warned


def events(run):
    found = tensorboard.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found


def series(run):
    """Step and value by tag, of the event files."""
    found = events(run)
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def state(run, **facts):
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_events_say_what_the_tables_say(tmp_path):
    run = mixture(write_run(tmp_path / "run", tasks=LABELS), 4)
    assert pass_on(run, "tensorboard") == []
    found, own = series(run), read(run)
    assert [step for step, _ in found["perplexity"]] == [0, 1, 2, 3, 4]
    values = [value for _, value in found["perplexity"]]
    assert values == pytest.approx(own.perplexity().tolist())
    of_tasks = {tag for tag in found if tag.startswith("perplexity of task/")}
    assert len(of_tasks) == len(LABELS)
    assert found["perplexity of task/1e5"][4][1] == pytest.approx(own.perplexity("1e5")[4])
    losses = own.train.set_index("round").eval("nll / tokens")
    assert dict(found["train/loss"]) == pytest.approx(losses.to_dict())
    for column, tag in (("seconds", "seconds"), ("bytes_up", "bytes up"), ("failures", "failures")):
        assert dict(found[f"train/{tag}"]) == dict(own.train.set_index("round")[column])
    assert dict(found["evaluation/failures"]) == dict.fromkeys(range(5), 1)
    assert dict(found["mixture/entropy"]) == pytest.approx({k: 0.5 + k for k in range(5)})
    assert dict(found["mixture/update cosine"]) == pytest.approx(dict.fromkeys(range(1, 5), -0.1))


def test_the_configuration_is_a_text(tmp_path):
    run = write_run(tmp_path / "run", config={"model": "a|b *c* <d>\n$"})
    pass_on(run, "tensorboard")
    (event,) = events(run).Tensors("configuration")
    text = event.tensor_proto.string_val[0].decode()
    assert '    model = "a|b *c* <d>\\n$"' in text.splitlines()
    assert "    alpha = 0.5" in text.splitlines()


def test_only_whole_rounds_and_none_twice(tmp_path):
    """A run that was killed after a round was evaluated and before it was whole."""
    run = write_run(tmp_path / "run", status="running", rounds_done=2, rounds=3)
    pass_on(run, "tensorboard")
    assert [step for step, _ in series(run)["perplexity"]] == [0, 1, 2]
    following = Following(run, ["tensorboard"], pytest.fail)
    for done in (2, 3, 3):
        state(run, rounds_done=done)
        following.step()
    state(run, status="completed")
    following.close()
    assert [step for step, _ in series(run)["perplexity"]] == [0, 1, 2, 3]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_an_earlier_part_waits_until_it_is_carried_on(tmp_path):
    run = write_run(tmp_path / "run", status="failed", rounds_done=2)
    from mops_fl.files import version

    following = Following(run, ["tensorboard"], pytest.fail, version(run / "run.json"))
    following.step()
    assert not (run / "tensorboard").exists()
    state(run, status="running")
    following.step()
    following.close()
    assert [step for step, _ in series(run)["perplexity"]] == [0, 1, 2]


def test_a_run_that_never_begins_is_no_trouble(tmp_path):
    assert pass_on(tmp_path / "nowhere", "tensorboard") == []


def test_wandb_is_told_the_same(tmp_path, wandb):
    run = mixture(write_run(tmp_path / "run", id="f00dfeed1234"), 4)
    assert pass_on(run, "wandb") == []
    (_, options), *logs, last = wandb
    assert options == {
        "project": "mops-fl",
        "name": "run-f00dfeed",
        "config": read(run).facts["config"],
        "resume": "allow",
        "id": "f00dfeed1234",
        "dir": str(run),
        "mode": "offline",
    }
    assert {step: data for _, step, data in logs} == scalars(read(run))
    assert last == ("finish",)


def test_wandb_is_told_of_no_round_twice(tmp_path, wandb):
    run = write_run(tmp_path / "run", status="failed", rounds_done=1)
    for facts in ({}, {}, {"rounds_done": 3}, {"status": "completed"}, {}):
        state(run, **facts)
        assert pass_on(run, "wandb") == []
    assert [call[1] for call in wandb if call[0] == "log"] == [0, 1, 2, 3, 4]
    assert sum(call[0] == "init" for call in wandb) == 3


def test_the_users_settings_win(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    pass_on(write_run(tmp_path / "run"), "wandb")
    assert (wandb[0][1]["mode"], wandb[0][1]["project"]) == ("online", "mine")


def test_trackio_gets_what_it_knows(tmp_path, monkeypatch):
    # such a folder is left by wandb, and lies where Python looks
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    calls = fake(monkeypatch, "trackio")
    pass_on(write_run(tmp_path / "run"), "wandb")
    assert set(calls[0][1]) == {"project", "name", "config", "resume"}
    assert len(calls) == 1 + 5 + 1
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_missing_packages_are_named_before_anything_starts(monkeypatch):
    for name in ("wandb", "trackio", "tensorboard.summary.writer.event_file_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"--wandb needs wandb or trackio.*pip install wandb"):
        check_trackers(["wandb"])
    with pytest.raises(ConfigError, match=r"pip install 'mops-fl\[track\]'"):
        check_trackers(["tensorboard"])


def test_a_tracker_that_fails_is_a_warning_and_others_go_on(tmp_path, wandb, monkeypatch):
    def log(self, data, step):
        raise OSError("the network\nis down")

    monkeypatch.setattr(FakeRun, "log", log)
    run = write_run(tmp_path / "run")
    (warning,) = pass_on(run, "wandb", "tensorboard")
    assert "--wandb failed and is left out from now on: the network is down" in warning
    assert f"mops-fl watch {run} --wandb" in warning
    assert len(series(run)["perplexity"]) == 5


def test_a_table_that_cannot_be_read_is_a_warning(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "rounds.csv").write_text("nonsense\n")
    (warning,) = pass_on(run, "tensorboard")
    assert "rounds.csv" in warning


def test_what_is_not_known_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", rounds=1, method="fedprompt", tasks=["sort"])
    lines = (run / "rounds.csv").read_text().splitlines()
    lines[2], lines[3] = "0,sort,0.0,0,nan,nan", "1,all,9e5,100,inf,1.0"
    (run / "rounds.csv").write_text("\n".join(lines) + "\n")
    found = scalars(read(run))
    assert "perplexity of task/sort" not in found[0]
    assert math.isinf(found[1]["perplexity"])
    (run / "rounds.csv").unlink()
    assert set(scalars(read(run))[1]) >= {"train/loss"}
