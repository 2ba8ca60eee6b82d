"""A line between a node and its server."""

import socket
import ssl
import threading
from contextlib import closing, suppress

from mops_fl.deploy.folders import ServerFolder
from mops_fl.flower.home import free_port


class Line(threading.Thread):
    """Passes on what comes, and can be cut.

    With the server's folder it shows nodes the server's own certificate, and keeps what they send,
    on TLS's inside; without, it carries what it cannot read.
    """

    def __init__(self, to: int, server: ServerFolder | None = None) -> None:
        super().__init__(daemon=True)
        self.port, self._to = free_port(), to
        self.sent = bytearray()
        self._server = server
        self._cut = False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.start()

    def run(self) -> None:
        while True:
            inside, _ = self._listener.accept()
            if self._cut:
                inside.close()
                continue
            try:
                inside = self._shown(inside)
                outside = self._reached()
            except OSError:
                inside.close()
                continue
            self._open += [inside, outside]
            for pair in ((inside, outside, self._server is not None), (outside, inside, False)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _shown(self, plain: socket.socket) -> socket.socket:
        if self._server is None:
            return plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server.certificate, self._server.key)
        return context.wrap_socket(plain, server_side=True)

    def _reached(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self._to))
        if self._server is None:
            return plain
        context = ssl.create_default_context(cafile=str(self._server.authority))
        return context.wrap_socket(plain, server_hostname="localhost")

    def _carry(self, source: socket.socket, target: socket.socket, keep: bool) -> None:
        with closing(source), closing(target), suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    self.sent += data
                target.sendall(data)

    def cut(self) -> None:
        self._cut = True
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def mend(self) -> None:
        self._cut = False
