"""What was run, and what came of it."""

import datetime
import math
from collections.abc import Sequence
from typing import Any

from mops_fl.report import wording
from mops_fl.report.gates import each_run, title_of
from mops_fl.report.layout import Behind, Block, Note, Section, Table
from mops_fl.run.details import COMPLETED, failure_counts, failures, is_evaluated
from mops_fl.run.results import (
    MEASURES,
    PRIVACY,
    UNLIKE,
    Estimate,
    Replicates,
    Run,
    summary,
    unlike,
)

MOST_FAILURES = 100
"""Lines of the table of failures."""
_NOTES = {
    "running": "is still running, or was killed",
    "failed": "failed",
    "stopped": "was stopped",
}


def results(groups: Sequence[Replicates]) -> Section:
    """The summary, a line for each configuration that was evaluated."""
    rows = summary(groups)
    known = [name for name in MEASURES if name in next(iter(rows.values()))]
    seeds = max(len(group.runs) for group in groups)
    cells = [
        (label, *([str(len(group.runs))] if seeds > 1 else []), *(_cell(n, row[n]) for n in known))
        for group, (label, row) in zip(groups, rows.items(), strict=True)
    ]
    headings = ("", *(["seeds"] if seeds > 1 else []), *(_HEADINGS.get(n, n) for n in known))
    note = "± is one sample standard deviation over seeds. " if seeds > 1 else ""
    note += (
        "Perplexity is that of all answer tokens in the round that counts: the one that was kept, "
        "else the last. Worst 10 %: the mean loss of that tenth of the clients, as a perplexity."
    )
    table = Table("Results", headings, cells, note, looks=[*range(len(groups))], titled=False)
    blocks: list[Block] = [Note(text, warns=True) for text in _doubts(groups)]
    return Section("results", "Results", _headline(groups, rows), [*blocks, table])


_HEADINGS = {"bytes a round": "sent a round", "seconds": "time", "parameters": "trained numbers"}


def _cell(name: str, estimate: Estimate) -> str:
    if not estimate.n:
        return wording.BLANK
    if name == "parameters":
        return wording.number(estimate.mean, 0)
    if name == "bytes a round":
        return wording.size(estimate.mean)
    if name == "seconds":
        return wording.duration(estimate.mean)
    if name in PRIVACY:
        return f"{estimate.mean:.3g}"
    return wording.deviating(estimate.mean, estimate.sd)


def _headline(groups: Sequence[Replicates], rows: dict[str, dict[str, Estimate]]) -> str:
    """The best result in words."""
    known = {label: row["perplexity"].mean for label, row in rows.items() if "perplexity" in row}
    known = {label: value for label, value in known.items() if math.isfinite(value)}
    if not known:
        return "No perplexity is known."
    best = min(known, key=known.__getitem__)
    curve = next(group for group in groups if group.label == best).curves().mean(axis=1)
    start = f", from {wording.number(float(curve.iloc[0]))} at first" if len(curve) > 1 else ""
    among = f" of {len(known)} configurations" if len(known) > 1 else ""
    return f"Lowest perplexity{among}: {best}, {wording.number(known[best])}{start}."


def _doubts(groups: Sequence[Replicates]) -> list[str]:
    """Why figures beside each other may not be compared."""
    found = []
    runs = [run for group in groups for run in group.runs]
    for key, what in (
        ("data_digest", "rows"),
        ("tokenizer_digest", "tokenizer, so tokens are not the same"),
        ("model_digest", "model"),
    ):
        by_seed: dict[Any, set[str]] = {}
        for run in runs:
            if digest := run.facts.get(key):
                by_seed.setdefault(run.facts["seed"], set()).add(digest)
        if any(len(digests) > 1 for digests in by_seed.values()):
            found.append(
                f"Runs of one seed did not have the same {what} ({key}): compare their "
                "perplexities with care."
            )
    if len({tuple(sorted(str(run.facts["seed"]) for run in group.runs)) for group in groups}) > 1:
        found.append("Not all configurations were run with the same seeds.")
    if unlike(runs):
        found.append(UNLIKE)
    cohorts = {run.name: run.facts["config"].get("noise-cohort", 0) for run in runs}
    if larger := [f"{name} as of {n:,} clients a round" for name, n in cohorts.items() if n]:
        found.append(
            "Noise and ε are those of a larger federation than was simulated: "
            f"{wording.listed(larger)}."
        )
    return found


