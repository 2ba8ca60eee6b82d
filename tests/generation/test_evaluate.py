"""`mops-fl evaluate` on runs of a tiny model: whose rows are asked, and what is said of them."""

import csv
import json
import shutil
import sys

import pytest
from trained_run import trained_run

import mops_fl.cli
from mops_fl.data import unseen_partitions
from mops_fl.errors import ConfigError, RunError
from mops_fl.generation import quality
from mops_fl.generation.answerer import TOGETHER, Answerer, Sampling, batches
from mops_fl.generation.entrants import entrants
from mops_fl.generation.held_out import HeldOut
from mops_fl.generation.trained import Trained, Wanted
from mops_fl.run.folder import RunFolder
from mops_fl.training.trainer import Trainer

APART = {"active_clients": 2, "unseen_clients": 0.3, "unseen_tasks": "count", "eval_samples": 3}


@pytest.fixture(scope="module")
def runs(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "mops": trained_run(folder / "mops", tiny_llama, **APART),
        "fedprompt": trained_run(folder / "fedprompt", tiny_llama, method="fedprompt", **APART),
        "plain": trained_run(folder / "plain", tiny_llama, method="base"),
    }
    for name in ("mops", "fedprompt"):
        change(made[name], unseen_clients=unseen(made[name]), unseen_tasks=["count"])
    return made


def unseen(run):
    config = Trained.read(run).config
    return sorted(unseen_partitions(config.partition, config.seed))


def change(run, **facts):
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


def copied(run, folder, **facts):
    shutil.copytree(run, folder)
    change(folder, **facts)
    return folder


