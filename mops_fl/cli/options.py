"""Options that several commands share, and how they become a configuration.

Precedence: the defaults, then ``--config``, then options such as ``--clients``, then ``-c``.
"""

import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mops_fl.base.source import EMBEDDED
from mops_fl.cli.run import console
from mops_fl.config import Config, Scalar, parse_assignment
from mops_fl.errors import ConfigError
from mops_fl.files import absolute
from mops_fl.flower.home import Resources
from mops_fl.machine import cores

if TYPE_CHECKING:
    from mops_fl.generation.trained import Wanted

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

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
ServerDir = Annotated[Path, typer.Option("--dir", help="Folder of the federation's server.")]
FEDERATION = Path("federation")
"""The default of `ServerDir`."""
Systemd = Annotated[
    bool, typer.Option("--systemd", help="Print a systemd unit that runs this, instead of it.")
]

TrainedRound = Annotated[
    int | None, typer.Option("--round", min=0, show_default="the run's result")
]
TrainedClient = Annotated[
    int | None, typer.Option("--client", min=0, help="Whose tensors, where clients have their own.")
]
BaseModel = Annotated[
    str, typer.Option("--model", help="Where the base model lies.", show_default="the run's")
]
Dtype = Annotated[str, typer.Option("--dtype", show_default="the run's")]
Device = Annotated[str, typer.Option("--device", show_default="the run's")]


def wanted(
    server_round: int | None, client: int | None, model: str, dtype: str, device: str
) -> "Wanted":
    """Which of a run's tensors are meant, and where they are to be used."""
    from mops_fl.generation.trained import Wanted

    found = str(with_absolute_paths({"model": model})["model"]) if model else ""
    return Wanted(server_round=server_round, client=client, model=found, dtype=dtype, device=device)


def configure(
    file: Path | None, clients: int | None, values: Sequence[str] | None, **forced: Scalar
) -> Config:
    """The configuration of a command, with absolute paths; `forced` wins over everything.

    Raises:
        ConfigError: a key, a value or the file cannot be used.
    """
    return Config.from_flat(read_values(file, clients, values) | forced)


def read_values(
    file: Path | None, clients: int | None, values: Sequence[str] | None
) -> dict[str, Scalar]:
    """What a command was given, with absolute paths.

    Raises:
        ConfigError: a key, a value or the file cannot be used.
    """
    flat = _read(file) if file else {}
    if clients is not None:
        flat["num-clients"] = clients
    flat.update(parse_assignment(value) for value in values or ())
    for key in flat.keys() & OWN_OPTIONS.keys():
        raise ConfigError(f"{key} cannot be given as a value: {OWN_OPTIONS[key]}")
    return with_absolute_paths(flat)


def with_absolute_paths(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The same values, with paths as they are found from any folder; links are not followed.

    The embedded model's name means that model, whatever lies here. A hub id means a folder here
    that has its name, as it does for transformers; that is printed.
    """
    found = dict(flat)
    for key in ("data-path", "server-data", "calibration-path"):
        if isinstance(path := flat.get(key), str) and path:
            found[key] = str(absolute(path))
    model = flat.get("model")
    if isinstance(model, str) and model != EMBEDDED and (here := absolute(model)).exists():
        found["model"] = str(here)
        if _HUB_ID.fullmatch(model) and here.is_dir():
            console.print(f"model={model} is the folder {here}, not a model of the hub")
    return found


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


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ray-address {address!r} (or RAY_ADDRESS): must be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"--ray-address {address}: nobody answers there: {error}") from error
