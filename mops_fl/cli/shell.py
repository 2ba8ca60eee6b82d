"""Printing the commands that `mops-fl deploy` runs, as units, too; and becoming one of them."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mops_fl.cli.run import console

if TYPE_CHECKING:
    from mops_fl.deploy.folders import ServerFolder


def say_flwr(place: "ServerFolder", words: Sequence[str], more: Sequence[str] = ()) -> None:
    """Print a `flwr` command that speaks to a federation's server."""
    from mops_fl.deploy.folders import CONNECTION

    say_command(["flwr", *words, CONNECTION, *more], {"FLWR_HOME": str(place.flwr_home)})


def say_command(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Print a command as it can be typed."""
    settings = [
        f'{name}="{value}"' if "$" in value else f"{name}={shlex.quote(value)}"
        for name, value in environment.items()
    ]
    console.print("$ " + " ".join([*settings, shlex.join(command)]), style="dim")


def print_unit(
    description: str, words: Sequence[str], state: Path, reads: Sequence[Path] = ()
) -> None:
    """Print the systemd unit of one of our own commands."""
    from mops_fl.deploy.units import Unit

    ours = str(Path(sys.executable).with_name("mops-fl"))
    print(Unit(description, [ours, *words], state, reads), end="")


def become(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Let the command take the place of this process."""
    sys.stdout.flush()
    os.chdir(folder)
    os.execvpe(command[0], list(command), dict(environment))
