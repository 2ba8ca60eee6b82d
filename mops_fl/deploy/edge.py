"""A node, from what its owner typed to the command of its SuperNode."""

import contextlib
import json
import os
import socket
import ssl
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection, InvalidURL
from pathlib import Path
from typing import Any

from mops_fl.base.source import EMBEDDED
from mops_fl.config import Config, Scalar
from mops_fl.deploy.certificates import read_certificate
from mops_fl.deploy.keys import read_private
from mops_fl.errors import ConfigError, DataError
from mops_fl.files import absolute
from mops_fl.node.node_config import NodeConfig

_PATHS = ("data-path", "calibration-path", "prefix-store")

_AHEAD, _BEHIND = 5, 305
"""Seconds that a node's clock may be ahead of its server's, or behind, for Flower to believe what
it signs."""

_LAG = 2
"""Seconds that the time in a server's answer may lag: it is whole seconds, renewed each second."""


@dataclass(frozen=True)
class Edge:
    """Where a node's server is, and by what they know each other."""

    server: str
    """HOST:PORT."""
    authority: Path
    key: Path
    flat: Mapping[str, Scalar]
    """Its configuration."""
    port: int
    """Of the SuperNode's interface for its own ClientApps, on 127.0.0.1."""

    @property
    def command(self) -> list[str]:
        """The command of its SuperNode."""
        return [
            *(sys.executable, "-P", "-m", "mops_fl.deploy.supernode", "--superlink", self.server),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--node-config", node_config_text(self.flat)),
        ]


def node_flat(
    file: Path | None,
    values: Sequence[str],
    data: Path | None,
    model: str | None,
    partition: int | None,
) -> dict[str, Scalar]:
    """A node's configuration: the file, over it options, over them single values.

    Paths become absolute. Rows of `data` are the node's own, unless it says otherwise.

    Raises:
        ConfigError: the file or a value cannot be used.
    """
    flat: dict[str, Scalar] = _read(file) if file else {}
    if data is not None:
        flat["data-path"] = str(data)
    if model is not None:
        flat["model"] = model
    if partition is not None:
        flat["partition-id"] = partition
    flat.update(parse_value(value) for value in values)
    if flat.get("data-path"):
        flat.setdefault("own-data", True)
        flat.setdefault("dataset", "jsonl")
    for key in _PATHS:
        if isinstance(path := flat.get(key), str) and path:
            flat[key] = str(absolute(path))
    name = flat.get("model")
    if isinstance(name, str) and name != EMBEDDED and (here := absolute(name)).exists():
        flat["model"] = str(here)
    return flat


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {file}: {error}") from error


def parse_value(text: str) -> tuple[str, Scalar]:
    """``KEY=VALUE``; a value is a number or true or false where TOML says so, else text.

    Raises:
        ConfigError: there is no ``=``.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"-n {text!r} is not of the form KEY=VALUE")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        found = tomllib.loads(f"value = {value}")["value"]
        if isinstance(found, str | int | float | bool):
            return key, found
    return key, value


def node_config_text(flat: Mapping[str, Scalar]) -> str:
    """The text of Flower's ``--node-config``, which reads it back to the same values."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in flat.items())


def _quoted(value: Scalar) -> str:
    """A value in TOML; Flower ends a text at the first quotation mark, even an escaped one."""
    if not isinstance(value, str):
        return json.dumps(value)
    parts = (json.dumps(part, ensure_ascii=False)[1:-1] for part in value.split('"'))
    return '"' + "\\u0022".join(parts) + '"'


def check_edge(edge: Edge) -> NodeConfig:
    """Find what is wrong before anything starts, without loading data or model.

    Raises:
        ConfigError: a key, an address, a port or a file cannot be used.
        DataError: the rows cannot be read.
    """
    node = NodeConfig.from_flat(edge.flat)
    path = node.facts.get("data-path")
    if path and not (Path(str(path)).exists() and os.access(str(path), os.R_OK)):
        why = "others may read it only" if Path(str(path)).exists() else "it is not there"
        raise DataError(f"--data {path} cannot be read: {why}")
    read_private(edge.key)
    check_port("127.0.0.1", edge.port)
    check_server(edge.server, edge.authority)
    return node


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ConfigError: it is taken, or cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port {port} on {host} cannot be had: {error}") from error


def check_server(server: str, authority: Path) -> str:
    """Whether a server that answers is the one of the CA, and has the time of this machine.

    Returns:
        Why nobody answers; empty where it is that server.

    Raises:
        ConfigError: the address is none, the CA cannot be read, the server is another, or the
            clocks differ by more than it takes.
    """
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise ConfigError(f"--server {server!r}: must be HOST:PORT")
    read_certificate(authority)
    context = ssl.create_default_context(cafile=str(authority))
    try:
        connection = HTTPSConnection(host, int(port), timeout=10, context=context)
        with contextlib.closing(connection):
            connection.connect()
            with contextlib.suppress(HTTPException, OSError):
                asked = time.time()
                connection.request("GET", "/v1/fleet/")
                date = connection.getresponse().headers.get("Date", "")
                _check_clock(date, asked, time.time())
            return ""
    except InvalidURL as error:
        raise ConfigError(f"--server {server!r}: must be HOST:PORT: {error}") from error
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"--server {server} is not the server of --ca {authority}: {error.verify_message}; "
            "take ca.crt of that federation, and a name that `deploy certs --host` named"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(f"--server {server} does not speak TLS: {error.reason}") from error
    except OSError as error:
        return str(error.strerror or error)


def _check_clock(date: str, asked: float, answered: float) -> None:
    """Hold this machine's clock against the time that a server stated between two moments."""
    try:
        stated = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return
    if stated.tzinfo is None:
        return
    ahead, behind = asked - stated.timestamp(), stated.timestamp() - answered
    if ahead > _AHEAD + _LAG or behind > _BEHIND:
        where = f"{ahead:.0f} s ahead of" if ahead > 0 else f"{behind:.0f} s behind"
        raise ConfigError(
            f"the clock of this machine is {where} the server's: a node signs the time, and more "
            f"than {_AHEAD} s ahead or {_BEHIND} s behind is refused; set the clocks of both by NTP"
        )


def load_once(config: Config, *, own_data: bool) -> str:
    """Read the rows and find or make the model's weights; what was read, in one line.

    Raises:
        MopsError: something is wrong with either.
    """
    from mops_fl.data import load_corpus
    from mops_fl.models.weights import model_facts

    owner = "" if own_data else config.partition.partition_column
    corpus = load_corpus(config.data, config.seed, owner, own_data=own_data)
    model_facts(config.backbone)
    return corpus.source
