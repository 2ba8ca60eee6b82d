"""The resident trainer: one process of a node that keeps backbone, tokens and states.

``python -m mops_fl.node.resident``, started by `mops_fl.node.link`, which hands it the node's
configuration. It listens on a socket of the user's alone, serves one message after another, and
ends when it is idle, when another configuration is wanted, or with the process that it watches.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection

import psutil

from mops_fl.files import write_text
from mops_fl.node.node_config import NodeConfig
from mops_fl.node.node_home import NodeHome
from mops_fl.node.service import Request, Service, Stale

_LOOK_SECONDS = 1.0
"""Between looks at the clock and at the watched process."""


def main() -> None:
    """Serve until there is nothing more to do."""
    flat, identity, watched = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    node = NodeConfig.from_flat(flat)
    home = NodeHome.of(node)
    with closing(_listening(home)) as listener:
        if os.fork():
            # Whoever started this process waits until it ends: there is somebody who listens.
            os._exit(0)
        os.setsid()
        write_text(home.pid, str(os.getpid()))
        # one that was killed has left them
        home.forget_states()
        service = Service(node, home)
        try:
            for connection in _connections(listener, node.idle_minutes * 60, watched):
                with connection, suppress(EOFError, OSError):
                    if not _serve(connection, service, identity):
                        return
        finally:
            home.socket.unlink(missing_ok=True)
            home.forget_states()


def _listening(home: NodeHome) -> socket.socket:
    home.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fsencode(home.socket))
    listener.listen()
    listener.settimeout(_LOOK_SECONDS)
    return listener


def _connections(
    listener: socket.socket, idle_seconds: float, watched: int
) -> Iterator[Connection]:
    """Those of the same user, until the time without one is over or the watched process ends."""
    last = time.monotonic()
    while time.monotonic() - last < idle_seconds and psutil.pid_exists(watched):
        try:
            accepted, _ = listener.accept()
        except TimeoutError:
            continue
        accepted.setblocking(True)
        if _same_user(accepted):
            yield Connection(accepted.detach())
        else:
            accepted.close()
        last = time.monotonic()


def _same_user(accepted: socket.socket) -> bool:
    """Whether the other end is this user's; where the system does not tell, the folder's mode is
    what keeps others out.
    """
    peer = getattr(socket, "SO_PEERCRED", None)
    if peer is None:
        return True
    told = accepted.getsockopt(socket.SOL_SOCKET, peer, 12)
    return int.from_bytes(told[4:8], sys.byteorder) == os.getuid()


def _serve(connection: Connection, service: Service, identity: str) -> bool:
    """Answer one request; False where another trainer is wanted in place of this one."""
    request: Request = connection.recv()
    if request.identity != identity:
        connection.send(Stale())
        return False
    connection.send(service.answer(request.task))
    return True


if __name__ == "__main__":
    main()
