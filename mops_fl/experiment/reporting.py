"""From result files alone: a table, its CSV, and pictures.

Means are over seeds of one configuration, model, type and code; where results of several lie in a
folder, each has rows of its own.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mops_fl.errors import RunError
from mops_fl.experiment.plan import Plan, Point, Published
from mops_fl.experiment.result_files import Result
from mops_fl.experiment.statistics import (
    Paired,
    bootstrap,
    gain,
    least_p,
    reduction,
    sign_flip,
)
from mops_fl.files import write_text
from mops_fl.labels import slug
from mops_fl.run.folder import csv_line
from mops_fl.run.results import (
    MEASURES,
    PRIVACY,
    Estimate,
    Replicates,
    Run,
    unlike,
    usual_machine,
)

_COUNTS = ("parameters", "bytes a round", "seconds")
_ORIGINS = ("code", "model", "dtype")
"""What rows may differ in beside point and entry."""
_COLUMNS = (
    *("point", "entry", *_ORIGINS, "seeds", *MEASURES, "sd"),
    *("published", "gain", "reduction", "difference", "low", "high", "p", "least p"),
)


@dataclass(frozen=True)
class Row:
    """One entry at one point of the grid, over its seeds."""

    point: Point
    entry: str
    code: str
    """Of what decided the numbers: the start of its digest."""
    model: str
    """Likewise."""
    dtype: str
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """Point and entry."""
        return " ".join([*(str(value) for _, value in self.point), self.entry])

    @property
    def shown(self) -> str:
        """The entry in tables and pictures."""
        return self.results[0].run.noted(self.entry)

    @cached_property
    def replicates(self) -> Replicates:
        """The runs, which differ in nothing but their seeds.

        Raises:
            RunError: they do.
        """
        return Replicates(self.label, tuple(result.run for result in self.results))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Each measure over the seeds."""
        return self.replicates.estimates()


def rows(plan: Plan, results: Iterable[Result]) -> list[Row]:
    """The rows of a plan's cells that have results, in the plan's order.

    Raises:
        RunError: results that would be averaged differ in more than their seed.
    """
    cells = {(cell.point, cell.entry, cell.config.seed): cell for cell in plan.cells}
    order = {(cell.point, cell.entry): number for number, cell in enumerate(plan.cells)}
    groups: defaultdict[tuple, list[Result]] = defaultdict(list)
    for result in results:
        cell = cells.get((result.point, result.entry, result.seed))
        if cell is not None and result.is_of(cell):
            place = result.point, result.entry
            same = result.identity["code"][:8], result.identity["data"]["model"][:8]
            groups[order[place], *place, *same, result.run.facts.get("dtype", "")].append(result)
    made = [
        Row(point, entry, code, model, dtype, tuple(sorted(some, key=lambda result: result.seed)))
        for (_, point, entry, code, model, dtype), some in sorted(
            groups.items(), key=lambda group: (group[0][0], *group[0][3:])
        )
    ]
    for row in made:
        _ = row.replicates
    return made


def paired(row: Row, baseline: Row) -> Paired | None:
    """A row against another, seed by seed on the clients that both evaluated.

    None without a seed in common, or where these clients were evaluated on other rows.
    """
    sums = [
        (_clients(own.run), _clients(other.run)) for own, other in _common(row.results, baseline)
    ]
    shared = [sorted(ours.keys() & theirs.keys()) for ours, theirs in sums]
    arrays = [
        tuple(np.array([part[client] for client in clients]) for part in pair)
        for pair, clients in zip(sums, shared, strict=True)
    ]
    if not arrays or any(not len(a) or (a[:, 1] != b[:, 1]).any() for a, b in arrays):
        return None
    totals = [[part.sum(0) for part in pair] for pair in arrays]
    differences = [float(a[0] / a[1] - b[0] / b[1]) for a, b in totals]
    low, high = bootstrap([a for a, _ in arrays], [b for _, b in arrays])
    mean = sum(differences) / len(differences)
    return Paired(mean, low, high, sign_flip(differences), least_p(len(sums)), len(sums))


