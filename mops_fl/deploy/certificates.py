"""A certificate authority of the federation's own, and its server's certificate."""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mops_fl.errors import ConfigError
from mops_fl.files import replacing

AUTHORITY_DAYS, SERVER_DAYS = 3650, 730

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names under which the server's own processes reach it."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def make_authority(certificate: Path, key: Path) -> None:
    """Write the CA: its certificate for everybody, its key for nobody else."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mops-fl federation")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    built = (
        _builder(name, name, private.public_key(), private, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(private, hashes.SHA256())
    )
    _write(key, _pem(private), private=True)
    _write(certificate, built.public_bytes(serialization.Encoding.PEM))


def make_server(
    hosts: Sequence[str], authority: Path, authority_key: Path, certificate: Path, key: Path
) -> None:
    """Write a server's certificate, valid for these names and for this machine itself, and its key.

    Raises:
        ConfigError: a name is no host name and no address, or the CA cannot be read.
    """
    names = [alternative(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    issuer, signer = read_certificate(authority), _read_key(authority_key)
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    built = (
        _builder(subject, issuer.subject, private.public_key(), signer, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(purpose, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write(key, _pem(private), private=True)
    _write(certificate, built.public_bytes(serialization.Encoding.PEM))


def alternative(host: str) -> x509.GeneralName:
    """A host name or an address, as a certificate holds it.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _NAME.fullmatch(host):
            raise ConfigError(
                f"--host {host!r}: must be a host name or an IP address, as nodes will call it, "
                "without a port"
            ) from None
        return x509.DNSName(host)


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate in PEM.

    Raises:
        ConfigError: it is not there or is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{path} is not a certificate in PEM") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not the key of the federation's CA")
    return found


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # a node's clock may be behind
    begin, end = now - datetime.timedelta(days=1), now + datetime.timedelta(days=days)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(identifier, critical=False)
        .add_extension(authority, critical=False)
    )


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(content)
