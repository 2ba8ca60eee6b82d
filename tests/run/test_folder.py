"""Run folders: whole at every moment, refused when they do not fit, resumable."""

import json
from pathlib import Path

import numpy as np
import pytest

from mops_fl.config import EARLIER, Config
from mops_fl.errors import RunError
from mops_fl.files import made_once, replacing, write_text
from mops_fl.metrics import GateSum, Tally
from mops_fl.run.folder import RunFolder, read_run_table
from mops_fl.run.recorder import Recorder
from mops_fl.wire.rounds import EvaluateRound, TrainRound, TrainRow

FLAT = {"num-server-rounds": 4, "eval-every": 2}


PARTITION = [(3, "b", 1, 1), (3, "a", 1, 1)]


def create(path: Path, partition=PARTITION) -> tuple[RunFolder, Recorder]:
    config = Config.from_flat(FLAT)
    folder = RunFolder.create(path, {"config": config.flat(), "method": "mops", "seed": 0})
    folder.add_rows("partition.csv", partition)
    return folder, Recorder(config, folder, -1)


def train(recorder: Recorder, current: int) -> None:
    row = TrainRow(3, 9, 5, Tally(4.0 + current, 2), 0.1)
    recorder.on_train(TrainRound(current, (row,), {7: "lost"}, 100, 200))


def play(recorder: Recorder, rounds) -> None:
    """What a strategy and a Grid report of some rounds."""
    for current in rounds:
        if current:
            recorder.on_replies("train", 0, 2)
            train(recorder, current)
        if current % 2 == 0:
            recorder.on_replies("evaluate", 0, 2)
            tallies = {"a": Tally(1.0, 1), "b": Tally(3.0, 1)}
            gate = {
                "a": GateSum((1.0, 3.0), (1, 3), 2.0, 4),
                "b": GateSum((2.0, 2.0), (2, 2), 2.5, 4),
            }
            recorder.on_evaluate(
                EvaluateRound(current, tallies, gate, {3: tallies}, {}, {4: "lost"}, 50)
            )
        recorder.on_round_end(current, {"prompts": np.full(3, float(current))}, {})


def test_a_whole_run_is_written(tmp_path):
    folder, recorder = create(tmp_path / "run")
    play(recorder, range(5))
    recorder.finish(status="completed")
    read = lambda name: (folder.path / name).read_text()  # noqa: E731
    assert read("rounds.csv").startswith(
        "round,task,nll,tokens,perplexity,share\n0,all,4.0,2,7.38905609893065,1.0\n0,b,3.0,1,20.08"
    )
    assert "2,a,1,0.75\n" in read("gate.csv")
    assert read("train.csv").splitlines()[1].startswith("1,1,1,5,5.0,2,")
    clients, failures, tokens, _, down = read("evaluate.csv").splitlines()[1].split(",")[1:]
    assert (clients, failures, tokens, down) == ("1", "1", "2", "50")
    assert read("clients.csv").splitlines()[1] == "1,3,9,5,5.0,2,0.1"
    facts = json.loads(read("run.json"))
    assert (facts["status"], facts["rounds_done"]) == ("completed", 4)
    assert (facts["bytes_up"], facts["bytes_down"]) == (400, 4 * 200 + 3 * 50)
    assert json.loads(read("progress.json"))["phase"] == "finished"
    assert not list(folder.path.rglob("*.tmp"))


def test_reopening_drops_what_is_after_the_last_whole_round(tmp_path):
    folder, recorder = create(tmp_path / "run")
    play(recorder, range(4))
    whole = {name: (folder.path / name).read_bytes() for name in ("rounds.csv", "gate.csv")}
    (folder.path / "checkpoints" / "round-003.safetensors").unlink()
    config = Config.from_flat(FLAT)
    reopened = RunFolder.reopen(folder.path, config.flat())
    assert reopened.last_round() == 2
    np.testing.assert_array_equal(reopened.load_checkpoint(2)["prompts"], np.full(3, 2.0))
    again = Recorder(config, reopened, 2)
    play(again, [3])
    for name, content in whole.items():
        assert (folder.path / name).read_bytes() == content
    rounds = [line.split(",")[0] for line in (folder.path / "train.csv").read_text().split()]
    assert rounds == ["round", "1", "2", "3"]
    # a round that was begun again may have left the server twice
    assert json.loads((folder.path / "run.json").read_text())["unfinished_rounds"] == 1


