"""The `flwr` commands that speak to a SuperLink."""

import contextlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mops_fl.errors import RunError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Commands:
    """How they find it, and where they leave what they print."""

    connection: str
    """Name in ``$FLWR_HOME/config.toml``."""
    environment: Mapping[str, str]
    folder: Path
    """A neutral working directory."""
    log: Path
    """What `flwr run` prints."""

    def start_run(self, app: Path, run_config: Path, *options: str) -> subprocess.Popen:
        """Start `flwr run` on a staged app; its log grows."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.run_command(app, run_config, *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def run_command(self, app: Path, run_config: Path, *options: str) -> list[str]:
        """What `start_run` starts."""
        return ["flwr", "run", str(app), self.connection, "--run-config", str(run_config), *options]

    def run_id(self) -> str | None:
        """The id that Flower gave to the run; None before it has one."""
        found = re.search(r"Successfully started run (\d+)", read_log(self.log))
        return found[1] if found else None

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's own status (``running``, ``finished:failed``, ...) and its details.

        Raises:
            RunError: Flower did not tell.
        """
        answer = self.ask("list", self.connection, "--run-id", run_id, "--format", "json")
        try:
            run = json.loads(answer)["runs"][0]
        except (ValueError, LookupError):
            raise RunError(f"`flwr list` did not tell the status of run {run_id}") from None
        return run["status"], run["status-details"]

    def stop(self, run_id: str) -> None:
        """Ask Flower to stop the run."""
        self.ask("stop", run_id, self.connection)

    def ask(self, *arguments: str) -> str:
        """What a command prints; nothing where it takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ["flwr", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.folder,
                timeout=60,
                check=False,
                start_new_session=True,
            )
            return _COLOUR.sub("", done.stdout.decode(errors="replace"))
        return ""


def read_log(path: Path) -> str:
    """The text of a log that may still grow, without colours."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return _COLOUR.sub("", text)