def runs(every: Sequence[Run]) -> Section:
    """All runs, also those that have no evaluated round yet."""
    rows = [_run(run) for run in every]
    notes: list[Block] = [Note(text, warns=True) for text in filter(None, map(_unfinished, every))]
    headings = (
        *("run", "method", "seed", "status", "rounds", "model", "rows", "clients", "a round"),
        *("started", "machine"),
    )
    table = Table("Runs", headings, rows, prose=True, titled=False)
    return Section("runs", "What was run", _in_words(every), [*notes, table])


def _unfinished(run: Run) -> str:
    """What is to be known of a run that has not ended well; empty for others."""
    status, error = run.facts["status"], run.facts.get("error")
    shown = "what is shown are its rounds so far"
    if not is_evaluated(run):
        shown = "it has no evaluated round, so it is in no chart"
    elif status == COMPLETED:
        return ""
    reason = f" Its error: {error}" if error and status != COMPLETED else ""
    return f"{run.name} {_NOTES.get(status, f'is {status}')}: {shown}.{reason}"


def _run(run: Run) -> tuple[str, ...]:
    config, stopped = run.facts["config"], run.facts.get("stopped")
    done, of = run.facts.get("rounds_done"), config.get("num-server-rounds", "?")
    return (
        *(run.name, run.method, str(run.facts["seed"]), run.facts["status"]),
        f"{0 if done is None else done} of {of}{f' ({stopped})' if stopped else ''}",
        *(str(config.get("model", "?")), str(config.get("dataset", "?"))),
        *(str(config.get("num-clients", "?")), str(config.get("active-clients", "?"))),
        *(_moment(run.facts.get("started")), run.machine),
    )


def _moment(stamp: Any) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(stamp):%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return wording.BLANK


def _in_words(every: Sequence[Run]) -> str:
    methods = [*dict.fromkeys(run.method for run in every)]
    seeds = sorted({str(run.facts["seed"]) for run in every})
    return (
        f"{wording.plural(len(every), 'run')} of {wording.listed(methods)}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {wording.listed(seeds, 12)}."
    )


def trouble(groups: Sequence[Replicates], every: Sequence[Run]) -> Section:
    """What went wrong: replies, clients and rows that were refused or cut."""
    named = {id(run): title_of(group, run) for _, group, run in each_run(groups)}
    blocks: list[Block] = []
    lines = [(named.get(id(run), run.name), each) for run in every for each in failures(run)]
    counts = [(named.get(id(run), run.name), failure_counts(run)) for run in every]
    counted = [(n, *(f"{c:,}" for c in own.values())) for n, own in counts if any(own.values())]
    if counted:
        blocks.append(
            Table("Replies that were missing or refused", ("", "training", "evaluation"), counted)
        )
    if lines:
        shown = lines[:MOST_FAILURES]
        rows = [(n, str(f.round), f.phase, str(f.partition), f.reason) for n, f in shown]
        note = f"The first {len(shown)} of {len(lines)}." if len(shown) < len(lines) else ""
        headings = ("run", "round", "phase", "client", "reason")
        table = Table("Why", headings, rows, note, prose=True)
        blocks.append(Behind(f"The reasons ({len(lines):,})", [table]))
    elif counted:
        blocks.append(Note("These runs noted no reasons."))
    if other := [row for run in every for row in _refusals(named.get(id(run), run.name), run)]:
        columns = ("run", "what", "how many or why")
        blocks.append(Table("Clients and rows", columns, other, prose=True))
    lead = "Every reply came and was taken." if not counted else ""
    return Section("failures", "Failures", lead, blocks)


def _refusals(name: str, run: Run) -> list[tuple[str, str, str]]:
    facts, found = run.facts, []
    for client, reason in (facts.get("refused_clients") or {}).items():
        found.append((name, f"client {client} was refused", str(reason)))
    for what, count in (facts.get("skipped_rows") or {}).items():
        found.append((name, f"rows left out: {what}", f"{count:,}"))
    for key, what in (("cut_questions", "questions cut"), ("cut_answers", "answers cut")):
        if facts.get(key):
            found.append((name, f"{what} to max-length", f"{facts[key]:,}"))
    if clients := facts.get("malicious_clients"):
        texts = [*map(str, clients)]
        found.append((name, "clients that attack, on purpose", wording.listed(texts, 20)))
    return found