def _common(own: Sequence[Result], baseline: Row) -> list[tuple[Result, Result]]:
    """The results of the seeds that a row and its baseline both have, on the same rows."""
    other = {result.seed: result for result in baseline.results}
    return [
        (result, other[result.seed])
        for result in own
        if result.seed in other and result.identity["data"] == other[result.seed].identity["data"]
    ]


def _clients(run: Run) -> dict[int, tuple[float, int]]:
    """Sums of nll and tokens of each client that counts, at the round that counts."""
    table = run.part(run.evaluation, unseen_clients=run.private)
    table = table[table["round"] == run.result_round]
    sums = table.groupby("partition")[["nll", "tokens"]].sum()
    return {int(p): (nll, int(tokens)) for p, nll, tokens in sums.itertuples() if tokens}


def write_report(plan: Plan, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write ``NAME.md``, ``NAME.csv`` and the pictures of an experiment.

    Raises:
        RunError: there are no results of its cells.
    """
    made = rows(plan, results)
    if not made:
        raise RunError(f"{plan.name}: no result of its cells yet")
    machine = usual_machine(_runs(made))
    records = [_record(row, _baseline(plan, row, made), plan.published, machine) for row in made]
    files = [folder / f"{plan.name}.md", folder / f"{plan.name}.csv"]
    write_text(files[0], _markdown(plan, made, records))
    lines = [_COLUMNS, *([record.get(name, "") for name in _COLUMNS] for record in records)]
    write_text(files[1], "".join(csv_line([_plain(cell) for cell in line]) for line in lines))
    return files + _pictures(plan, made, folder)


def _baseline(plan: Plan, row: Row, made: Sequence[Row]) -> Row | None:
    wanted = replace(row, entry=plan.baseline, results=())
    same = (other for other in made if replace(other, results=()) == wanted)
    return next((other for other in same if other is not row), None)


def _record(
    row: Row, baseline: Row | None, published: Sequence[Published], machine: str
) -> dict[str, Any]:
    estimates = row.estimates
    timed = [run.facts.get("seconds", math.nan) for run in _runs([row]) if run.machine == machine]
    record: dict[str, Any] = {
        "point": " ".join(f"{key}={value}" for key, value in row.point),
        "entry": row.shown,
        **{key: getattr(row, key) for key in _ORIGINS},
        "seeds": len(row.results),
        "sd": estimates["perplexity"].sd,
        **{name: estimates[name].mean for name in MEASURES},
        "seconds": sum(timed) / len(timed) if timed else math.nan,
    }
    theirs = [p for p in published if (p.entry, p.point) == (row.entry, row.point)]
    if theirs:
        record["published"] = theirs[0].perplexity
    common = [] if baseline is None else _common(row.results, baseline)
    if baseline is None or not common or unlike(_runs([row, baseline])):
        return record
    # over the seeds that both have
    ours, other = (
        sum(pair[n].run.measures()["perplexity"] for pair in common) / len(common) for n in (0, 1)
    )
    record |= {"gain": gain(other, ours), "reduction": reduction(other, ours)}
    if pair := paired(row, baseline):
        record |= {"difference": pair.mean, "low": pair.low, "high": pair.high}
        record |= {"p": pair.p, "least p": pair.least_p}
    return record


def _plain(cell: Any) -> Any:
    return "" if isinstance(cell, float) and math.isnan(cell) else cell


def _markdown(plan: Plan, made: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    several = [key for key in _ORIGINS if len({getattr(row, key) for row in made}) > 1]
    known = [n for n in MEASURES if any(not math.isnan(record[n]) for record in records)]
    compared = any("gain" in record for record in records)
    stated = any("published" in record for record in records)
    points = [key for key, _ in made[0].point]
    heads = [*points, "entry", *several, "seeds"]
    heads += ["perplexity ± sd over seeds", *known[1:]]
    heads += ["published"] if stated else []
    heads += ["gain", "reduction", "Δ log-perplexity [95 %]", "p"] if compared else []
    lines = [f"# {plan.title}", "", _about(made), ""]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for row, record in zip(made, records, strict=True):
        sd = f" ± {record['sd']:.2f}" if not math.isnan(record["sd"]) else ""
        cells = [*(str(value) for _, value in row.point), row.shown]
        cells += [getattr(row, key) for key in several]
        cells += [str(record["seeds"]), f"{_figure('perplexity', record['perplexity'])}{sd}"]
        cells += [_figure(name, record[name]) for name in known[1:]]
        cells += [f"{record['published']:.2f}" if "published" in record else ""] if stated else []
        if compared:
            cells += _comparison(record)
        lines.append(_line(cells))
    if compared:
        least = max((record["least p"] for record in records if "least p" in record), default=1.0)
        lines += ["", _reading(plan.baseline, least)]
    return "\n".join(lines) + "\n"


def _comparison(record: Mapping[str, Any]) -> list[str]:
    if "gain" not in record:
        return [""] * 4
    shares = [f"{record[name]:+.1%}" for name in ("gain", "reduction")]
    if "p" not in record:
        return [*shares, "", ""]
    interval = f"{record['difference']:+.4f} [{record['low']:+.4f}, {record['high']:+.4f}]"
    return [*shares, interval, f"{record['p']:.3g}"]


def _reading(baseline: str, least: float) -> str:
    return (
        f"Compared with {baseline}. *Gain* divides by the entry's own perplexity, as the paper "
        "does, *reduction* by the baseline's. The difference is in nats an answer token, seed by "
        "seed on the same rows; its interval resamples clients; p is the two-sided sign-flip test "
        f"over seeds, which with so few of them cannot be below {least:.3g}."
    )


def _runs(made: Iterable[Row]) -> list[Run]:
    return [result.run for row in made for result in row.results]


def _about(made: Sequence[Row]) -> str:
    runs = _runs(made)
    machines = sorted({run.machine for run in runs})
    timed = f" Seconds are those on {usual_machine(runs)}." if len(machines) > 1 else ""
    commits = sorted({commit[:12] for commit in _facts(runs, "commit") if commit})
    dtypes = sorted({*_facts(runs, "dtype")})
    models = sorted({run.facts["config"]["model"] for run in runs})
    hours = sum(run.facts.get("seconds", 0.0) for run in runs) / 3600
    return (
        f"{len(runs)} runs of {', '.join(models)} in {', '.join(dtypes)}, {hours:.1f} hours, on "
        f"{'; '.join(machines)}; commit {', '.join(commits) or 'unknown'}.{timed}"
    )


def _facts(runs: Iterable[Run], key: str) -> list[Any]:
    return [run.facts[key] for run in runs if key in run.facts]


def _figure(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if name in PRIVACY:
        return f"{value:.3g}"
    return f"{value:,.0f}" if name in _COUNTS else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pictures(plan: Plan, made: Sequence[Row], folder: Path) -> list[Path]:
    """Perplexity by round, by bytes and by seconds, a picture for each point of the grid."""
    from mops_fl.run.plots import cost_figure, gate_figure

    points: defaultdict[Point, list[Row]] = defaultdict(list)
    for row in made:
        points[row.point].append(row)
    files = []
    for point, some in points.items():
        ending = "".join(f"-{slug(str(value))}" for _, value in point)
        file = folder / f"{plan.name}{ending}.png"
        cost_figure([replace(row.replicates, label=row.shown) for row in some], file)
        files.append(file)
        for row in some if plan.gates else ():
            run = row.results[0].run
            if run.has("gate.csv"):
                files.append(folder / f"{plan.name}{ending}-{slug(row.entry)}-gate.png")
                gate_figure(run, files[-1])
    return files
