"""How clients fare, one by one: from best to worst, and before and after steps of their own."""

import math
from collections.abc import Sequence

from mops_fl.report import wording
from mops_fl.report.layout import Behind, Block, Charts, Key, Section, Table
from mops_fl.report.lines import MOST_POINTS, Curve, chart
from mops_fl.run.results import Replicates, Run
from mops_fl.run.spread import Group

MOST_CLIENTS = 100
"""Lines of a table of clients."""


def clients(groups: Sequence[Replicates]) -> Section | None:
    """Losses of clients in the round that counts; None where no run noted them."""
    curves = [
        curve
        for look, group in enumerate(groups)
        for run in group.runs
        for curve in _curves(look, group.label, run)
    ]
    if not curves:
        return None
    drawn = chart(
        curves,
        title="Clients from best to worst",
        x_title="clients, % of all",
        y_title="perplexity of a client",
        x_values=(0.0, 100.0),
    )
    lead = (
        "Perplexity of each client's held-out rows, of the tasks that train, in the round that "
        "counts. A mean hides who loses: the right end of a line is its worst-served client."
    )
    blocks: list[Block] = [Charts([drawn], _keys(curves), _note(groups, curves)), _spreads(groups)]
    blocks += [table] if (table := _personalised(groups)) else []
    named = [
        (group, run)
        for group in groups
        for run in group.runs
        if len(run.losses()) or len(run.losses(unseen_clients=True))
    ]
    tables = [_clients(_title(group, run), run) for group, run in named]
    blocks.append(Behind("The numbers of the clients", tables))
    return Section("clients", "Clients", lead, blocks)


def _curves(look: int, label: str, run: Run) -> list[Curve]:
    """Of the clients that train, and of those that never do."""
    made = []
    for unseen in (False, True):
        losses = sorted(run.losses(unseen_clients=unseen))
        if losses:
            x = [100 * (rank + 0.5) / len(losses) for rank in range(len(losses))]
            name = f"{label}, clients that never train" if unseen else label
            y = [Group(loss, 1, 0).perplexity for loss in losses]
            made.append(Curve(look, name, x, y, faint=unseen))
    return made


def _keys(curves: Sequence[Curve]) -> list[Key]:
    """One for all seeds; whose clients never train is told by the note, unless only they are."""
    solid = {curve.look for curve in curves if not curve.faint}
    shown = [curve for curve in curves if not curve.faint or curve.look not in solid]
    return [*dict.fromkeys(Key(curve.look, curve.label) for curve in shown)]


def _note(groups: Sequence[Replicates], curves: Sequence[Curve]) -> str:
    parts = []
    if any(len(group.runs) > 1 for group in groups):
        parts.append("A line for each seed.")
    if any(curve.faint for curve in curves):
        parts.append("Dashed: clients that never train.")
    most = max(len(curve.y) for curve in curves)
    if most > MOST_POINTS:
        parts.append(f"Of up to {most:,} clients, {MOST_POINTS} are drawn, evenly.")
    return " ".join(parts)


def _spreads(groups: Sequence[Replicates]) -> Table:
    """A line for each run: mean, deviation and both ends."""
    rows, looks = [], []
    for look, group in enumerate(groups):
        for run in group.runs:
            for unseen in (False, True):
                if spread := run.spread(unseen_clients=unseen):
                    name = f"{_title(group, run)}{', never train' if unseen else ''}"
                    ends = (_of(each) for each in (spread.worst, spread.best))
                    sd = wording.number(spread.sd, 3)
                    counts = (f"{spread.every.clients:,}", f"{spread.every.rows:,}")
                    rows.append(
                        (name, str(run.result_round), *counts, _of(spread.every), sd, *ends)
                    )
                    looks.append(look)
    note = (
        "Perplexities of the mean loss of clients, each of which counts once. sd is that of their "
        "losses, in nats a token."
    )
    headings = ("", "round", "clients", "held-out rows", "all", "sd", "worst 10 %", "best 10 %")
    return Table("By client", headings, rows, note, looks=looks)


def _of(group: Group) -> str:
    return wording.number(group.perplexity)


def _personalised(groups: Sequence[Replicates]) -> Table | None:
    rows, looks = [], []
    for look, group in enumerate(groups):
        for run in group.runs:
            if each := run.personalised():
                overall = map(wording.number, (each.perplexity_before, each.perplexity_after))
                ends = (_of(each.before.worst), _of(each.after.worst))
                count = f"{each.after.every.clients:,}"
                rows.append((_title(group, run), count, *overall, *ends))
                looks.append(look)
    if not rows:
        return None
    headings = ("", "clients", "all before", "all after", "worst 10 % before", "worst 10 % after")
    note = "The worst tenth is that of each time, so it may be other clients."
    return Table("Before and after steps of the clients' own", headings, rows, note, looks=looks)


def _title(group: Replicates, run: Run) -> str:
    return group.label if len(group.runs) == 1 else f"{group.label}, seed {run.facts['seed']}"


def _clients(name: str, run: Run) -> Table:
    """Each client's perplexity, from best to worst; of many, an even choice."""
    unseen = run.losses(unseen_clients=True)
    losses = {**run.losses(), **unseen}
    ranked = sorted(losses, key=lambda client: (losses[client], client))
    shown = wording.thinned([*enumerate(ranked, 1)], MOST_CLIENTS)
    rows = [
        (
            f"client {client}{' (never trains)' if client in unseen.index else ''}",
            f"{rank:,}",
            wording.number(Group(losses[client], 1, 0).perplexity),
            wording.number(losses[client], 3),
        )
        for rank, client in shown
        if math.isfinite(losses[client])
    ]
    note = wording.left_out(len(shown), len(ranked), "clients")
    return Table(
        f"{name}, round {run.result_round}", ("", "rank", "perplexity", "loss"), rows, note
    )