def test_totals_are_those_of_the_tables_after_a_failed_round(tmp_path):
    folder, recorder = create(tmp_path / "run")
    recorder.on_replies("query.pretrain", 0, 1)
    recorder.on_pretrain(7, 5)
    play(recorder, [0, 1])
    before = json.loads((folder.path / "run.json").read_text())
    recorder.on_replies("train", 0, 2)
    train(recorder, 2)
    recorder.finish(status="failed", error="power cut")
    for name in ("bytes_up", "bytes_down", "seconds"):
        folder = RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())
        assert json.loads((folder.path / "run.json").read_text())[name] == before[name]
        assert len((folder.path / "train.csv").read_text().splitlines()) == 2
    play(Recorder(Config.from_flat(FLAT), folder, 1), [2])
    facts = json.loads((folder.path / "run.json").read_text())
    assert (facts["bytes_up"], facts["bytes_down"]) == (7 + 2 * 100, 5 + 2 * 200 + 2 * 50)
    assert list(facts["evaluation_failures"]) == ["0", "2"]


def test_what_failed_in_a_round_that_is_done_again_is_forgotten(tmp_path):
    folder, recorder = create(tmp_path / "run")
    play(recorder, [0, 1, 2])
    (folder.path / "checkpoints" / "round-002.safetensors").unlink()
    folder = RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())
    assert list(folder.facts["evaluation_failures"]) == ["0"]


def test_starts_before_round_0_leave_one_partition_table(tmp_path):
    folder, recorder = create(tmp_path / "run")
    table = (folder.path / "partition.csv").read_text()
    for _ in range(2):
        recorder.on_pretrain(7, 5)
        folder = RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())
        assert folder.facts["bytes_up"] == 0
        folder.add_rows("partition.csv", PARTITION)
        recorder = Recorder(Config.from_flat(FLAT), folder, -1)
        recorder.on_replies("query.pretrain", 0, 1)
    assert (folder.path / "partition.csv").read_text() == table
    play(recorder, [0])
    folder = RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())
    assert folder.tasks() == ["b", "a"]


def test_rounds_beyond_999_are_ordered_by_number(tmp_path):
    folder, _ = create(tmp_path / "run")
    for number in (998, 999, 1000, 1002):
        folder.save_checkpoint(number, {"prompts": np.full(1, float(number))}, {})
    assert folder.last_round() == 1002
    assert folder.load_checkpoint(1002)["prompts"] == 1002


@pytest.mark.parametrize("task", ["1", "None", "NA", "", "nan", "1e5", "a,b", 'q"', "a\nb", "a\rb"])
def test_a_task_is_text_after_a_resume(tmp_path, task):
    folder, _ = create(tmp_path / "run", partition=[(0, task, 1, 1), (1, "other", 2, 0)])
    folder.save_checkpoint(0, {"prompts": np.zeros(1)}, {})
    table = (folder.path / "partition.csv").read_bytes()
    folder = RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())
    assert folder.tasks() == [task, "other"]
    folder.add_rows("partition.csv", [])
    assert (folder.path / "partition.csv").read_bytes() == table


def test_a_malformed_table_is_refused_when_resumed(tmp_path):
    folder, _ = create(tmp_path / "run")
    (folder.path / "partition.csv").write_text("partition,task,train,test\n0,a,one,1\n")
    with pytest.raises(RunError, match="column train holds 'one'"):
        RunFolder.reopen(folder.path, Config.from_flat(FLAT).flat())


def test_an_existing_folder_is_refused(tmp_path):
    create(tmp_path / "run")
    with pytest.raises(RunError, match="exists: choose another, or carry it on with --resume"):
        create(tmp_path / "run")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write run-dir"):
        create(tmp_path / "file" / "run")


def test_what_cannot_be_resumed_says_why(tmp_path):
    config = Config.from_flat(FLAT)
    with pytest.raises(RunError, match=r"it has no run\.json"):
        RunFolder.reopen(tmp_path, config.flat())
    folder, recorder = create(tmp_path / "run")
    other = Config.from_flat({**FLAT, "seed": 5})
    with pytest.raises(RunError, match=r"seed=5 but the run in .* has 0"):
        RunFolder.reopen(folder.path, other.flat())
    recorder.finish(status="completed")
    with pytest.raises(RunError, match="is complete"):
        RunFolder.reopen(folder.path, config.flat())


def test_time_left_falls_as_rounds_end(tmp_path):
    folder, recorder = create(tmp_path / "run")
    left = []
    for current in range(4):
        play(recorder, [current])
        recorder.on_replies("train", 0, 2)
        recorder._round -= 1  # `on_replies` began a round that `play` begins again
        left.append(json.loads((folder.path / "progress.json").read_text())["seconds_left"])
    assert left[0] is None
    assert left[1] >= left[2] >= left[3] >= 0


