"""Run folders as tables for the terminal."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mops_fl.labels import one_line

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import JustifyMethod

    from mops_fl.run.results import Estimate, Replicates, Run
    from mops_fl.run.spread import Group, Spread

SHOWN_FACTS = (
    "status",
    "error",
    "method",
    "seed",
    "device",
    "started",
    "finished",
    "seconds",
    "rounds_done",
    "best_round",
    "kept_round",
    "stopped",
    "trainable_parameters",
    "bytes_per_round",
    "bytes_up",
    "bytes_down",
    "commit",
    "model_digest",
    "data_digest",
)
"""The keys of `run.json` that are shown, where they have a value."""


_IN_BRACKETS = (
    "\nin brackets: share of the held-out tokens, where clients were missing or not asked"
)


def facts(run: "Run") -> Table:
    """What `run.json` says of a run, and the values that are not the defaults."""
    from mops_fl.config import defaults

    table = Table("", one_line(run.name, limit=60), show_header=True, box=None)
    for key in SHOWN_FACTS:
        if run.facts.get(key) not in (None, ""):
            table.add_row(key.replace("_", " "), _text(key, run.facts[key]))
    for key, value in run.facts["config"].items():
        if value != defaults().get(key) and key not in ("method", "seed", "run-dir", "resume"):
            table.add_row(key, str(value))
    return table


def results(groups: Sequence["Replicates"]) -> Iterable[Table]:
    """All that is told of one configuration or of several; the last table is the summary."""
    several = "" if all(len(group.runs) == 1 for group in groups) else ", mean over seeds"
    title = f"perplexity on answer tokens, all tasks{several}"
    yield _by_round(title, groups, [group.curves() for group in groups])
    validations = [group.validation_curves() for group in groups]
    if any(len(curves) for curves in validations):
        yield _by_round(f"perplexity on validation rows{several}", groups, validations)
    for group in groups:
        if len(lines := group.diagnostics()):
            yield _diagnostics(f"mixture of {group.label}{several}", lines, group.runs[0])
    runs = [(_name(group, run), run) for group in groups for run in group.runs]
    if any(run.personalised() for _, run in runs):
        yield _personalised(runs)
    if any(run.spread() or run.spread(unseen_clients=True) for _, run in runs):
        yield _clients(runs)
    if any(len(run.privacy) for _, run in runs):
        yield _privacy(runs)
    yield _summary(groups)


def _by_round(
    title: str, groups: Sequence["Replicates"], curves: Sequence["pd.DataFrame"]
) -> Table:
    """Perplexity per evaluated round, a column for each configuration."""
    means = [each.mean(axis=1) for each in curves]
    shares = [group.shares() for group in groups]
    if any(len(partial) for partial in shares):
        title += _IN_BRACKETS
    table = numbers("round", *(_short(group.label) for group in groups), title=title)
    for number in sorted({number for mean in means for number in mean.index}):
        cells = (_perplexity(*pair, number) for pair in zip(means, shares, strict=True))
        table.add_row(str(number), *cells)
    return table


def _perplexity(curve: "pd.Series", shares: "pd.Series", number: int) -> str:
    """One round's, with the share of the held-out tokens behind it where that is not all."""
    if number not in curve.index:
        return ""
    part = f" ({math.floor(100 * shares[number])} %)" if number in shares.index else ""
    return f"{curve[number]:.2f}{part}"


def _diagnostics(title: str, lines: "pd.DataFrame", run: "Run") -> Table:
    """Gate and drift, a line a round; beside the entropy the most that it can be."""
    experts = run.facts["config"].get("experts")
    most = f" (of {math.log(experts):.3f})" if experts else ""
    headings = [f"{name}{most if name == 'entropy' else ''}" for name in lines.columns]
    table = numbers("round", *headings, title=one_line(title, limit=80))
    for number, line in lines.iterrows():
        table.add_row(str(number), *(_number(value, 3) for value in line))
    return table


def _clients(runs: Sequence[tuple[str, "Run"]]) -> Table:
    """How clients fare, one by one, in the round that counts."""
    table = numbers(
        *("clients", "round", "mean", "sd", "worst 10 %", "best 10 %"),
        title="perplexity by client: exp of the mean of their losses, each client counting once\n"
        "(a mean of perplexities is no perplexity); in brackets clients/held-out rows;\n"
        "sd: of the losses, in nats a token",
        names=(name for name, _ in runs),
    )
    for name, run in runs:
        for unseen in (False, True):
            if spread := run.spread(unseen_clients=unseen):
                heading = f"{name}, unseen" if unseen else name
                table.add_row(heading, str(run.result_round), *_spread(spread))
    return table


def _spread(spread: "Spread") -> tuple[str, ...]:
    sd = _number(spread.sd, 3)
    return (_group(spread.every), sd, _group(spread.worst), _group(spread.best))


def _group(group: "Group") -> str:
    return f"{group.perplexity:,.2f} ({group.clients:,}/{group.rows:,})"


def _personalised(runs: Sequence[tuple[str, "Run"]]) -> Table:
    """Before and after the clients' own last steps."""
    table = numbers(
        *("clients", "all before", "after", "worst 10 % before", "after"),
        title="perplexity before and after personalisation; the worst 10 % are those of each time",
        names=(name for name, _ in runs),
    )
    for name, run in runs:
        if each := run.personalised():
            ends = (_group(each.before.worst), _group(each.after.worst))
            overall = (each.perplexity_before, each.perplexity_after)
            table.add_row(name, *(f"{value:,.2f}" for value in overall), *ends)
    return table


