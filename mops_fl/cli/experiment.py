"""`mops-fl experiment`: the cells of an experiment, those without a result run, a report."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mops_fl.cli import options
from mops_fl.cli.entries import parse_seeds
from mops_fl.cli.progress import showing
from mops_fl.cli.run import RunFailedError, StoppedError, check, console, execute
from mops_fl.config import Config, Scalar, app_folder, parse_assignment
from mops_fl.errors import ConfigError, MopsError
from mops_fl.files import absolute

if TYPE_CHECKING:
    from mops_fl.experiment.plan import Cell, Plan
    from mops_fl.experiment.result_files import Identity, Store

Given = tuple[int, float, int | None, str]
"""What `options.resources` takes."""

_POLL_SECONDS = 5.0
"""Between looks at cells that another runner has."""


def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment, or its TOML file.")],
    preset: Annotated[str, typer.Option(help="How large: small, medium or paper.")] = "small",
    seeds: Annotated[
        str | None, typer.Option(metavar="SEED,...", show_default="the experiment's")
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            metavar="KEY=VALUE,...", help="Cells with these values; entry=… names entries."
        ),
    ] = "",
    model: Annotated[str | None, typer.Option(help="In place of the experiment's.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET=PATH", help="Where its rows lie; repeatable."),
    ] = None,
    values: options.Values = None,
    cpus_per_client: options.CpusPerClient = 1,
    gpus_per_client: options.GpusPerClient = 0.0,
    workers: options.Workers = None,
    runs_dir: options.RunsDir = Path("runs/experiments"),
    results: Annotated[
        Path, typer.Option(help="Folder of results; a folder an experiment in it.")
    ] = Path("runs/results"),
    ray_address: options.RayAddress = "",
    listing: Annotated[bool, typer.Option("--list", help="Show the cells and end.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report of what is there and end.")
    ] = False,
) -> None:
    """Run the cells of an experiment that have no result yet, then report on all of them.

    A cell that is done is not run again while its configuration, rows, model
    and the code that decides numbers are unchanged. Killed runs are carried
    on, and several of these commands share the cells of one experiment.
    """
    from mops_fl.experiment.plan import read_plan
    from mops_fl.experiment.result_files import Store, identify

    own = options.with_absolute_paths(dict(map(parse_assignment, values or ())))
    plan = read_plan(
        _file(name),
        preset=preset,
        seeds=None if seeds is None else parse_seeds(seeds),
        only=[part.strip() for part in only.split(",") if part.strip()],
        values={**own, **_model(model)},
        data=_data(data or ()),
        running=not report,
    )
    store = Store(absolute(results) / plan.name)
    if report:
        _report(plan, store)
        return
    cells = {cell: identify(cell) for cell in plan.cells}
    given = (cpus_per_client, gpus_per_client, workers, ray_address)
    console.print(_listed(plan, cells, store, given))
    if listing:
        return
    failed = _run_all(cells, store, absolute(runs_dir) / plan.name, given)
    _report(plan, store)
    if failed:
        raise RunFailedError(
            f"{failed} of {len(cells)} cells failed: {store.folder / 'failed'} has the reasons"
        )


def _file(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".toml":
        return absolute(path)
    folder = app_folder() / "experiments" / "grids"
    known = {file.stem: file for file in sorted(folder.glob("*.toml")) if file.stem != "common"}
    if name not in known:
        names = ", ".join(known) or "none here"
        raise ConfigError(f"no experiment {name}: known are {names}, or name a TOML file")
    return known[name]


def _model(model: str | None) -> dict[str, Scalar]:
    return {} if model is None else options.with_absolute_paths({"model": model})


def _data(given: list[str] | tuple[()]) -> dict[str, str]:
    found = {}
    for text in given:
        dataset, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--data {text!r} is not of the form DATASET=PATH")
        found[dataset] = str(absolute(path))
    return found


def _listed(plan: "Plan", cells: "dict[Cell, Identity]", store: "Store", given: Given) -> Table:
    table = Table(title=plan.title, box=SIMPLE_HEAD, title_justify="left")
    for head in ("cell", "state", "seconds"):
        table.add_column(head, justify="right" if head == "seconds" else "left")
    seconds = _seconds(cells, store, given)
    for cell, identity in cells.items():
        state = "to run"
        if store.file(cell, identity).is_file():
            state = "done"
        elif store.failure(cell, identity).is_file():
            state = "failed, to run again"
        spent = f"{seconds[cell]:,.0f}" if cell in seconds else "?"
        table.add_row(cell.name, state, spent if state == "done" else f"~ {spent}")
    left = [cell for cell, own in cells.items() if not store.file(cell, own).is_file()]
    if left:
        minutes = sum(seconds.get(cell, 0.0) for cell in left) / 60
        table.caption = f"{len(left)} of {len(cells)} to run, about {minutes:,.0f} minutes"
    return table


def _seconds(cells: "dict[Cell, Identity]", store: "Store", given: Given) -> "dict[Cell, float]":
    """Of each cell: what it took where it is done, else what its entry took at other seeds, else
    what a calibration on this machine says.
    """
    from mops_fl.experiment.estimates import estimates
    from mops_fl.experiment.result_files import read_result

    found = {
        cell: float(read_result(store.file(cell, identity)).run.facts.get("seconds", 0.0))
        for cell, identity in cells.items()
        if store.file(cell, identity).is_file()
    }
    done = dict(found)
    for cell in cells.keys() - done.keys():
        alike = [s for c, s in done.items() if (c.entry, c.point) == (cell.entry, cell.point)]
        if alike:
            found[cell] = sum(alike) / len(alike)
    unknown = [cell for cell in cells if cell not in found]
    if unknown:
        with showing("calibrating: a few steps of each method", console):
            workers = options.resources(unknown[0].config, *given).workers
            found |= estimates(unknown, workers)
    return found


@dataclass
class _Left:
    """What a pass over the cells left."""

    failed: int = 0
    elsewhere: int = 0
    """Cells that another runner has."""


def _run_all(cells: "dict[Cell, Identity]", store: "Store", runs_dir: Path, given: Given) -> int:
    """Run what has no result; how many failed. Waits for cells that another runner has."""
    tried: set[Cell] = set()
    while True:
        left = _Left()
        for number, (cell, identity) in enumerate(cells.items(), 1):
            if store.file(cell, identity).is_file():
                continue
            if cell in tried:
                left.failed += 1
                continue
            with store.claimed(cell, identity) as mine:
                if not mine:
                    left.elsewhere += 1
                elif not store.file(cell, identity).is_file():
                    console.print(f"cell {number} of {len(cells)}")
                    tried.add(cell)
                    left.failed += not _run(cell, identity, store, runs_dir, given)
        if not left.elsewhere:
            return left.failed
        time.sleep(_POLL_SECONDS)


def _run(cell: "Cell", identity: "Identity", store: "Store", runs_dir: Path, given: Given) -> bool:
    """Run one cell to its result; False where it failed, which is written beside the results."""
    try:
        config, whole = _placed(cell.config, runs_dir / f"{cell.name}-{identity.hash[:8]}")
        if not whole:
            resources = options.resources(config, *given)
            execute(config, resources, check([config], resources))
        console.print(str(store.keep(cell, identity, Path(config.run_dir))))
    except StoppedError:
        raise
    except MopsError as error:
        store.fail(cell, identity, str(error))
        console.print(f"{cell.name} failed: {error}", style="bold red")
        return False
    return True


def _placed(config: Config, folder: Path) -> tuple[Config, bool]:
    """The configuration in its run folder, and whether a whole run is there.

    A run whose rows or model lay elsewhere is left, and begun anew beside it.
    """
    from mops_fl.run.results import Run, differences

    place, number = folder, 1
    while (place / "run.json").is_file():
        facts = Run.read(place).facts
        if not differences(facts["config"], config.flat()):
            whole = facts["status"] == "completed"
            return replace(config, run_dir=str(place), resume=not whole), whole
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    place.parent.mkdir(parents=True, exist_ok=True)
    return replace(config, run_dir=str(place)), False


def _report(plan: "Plan", store: "Store") -> None:
    from mops_fl.experiment.reporting import write_report

    for file in write_report(plan, store.results(), store.folder.parent):
        console.print(str(file))
