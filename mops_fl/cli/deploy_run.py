"""`mops-fl deploy run`: one run on the nodes of a federation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mops_fl.cli import options, tracking
from mops_fl.cli.ending import tell_result
from mops_fl.cli.progress import showing, watching
from mops_fl.cli.run import (
    RunFailedError,
    completed,
    console,
    default_name,
    placed,
    resumed,
    say_data,
)
from mops_fl.cli.shell import say_command
from mops_fl.config import Config, Scalar
from mops_fl.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mops_fl.deploy.folders import ServerFolder
    from mops_fl.deploy.submit import Submission


_ROUND_SECONDS = 3600.0
"""A real round may take long; a node that is alive and silent is not waited for all day."""


def run(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: Annotated[
        int | None, typer.Option(help="Nodes (num-clients).", show_default="those online")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Carry on after the last whole round.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it to the server; see status and stop.")
    ] = False,
    folder: options.ServerDir = options.FEDERATION,
    tensorboard: tracking.TensorBoard = False,
    wandb: tracking.Wandb = False,
) -> None:
    """Train on the federation's nodes; leaves a run folder in the server's folder."""
    from mops_fl.deploy.folders import server_folder
    from mops_fl.deploy.submit import staged

    trackers = tracking.asked_for(tensorboard=tensorboard, wandb=wandb)
    if detach and trackers:
        raise ConfigError(
            f"--detach leaves the run to the server, so nobody is here for --{trackers[0]}: "
            f"mops-fl watch RUN --{trackers[0]} does it"
        )
    place = server_folder(folder)
    if resume is None:
        given = options.read_values(config_file, clients, values)
        config = Config.from_flat(suited(given, place))
        config = placed(config, place.runs, name or default_name(config))
    else:
        if config_file or name or clients is not None:
            raise ConfigError("--resume takes the run's own configuration: give no other values")
        config = resumed(resume, values or ())
    _check_server_rows(config)
    with staged(place, config.flat(), *(() if detach else ("--stream",))) as submission:
        say_command(submission.command, {"FLWR_HOME": str(place.flwr_home)})
        _submit(submission, trackers, detach=detach)


def _submit(submission: "Submission", trackers: Sequence[str], *, detach: bool) -> None:
    from mops_fl.deploy.submit import follow, hand_over

    run_dir = submission.run_dir
    if detach:
        run_id = hand_over(submission)
        console.print(f"run {run_id} goes on; its folder: {run_dir}")
        return
    try:
        with watching(run_dir, console, trackers) as watch:
            outcome = follow(submission, watch)
    except RunError as error:
        raise RunFailedError(f"{run_dir.name} failed: {error}") from error
    tell_result(completed(run_dir, outcome))


def suited(flat: Mapping[str, Scalar], place: "ServerFolder") -> dict[str, Scalar]:
    """A configuration with what suits nodes that hold rows of their own, where nothing was said."""
    from mops_fl.deploy.members import members

    found = dict(flat)
    if "num-clients" not in found:
        found["num-clients"] = sum(node.status == "online" for node in members(place))
        if not found["num-clients"]:
            raise RunError(
                "no node is online (mops-fl deploy status shows them): start one with mops-fl "
                "deploy client, or say with --clients how many are to come"
            )
    found.setdefault("round-timeout", _ROUND_SECONDS)
    clients, unseen = int(found["num-clients"]), float(found.get("unseen-clients", 0.0))
    found.setdefault("active-clients", max(1, min(10, clients - math.ceil(unseen * clients))))
    if server_data := found.get("server-data"):
        found.setdefault("dataset", "jsonl")
        found.setdefault("data-path", server_data)
    else:
        private = found.get("dp", "none") != "none"
        found.setdefault("pretrain-data", "none" if private else "own")
    return found


def _check_server_rows(config: Config) -> None:
    """Have the rows and the model here that the server pretrains on, before anything starts."""
    from mops_fl.data import load_server_data

    if config.data.server_data:
        with showing("checking the server's data and model", console):
            from mops_fl.models.weights import check_backbone

            say_data(load_server_data(config.data, config.seed))
            check_backbone(replace(config, backbone=replace(config.backbone, device="cpu")))