def evaluate(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mops-fl", "evaluate", *map(str, arguments)])
    code = 0
    try:
        mops_fl.cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()


def test_rows_are_those_of_the_run_s_evaluation(runs):
    trained = Trained.read(runs["mops"])
    trainer, held = Trainer(trained.config), HeldOut.of_run(trained)
    for client in range(3):
        wanted = trainer.held_out(client)[0]
        found = [row for row in held.rows if row.client == client]
        assert [row.ids for row in found] == [example.question for example in wanted]
        assert [row.example.task for row in found] == [example.task for example in wanted]
        train = trainer._share(client).train
        assert not {row.place for row in found} & {*train}
    hidden = unseen(runs["mops"])
    for row in held.rows:
        apart = (row.client in hidden, row.example.task == "count")
        names = {(0, 0): "trained", (1, 0): "unseen clients", (0, 1): "unseen tasks"}
        assert row.part == names.get(apart, "unseen clients and tasks")
    assert len({row.part for row in held.rows}) == 4


def test_a_sample_is_drawn_by_the_seed(runs):
    held = HeldOut.of_run(Trained.read(runs["mops"]))
    sample = held.sample(5, 0)
    assert sample == held.sample(5, 0)
    assert len(sample.rows) == 5
    assert [row for row in held.rows if row in sample.rows] == [*sample.rows]
    assert sample != held.sample(5, 1)
    assert held.sample(10_000, 0) == held


@pytest.mark.parametrize("name", ["mops", "fedprompt", "plain"])
def test_answers_do_not_depend_on_the_batch(runs, name):
    answerer = Answerer(Trained.read(runs[name]))
    rows = HeldOut.of_run(answerer.trained).rows
    asked = [row.ids for row in rows][: TOGETHER + 2]
    sampling, steps = Sampling(max_new_tokens=5), []
    found = answerer.in_batches(asked, sampling, lambda done, of: steps.append((done, of)))
    assert found == [answerer.answer(ids, sampling) for ids in asked]
    assert steps[-1] == (len(asked), len(asked))


def test_a_question_with_little_room_is_asked_alone():
    assert [*batches([3, 50, 4, 60, 5], 40)] == [[3], [1], [4, 2, 0]]
    assert [len(each) for each in batches([1] * (TOGETHER + 1), 1)] == [TOGETHER, 1]
    assert [*batches([], 1)] == []


def test_a_command_shows_methods_and_the_base_model(runs, monkeypatch, capsys, tmp_path):
    several = (runs["fedprompt"], runs["mops"], "--compare", "--max-new-tokens", 4)
    out = tmp_path / "new" / "answers.json"
    code, shown, _ = evaluate(monkeypatch, capsys, *several, "--out", out)
    assert code == 0
    for text in ("as it is", "fedprompt (fedprompt)", "mops (mops), unseen clients", "ROUGE-L by"):
        assert text in shown
    written = json.loads(out.read_text())
    models = [model["model"] for model in written["models"]]
    assert [model["method"] for model in written["models"]] == ["base", "fedprompt", "mops"]
    rows = len(HeldOut.of_run(Trained.read(runs["mops"])).rows)
    assert len(written["answers"]) == 3 * rows
    for answer in written["answers"]:
        assert answer["rouge_l"] == quality.rouge_l(answer["reference"], answer["answer"])
    total = [s for s in written["scores"] if s["task"] is None and s["measure"] == "rouge_l"]
    assert [s["model"] for s in total][:3] == models
    own = [a["rouge_l"] for a in written["answers"] if a["model"] == models[2]]
    part = [a["part"] == "trained" for a in written["answers"] if a["model"] == models[2]]
    trained = [value for value, counts in zip(own, part, strict=True) if counts]
    assert total[2]["mean"] == pytest.approx(sum(trained) / len(trained))

    again = tmp_path / "again.json"
    assert evaluate(monkeypatch, capsys, *several, "--out", again)[0] == 0
    assert again.read_text() == out.read_text()

    table = tmp_path / "answers.csv"
    assert evaluate(monkeypatch, capsys, *several, "--rows", 4, "--out", table)[0] == 0
    with table.open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 12
    everything = {(a["model"], a["row"], a["answer"]) for a in written["answers"]}
    assert {(a["model"], int(a["row"]), a["answer"]) for a in lines} <= everything
    assert {*tmp_path.iterdir()} == {out.parent, again, table}


def test_each_client_answers_with_its_own_tensors(tiny_llama, tmp_path):
    run = trained_run(tmp_path / "run", tiny_llama, eval_samples=2)
    trained = Trained.read(run)
    folder = RunFolder(run)
    tensors = folder.load_checkpoint(1)
    local = {f"{c}/{n}": v + 0.3 * c for c in range(3) for n, v in tensors.items()}
    local |= {n: v for n, v in tensors.items() if n == "pretrained"}
    folder.save_checkpoint(1, local, {})
    change(run, config={**trained.run.facts["config"], "training": "local"})
    (entrant,) = entrants([run], Wanted())
    sampling = Sampling(max_new_tokens=4)
    found = quality.answered(entrant, sampling)
    for client in range(3):
        one = Answerer(Trained.read(run, Wanted(client=client)))
        own = [row.ids for row in entrant.held_out.rows if row.client == client]
        texts = [each.answer for each in found if each.client == client]
        assert texts == [one.answer(ids, sampling) for ids in own]
    (one,) = entrants([run], Wanted(client=2))
    assert {row.client for row in one.held_out.rows} == {2}
    with pytest.raises(RunError, match="say with --client"):
        entrants([run], Wanted(), data=tmp_path / "rows.jsonl")
    with pytest.raises(RunError, match="no such client"):
        entrants([run], Wanted(client=7))


def test_rows_of_the_user_stand_for_those_of_a_deployment(runs, tmp_path, monkeypatch, capsys):
    deployed = copied(runs["mops"], tmp_path / "deployed", simulated=False)
    code, _, told = evaluate(monkeypatch, capsys, deployed)
    assert code == 2
    assert "keep their rows to themselves" in told
    assert "--data" in told
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Say", "response": f"so {n}", "category": "sort"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("--data", file, "--max-new-tokens", 2)
    code, shown, told = evaluate(monkeypatch, capsys, deployed, *few)
    assert (code, told) == (0, "")
    assert "4 own rows" in shown
    assert "by client" not in shown
    code, _, told = evaluate(monkeypatch, capsys, deployed, "--data", tmp_path / "none.jsonl")
    assert code == 2
    assert "--data: data-path=" in told


def test_other_rows_are_not_compared(runs, tiny_llama, tmp_path, monkeypatch, capsys):
    other = trained_run(tmp_path / "other", tiny_llama, method="base", seed=1, **APART)
    code, _, told = evaluate(monkeypatch, capsys, runs["mops"], other)
    assert code == 2
    assert "different rows: seed is 0 and 1: compare" in told
    with pytest.raises(RunError, match=r"unseen-clients is 0\.3 and 0\.0"):
        entrants([runs["mops"], runs["plain"]], Wanted())
    with pytest.raises(ConfigError, match="named twice"):
        entrants([runs["mops"], runs["mops"]], Wanted())
    changed = copied(runs["mops"], tmp_path / "digest", data_digest="0" * 64)
    with pytest.raises(RunError, match=r"dataset=skills has other rows .* 000000000000…"):
        entrants([changed], Wanted())
    dealt = copied(runs["mops"], tmp_path / "dealt")
    file = dealt / "partition.csv"
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*text[:-1], text[-1].rpartition(",")[0] + ",99\n"]))
    with pytest.raises(RunError, match="deals the rows out otherwise"):
        entrants([dealt], Wanted())


def test_wrong_files_and_a_missing_package_are_told_before_any_work(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Answerer, "answers", None)
    for name, wrong in (("a.txt", ".json or .csv"), ("folder.csv", "is a folder")):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        code, _, told = evaluate(monkeypatch, capsys, runs["mops"], "--out", tmp_path / name)
        assert (code, wrong in told) == (2, True)
    (tmp_path / "file").touch()
    code, _, told = evaluate(
        monkeypatch, capsys, runs["mops"], "--out", tmp_path / "file" / "a.csv"
    )
    assert (code, "cannot write" in told) == (2, True)
    quality._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    code, _, told = evaluate(monkeypatch, capsys, runs["mops"])
    assert (code, "pip install 'mops-fl[metrics]'" in told) == (2, True)


def test_ctrl_c_leaves_what_was_there(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "answers.json"
    out.write_text("earlier")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Answerer, "answers", stop)
    assert evaluate(monkeypatch, capsys, runs["mops"], "--out", out)[0] == 130
    assert out.read_text() == "earlier"
    assert [*tmp_path.iterdir()] == [out]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    other = copied(runs["mops"], tmp_path / "mops")
    names = [each.name for each in entrants([runs["mops"], other], Wanted(), compare=True)]
    assert len({*names}) == 3
    assert names[2] == f"{other} (mops)"
