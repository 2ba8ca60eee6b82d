"""`mops-fl simulate`: one federated run on virtual clients."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.ending import telling
from mops_fl.cli.run import check, console, default_name, execute, placed
from mops_fl.config import Config
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import absolute


def simulate(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: options.Clients = None,
    cpus_per_client: options.CpusPerClient = 1,
    gpus_per_client: options.GpusPerClient = 0.0,
    workers: options.Workers = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    ray_address: options.RayAddress = "",
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Carry on after the last whole round.")
    ] = None,
) -> None:
    """Train prompts on virtual clients through Flower and Ray; leaves a run folder."""
    if resume is None:
        config = options.configure(config_file, clients, values)
        config = placed(config, runs_dir, name or default_name(config))
    else:
        if values or config_file or name or clients is not None:
            raise ConfigError("--resume takes the run's own configuration: give no other values")
        config = _resumed(resume)
    given = options.resources(config, cpus_per_client, gpus_per_client, workers, ray_address)
    dtype = check(config, given)
    folder = execute(config, given, dtype)

    with telling("its perplexity cannot be shown", [folder]):
        console.print(_perplexity(folder))
    console.print(str(folder))
    with telling("it has no figure (flower.log says why)", [folder]):
        console.print(str((folder / "perplexity.png").resolve(strict=True)))


def _perplexity(folder: Path) -> str:
    from mops_fl.run.results import Run

    curve = Run.read(folder).perplexity()
    return (
        f"perplexity {curve.iloc[0]:.2f} before training, {curve.iloc[-1]:.2f} after "
        f"round {curve.index[-1]}"
    )


def _resumed(folder: Path) -> Config:
    from mops_fl.run.results import Run

    run = Run.read(folder)
    if run.facts["status"] == "completed":
        raise RunError(f"{folder} is completed: there is nothing to resume")
    config = Config.from_flat(run.facts["config"])
    return replace(config, run_dir=str(absolute(folder)), resume=True)
