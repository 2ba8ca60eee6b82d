"""A line between a node and its server."""

import select
import socket
import ssl
import threading
from contextlib import ExitStack, closing, suppress

from mops_fl.deploy.folders import ServerFolder
from mops_fl.flower.home import free_port


class Line(threading.Thread):
    """Passes on what comes, a thread for each connection, and can be cut.

    With the server's folder it shows nodes the server's own certificate, and keeps what they send,
    on TLS's inside; without, it carries what it cannot read.
    """

    def __init__(self, to: int, server: ServerFolder | None = None) -> None:
        super().__init__(daemon=True)
        self.port, self._to = free_port(), to
        self.sent: list[bytearray] = []
        """By connection."""
        self._server = server
        self._cut = False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.start()

    def run(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            if self._cut:
                accepted.close()
            else:
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        sent = bytearray()
        self.sent.append(sent)
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(closing(accepted))
            inside = stack.enter_context(closing(self._shown(accepted)))
            plain = stack.enter_context(
                closing(socket.create_connection(("127.0.0.1", self._to), timeout=20))
            )
            outside = stack.enter_context(closing(self._reached(plain)))
            ends = {inside: outside, outside: inside}
            self._open += ends
            for end in ends:
                end.setblocking(True)
            while True:
                # what TLS has read already is not seen by `select`
                ready = [end for end in ends if isinstance(end, ssl.SSLSocket) and end.pending()]
                for source in ready or select.select([*ends], [], [])[0]:
                    # what came may be TLS's own, and no data
                    source.setblocking(False)
                    try:
                        data = source.recv(65536)
                    except ssl.SSLWantReadError:
                        continue
                    finally:
                        source.setblocking(True)
                    if not data:
                        return
                    if source is inside and self._server:
                        sent += data
                    ends[source].sendall(data)

    def _shown(self, plain: socket.socket) -> socket.socket:
        if self._server is None:
            return plain
        plain.settimeout(20)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server.certificate, self._server.key)
        return context.wrap_socket(plain, server_side=True)

    def _reached(self, plain: socket.socket) -> socket.socket:
        if self._server is None:
            return plain
        context = ssl.create_default_context(cafile=str(self._server.authority))
        return context.wrap_socket(plain, server_hostname="localhost")

    def cut(self) -> None:
        self._cut = True
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def mend(self) -> None:
        self._cut = False
