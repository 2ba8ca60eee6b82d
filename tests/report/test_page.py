"""The page of runs: its numbers are those of the run folders, and names are only shown."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from large_run import HOSTILE, write_large
from synthetic import write_run, write_table

from mops_fl.errors import RunError
from mops_fl.report.page import html, sections, write_report
from mops_fl.run.results import Run

SECTIONS = (
    *("results", "runs", "perplexity", "tasks", "clients", "gate", "drift", "who", "partition"),
    *("failures", "configuration"),
)


class Page(HTMLParser):
    """Elements, text and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
        if tag == "table":
            self.rows: list[list[str]] = []
            self.caption = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self.caption, self.rows)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
        if "caption" in self.open[-1:]:
            self.caption += data
        elif self.open[-1:] and {"th", "td"} & {*self.open[-2:]}:
            self.rows[-1][-1] += data

    @property
    def names(self) -> list[str]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


def page_of(*folders) -> Page:
    return Page(html([Run.read(folder) for folder in folders]))


def test_the_numbers_are_those_of_the_run(tmp_path):
    folder = write_large(tmp_path / "one", rounds=3)
    run, page = Run.read(folder), page_of(folder)
    assert page.names == list(SECTIONS)
    by_round = page.tables["Perplexity by round"]
    assert by_round == [
        ["round", "mops"],
        *([str(number), f"{value:,.2f}"] for number, value in run.perplexity().items()),
    ]
    measures = run.measures()
    results = dict(zip(*page.tables["Results"], strict=True))
    assert results["perplexity"] == f"{measures['perplexity']:.2f}"
    assert results["worst 10 %"] == f"{measures['worst 10 %']:,.2f}"
    (line,) = page.tables["By client"][1:]
    spread = run.spread()
    assert line[2] == str(spread.every.clients)
    assert line[4:] == [
        *(f"{spread.every.perplexity:.2f}", f"{spread.sd:.3f}"),
        *(f"{spread.worst.perplexity:.2f}", f"{spread.best.perplexity:.2f}"),
    ]
    ranked = page.tables["mops, round 3"]
    losses = run.losses().sort_values()
    assert [row[0] for row in ranked[1:]] == [f"client {client}" for client in losses.index]
    assert [row[3] for row in ranked[1:]] == [f"{loss:.3f}" for loss in losses]


def test_what_differs_comes_first(tmp_path):
    one = write_large(tmp_path / "one")
    other = write_large(tmp_path / "other", method="lora", config={"learning-rate": 0.5})
    page = page_of(one, other)
    differing = page.tables["What differs"]
    assert differing[0] == ["key", "mops", "lora"]
    assert ["learning-rate", "0.001", "0.5"] in differing
    assert ["alpha", "0.5", "0.1"] in page.tables["The same in all, other than the default"]


def test_seeds_are_a_mean_with_a_band(tmp_path):
    runs = [write_large(tmp_path / str(s), seed=s, end=10 + 5 * s) for s in range(3)]
    text = html([Run.read(run) for run in runs])
    page = Page(text)
    curves = [Run.read(run).perplexity()[4] for run in runs]
    mean, sd = np.mean(curves), np.std(curves, ddof=1)
    assert page.tables["Perplexity by round"][-1][1] == f"{mean:.2f} ± {sd:.2f}"
    assert page.tables["Results"][1][:2] == ["mops", "3"]
    assert text.count('class="band"') == 6
    assert "mops, seed 2" in " ".join(row[0] for row in page.tables["By client"])


def test_the_last_round_of_the_gate_is_shown_and_all_can_be(tmp_path):
    folder = write_large(tmp_path / "one", rounds=5)
    run, text = Run.read(folder), html([Run.read(folder)])
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    frames = json.loads(found[1])
    assert frames["rounds"] == [0, 1, 2, 3, 4, 5]
    weights = run.gate.set_index("round")["weight"]
    for number, flat in zip(frames["rounds"], frames["weights"], strict=True):
        assert flat == [round(100 * weight) for weight in weights[number]]
    table = Page(text).tables[""]
    assert table[0] == ["task", *(f"expert {expert}" for expert in range(4))]
    shown = [float(cell) for row in table[1:] for cell in row[1:]]
    assert shown == [hundredths / 100 for hundredths in frames["weights"][-1]]


