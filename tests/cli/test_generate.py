"""`mops-fl generate` and `export` on runs of a tiny model."""

import io
import json
import sys

import pytest
from trained_run import trained_run

from mops_fl.data import Example
from mops_fl.generation.answerer import Answerer, Sampling
from mops_fl.generation.trained import Trained

QUESTION = "Sort these words: b, a"


@pytest.fixture(scope="module")
def runs(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {m: trained_run(folder / m, tiny_llama, method=m) for m in ("mops", "fedprompt")}


def answer_of(run, question: str = QUESTION, context: str = "") -> str:
    answerer = Answerer(Trained.read(run))
    ids = answerer.ids(Example(question, context, "", ""))
    return answerer.answer(ids, Sampling(max_new_tokens=5))


def test_an_answer_and_the_experts_behind_it(run, runs):
    words = ("--prompt", QUESTION, "--max-new-tokens", 5)
    code, out, _ = run("generate", runs["mops"], *words)
    assert code == 0
    assert out.splitlines()[0].startswith("experts: ")
    assert answer_of(runs["mops"]).strip() in out


def test_methods_and_the_base_model_side_by_side(run, runs):
    words = ("--compare", "--prompt", QUESTION, "--context", "c", "--max-new-tokens", 5)
    code, out, _ = run("generate", runs["fedprompt"], runs["mops"], *words)
    assert code == 0
    headings = ["as it is", "fedprompt (fedprompt), round 1", "mops (mops), round 1"]
    places = [out.index(heading) for heading in headings]
    assert places == sorted(places)
    assert out.count("experts: ") == 1
    assert answer_of(runs["fedprompt"], context="c").strip() in out


def test_questions_of_a_file_and_of_the_terminal(run, runs, tmp_path, monkeypatch):
    lines = [QUESTION, "", json.dumps({"instruction": "Say", "context": "it"})]
    (tmp_path / "asked.txt").write_text("\n".join(lines))
    words = (runs["fedprompt"], "--max-new-tokens", 5)
    code, out, _ = run("generate", *words, "--file", "asked.txt")
    assert code == 0
    assert all(
        answer_of(runs["fedprompt"], *q).strip() in out for q in ((QUESTION,), ("Say", "it"))
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\n{'long ' * 3000}\nSay\n"))
    code, out, _ = run("generate", *words)
    assert code == 0
    assert "ask a shorter one" in " ".join(out.split())
    assert answer_of(runs["fedprompt"], "Say").strip() in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "x", "--file", "y"], "give one of them"),
        (["--file", "absent.txt"], "absent.txt"),
        (["--context", "x"], "--context goes with --prompt"),
        (["--prompt", "x", "--round", "9"], "has no round-009.safetensors; its last is 1"),
        (["--prompt", "x", "--model", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_line(run, runs, words, message):
    code, _, err = run("generate", runs["mops"], *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_files_are_read_as_rows_are(run, runs, tmp_path):
    row = json.dumps({"instruction": f"  {QUESTION}\u2028", "context": None}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_text(f"\ufeff{row}\n")
    code, out, _ = run("generate", runs["fedprompt"], "--max-new-tokens", 5, "--file", "rows.jsonl")
    assert code == 0
    assert answer_of(runs["fedprompt"]).strip() in out
    for row, why in (({"instruction": " "}, "line 1 is empty"), ({"instruction": 5}, "not text")):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row))
        code, _, err = run("generate", runs["fedprompt"], "--file", "bad.jsonl")
        assert code == 2
        assert why in err


def test_runs_of_one_name_are_told_apart(run, runs, tiny_llama, tmp_path):
    other = trained_run(tmp_path / "mops", tiny_llama, seed=1)
    words = ("--prompt", QUESTION, "--max-new-tokens", 5, "--compare")
    code, out, _ = run("generate", runs["mops"], other, *words)
    assert code == 0
    assert out.count("experts: ") == 2
    assert out.count(", as it is") == 1


def test_a_folder_that_is_no_run_and_one_that_is_exported(run, runs, tmp_path):
    code, _, err = run("generate", tmp_path / "none", "--prompt", "x")
    assert (code, "is not a run folder" in err) == (2, True)
    code, out, _ = run("export", runs["mops"], "--out", "made")
    assert code == 0
    assert "the whole model, for `MopsForCausalLM`" in " ".join(out.split())
    assert {"model.safetensors", "config.json", "README.md"} <= {
        file.name for file in (tmp_path / "made").iterdir()
    }
    code, _, err = run("export", runs["mops"], "--out", "made")
    assert (code, "exists: name a new folder" in err) == (2, True)
