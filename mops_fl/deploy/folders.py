"""The folder of a federation's server side, and that of a node."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from mops_fl.activity import FOLDER_VARIABLE
from mops_fl.config import Scalar
from mops_fl.deploy.certificates import make_authority, make_server
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import absolute, cache_folder, replacing, write_text
from mops_fl.flower.commands import Commands
from mops_fl.flower.environment import OURS, passed_on, with_commands
from mops_fl.flower.home import write_connection
from mops_fl.run.provenance import COMMIT_VARIABLE, commit

CONNECTION = "federation"
"""The name of the server in Flower's configuration."""


@dataclass(frozen=True)
class _Place:
    """The folder of a server or of a node."""

    folder: Path
    """Absolute."""

    @property
    def flwr_home(self) -> Path:
        """`FLWR_HOME` of its processes and commands."""
        return self.folder / "flwr-home"

    @property
    def work(self) -> Path:
        """Their working directory, which holds nothing."""
        return self.folder / "work"


class ServerFolder(_Place):
    """Everything that a federation's server keeps."""

    @property
    def authority(self) -> Path:
        """The CA's certificate: every node has a copy."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """The CA's key: whoever has it can pose as the server."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's key."""
        return self.folder / "server.key"

    @property
    def database(self) -> Path:
        """Flower's state: nodes, runs and messages."""
        return self.folder / "state.db"

    @property
    def activity(self) -> Path:
        """Where the ServerApp says what it is doing; see `mops_fl.activity`."""
        return self.folder / "activity"

    @property
    def staged(self) -> Path:
        """Apps and configurations of runs that are being followed."""
        return self.folder / "staged"

    @property
    def keys(self) -> Path:
        """Public keys of the nodes, and the private ones of nodes that made none themselves."""
        return self.folder / "keys"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.folder / "runs"

    def make(self, hosts: Sequence[str], *, renew: bool = False) -> None:
        """Make the CA and the server's certificate, or the latter anew.

        Raises:
            ConfigError: there is a CA already, or (`renew`) none.
        """
        if self.authority.exists() != renew:
            raise ConfigError(
                f"{self.authority} exists: a CA is never overwritten, since no node would trust "
                "the new one; --renew makes a new server certificate of the same CA"
                if not renew
                else f"--renew: there is no {self.authority} yet; leave it out to make one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not renew:
            make_authority(self.authority, self.authority_key)
        make_server(hosts, self.authority, self.authority_key, self.certificate, self.key)

    def check(self) -> None:
        """Refuse a folder without certificates.

        Raises:
            ConfigError: there are none.
        """
        for path in (self.authority, self.certificate, self.key):
            if not path.is_file():
                raise ConfigError(
                    f"--dir {self.folder} has no {path.name}: mops-fl deploy certs --host NAME "
                    f"--dir {self.folder} makes it"
                )

    def connect(self, host: str, port: int) -> None:
        """Say where the server listens, to the commands that speak to it from this machine."""
        for folder in (self.flwr_home, self.work, self.activity, self.staged, self.keys):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        inner = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        address = f"[{inner}]:{port}" if ":" in inner else f"{inner}:{port}"
        values: dict[str, Scalar] = {"address": address, "root-certificates": str(self.authority)}
        write_connection(self.flwr_home, CONNECTION, values)

    def environment(self) -> dict[str, str]:
        """The environment of the server's processes and commands."""
        activity = {FOLDER_VARIABLE: str(self.activity)}
        return {**_environment(self.flwr_home), **activity}

    def commands(self, log: Path | None = None) -> Commands:
        """The commands that speak to the server.

        Raises:
            ConfigError: none was started here.
        """
        self.check()
        if not (self.flwr_home / "config.toml").is_file():
            raise ConfigError(
                f"--dir {self.folder}: no server was started here yet: mops-fl deploy server "
                f"--dir {self.folder}"
            )
        log = log or self.folder / "nowhere.log"
        return Commands(CONNECTION, self.environment(), self.work, log)

    def noted(self, what: str) -> dict[str, str]:
        """`nodes` (name to Flower's id) or `run-ids` (Flower's id to run folder)."""
        path = self.folder / f"{what}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def note(self, what: str, values: Mapping[str, str]) -> None:
        """Write what `noted` reads."""
        write_text(self.folder / f"{what}.json", json.dumps(values, indent=2) + "\n")


class NodeFolder(_Place):
    """What an edge machine keeps beside its data."""

    @property
    def commands(self) -> Path:
        """What comes first on their `PATH`."""
        return self.folder / "bin"

    @property
    def lock(self) -> Path:
        """Held as long as the node runs."""
        return self.folder / "lock"

    def make(self) -> None:
        """Make the folder, and the commands that the SuperNode is to find before Flower's own.

        Raises:
            RunError: it cannot be written.
        """
        try:
            for folder in (self.folder, self.flwr_home, self.work, self.commands):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--dir {self.folder} cannot be made: {error.strerror}") from error
        python = shlex.quote(sys.executable)
        module = "mops_fl.deploy.fenced_clientapp"
        for name in TASK_TYPE_TO_COMMAND.values():
            with replacing(self.commands / name) as temporary:
                temporary.write_text(f'#!/bin/sh\nexec {python} -P -m {module} {name} "$@"\n')
            (self.commands / name).chmod(0o700)

    def environment(self) -> dict[str, str]:
        """The environment of the node's processes."""
        outer = _environment(self.flwr_home)
        return {**outer, "PATH": os.pathsep.join([str(self.commands), outer["PATH"]])}


def _environment(flwr_home: Path) -> dict[str, str]:
    inner = passed_on(os.environ)
    return {
        **inner,
        **OURS,
        "FLWR_HOME": str(flwr_home),
        "MOPS_FL_CACHE": str(cache_folder()),
        COMMIT_VARIABLE: commit(),
        "PATH": with_commands(inner.get("PATH", "")),
    }


def server_folder(path: Path) -> ServerFolder:
    """The server's folder at a path as it was typed."""
    return ServerFolder(absolute(path))


def node_folder(path: Path) -> NodeFolder:
    """A node's folder at a path as it was typed."""
    return NodeFolder(absolute(path))
