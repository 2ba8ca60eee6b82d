"""What a federation's server says of its nodes and runs."""

import json
from dataclasses import dataclass
from pathlib import Path

from mops_fl.deploy.folders import CONNECTION, ServerFolder
from mops_fl.deploy.keys import make_key, read_public
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import replacing

_UNKNOWN = "N/A"


@dataclass(frozen=True)
class Member:
    """A registered node."""

    name: str
    """Empty where it was not registered by this project."""
    node: str
    """Flower's id."""
    status: str
    """registered (never seen), online or offline."""
    seen: str
    """When it was last seen; ``now`` where it is online, empty where it never was."""


@dataclass(frozen=True)
class Submitted:
    """A run that the server knows."""

    run_id: str
    status: str
    seconds: float
    folder: str
    """Empty where it was not started by this project."""

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.status.startswith("finished")


def members(server: ServerFolder) -> list[Member]:
    """All registered nodes.

    Raises:
        RunError: the server does not answer.
    """
    names = {node: name for name, node in server.noted("nodes").items()}
    found = []
    for node in _asked(server, "nodes", "supernode", "list", CONNECTION, "--format", "json"):
        if node["status"] == "unregistered":
            continue
        seen = node["offline-at"] if node["offline-at"] != _UNKNOWN else ""
        now = "now" if node["status"] == "online" else seen
        found.append(Member(names.get(node["node-id"], ""), node["node-id"], node["status"], now))
    return found


def submitted(server: ServerFolder) -> list[Submitted]:
    """All runs, the latest first.

    Raises:
        RunError: the server does not answer.
    """
    folders = server.noted("run-ids")
    return [
        Submitted(
            run["run-id"], run["status"], float(run["elapsed"]), folders.get(run["run-id"], "")
        )
        for run in _asked(server, "runs", "list", CONNECTION, "--format", "json")
    ]


def register(server: ServerFolder, name: str, public_key: bytes | None, where: str) -> str:
    """Let a node in under a name; its id.

    Args:
        server: whose.
        name: of the node.
        public_key: what the node made; None to make a pair of keys here.
        where: names the public key's file.

    Raises:
        ConfigError: the name is taken, or the key is none.
        RunError: the server does not answer, or knows the key.
    """
    known = server.noted("nodes")
    if name in known or not name or Path(name).name != name:
        raise ConfigError(
            f"the name {name!r} is taken: choose another, or mops-fl deploy unregister it"
            if name in known
            else f"the name {name!r} must be one that a file can have"
        )
    server.commands()
    if public_key is None:
        public = make_key(server.keys / name)
    else:
        public, content = server.keys / f"{name}.pub", read_public(public_key, where)
        with replacing(public) as temporary:
            temporary.write_bytes(content)
    options = (str(public), CONNECTION, "--name", name, "--format", "json")
    try:
        answer = _answer(server, "supernode", "register", *options)
    except RunError:
        public.unlink()
        public.with_suffix("").unlink(missing_ok=True)
        raise
    node = str(answer["node-id"])
    server.note("nodes", {**known, name: node})
    return node


def unregister(server: ServerFolder, name: str) -> None:
    """Shut a node out.

    Raises:
        ConfigError: there is none of this name.
        RunError: the server does not answer.
    """
    known = server.noted("nodes")
    if name not in known:
        raise ConfigError(f"there is no node {name!r}: {', '.join(known) or 'none is registered'}")
    _answer(server, "supernode", "unregister", known.pop(name), CONNECTION, "--format", "json")
    server.note("nodes", known)


def _asked(server: ServerFolder, what: str, *command: str) -> list[dict]:
    return _answer(server, *command)[what]


def _answer(server: ServerFolder, *command: str) -> dict:
    text = server.commands().ask(*command)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    if not answer.get("success"):
        reason = " ".join(str(answer.get("error-message") or text).split())
        raise RunError(
            f"`flwr {command[0]} {command[1]}` failed: {reason or 'the server does not answer'}; "
            f"is it running (mops-fl deploy server --dir {server.folder})?"
        )
    return answer
