"""Flower's ClientApp process, in which the code that is installed on this machine answers.

    python -m mops_fl.deploy.fenced_clientapp COMMAND [options of flwr-clientapp]

Flower sends a run's code along with it, and a SuperNode executes what it is sent: a server could
read every file of a node. Here the code that came is neither unpacked nor loaded, so that what a
node does, and what it refuses, is its owner's; other kinds of tasks than a ClientApp's are refused.
"""

import importlib
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp

from mops_fl.config import app_folder


def installed_app(*_asked: str) -> ClientApp:
    """The ClientApp of this installation, whatever a run came with."""
    text = (app_folder() / "pyproject.toml").read_text(encoding="utf-8")
    reference = tomllib.loads(text)["tool"]["flwr"]["app"]["components"]["clientapp"]
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _loader(**_options: object) -> Callable[..., ClientApp]:
    return installed_app


def _nothing(*_args: object, **_options: object) -> None:
    """In place of unpacking what came."""


def main(arguments: list[str]) -> None:
    """Do the work of one message, where it is a ClientApp's."""
    command, *options = arguments
    if Path(command).name != "flwr-clientapp":
        raise SystemExit(f"{command} is refused: a node answers with its own ClientApp only")
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    for name, ours in (("install_from_fab", _nothing), ("get_load_client_app_fn", _loader)):
        if not hasattr(runtime, name):
            raise SystemExit(f"this Flower has no {name}: install the one of constraints.txt")
        setattr(runtime, name, ours)
    sys.argv = ["flwr-clientapp", *options]
    flwr_clientapp()


if __name__ == "__main__":
    main(sys.argv[1:])
