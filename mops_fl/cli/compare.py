"""`mops-fl compare`: the same configuration for several methods."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.ending import telling
from mops_fl.cli.run import check, console, execute, placed
from mops_fl.cli.tables import comparison
from mops_fl.errors import ConfigError


def compare(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "mops,fedprompt",
    clients: options.Clients = None,
    cpus_per_client: options.CpusPerClient = 1,
    gpus_per_client: options.GpusPerClient = 0.0,
    workers: options.Workers = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="End of the run folders' names, after the method.")
    ] = None,
    ray_address: options.RayAddress = "",
    out: Annotated[
        Path | None, typer.Option(help="The figure.", show_default="in runs-dir")
    ] = None,
) -> None:
    """Run one configuration with several methods, then show their perplexity side by side."""
    names = list(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
    if not names:
        raise ConfigError(f"--methods {methods!r} names no method")
    configs = [options.configure(config_file, clients, values, method=m) for m in names]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    ending = name or f"{configs[0].data.dataset}-{now}"
    configs = [placed(config, runs_dir, f"{config.method}-{ending}") for config in configs]
    given = options.resources(configs[0], cpus_per_client, gpus_per_client, workers, ray_address)
    dtype = check(configs[0], given)
    folders = [execute(config, given, dtype) for config in configs]

    figure = out or runs_dir / f"compare-{ending}.png"
    with telling("their perplexity cannot be shown", folders):
        _show(folders)
    for folder in folders:
        console.print(str(folder))
    with telling("no figure was drawn", folders):
        _draw(folders, figure)
        console.print(str(figure.resolve()))


def _show(folders: Sequence[Path]) -> None:
    from mops_fl.run.results import Run

    console.print(comparison([Run.read(folder) for folder in folders]))


def _draw(folders: Sequence[Path], figure: Path) -> None:
    from mops_fl.run.plots import perplexity_figure

    perplexity_figure(folders, figure)