def _privacy(runs: Sequence[tuple[str, "Run"]]) -> Table:
    """What differential privacy cost, and how loud its noise is."""
    table = numbers(
        *("clients", "rounds", "ε", "δ", "clip", "noise", "clipped", "signal to noise"),
        title="differential privacy of whole clients, after the last round; noise: deviation on\n"
        "each number; signal to noise: the longest update over the length of the noise",
        names=(name for name, _ in runs),
    )
    for name, run in runs:
        if len(spent := run.privacy):
            last, share = spent.iloc[-1], spent["clipped_share"].mean()
            clipped = "" if math.isnan(share) else f"{100 * share:.0f} %"
            cells = (f"{last[key]:.3g}" for key in ("epsilon", "delta", "clip", "noise"))
            table.add_row(name, str(len(spent)), *cells, clipped, f"{last['snr']:.3g}")
    return table


def _summary(groups: Sequence["Replicates"]) -> Table:
    """A row for each configuration: `mops_fl.run.results.summary`."""
    from mops_fl.run.results import UNLIKE, summary, unlike

    rows = summary(groups)
    known = list(next(iter(rows.values())))
    seeds = max(len(group.runs) for group in groups)
    title = "summary" if seeds == 1 else "summary: mean ± sample standard deviation over n seeds"
    if unlike(run for group in groups for run in group.runs):
        title += f"\n{UNLIKE}"
    counted = ("n",) if seeds > 1 else ()
    headings = ("MB a round" if key == "bytes a round" else key for key in known)
    names = [_short(group.label) for group in groups]
    table = numbers("", *counted, *headings, title=title, names=names)
    for name, group in zip(names, groups, strict=True):
        count = len(group.runs)
        cells = (_estimate(key, rows[group.label][key], count) for key in known)
        table.add_row(name, *([str(count)] if counted else []), *cells)
    return table


def _estimate(measure: str, estimate: "Estimate", runs: int) -> str:
    """Mean and deviation, and the number of seeds where it is not that of all runs."""
    from mops_fl.run.results import PRIVACY

    if not estimate.n:
        return ""
    scale = 1e6 if measure == "bytes a round" else 1.0
    if measure in PRIVACY:
        return f"{estimate.mean:.3g}"
    digits = {"parameters": 0, "seconds": 1}.get(measure, 2)
    text = _number(estimate.mean / scale, digits)
    if estimate.n > 1 and estimate.sd:
        text += f" ± {_number(estimate.sd / scale, digits)}"
    return text if estimate.n == runs else f"{text} (n={estimate.n})"


def _name(group: "Replicates", run: "Run") -> str:
    """Of a run among those of all configurations."""
    label = _short(group.label)
    return label if len(group.runs) == 1 else f"{label}, seed {run.facts['seed']}"


def _short(label: str) -> str:
    return one_line(label, limit=80)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def per_task(run: "Run") -> Table:
    """Perplexity of each task in the first and in the last evaluated round."""
    rounds = run.perplexity().index[[0, -1]]
    headings = (f"round {number}" for number in rounds)
    shares = {task: run.share(task).loc[lambda share: share < 1] for task in run.tasks}
    partial = any(number in own.index for own in shares.values() for number in rounds)
    title = f"perplexity per task{_IN_BRACKETS if partial else ''}"
    table = numbers("task", *headings, title=title)
    for task, own in shares.items():
        curve = run.perplexity(task)
        table.add_row(one_line(task, limit=50), *(_perplexity(curve, own, n) for n in rounds))
    return table


def work(run: "Run") -> Table:
    """What all rounds of training, and all evaluations, took together."""
    train, evaluations = run.train, run.evaluations
    tokens = train["tokens"].sum()
    table = Table("", "training", "evaluation", title="all rounds", title_justify="left", box=None)
    table.add_row("rounds", str(len(train)), str(len(evaluations)))
    for key in ("clients", "failures"):
        table.add_row(key, f"{train[key].sum():,}", f"{evaluations[key].sum():,}")
    table.add_row("local steps", f"{train['steps'].sum():,}")
    table.add_row("mean loss per token", f"{train['nll'].sum() / tokens:.3f}" if tokens else "")
    seconds = (part["seconds"].sum() for part in (train, evaluations))
    table.add_row("seconds", *(f"{each:,.1f}" for each in seconds))
    table.add_row("bytes up", _text("bytes_up", int(train["bytes_up"].sum())))
    down = (int(part["bytes_down"].sum()) for part in (train, evaluations))
    table.add_row("bytes down", *(_text("bytes_down", each) for each in down))
    return table


def numbers(first: str, *others: str, title: str, names: Iterable[str] = ()) -> Table:
    """Numbers in columns after the first; `names` stand there, and no word of theirs is broken."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    justify: JustifyMethod = "right" if first == "round" else "left"
    table.add_column(first, justify=justify, overflow="fold", min_width=_longest_word(*names))
    for heading in others:
        table.add_column(heading, justify="right", min_width=_longest_word(heading))
    return table


def _longest_word(*texts: str) -> int:
    return max((len(word) for text in texts for word in text.split()), default=0)


def _text(key: str, value: Any) -> str:
    if key.startswith("bytes"):
        return f"{value:,} ({value / 1e6:.1f} MB)"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
