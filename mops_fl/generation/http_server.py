"""A port that is held from the start, and a server that ends when it is told to."""

import ipaddress
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mops_fl.errors import ConfigError
from mops_fl.generation.desk import Desk

_FAREWELL = 5
"""Seconds that clients have to read the end of what they asked for."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens: whoever calls before there is a model waits for it.

    Raises:
        ConfigError: the port is in use or not allowed, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"--host {host} --port {port}: {reason}: give another --port, or 0 for any, and an "
            "address of this machine as --host"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(held: socket.socket) -> str:
    """``http://HOST:PORT`` of a socket that listens."""
    host, port = held.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Ends with status 0 when SIGINT or SIGTERM tells it to."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answers end where they are; at a second signal nobody's reading is waited for."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._desk.close()


def configuration(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves: what goes wrong is printed, and nothing else."""
    return uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=_FAREWELL
    )


def serve_until_told(app: FastAPI, desk: Desk, held: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM arrives.

    Args:
        app: what answers requests.
        desk: where its questions are answered; closed at the end.
        held: a socket that listens.
    """
    try:
        _Server(configuration(app), desk).run(sockets=[held])
    finally:
        desk.close()
