"""Where a node keeps what is its own: a secret, what it last received, states, its trainer's log.

Everything lies below one folder that only the user may enter.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mops_fl.errors import RunError
from mops_fl.files import absolute, cache_folder, replacing
from mops_fl.node.node_config import NodeConfig

_PRIVATE = 0o700

_LONGEST = 70
"""Bytes of the folder of sockets: the whole path of one has 103 at most on macOS."""


@dataclass(frozen=True)
class NodeHome:
    """The folders of one node."""

    folder: Path
    sockets: Path
    """Folder of the trainer's socket: a short path, as sockets must have."""
    states: Path
    """Where states at L_int go."""
    keeps_states: bool
    """Whether they outlast a run: those of rows that others have, too, or by the owner's will."""

    @classmethod
    def of(cls, node: NodeConfig) -> "NodeHome":
        """The home of a node, made where it is missing.

        Raises:
            RunError: a folder cannot be made, or is open to others.
        """
        facts = [str(Path.cwd()), node.partition, sorted(node.facts.items())]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        folder = _made(cache_folder() / "node" / name)
        sockets = _made(_runtime_folder() / name)
        shared = cache_folder() / "prefix"
        states = folder / "states" if node.own_data else shared
        if node.prefix_store:
            states = absolute(node.prefix_store) / name
        return cls(folder, sockets, states, node.keep_states or not node.own_data)

    @property
    def socket(self) -> Path:
        """Where the trainer listens."""
        return self.sockets / "trainer"

    @property
    def pid(self) -> Path:
        """Process id of the trainer that listens, or did."""
        return self.sockets / "pid"

    @property
    def log(self) -> Path:
        """What the trainer says."""
        return self.folder / "trainer.log"

    @property
    def received(self) -> Path:
        """Folder of the tensors that were last received, by run."""
        return self.folder / "received"

    def forget_states(self) -> None:
        """Remove the states of a run that is over, unless they are to outlast it."""
        if not self.keeps_states:
            shutil.rmtree(self.states, ignore_errors=True)

    def sealed(self, digest: str) -> str:
        """A digest that only this node can make: who guesses rows cannot confirm them by it."""
        file = self.folder / "secret"
        if not file.is_file():
            with replacing(file, private=True) as temporary:
                temporary.write_bytes(secrets.token_bytes(32))
        return hmac.new(file.read_bytes(), digest.encode(), hashlib.sha256).hexdigest()


def _runtime_folder() -> Path:
    """Where sockets may lie: the first place whose path leaves room for their names."""
    places = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    folders = [Path(place) / f"mops-fl-{os.getuid()}" for place in places if place]
    return next((each for each in folders if len(os.fsencode(each)) <= _LONGEST), folders[-1])


def _made(folder: Path) -> Path:
    """A folder of the user's alone.

    Raises:
        RunError: it cannot be made, or another user could put something there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=_PRIVATE, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise RunError(
            f"{folder} must be this user's alone (mode 700), and it has mode "
            f"{stat.S_IMODE(found.st_mode):o} and owner {found.st_uid}"
        )
    return folder
