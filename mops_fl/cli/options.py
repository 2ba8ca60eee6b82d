"""Options that several commands share, and how they become a configuration.

Precedence: the defaults, then ``--config``, then options such as ``--clients``, then ``-c``.
"""

import os
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mops_fl.config import Config, Scalar, defaults, parse_assignment
from mops_fl.errors import ConfigError
from mops_fl.flower.home import Resources

Values = Annotated[
    list[str] | None,
    typer.Option("-c", "--config-value", metavar="KEY=VALUE", help="One value; repeatable."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Flat keys and values.")
]
Clients = Annotated[int | None, typer.Option(help="Virtual clients (num-clients).")]
CpusPerClient = Annotated[int, typer.Option(min=1, help="CPU threads of one client.")]
GpusPerClient = Annotated[
    float, typer.Option(min=0, help="GPUs of one client; 0.25 puts four clients on one.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Clients at a time.", show_default="cores / cpus-per-client"),
]
RunsDir = Annotated[Path, typer.Option(help="Folder of the run folders.")]
RayAddress = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", envvar="RAY_ADDRESS", help="An existing Ray cluster to run on."
    ),
]

OWN_OPTIONS = {
    "run-dir": "--runs-dir and --name say where a run is written",
    "resume": "--resume RUN carries on a run",
}
"""Keys of Flower's configuration that the command line sets itself."""


def configure(
    file: Path | None, clients: int | None, values: Sequence[str] | None, **forced: Scalar
) -> Config:
    """The configuration of a command, with absolute paths; `forced` wins over everything.

    Raises:
        ConfigError: a key, a value or the file cannot be used.
    """
    flat = _read(file) if file else {}
    if clients is not None:
        flat["num-clients"] = clients
    flat.update(parse_assignment(value) for value in values or ())
    for key in flat.keys() & OWN_OPTIONS.keys():
        raise ConfigError(f"{key} cannot be given as a value: {OWN_OPTIONS[key]}")
    for key in ("data-path", "model"):
        flat[key] = _absolute(str(flat.get(key, defaults()[key])))
    return Config.from_flat(flat | forced)


def resources(
    config: Config, cpus: int, gpus: float, workers: int | None, ray_address: str
) -> Resources:
    """What Flower and Ray are given for this configuration.

    Raises:
        ConfigError: nobody answers at the address of the Ray cluster.
    """
    if ray_address:
        _check_answers(ray_address)
    if workers is None:
        workers = max(1, cores() // cpus)
    return Resources(config.partition.num_clients, cpus, gpus, workers, ray_address)


def _read(file: Path) -> dict[str, Any]:
    try:
        flat = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    for key, value in flat.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(
                f"--config {file}: {key} is a {type(value).__name__}; the file holds flat keys"
            )
    return flat


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ray-address {address!r} (or RAY_ADDRESS): must be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"--ray-address {address}: nobody answers there: {error}") from error


def _absolute(text: str) -> str:
    """The absolute path where `text` names something on this machine, else `text`."""
    path = Path(text).expanduser()
    return str(path.resolve()) if text and path.exists() else text
