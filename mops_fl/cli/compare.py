"""`mops-fl compare`: one configuration for several methods, variants of them, and seeds."""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mops_fl.cli import options, tables, tracking
from mops_fl.cli.ending import telling
from mops_fl.cli.entries import (
    Entry,
    Planned,
    distinct,
    folder_names,
    parse_methods,
    parse_seeds,
    plan,
)
from mops_fl.cli.run import check, console, execute
from mops_fl.config import Config
from mops_fl.errors import ConfigError
from mops_fl.flower.home import Resources

if TYPE_CHECKING:
    from mops_fl.run.results import Replicates


def compare(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHOD[:KEY=VALUE...],...",
            help="Comma-separated; values after a method are its own.",
        ),
    ] = "mops,fedprompt",
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="SEED,...", help="Every method with each.", show_default="the configured one"
        ),
    ] = None,
    clients: options.Clients = None,
    cpus_per_client: options.CpusPerClient = 1,
    gpus_per_client: options.GpusPerClient = 0.0,
    workers: options.Workers = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="End of the run folders' names, after the method.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the comparison --name stopped."),
    ] = False,
    match_parameters: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Have every method but this one choose its size to train as many numbers.",
        ),
    ] = None,
    ray_address: options.RayAddress = "",
    out: Annotated[
        Path | None, typer.Option(help="The figure.", show_default="in runs-dir")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="The last table, as a file too.")
    ] = None,
    tensorboard: tracking.TensorBoard = False,
    wandb: tracking.Wandb = False,
) -> None:
    """Run one configuration with several methods, then show their perplexity side by side."""
    trackers = tracking.asked_for(tensorboard=tensorboard, wandb=wandb)
    if resume and not name:
        raise ConfigError("--resume needs --name: the one that the comparison was started with")

    def configure(own: Sequence[str], method: str) -> Config:
        return options.configure(config_file, clients, [*(values or ()), *own], method=method)

    entries = distinct(parse_methods(methods), configure)
    if match_parameters:
        entries = _matched(entries, match_parameters)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    ending = name or f"{next(iter(entries)).data.dataset}-{now}"
    planned = _plan(entries, seeds, runs_dir, ending, resume)
    given = {
        each.config: options.resources(
            each.config, cpus_per_client, gpus_per_client, workers, ray_address
        )
        for each in planned
        if not each.done
    }
    dtypes = _check(given)
    for config, dtype in dtypes.items():
        execute(config, given[config], dtype, trackers)

    folders = [Path(each.config.run_dir) for each in planned]
    figure = out or runs_dir / f"compare-{ending}.png"
    with telling("their perplexity cannot be shown", folders):
        _show(planned)
    for folder in folders:
        console.print(str(folder))
    with telling("no figure was drawn", folders):
        _draw(planned, figure)
        console.print(str(figure.resolve()))
    if summary:
        with telling("no summary was written", folders):
            _write_summary(planned, summary)
            console.print(str(summary.resolve()))


def _matched(entries: Mapping[Config, Entry], method: str) -> dict[Config, Entry]:
    """The entries with sizes by which they train as many numbers as those of one method.

    Raises:
        ConfigError: no entry is of that method, or another has no size to choose.
    """
    from mops_fl.methods import method_of
    from mops_fl.models.weights import model_facts

    given = [config for config in entries if config.method == method]
    if not given:
        raise ConfigError(f"--match-parameters {method}: no entry of --methods is of that method")
    sizes = model_facts(given[0].backbone).sizes
    wanted = method_of(method).parameters(given[0], sizes)
    matched: dict[Config, Entry] = {}
    for config, entry in entries.items():
        fixed = config.method in (method, "base")
        size = config if fixed else method_of(config.method).matched(config, sizes, wanted)
        if size in matched:
            raise ConfigError(
                f"--match-parameters {method}: {matched[size].label!r} and {entry.label!r} become "
                "one: leave one of them out"
            )
        matched[size] = entry
    return matched


def _plan(
    entries: Mapping[Config, Entry], seeds: str | None, runs_dir: Path, ending: str, resume: bool
) -> list[Planned]:
    """Every entry with every seed; nothing has been run yet when one is refused."""
    planned = []
    for (config, entry), start in zip(
        entries.items(), folder_names([*entries.values()]), strict=True
    ):
        for seed in [config.seed] if seeds is None else parse_seeds(seeds):
            name = f"{start}-{ending}" if seeds is None else f"{start}-{ending}-seed{seed}"
            seeded = replace(config, seed=seed)
            planned.append(plan(entry.label, seeded, runs_dir, name, resume))
    return planned


def _check(given: Mapping[Config, Resources]) -> dict[Config, str]:
    """What `check` says of each configuration, asked once for those of one data and device."""
    alike: defaultdict[tuple, list[Config]] = defaultdict(list)
    for config in given:
        backbone, federation = config.backbone, config.federation
        device = (backbone.device, backbone.dtype, federation.engine)
        alike[config.data, config.partition, config.seed, device].append(config)
    dtypes: dict[Config, str] = {}
    for configs in alike.values():
        dtypes |= dict.fromkeys(configs, check(configs, given[configs[0]]))
    return {config: dtypes[config] for config in given}


def _show(planned: Iterable[Planned]) -> None:
    for table in tables.results(_groups(planned)):
        console.print(table)


def _draw(planned: Iterable[Planned], figure: Path) -> None:
    from mops_fl.run.plots import replicates_figure

    replicates_figure(_groups(planned), figure)


def _write_summary(planned: Iterable[Planned], path: Path) -> None:
    from mops_fl.files import write_text
    from mops_fl.run.folder import csv_line
    from mops_fl.run.results import summary

    lines: list[tuple] = [("entry", "measure", "mean", "sd", "seeds")]
    for label, row in summary(_groups(planned)).items():
        lines += [(label, name, own.mean, own.sd, own.n) for name, own in row.items()]
    write_text(path, "".join(map(csv_line, lines)))


def _groups(planned: Iterable[Planned]) -> list["Replicates"]:
    """The runs of each entry."""
    from mops_fl.run.results import Replicates, Run

    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for each in planned:
        runs[each.label].append(Run.read(Path(each.config.run_dir)))
    return [Replicates(some[0].noted(label), tuple(some)) for label, some in runs.items()]
