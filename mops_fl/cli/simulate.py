"""`mops-fl simulate` and `mops-fl train`: one run, federated or with all data in one place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options, tracking
from mops_fl.cli.ending import tell_result
from mops_fl.cli.run import check, default_name, execute, placed, resumed
from mops_fl.config import Scalar
from mops_fl.errors import ConfigError
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
    tensorboard: tracking.TensorBoard = False,
    wandb: tracking.Wandb = False,
) -> None:
    """Train a method on virtual clients through Flower and Ray; leaves a run folder."""
    trackers = tracking.asked_for(tensorboard=tensorboard, wandb=wandb)
    given = (cpus_per_client, gpus_per_client, workers, ray_address)
    _simulate(config_file, clients, values, runs_dir, name, resume, given, trackers)


def train(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: options.Clients = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPU threads.", show_default="all")] = cores(),
    gpus: Annotated[float, typer.Option(min=0, help="GPUs.")] = 0.0,
    runs_dir: options.RunsDir = Path("runs"),
    name: Name = None,
    resume: Resume = None,
    tensorboard: tracking.TensorBoard = False,
    wandb: tracking.Wandb = False,
) -> None:
    """Train a method on the rows of all clients in one place: `simulate` with training=centralised.

    A round is `local-steps` steps; evaluation is by client, as in a federation.
    """
    trackers = tracking.asked_for(tensorboard=tensorboard, wandb=wandb)
    given, forced = (cpus, gpus, 1, ""), {"training": "centralised"}
    _simulate(config_file, clients, values, runs_dir, name, resume, given, trackers, **forced)


def _simulate(
    config_file: Path | None,
    clients: int | None,
    values: Sequence[str] | None,
    runs_dir: Path,
    name: str | None,
    resume: Path | None,
    resources: tuple[int, float, int | None, str],
    trackers: Sequence[str],
    **forced: Scalar,
) -> None:
    if resume is None:
        config = options.configure(config_file, clients, values, **forced)
        config = placed(config, runs_dir, name or default_name(config))
    else:
        if config_file or name or clients is not None:
            raise ConfigError("--resume takes the run's own configuration: give no other values")
        config = resumed(resume, values or ())
    given = options.resources(config, *resources)
    dtype = check([config], given)
    folder = execute(config, given, dtype, trackers)
    tell_result(folder)
