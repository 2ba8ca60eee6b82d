"""The federation's CA and its server's certificate, held against Python's own TLS."""

import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from mops_fl.deploy.certificates import read_certificate
from mops_fl.deploy.edge import check_server
from mops_fl.deploy.folders import ServerFolder
from mops_fl.errors import ConfigError


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    server = ServerFolder(tmp_path_factory.mktemp("federation") / "new")
    server.make(["fl.example.org", "10.1.2.3"])
    return server


@contextlib.contextmanager
def listening(server: ServerFolder | None, answer: bytes = b""):
    """The port of a server with the federation's certificate, or of one that speaks no TLS."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            if server is None:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(server.certificate, server.key)
                connection = context.wrap_socket(connection, server_side=True)
                if answer:
                    connection.recv(4096)
                    connection.sendall(answer)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_node_knows_the_server_by_the_ca(federation, name):
    with listening(federation) as port:
        assert check_server(f"{name}:{port}", federation.authority) == ""


@pytest.mark.parametrize(
    ("ahead", "refused"),
    [
        (0, ""),
        (4, ""),
        (-299, ""),
        (12, "ahead of"),
        (-310, "behind"),
        (3600, r"\d+ s ahead of"),
        (-3600, r"\d+ s behind"),
    ],
)
def test_a_clock_that_flower_would_not_believe_is_refused(federation, ahead, refused):
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead), usegmt=True)
    answer = f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n"
    with listening(federation, answer.encode()) as port:
        if refused:
            with pytest.raises(ConfigError, match=refused):
                check_server(f"localhost:{port}", federation.authority)
        else:
            assert check_server(f"localhost:{port}", federation.authority) == ""


def test_strict_verification_accepts_the_chain(federation):
    context = ssl.create_default_context(cafile=str(federation.authority))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    for name in ("fl.example.org", "10.1.2.3"):
        with (
            listening(federation) as port,
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            assert secured.version() in ("TLSv1.2", "TLSv1.3")


def test_a_name_that_was_not_named_is_refused(federation):
    context = ssl.create_default_context(cafile=str(federation.authority))
    with (
        listening(federation) as port,
        socket.create_connection(("127.0.0.1", port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        context.wrap_socket(plain, server_hostname="other.example.org")


def test_another_ca_and_a_server_without_tls_are_refused(federation, tmp_path):
    other = ServerFolder(tmp_path / "other")
    other.make(["localhost"])
    with listening(other) as port, pytest.raises(ConfigError, match="is not the server of --ca"):
        check_server(f"localhost:{port}", federation.authority)
    with listening(None) as port, pytest.raises(ConfigError, match="does not speak TLS"):
        check_server(f"localhost:{port}", federation.authority)
    # nobody there is no mistake: the node waits
    assert "refused" in check_server(f"localhost:{port}", federation.authority)


def test_keys_are_the_owners_alone(federation):
    assert federation.folder.stat().st_mode & 0o777 == 0o700
    for path in (federation.key, federation.authority_key):
        assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten_but_by_renewing(federation):
    before = federation.authority.read_bytes(), federation.certificate.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        federation.make(["localhost"])
    assert (federation.authority.read_bytes(), federation.certificate.read_bytes()) == before
    federation.make(["fl.example.org", "10.1.2.3"], renew=True)
    assert federation.authority.read_bytes() == before[0]
    assert federation.certificate.read_bytes() != before[1]
    with listening(federation) as port:
        assert check_server(f"localhost:{port}", federation.authority) == ""


def test_there_must_be_a_ca_to_renew(tmp_path):
    with pytest.raises(ConfigError, match="leave it out to make one"):
        ServerFolder(tmp_path / "none").make(["localhost"], renew=True)


@pytest.mark.parametrize(
    "host", ["https://x", "a b", "x:8000", "-x", "ü.example.org", "10.0.0.999/"]
)
def test_what_is_no_name_is_refused(tmp_path, host):
    with pytest.raises(ConfigError, match="must be a host name or an IP address"):
        ServerFolder(tmp_path / "new").make([host])


def test_what_is_no_certificate_is_refused(tmp_path):
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match="not a certificate"):
        read_certificate(tmp_path / "ca.crt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_certificate(tmp_path / "none.crt")