def test_names_are_shown_and_never_obeyed(tmp_path):
    folder = write_large(
        tmp_path / "<img src=x onerror=alert(1)>",
        tasks=HOSTILE,
        config={"model": "/m/<script>alert(2)</script>", "data-path": "\"'><svg onload=a>"},
        status="failed",
        error="<iframe src=x>\x1b[31m",
        train_failures={"1": {"3": "</td><script>alert(3)</script>"}},
        unseen_tasks=[HOSTILE[0]],
        refused_clients={"7": "<a href=javascript:x>"},
    )
    text = html([Run.read(folder)])
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "link", "style", "body", "header", "nav", "main"),
        *("section", "h1", "h2", "p", "ul", "li", "a", "figure", "figcaption", "output", "label"),
        *("input", "noscript", "details", "summary", "div", "span", "script"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
        *("svg", "symbol", "circle", "path", "use", "g", "text", "desc"),
    }
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "heat-0-frames"},
        {},
    ]
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert {attrs["href"][0] for _, attrs in page.tags if "href" in attrs} == {"#", "d"}
    words = " ".join(page.words)
    for name in HOSTILE[:6]:
        assert name[:20] in words
    assert "it's {{ 7 * 7 }}" in words
    assert "\x1b" not in text
    assert "\x00" not in text


def test_nothing_is_fetched(tmp_path):
    text = html([Run.read(write_large(tmp_path / "one"))])
    assert "default-src 'none'" in text.replace("&#39;", "'")
    assert not re.search(r"https?:|url\(|@import|src=", text)


def test_many_rounds_tasks_and_clients_stay_small_and_say_what_is_left_out(tmp_path):
    tasks = [f"{n:02d}{'x' * 78}" for n in range(60)]
    folders = [
        write_large(
            tmp_path / method, rounds=100, tasks=tasks, clients=300, method=method, experts=7
        )
        for method in ("mops", "lora")
    ]
    text = html([Run.read(folder) for folder in folders])
    assert len(text) < 700_000
    words = re.sub(r"\s+", " ", " ".join(Page(text).words))
    for sentence in (
        "These are the 12 tasks with most held-out tokens, of 60.",
        "35 of 101 evaluated rounds can be chosen, evenly.",
        "100 of 300 clients are listed, evenly.",
        "Of up to 300 clients, 120 are drawn, evenly.",
        "A column is the mean of 3 clients, of 300.",
        "A line is 5 clients, of 2",
    ):
        assert sentence in words


@pytest.mark.parametrize("method", ["fedprompt", "lora", "base"])
def test_runs_without_a_gate(tmp_path, method):
    rounds = 0 if method == "base" else 2
    page = page_of(write_large(tmp_path / "one", method=method, rounds=rounds))
    assert not {"gate", "drift"} & {*page.names}
    assert ("who" in page.names) == (method != "base")


def test_runs_that_have_not_ended(tmp_path):
    going = write_large(tmp_path / "going", status="running", kept_round=None)
    new = write_large(tmp_path / "new", status="running", rounds_done=None, kept_round=None)
    for table in new.glob("*.csv"):
        table.unlink()
    page = page_of(going, new)
    words = " ".join(page.words)
    assert "going is still running, or was killed" in words
    assert (
        "new is still running, or was killed: it has no evaluated round, so it is in no chart."
        in words
    )
    assert page.names == list(SECTIONS)
    alone = page_of(new)
    assert alone.names == ["runs", "failures", "configuration"]


def test_a_failed_run_says_why(tmp_path):
    folder = write_large(tmp_path / "one", status="failed", error="the disk is full")
    assert "one failed" in (words := " ".join(page_of(folder).words))
    assert "Its error: the disk is full" in words


