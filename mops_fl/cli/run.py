"""Preparing and running one simulated run: what `simulate` and `compare` share."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mops_fl.cli.progress import showing, watching
from mops_fl.config import EARLIER, MENDABLE, Config, app_folder, parse_assignment
from mops_fl.errors import ConfigError, MopsError, RunError
from mops_fl.files import absolute
from mops_fl.flower.home import Resources
from mops_fl.flower.launch import Outcome, launch

if TYPE_CHECKING:
    from mops_fl.data import Corpus

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Prints what it is given as it stands: names, tasks and paths may hold brackets and colons."""


class RunFailedError(MopsError):
    """A run that started and did not end well."""


class StoppedError(MopsError):
    """A run that was stopped on request."""


def default_name(config: Config) -> str:
    """Method, dataset and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{config.method}-{config.data.dataset}-{now}"


def placed(config: Config, runs_dir: Path, name: str) -> Config:
    """The configuration with its run folder.

    Raises:
        RunError: the folder exists, or could not be written.
    """
    folder = absolute(runs_dir) / name
    if name in ("", ".", "..") or folder.name != name:
        raise RunError(f"--name {name!r} must be the name of a folder, without slashes")
    if folder.exists():
        raise RunError(
            f"the run folder {folder} exists: give another --name, or carry it on with --resume"
        )
    _check_writable(folder.parent)
    return replace(config, run_dir=str(folder))


def resumed(folder: Path, values: Sequence[str] = ()) -> Config:
    """The configuration of a run that is carried on.

    Args:
        folder: the run's.
        values: `KEY=VALUE`, of keys that a run may be carried on with other values of.

    Raises:
        ConfigError: another key is given.
        RunError: it is completed, or no run.
    """
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


@dataclass(frozen=True)
class Native:
    """What torch says of `dtype` on the clients' device."""

    dtype: str
    emulated: bool


def check(configs: Sequence[Config], resources: Resources) -> str:
    """Find what is wrong with the data, the partition or the model before Flower starts.

    Args:
        configs: the same but for their methods.
        resources: what Ray may use.

    Returns:
        The type that the clients compute in; ``auto`` where a Ray cluster's machines decide.

    Raises:
        MopsError: something is.
    """
    config = configs[0]
    with showing("checking data and model", console):
        from mops_fl.data import load_corpus
        from mops_fl.models.weights import check_backbone
        from partitions import shares

        corpus = load_corpus(config.data, config.seed, config.partition.partition_column)
        say_data(corpus)
        shares(corpus, config)
        if config.data.server_data:
            _check_server_data(config, corpus)
        native = ask_torch(config, resources)
        for each in configs:
            check_backbone(replace(each, backbone=replace(each.backbone, dtype=native.dtype)))
    if resources.ray_address:
        return config.backbone.dtype
    if native.emulated:
        console.print(
            f"warning: dtype={native.dtype} is emulated here, slowly: the device has no "
            "instructions for it, dtype=auto takes one that it has"
        )
    return native.dtype


def _check_server_data(config: Config, corpus: "Corpus") -> None:
    """Refuse rows of the server that are of no task of the run."""
    from mops_fl.data import load_server_data
    from mops_fl.data.examples import listed

    server = load_server_data(config.data, config.seed)
    say_data(server)
    if not set(server.trained_tasks) & set(corpus.trained_tasks):
        raise ConfigError(
            f"server-data={config.data.server_data} has the tasks {listed(server.trained_tasks)}, "
            f"none of the run's, which are {listed(corpus.trained_tasks)}: name a file with them"
        )


def say_data(corpus: "Corpus") -> None:
    """Print what was read and how it was understood."""
    console.print(f"data: {corpus.source}")
    for warning in corpus.warnings:
        console.print(f"warning: {warning}", style="bold yellow")


def ask_torch(config: Config, resources: Resources) -> Native:
    """Ask torch on this machine, in a process that ends: this one stays for the whole run.

    Raises:
        ConfigError: there is no such device.
        RunError: torch cannot be loaded.
    """
    dtype, device = config.backbone.dtype, config.backbone.device
    if device == "auto" and config.federation.engine == "clients" and not resources.gpus_per_client:
        device = "cpu"  # Ray hides the GPUs from such clients
    if dtype == "float32" and device in ("auto", "cpu"):
        return Native(dtype, emulated=False)
    command = [sys.executable, "-P", "-m", "mops_fl.base.dtype", dtype, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        reason = done.stderr.strip().rpartition("\n")[2]
        raise RunError(f"torch cannot be loaded: {reason}") from None
    if "error" in answer:
        raise ConfigError(answer["error"])
    return Native(**answer)


def execute(config: Config, resources: Resources, dtype: str, trackers: Sequence[str] = ()) -> Path:
    """Run to the end, showing progress; the run folder.

    Args:
        config: with its run folder.
        resources: what Ray may use.
        dtype: what `check` gave.
        trackers: what its rounds are passed on to, as `tracking.asked_for` gives them.

    Raises:
        RunFailedError: the run failed.
        StoppedError: SIGINT or SIGTERM stopped it.
    """
    folder = Path(config.run_dir)
    summary = _summary(config, resources, dtype)
    console.print(Text.assemble((folder.name, "bold"), "  ", summary))
    try:
        with watching(folder, console, trackers) as watch:
            outcome = launch(app_folder(), config.flat(), resources, watch)
    except RunError as error:
        raise RunFailedError(f"{folder.name} failed: {error}") from error
    return completed(folder, outcome)


def completed(folder: Path, outcome: Outcome) -> Path:
    """The folder of a run that ended well.

    Raises:
        RunFailedError: it failed.
        StoppedError: it was stopped.
    """
    if outcome.verdict.status == "completed":
        return folder
    if outcome.verdict.status == "stopped":
        raise StoppedError(f"{folder.name} was stopped; log: {outcome.log}")
    raise RunFailedError(f"{folder.name} failed: {outcome.verdict.error}; log: {outcome.log}")


def _summary(config: Config, resources: Resources, dtype: str) -> str:
    where = resources.ray_address or f"{resources.workers} at a time"
    return (
        f"{config.backbone.model} in {dtype} on {config.data.dataset}; "
        f"{resources.clients} clients, {config.federation.active_clients} active a round, {where}; "
        f"{config.federation.num_server_rounds} rounds of {config.train.local_steps} steps"
    )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--runs-dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"--runs-dir {folder} cannot be written: no permission")