def test_replacing_leaves_the_old_file_when_the_new_one_fails(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def half_write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        half_write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_made_once_forgets_what_was_not_finished(tmp_path):
    def fail() -> None:
        with made_once(tmp_path / "made") as made:
            (made.folder / "part").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert not (tmp_path / "made").exists()
    with made_once(tmp_path / "made") as made:
        assert list(made.folder.iterdir()) == []
        (made.folder / "part").write_text("whole")
    with made_once(tmp_path / "made") as made:
        assert made.folder is None
        assert (made.target / "part").read_text() == "whole"


def test_rounds_without_a_common_client_are_not_compared(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    folder.save_checkpoint(2, {}, {})
    folder.add_rows("validation.csv", [(0, 1, "a", 9.0, 3), (1, 2, "a", 3.0, 3)])
    assert folder.best_round() is None
    rows = [(server_round, 1, "a", nll, 3) for server_round, nll in enumerate((9.0, 3.0, 6.0))]
    folder.set_rows("validation.csv", rows)
    assert folder.best_round() == 1


def test_a_run_of_an_earlier_version_goes_on_with_what_it_ran_with(tmp_path):
    """Its configuration lacks keys whose defaults would give clients other rows."""
    RunFolder.create(tmp_path / "run", {"config": {"seed": 0}, "method": "mops", "seed": 0})
    with pytest.raises(RunError, match=r"pretrain-data='server' but the run in .* has 'pooled'"):
        RunFolder.reopen(tmp_path / "run", {"seed": 0, "pretrain-data": "server"})
    RunFolder.reopen(tmp_path / "run", {"seed": 0, **EARLIER})


def test_a_resumed_run_may_have_other_patience_and_nothing_else(tmp_path):
    folder, recorder = create(tmp_path / "run")
    play(recorder, range(2))
    changed = {"min-reply-fraction": 0.25, "min-evaluate-fraction": 0.5, "round-timeout": 9.0}
    config = Config.from_flat({**FLAT, **changed}).flat()
    facts = RunFolder.reopen(folder.path, config).facts["config"]
    assert {key: facts[key] for key in changed} == changed
    written = json.loads((folder.path / "run.json").read_text())["config"]
    assert written == facts
    with pytest.raises(RunError, match="but for min-reply-fraction, min-evaluate-fraction"):
        RunFolder.reopen(folder.path, {**config, "eval-every": 1})


def test_a_run_of_a_version_without_shares_is_carried_on(tmp_path):
    folder, recorder = create(tmp_path / "run")
    play(recorder, range(3))
    table = folder.path / "rounds.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    config = Config.from_flat(FLAT)
    reopened = RunFolder.reopen(folder.path, config.flat())
    play(Recorder(config, reopened, 2), [3, 4])
    shares = [row[-1] for row in read_run_table(table)]
    assert np.isnan(shares[:6]).all()
    assert shares[6:] == [1.0] * 3


class TestShare:
    def evaluate(self, recorder, current, clients):
        tallies = {}
        for own in clients.values():
            for task, tally in own.items():
                tallies[task] = tallies.get(task, Tally()) + tally
        recorder.on_evaluate(EvaluateRound(current, tallies, {}, clients, {}, {}, 0))

    def shares(self, folder, current):
        table = read_run_table(folder.path / "rounds.csv")
        return {row[1]: row[-1] for row in table if row[0] == current}

    def test_it_is_of_the_tokens_of_all_that_hold_rows(self, tmp_path):
        held = [(0, "a", 9, 2), (0, "b", 9, 0), (1, "a", 9, 1), (1, "b", 9, 3), (2, "a", 9, 4)]
        folder, recorder = create(tmp_path / "run", held)
        folder.update(unseen_clients=[2])
        zero, one = {"a": Tally(1.0, 20)}, {"a": Tally(1.0, 5), "b": Tally(1.0, 35)}
        self.evaluate(recorder, 0, {0: zero})
        # client 1 was never evaluated: as many tokens a row as client 0 has
        assert self.shares(folder, 0) == {"all": 20 / 60, "a": 20 / 30}
        self.evaluate(recorder, 1, {0: zero, 1: one})
        assert self.shares(folder, 1) == {"all": 1.0, "a": 1.0, "b": 1.0}
        self.evaluate(recorder, 2, {1: one})
        assert self.shares(folder, 2) == {"all": 40 / 60, "a": 5 / 25, "b": 1.0}

    def test_rows_that_are_not_asked_for_do_not_count(self, tmp_path):
        config = Config.from_flat({**FLAT, "eval-samples": 2})
        facts = {"config": config.flat(), "method": "mops", "seed": 0}
        folder = RunFolder.create(tmp_path / "run", facts)
        folder.add_rows("partition.csv", [(0, "a", 9, 2), (1, "a", 9, 20)])
        self.evaluate(Recorder(config, folder, -1), 0, {0: {"a": Tally(1.0, 10)}})
        assert self.shares(folder, 0)["all"] == 0.5

    def test_unseen_tasks_are_no_part_of_it(self, tmp_path):
        folder, recorder = create(tmp_path / "run", [(0, "a", 9, 1), (1, "u", 0, 1)])
        folder.update(unseen_tasks=["u"])
        self.evaluate(recorder, 0, {0: {"a": Tally(1.0, 10)}})
        assert self.shares(folder, 0)["all"] == 1.0
