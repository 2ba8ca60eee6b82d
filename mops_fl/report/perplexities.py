"""Perplexity by round, by bytes, by seconds and by task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mops_fl.report import wording
from mops_fl.report.layout import Behind, Block, Charts, Key, Section, Table
from mops_fl.report.lines import Chart, Curve, chart
from mops_fl.run.results import Replicates, Run, usual_machine
from mops_fl.run.spread import deviation

MOST_ROUNDS = 100
"""Lines of a table of rounds."""
MOST_PANELS = 12
"""Tasks that are drawn before one asks for the others."""
MOST_TASKS = 60
"""Tasks that are drawn at all."""
Y_TITLE = "perplexity"


def over_time(groups: Sequence[Replicates]) -> Section:
    """Perplexity against rounds, bytes and seconds, and the numbers of it."""
    runs = [run for group in groups for run in group.runs]
    machine = usual_machine(runs)
    means = [group.curves().mean(axis=1) for group in groups]
    costs = [group.costs(machine) for group in groups]
    most = {key: max(float(cost[key].max()) for cost in costs) for key in ("bytes", "seconds")}
    factor, unit = wording.byte_unit(most["bytes"])
    second, time_unit = wording.second_unit(most["seconds"])
    by_round = [_curve(look, group) for look, group in enumerate(groups)]
    charts = [
        chart(
            by_round,
            title="By round",
            x_title="round",
            y_title=Y_TITLE,
            whole=True,
            ends=True,
        ),
        *(
            chart(
                [
                    replace(curve, x=[*(cost[key].reindex(mean.index) / scale)], hollow=frozenset())
                    for curve, cost, mean in zip(by_round, costs, means, strict=True)
                ],
                title=title,
                x_title=x_title,
                y_title=Y_TITLE,
            )
            for key, scale, title, x_title in (
                ("bytes", factor, "By bytes", f"{unit} both ways, all clients"),
                ("seconds", second, "By time", f"{time_unit} of training"),
            )
            if most[key] > 0
        ),
    ]
    tables = [_rounds_table(groups, means), _costs_table(groups, costs), _work_table(groups)]
    note = _what_is_drawn(groups, machine)
    validations = {look: group.validation_curves() for look, group in enumerate(groups)}
    if validations := {look: own.mean(axis=1) for look, own in validations.items() if len(own)}:
        charts.append(_validation_chart(groups, validations))
        note += " Validation rows are held back for choosing the round that counts."
        labels = [groups[look].label for look in validations]
        caption = "Perplexity by round, on validation rows"
        tables.insert(1, _by_round(caption, labels, [*validations.values()]))
    blocks: list[Block] = [
        Charts(charts, keys_of(groups), note),
        Behind("The numbers behind these charts", tables),
    ]
    lead = (
        f"Perplexity on the answer tokens of held-out rows, over all {_whose(groups)}, and "
        "tasks that do. Lower is better."
    )
    return Section("perplexity", "Perplexity", lead, blocks)


def by_task(groups: Sequence[Replicates]) -> Section | None:
    """A small chart for each task, and the numbers of all tasks."""
    runs = [run for group in groups for run in group.runs]
    tasks = [*dict.fromkeys(task for run in runs for task in run.tasks)]
    if not tasks:
        return None
    unseen = {task for run in runs for task in run.facts.get("unseen_tasks") or ()}
    drawn = _largest(tasks, runs, MOST_TASKS)
    curves = {
        task: [
            _curve(look, group, task, bars=False)
            for look, group in enumerate(groups)
            if any(task in run.tasks for run in group.runs)
        ]
        for task in drawn
    }
    every = [y for some in curves.values() for curve in some for y in curve.y]
    charts = [
        chart(
            some,
            title=f"{task} (never trained)" if task in unseen else task,
            x_title="round",
            y_title=Y_TITLE,
            whole=True,
            small=True,
            y_values=every,
        )
        for task, some in curves.items()
    ]
    first = {*_largest(drawn, runs, MOST_PANELS)}
    shown = [each for task, each in zip(drawn, charts, strict=True) if task in first]
    rest = [each for task, each in zip(drawn, charts, strict=True) if task not in first]
    scale = "logarithmic scale" if charts[0].y.log else "scale"
    note = f"All on one {scale}."
    if rest:
        note += f" These are the {len(shown)} tasks with most held-out tokens, of {len(tasks)}."
    blocks: list[Block] = [Charts(shown, keys_of(groups), note, small=True)]
    if rest:
        title = f"{len(rest)} tasks with fewer held-out tokens"
        note = "On the same scale."
        if len(tasks) > len(drawn):
            note += f" {len(tasks) - len(drawn)} more are in the table of numbers only."
        blocks.append(Behind(title, [Charts(rest, keys_of(groups), note, small=True)]))
    blocks.append(Behind("The numbers of every task", [_task_table(groups, tasks, unseen)]))
    lead = f"Perplexity by round of each task, over all {_whose(groups)}."
    return Section("tasks", "Tasks", lead, blocks)


def _whose(groups: Sequence[Replicates]) -> str:
    """Whose rows perplexities are of."""
    private = {run.private for group in groups for run in group.runs}
    if len(private) > 1:
        return "clients that train (with differential privacy: that never do)"
    return "clients that never train" if private == {True} else "clients that train"


def keys_of(groups: Sequence[Replicates]) -> list[Key]:
    """The looks of configurations, in their order."""
    return [Key(look, group.label) for look, group in enumerate(groups)]


def _curve(look: int, group: Replicates, task: str | None = None, *, bars: bool = True) -> Curve:
    """The mean over seeds with its band; of one seed, with bars of the error over clients."""
    own = [run for run in group.runs if task is None or task in run.tasks]
    curves = Replicates(group.label, tuple(own)).curves(task)
    mean = curves.mean(axis=1)
    bounds: tuple[pd.Series, pd.Series] | None = None
    if len(own) > 1:
        sd = curves.apply(deviation, axis=1)
        # no perplexity is below one
        bounds = (mean - sd).clip(lower=1), mean + sd
    elif bars:
        spread = np.exp(own[0].standard_error(task).reindex(mean.index).astype(float))
        bounds = mean / spread, mean * spread
    return Curve(
        look,
        group.label,
        x=[float(number) for number in mean.index],
        y=[*mean],
        low=[*bounds[0]] if bounds else (),
        high=[*bounds[1]] if bounds else (),
        banded=len(own) > 1,
        hollow=frozenset(float(number) for number in group.shares(task).index),
    )


def _largest(tasks: Sequence[str], runs: Iterable[Run], most: int) -> list[str]:
    """The tasks with most held-out tokens, in their order."""
    if len(tasks) <= most:
        return [*tasks]
    totals = pd.concat([run.rounds for run in runs]).groupby("task")["tokens"].max()
    best = {*sorted(tasks, key=lambda task: -totals.get(task, 0))[:most]}
    return [task for task in tasks if task in best]


def _what_is_drawn(groups: Sequence[Replicates], machine: str) -> str:
    """Sentences on bands, bars, hollow marks and seconds, where there are such."""
    runs = [run for group in groups for run in group.runs]
    sizes = {len(group.runs) for group in groups}
    parts = []
    if sizes != {1}:
        parts.append("Bands are one sample standard deviation over seeds, around the mean.")
    if 1 in sizes and any(len(run.evaluation) for run in runs):
        parts.append(
            "Bars are one standard error over clients: what another draw of clients, not of seeds, "
            "would change."
        )
    if any(len(group.shares()) for group in groups):
        parts.append("Hollow marks do not stand on all held-out rows.")
    if any(len(group.curves()) == 1 for group in groups):
        parts.append("A horizontal line was evaluated once.")
    if len({run.machine for run in runs}) > 1:
        parts.append(f"Seconds are those of runs on {machine}.")
    return " ".join(parts)


def _validation_chart(groups: Sequence[Replicates], means: Mapping[int, pd.Series]) -> Chart:
    curves = [
        Curve(look, groups[look].label, [*map(float, mean.index)], [*mean])
        for look, mean in means.items()
    ]
    return chart(
        curves, title="On validation rows", x_title="round", y_title=Y_TITLE, whole=True, ends=True
    )


def _by_round(caption: str, labels: Sequence[str], means: Sequence[pd.Series]) -> Table:
    numbers = sorted({number for mean in means for number in mean.index})
    shown = wording.thinned(numbers, MOST_ROUNDS)
    rows = [
        (str(number), *(wording.number(mean.get(number, np.nan)) for mean in means))
        for number in shown
    ]
    note = wording.left_out(len(shown), len(numbers), "evaluated rounds")
    return Table(caption, ("round", *labels), rows, note)


def _rounds_table(groups: Sequence[Replicates], means: Sequence[pd.Series]) -> Table:
    """With the deviation over seeds, and the share of the tokens where that is not all."""
    plain = _by_round("Perplexity by round", [group.label for group in groups], means)
    deviations = [group.curves().apply(deviation, axis=1) for group in groups]
    shares = [group.shares() for group in groups]

    def cell(look: int, number: int) -> str:
        mean = float(means[look].get(number, np.nan))
        text = wording.deviating(mean, float(deviations[look].get(number, np.nan)))
        part = shares[look].get(number)
        return text if part is None else f"{text} ({int(100 * part)} %)"

    rows = [(row[0], *(cell(i, int(row[0])) for i in range(len(groups)))) for row in plain.rows]
    notes = [plain.note]
    if any(len(group.runs) > 1 for group in groups):
        notes.append("± is one sample standard deviation over seeds.")
    if any(len(partial) for partial in shares):
        notes.append("In brackets: share of the held-out tokens, where clients were missing.")
    return replace(plain, rows=rows, note=" ".join(filter(None, notes)))


def _costs_table(groups: Sequence[Replicates], costs: Sequence[pd.DataFrame]) -> Table:
    numbers = sorted({number for cost in costs for number in cost.index})
    shown = wording.thinned(numbers, MOST_ROUNDS)
    headings = ("round", *(f"{g.label}, {what}" for g in groups for what in ("sent", "time")))
    rows = []
    for number in shown:
        cells = [str(number)]
        for cost in costs:
            known = number in cost.index
            line = cost.loc[number] if known else {"bytes": np.nan, "seconds": np.nan}
            cells += [wording.size(line["bytes"]), wording.duration(line["seconds"])]
        rows.append(tuple(cells))
    note = wording.left_out(len(shown), len(numbers), "rounds")
    caption = "What training took up to and with each round, bytes both ways"
    return Table(caption, headings, rows, note)


def _work_table(groups: Sequence[Replicates]) -> Table:
    """What all rounds took together, a line for each phase of each run."""
    rows = []
    for group in groups:
        for run in group.runs:
            name = (
                group.label if len(group.runs) == 1 else f"{group.label}, seed {run.facts['seed']}"
            )
            for phase, table in (("training", run.train), ("evaluation", run.evaluations)):
                if len(table):
                    rows.append((f"{name}: {phase}", *_work(table)))
    headings = ("", "rounds", "replies", "failures", "steps", "time", "sent up", "sent down")
    return Table("Work of all rounds together", headings, rows)


def _work(table: pd.DataFrame) -> tuple[str, ...]:
    sums = table.sum()
    counts = (len(table), int(sums["clients"]), int(sums["failures"]))
    steps = f"{int(sums['steps']):,}" if "steps" in sums else wording.BLANK
    up = wording.size(float(sums["bytes_up"])) if "bytes_up" in sums else wording.BLANK
    down = wording.size(float(sums["bytes_down"]))
    return (*(f"{c:,}" for c in counts), steps, wording.duration(float(sums["seconds"])), up, down)


def _task_table(groups: Sequence[Replicates], tasks: Sequence[str], unseen: set[str]) -> Table:
    """First and resulting perplexity of each task, the mean over seeds."""
    headings = ["task", *(f"{g.label}, {when}" for g in groups for when in ("at first", "result"))]
    rows = []
    for task in tasks:
        cells = [f"{task} (never trained)" if task in unseen else task]
        for group in groups:
            curves = [run.perplexity(task) for run in group.runs]
            ends = [
                (
                    float(curve.iloc[0]) if len(curve) else np.nan,
                    float(curve.get(run.result_round, np.nan)),
                )
                for run, curve in zip(group.runs, curves, strict=True)
            ]
            table = pd.DataFrame(ends)
            cells += [
                wording.deviating(float(table[i].mean()), deviation(table[i])) for i in (0, 1)
            ]
        rows.append(tuple(cells))
    note = "The result is that of the round that counts: the one that was kept, else the last."
    return Table("Perplexity by task", headings, rows, note)
