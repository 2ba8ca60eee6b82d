"""`mops-fl simulate` and `mops-fl train`: one run, federated or with all data in one place."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.ending import telling
from mops_fl.cli.run import check, console, default_name, execute, placed
from mops_fl.config import EARLIER, MENDABLE, Config, Scalar, parse_assignment
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import absolute
from mops_fl.machine import cores

Name = Annotated[str | None, typer.Option(help="Name of the run folder.")]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Carry on after the last whole round.")
]


def simulate(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: options.Clients = None,
    cpus_per_client: options.CpusPerClient = 1,
    gpus_per_client: options.GpusPerClient = 0.0,
    workers: options.Workers = None,
    runs_dir: options.RunsDir = Path("runs"),
    name: Name = None,
    ray_address: options.RayAddress = "",
    resume: Resume = None,
) -> None:
    """Train a method on virtual clients through Flower and Ray; leaves a run folder."""
    given = (cpus_per_client, gpus_per_client, workers, ray_address)
    _simulate(config_file, clients, values, runs_dir, name, resume, given)


def train(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: options.Clients = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPU threads.", show_default="all")] = cores(),
    gpus: Annotated[float, typer.Option(min=0, help="GPUs.")] = 0.0,
    runs_dir: options.RunsDir = Path("runs"),
    name: Name = None,
    resume: Resume = None,
) -> None:
    """Train a method on the rows of all clients in one place: `simulate` with training=centralised.

    A round is `local-steps` steps; evaluation is by client, as in a federation.
    """
    given = (cpus, gpus, 1, "")
    _simulate(config_file, clients, values, runs_dir, name, resume, given, training="centralised")


def _simulate(
    config_file: Path | None,
    clients: int | None,
    values: Sequence[str] | None,
    runs_dir: Path,
    name: str | None,
    resume: Path | None,
    resources: tuple[int, float, int | None, str],
    **forced: Scalar,
) -> None:
    if resume is None:
        config = options.configure(config_file, clients, values, **forced)
        config = placed(config, runs_dir, name or default_name(config))
    else:
        if config_file or name or clients is not None:
            raise ConfigError("--resume takes the run's own configuration: give no other values")
        config = _resumed(resume, values or ())
    given = options.resources(config, *resources)
    dtype = check([config], given)
    folder = execute(config, given, dtype)

    with telling("its perplexity cannot be shown", [folder]):
        console.print(_perplexity(folder))
    console.print(str(folder))
    with telling("it has no figure (flower.log says why)", [folder]):
        console.print(str((folder / "perplexity.png").resolve(strict=True)))


def _perplexity(folder: Path) -> str:
    from mops_fl.run.results import Run

    run = Run.read(folder)
    curve, shares = run.perplexity(), run.share().iloc[[0, -1]]
    return (
        f"perplexity {curve.iloc[0]:.2f} before training, {curve.iloc[-1]:.2f} after "
        f"round {curve.index[-1]}"
        f"{' (not all held-out rows are behind both)' if (shares < 1).any() else ''}"
    )


def _resumed(folder: Path, values: Sequence[str] = ()) -> Config:
    """The configuration of a run that is carried on, with other values of `MENDABLE` keys."""
    from mops_fl.run.results import Run

    changes = dict(map(parse_assignment, values))
    if own := sorted(changes.keys() - {*MENDABLE}):
        raise ConfigError(
            f"--resume takes the run's own configuration, so {', '.join(own)} cannot be given: "
            f"only {', '.join(MENDABLE)} can"
        )
    run = Run.read(folder)
    if run.facts["status"] == "completed":
        raise RunError(f"{folder} is completed: there is nothing to resume")
    config = Config.from_flat({**EARLIER, **run.facts["config"], **changes})
    return replace(config, run_dir=str(absolute(folder)), resume=True)