def test_a_folder_of_an_older_version(tmp_path):
    folder = write_run(tmp_path / "old", method="mops")
    for name in ("partition", "evaluation", "evaluate", "gate"):
        (folder / f"{name}.csv").unlink()
    lines = (folder / "rounds.csv").read_text().splitlines()
    (folder / "rounds.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    facts = json.loads((folder / "run.json").read_text())
    del facts["config"]["alpha"], facts["seconds"]
    (folder / "run.json").write_text(json.dumps(facts))
    page = page_of(folder)
    assert page.names == ["results", "runs", "perplexity", "tasks", "failures", "configuration"]


def test_failures_are_told_with_their_reasons(tmp_path):
    failed = {"2": {"1": "the loss is NaN"}}
    page = page_of(write_large(tmp_path / "one", train_failures=failed))
    assert page.tables["Why"][1] == ["mops", "2", "training", "1", "the loss is NaN"]
    assert page.tables["Replies that were missing or refused"][1] == ["mops", "0", "5"]
    assert any(attrs.get("class") == "lbad" for _, attrs in page.tags)


def test_who_never_trains_is_apart(tmp_path):
    folder = write_large(
        tmp_path / "one", unseen_clients=[10, 11], unseen_tasks=["copy"], tasks=("sort", "copy")
    )
    run, page = Run.read(folder), page_of(folder)
    unseen = run.spread(unseen_clients=True)
    row = next(row for row in page.tables["By client"] if row[0] == "mops, never train")
    assert row[4] == f"{unseen.every.perplexity:.2f}"
    assert "copy (never trained)" in [row[0] for row in page.tables["Perplexity by task"]]
    results = dict(zip(*page.tables["Results"], strict=True))
    assert results["unseen tasks"] == f"{run.measures()['unseen tasks']:.2f}"


def test_personalised_results_are_before_and_after(tmp_path):
    folder = write_large(tmp_path / "one")
    run = Run.read(folder)
    rows = [(4, c, t, 10.0, 20) for c, t in {(r[1], r[2]) for r in run.rows("evaluation.csv")}]
    write_table(folder / "personal.csv", sorted(rows))
    found = Run.read(folder).personalised()
    (line,) = page_of(folder).tables["Before and after steps of the clients' own"][1:]
    assert line[2:4] == [f"{found.perplexity_before:.2f}", f"{found.perplexity_after:.2f}"]


def test_validation_rows_have_a_chart(tmp_path):
    folder = write_large(tmp_path / "one", rounds=1)
    write_table(folder / "validation.csv", [(n, 0, "sort", 4.0 - n, 2) for n in range(2)])
    table = page_of(folder).tables["Perplexity by round, on validation rows"]
    assert table[1:] == [["0", "7.39"], ["1", "4.48"]]


def test_runs_on_other_rows_are_doubted(tmp_path):
    one = write_large(tmp_path / "a", data_digest="x", tokenizer_digest="t")
    other = write_large(tmp_path / "b", method="lora", data_digest="y", tokenizer_digest="t")
    words = " ".join(page_of(one, other).words)
    assert "did not have the same rows (data_digest)" in words
    assert "tokenizer_digest" not in words.replace("tokenizer digest", "")


def test_noise_of_a_larger_federation_and_other_clients_are_said_in_full(tmp_path):
    private = {"dp": "central", "clip-norm": 1.0, "noise-multiplier": 1.0, "noise-cohort": 1000}
    noised = write_run(tmp_path / "noised", config=private, unseen_clients=[0, 1])
    plain = write_run(tmp_path / "plain")
    text = " ".join(page_of(noised, plain).words)
    assert "than was simulated: noised as of 1,000 clients a round." in text
    assert "perplexity is that of the clients that never train" in text
    assert "than was simulated" not in " ".join(page_of(plain).words)


def test_runs_that_drew_the_same_clients_are_shown_once(tmp_path):
    folders = [write_large(tmp_path / m, method=m) for m in ("mops", "lora")]
    made = {section.name: section for section in sections([Run.read(f) for f in folders])}
    assert [b.title for b in made["who"].blocks if b.kind == "strips"] == ["mops, lora"]
    assert [b.title for b in made["partition"].blocks if b.kind == "strips"] == ["mops, lora"]


def test_a_perplexity_of_infinity_leaves_a_gap(tmp_path):
    folder = write_large(tmp_path / "one")
    lines = (folder / "rounds.csv").read_text().splitlines()
    lines[1] = "0,all,90000.0,100,inf,1.0"
    (folder / "rounds.csv").write_text("\n".join(lines) + "\n")
    assert page_of(folder).tables["Perplexity by round"][1] == ["0", "∞"]


def test_a_page_is_written_whole_and_a_run_counts_once(tmp_path):
    folder = write_large(tmp_path / "one")
    out = tmp_path / "new" / "report.html"
    write_report([folder, folder / ".." / "one"], out)
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    assert "1 run; made" in out.read_text(encoding="utf-8")


def test_what_is_no_run_is_named_and_nothing_is_written(tmp_path):
    folder = write_large(tmp_path / "one")
    (tmp_path / "picture.png").touch()
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report.html"
    for name, reason in (
        ("nowhere", "there is no such folder"),
        ("picture.png", "it is a file"),
        ("empty", r"it has no run\.json"),
    ):
        with pytest.raises(RunError, match=f"RUN .*{name}' is not a run folder: {reason}; name"):
            write_report([folder, tmp_path / name], out)
    (folder / "gate.csv").write_text("nonsense")
    with pytest.raises(RunError, match=r"gate\.csv has the columns nonsense"):
        write_report([folder], out)
    for bad in (tmp_path / "report.pdf", tmp_path / "empty"):
        with pytest.raises(RunError, match=r"--out .* must be a file that ends in \.html"):
            write_report([folder], bad)
    assert not out.exists()
