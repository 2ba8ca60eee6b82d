"""Who trained when, and who holds what: rows of cells, in bins where there are too many."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mops_fl.report import wording
from mops_fl.report.gates import each_run, title_of
from mops_fl.report.layout import Behind, Block, Note, Section, Strip, Strips, Table
from mops_fl.run.details import failures, held_out, holdings, trainings
from mops_fl.run.results import Replicates, Run

MOST_ROWS = 50
"""Strips below each other."""
MOST_CELLS = 100
"""Of a strip."""
MOST_TASKS = 60
MOST_PICTURES = 6
MOST_COLUMNS = 12
"""Tasks that a table has a column for."""
LEVELS = 5


def participation(groups: Sequence[Replicates]) -> Section | None:
    """Who trained in which round; runs that drew the same clients are shown once."""
    alike: defaultdict[tuple, list[tuple[str, Run]]] = defaultdict(list)
    for _, group, run in each_run(groups):
        pairs = trainings(run)
        if len(pairs):
            failed = frozenset(_failed(run))
            key = (frozenset(zip(pairs["round"], pairs["partition"], strict=True)), failed)
            alike[key].append((title_of(group, run), run))
    if not alike:
        return None
    blocks: list[Block] = []
    for some in [*alike.values()][:MOST_PICTURES]:
        name = wording.listed([name for name, _ in some])
        blocks += [_participation(name, some[0][1]), _behind_participation(name, some[0][1])]
    blocks += _more(len(alike), "different histories")
    lead = (
        "Each line is a client that trained, each column a round. Whoever never trained knows only "
        "what the others learned."
    )
    return Section("who", "Who trained when", lead, blocks)


def partition(groups: Sequence[Replicates]) -> Section | None:
    """Who holds rows of which task; runs on the same rows are shown once."""
    alike: defaultdict[tuple, list[tuple[str, Run]]] = defaultdict(list)
    for _, group, run in each_run(groups):
        rows = tuple(run.table("partition.csv").itertuples(index=False, name=None))
        if rows:
            alike[rows].append((title_of(group, run), run))
    if not alike:
        return None
    blocks: list[Block] = []
    for some in [*alike.values()][:MOST_PICTURES]:
        name = wording.listed([name for name, _ in some])
        blocks += [_partition(name, some[0][1]), _behind_partition(name, some[0][1])]
    blocks += _more(len(alike), "different partitions")
    lead = (
        "Each line is a task, each column a client; the darker, the more rows it trains on. "
        "Clients stand in the order of the task that they hold most of."
    )
    return Section("partition", "Who holds what", lead, blocks)


def _more(count: int, what: str) -> list[Note]:
    if count <= MOST_PICTURES:
        return []
    return [Note(f"{MOST_PICTURES} of {count} {what} are shown.")]


def _failed(run: Run) -> list[tuple[int, int]]:
    """Round and partition of whose training gave no valid reply."""
    return [(f.round, f.partition) for f in failures(run) if f.phase == "training"]


def _participation(name: str, run: Run) -> Strips:
    trained = trainings(run)
    rounds = int(max(trained["round"].max(), run.train["round"].max() if len(run.train) else 0))
    failed = _failed(run)
    ids = sorted({*trained["partition"], *(client for _, client in failed)})
    bins = _bins(ids, MOST_ROWS)
    columns = _bins(range(1, rounds + 1), MOST_CELLS)
    counts = _counted(trained[["partition", "round"]].to_numpy(), bins, columns)
    wrong = _counted(np.array([(p, n) for n, p in failed]).reshape(-1, 2), bins, columns)
    shares = counts / np.outer([*map(len, bins)], [*map(len, columns)])
    top = float(shares.max()) or 1.0
    strips = []
    for index, own in enumerate(bins):
        paths = _levels(shares[index] / top)
        paths |= {"bad": _path(wrong[index] > 0)} if wrong[index].any() else {}
        numbers = (f"{int(counts[index].sum()):,}", f"{int(wrong[index].sum()):,}")
        strips.append(Strip(_ends(own), paths, numbers))
    return Strips(
        title=name,
        says=_who_trained(run, ids),
        heading="client" if len(bins) == len(ids) else "clients",
        first="round 1",
        last=f"round {rounds}",
        numbers=("times", "failed"),
        cells=len(columns),
        strips=strips,
        key=_participation_key(top, bool(failed)),
        note=_participation_note(len(ids), bins, rounds, columns),
    )


def _participation_key(top: float, failed: bool) -> list[tuple[str, str]]:
    if top == 1:
        key = [(str(LEVELS), "trained")]
    else:
        key = [("1", "few of them trained"), (str(LEVELS), f"{top:.0%} of them trained")]
    return [*key, ("bad", "failed")] if failed else key


def _who_trained(run: Run, ids: Sequence[int]) -> str:
    every = {*run.table("partition.csv")["partition"]} or {*ids}
    never = sorted(every - {*ids})
    text = f"{len(ids):,} of {wording.plural(len(every), 'client')} were asked to train"
    return f"{text}; never: {wording.listed([*map(str, never)], 20)}." if never else f"{text}."


def _behind_participation(name: str, run: Run) -> Behind:
    rounds = trainings(run).groupby("partition")["round"].apply(sorted)
    shown = wording.thinned([*rounds.index], 100)
    rows = [(str(client), ", ".join(map(str, rounds[client]))) for client in shown]
    note = wording.left_out(len(shown), len(rounds), "clients")
    table = Table(f"Rounds of each client: {name}", ("client", "rounds"), rows, note, prose=True)
    return Behind("The numbers of each client", [table])


def _participation_note(count: int, bins: Sequence, rounds: int, columns: Sequence) -> str:
    parts = []
    if len(bins) < count:
        parts.append(f"A line is {_about(bins, 'client')}, of {count:,}.")
    if len(columns) < rounds:
        parts.append(f"A column is {_about(columns, 'round')}, of {rounds:,}.")
    if len(bins) < count or len(columns) < rounds:
        parts.append("The darker, the larger the share of them that trained.")
    return " ".join(parts)


def _partition(name: str, run: Run) -> Strips:
    table, tests = holdings(run), held_out(run)
    tasks = [*table.columns]
    shown = tasks
    if len(tasks) > MOST_TASKS:
        largest = {*table.sum().sort_values(ascending=False).index[:MOST_TASKS]}
        shown = [task for task in tasks if task in largest]
    order = _ordered(table, run)
    columns = _bins(order, MOST_CELLS)
    cells = {task: _means(table[task], columns) for task in shown}
    top = max((float(values.max()) for values in cells.values()), default=0.0) or 1.0
    strips = [
        Strip(
            task,
            # small holdings beside large ones: shades by the square root
            _levels(np.sqrt(values / top)),
            (f"{(table[task] > 0).sum():,}", f"{table[task].sum():,}", f"{tests[task].sum():,}"),
        )
        for task, values in cells.items()
    ]
    return Strips(
        title=name,
        says=f"{table.to_numpy().sum():,} rows of {len(tasks):,} tasks, {len(table):,} clients.",
        heading="task",
        first="clients",
        last=f"{len(table):,} of them",
        numbers=("clients", "rows", "held out"),
        cells=len(columns),
        strips=strips,
        key=[("1", "few rows"), (str(LEVELS), f"{top:,.0f} rows")],
        note=_partition_note(table, tasks, shown, columns, run),
    )


def _partition_note(table, tasks: Sequence, shown: Sequence, columns: Sequence, run: Run) -> str:
    parts = []
    if len(columns) < len(table):
        about = _about(columns, "client")
        parts.append(f"A column is the mean of {about}, of {len(table):,}.")
    if len(shown) < len(tasks):
        parts.append(f"The {len(shown)} largest of {len(tasks)} tasks are shown.")
    if never := run.facts.get("unseen_clients"):
        parts.append(f"The last {wording.plural(len(never), 'client')} on the right never train.")
    if unseen := run.facts.get("unseen_tasks"):
        parts.append(f"Never trained, only evaluated: {wording.listed(unseen)}.")
    return " ".join(parts)


def _behind_partition(name: str, run: Run) -> Behind:
    """Rows by client and task; of many tasks, how many and which most."""
    table, tests = holdings(run), held_out(run)
    ids = wording.thinned([*table.index], 100)
    never = {*(run.facts.get("unseen_clients") or ())}
    few = len(table.columns) <= MOST_COLUMNS
    rows = []
    for client in ids:
        own = table.loc[client]
        cells = (f"{own.sum():,}", f"{tests.loc[client].sum():,}")
        if few:
            more: tuple[str, ...] = tuple(f"{count:,}" for count in own)
        else:
            more = (f"{(own > 0).sum():,}", f"{own.idxmax()}: {own.max():,}" if own.any() else "")
        rows.append((f"{client}{' (never trains)' if client in never else ''}", *cells, *more))
    others = tuple(table.columns) if few else ("tasks", "most of")
    note = wording.left_out(len(ids), len(table), "clients")
    caption = f"Rows of each client to train on, by task: {name}"
    shown = Table(caption, ("client", "rows", "held out", *others), rows, note)
    return Behind("The numbers of each client", [shown])


def _ordered(table, run: Run) -> list[int]:
    """Clients by the task they hold most of, then by size; those that never train come last."""
    never = {*(run.facts.get("unseen_clients") or ())}
    values = table.to_numpy()
    most, sizes = values.argmax(axis=1), values.sum(axis=1)
    keys = {c: (c in never, most[i], -sizes[i], c) for i, c in enumerate(table.index)}
    return sorted(table.index, key=keys.__getitem__)


def _bins(items: Sequence[int], most: int) -> list[list[int]]:
    """Consecutive items, together in as few as `most` bins of one size but for the last."""
    size = max(1, math.ceil(len(items) / most))
    return [[*items[start : start + size]] for start in range(0, len(items), size)]


def _about(bins: Sequence[Sequence[int]], noun: str) -> str:
    return wording.plural(len(bins[0]), noun)


def _ends(own: Sequence[int]) -> str:
    """The first and the last of a bin."""
    return str(own[0]) if len(own) == 1 else f"{own[0]}–{own[-1]}"


def _counted(pairs: np.ndarray, bins: Sequence, columns: Sequence) -> np.ndarray:
    """How many of (client, round) fall into each bin and column."""
    lines = {client: index for index, own in enumerate(bins) for client in own}
    places = {number: index for index, own in enumerate(columns) for number in own}
    counts = np.zeros((len(bins), len(columns)), int)
    for client, number in pairs:
        if client in lines and number in places:
            counts[lines[client], places[number]] += 1
    return counts


def _means(rows, columns: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([float(rows.loc[own].mean()) for own in columns])


def _levels(shares: np.ndarray) -> dict[str, str]:
    """Paths of the cells of each level: the shares that are not 0, in `LEVELS` steps."""
    levels = np.ceil(np.clip(shares, 0, 1) * LEVELS).astype(int)
    found = sorted({*levels.tolist()} - {0})
    return {str(level): _path(levels == level) for level in found}


def _path(wanted: Sequence[bool] | np.ndarray) -> str:
    """Unit squares, neighbours as one."""
    path, start = [], 0
    for value, group in itertools.groupby(map(bool, wanted)):
        length = len([*group])
        if value:
            path.append(f"M{start} 0h{length}v1h-{length}z")
        start += length
    return "".join(path)
