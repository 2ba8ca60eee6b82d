"""The mixture: which expert each task gets, round by round, and how the experts drift apart."""

import math
from collections.abc import Sequence

import pandas as pd

from mops_fl.report import wording
from mops_fl.report.layout import Behind, Block, Charts, Heat, Key, Section, Table
from mops_fl.report.lines import Curve, chart
from mops_fl.run.results import Replicates, Run

MOST_HEATS = 6
"""Heat maps on a page."""
MOST_WEIGHTS = 15_000
"""Weights that a heat map carries, over all of its rounds."""
MOST_FRAMES = 101
MOST_TASKS = 60
_LEAST_FRAMES = 2


def gate(groups: Sequence[Replicates]) -> Section | None:
    """Heat maps and what is derived from the weights; None where no run has a gate."""
    found = [(look, group, run) for look, group, run in each_run(groups) if _weighs(run)]
    if not found:
        return None
    lead = (
        "The mean weight that the gate gives to each expert on the held-out rows of a task. "
        "A task that has an expert of its own has one dark cell in its line."
    )
    heats = [_heat(*each, index) for index, each in enumerate(found[:MOST_HEATS])]
    blocks: list[Block] = [*heats]
    charts = _diagnostics(groups, {"entropy": "Entropy of the gate", "largest load": _LOAD})
    blocks += charts
    if len(found) > MOST_HEATS:
        lead += f" These are the first {MOST_HEATS} of {len(found)} runs that have a gate."
    return Section("gate", "Gate", lead, blocks)


_LOAD = "Largest load of an expert"
_AXES = {
    "entropy": "nats",
    "largest load": "share of examples",
    "cosine": "cosine",
    "update cosine": "cosine",
}


def drift(groups: Sequence[Replicates]) -> Section | None:
    """How alike the clients' versions of an expert are; None where no run has any."""
    titles = {"cosine": "Between clients' experts", "update cosine": "Between clients' updates"}
    blocks = _diagnostics(groups, titles)
    if not blocks:
        return None
    tables = [
        table
        for _, group, run in each_run(groups)
        for table in _experts(title_of(group, run), run.table("drift.csv"))
    ]
    blocks.append(Behind("The numbers of each expert", tables))
    lead = (
        "After the local steps of a round every client has its own version of an expert. Cosines "
        "of 1: all moved it alike; near 0 between updates: each in a direction of its own."
    )
    return Section("drift", "Drift of the experts", lead, blocks)


def each_run(groups: Sequence[Replicates]) -> list[tuple[int, Replicates, Run]]:
    """All runs with their group, and with its look."""
    return [(look, group, run) for look, group in enumerate(groups) for run in group.runs]


def title_of(group: Replicates, run: Run) -> str:
    """Of a run among those of all configurations."""
    return group.label if len(group.runs) == 1 else f"{group.label}, seed {run.facts['seed']}"


def _weighs(run: Run) -> bool:
    return bool(len(run.table("gate.csv")))


def _heat(look: int, group: Replicates, run: Run, index: int) -> Heat:
    table, every = run.gate, [*run.gate["task"].unique()]
    tasks, experts = every[:MOST_TASKS], sorted(table["expert"].unique())
    rounds = sorted(table["round"].unique())
    most = max(_LEAST_FRAMES, min(MOST_FRAMES, MOST_WEIGHTS // (len(tasks) * len(experts))))
    shown = wording.thinned(rounds, most)
    known = {tuple(row[:3]): row[3] for row in table.itertuples(index=False)}
    weights = [
        [_hundredths(known.get((number, task, expert))) for task in tasks for expert in experts]
        for number in shown
    ]
    notes = []
    if len(shown) < len(rounds):
        notes.append(f"{len(shown)} of {len(rounds)} evaluated rounds can be chosen, evenly.")
    if len(tasks) < len(every):
        notes.append(f"The first {len(tasks)} of {len(every)} tasks are shown.")
    return Heat(
        name=f"heat-{index}",
        title=title_of(group, run),
        look=look,
        tasks=tasks,
        experts=[int(expert) for expert in experts],
        frames={"rounds": [int(number) for number in shown], "weights": weights},
        note=" ".join(notes),
    )


def _hundredths(weight: float | None) -> int | None:
    return None if weight is None or math.isnan(weight) else round(100 * weight)


def _diagnostics(groups: Sequence[Replicates], titles: dict[str, str]) -> list[Block]:
    """A chart for each column of `Replicates.diagnostics` that is known, and the numbers."""
    lines = {look: group.diagnostics() for look, group in enumerate(groups)}
    charts, looks = [], set()
    experts = {g.runs[0].facts["config"].get("experts", 1) for g in groups}
    bounds = {**dict.fromkeys(_AXES, (0.0, 1.0)), "entropy": (0.0, math.log(max(experts)))}
    for column, title in titles.items():
        curves = [
            Curve(look, groups[look].label, [*map(float, own.index)], [*own])
            for look, table in lines.items()
            if column in table and len(own := table[column].dropna())
        ]
        if curves:
            looks |= {curve.look for curve in curves}
            y_title = _AXES[column]
            charts.append(
                chart(
                    curves,
                    title=title,
                    x_title="round",
                    y_title=y_title,
                    whole=True,
                    ends=True,
                    may_log=False,
                    y_values=bounds[column],
                )
            )
    if not charts:
        return []
    keys = [Key(look, groups[look].label) for look in sorted(looks)]
    tables = [_lines(groups[look].label, lines[look], [*titles]) for look in sorted(looks)]
    several = any(len(groups[look].runs) > 1 for look in looks)
    notes = ["Means over seeds."] if several else []
    if "entropy" in titles:
        most = [f"{math.log(e):.2f} for {wording.plural(e, 'expert')}" for e in sorted(experts)]
        notes.append(f"Entropy is at most {wording.listed(most)}: all experts weigh alike.")
    return [
        Charts(charts, keys, " ".join(notes)),
        Behind("The numbers behind these charts", tables),
    ]


def _lines(label: str, table: pd.DataFrame, columns: Sequence[str]) -> Table:
    known = [column for column in columns if column in table]
    lines = table[known].dropna(how="all")
    shown = wording.thinned([*lines.index], 100)
    rows = [(str(n), *(wording.number(float(v), 3) for v in lines.loc[n])) for n in shown]
    note = wording.left_out(len(shown), len(lines), "rounds")
    return Table(label, ("round", *known), rows, note)


def _experts(name: str, table: pd.DataFrame) -> list[Table]:
    """For each kind of cosine a line a round, a column for each expert."""
    made = []
    for column, caption in (("cosine", "experts"), ("update_cosine", "updates")):
        wide = table.pivot_table(index="round", columns="expert", values=column)
        shown = wording.thinned([*wide.index], 50)
        rows = [(str(n), *(wording.number(float(v), 3) for v in wide.loc[n])) for n in shown]
        note = wording.left_out(len(shown), len(wide), "rounds")
        headings = ("round", *(f"expert {expert}" for expert in wide.columns))
        if rows:
            made.append(Table(f"{name}: cosine between {caption}", headings, rows, note))
    return made
