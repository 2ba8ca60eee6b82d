"""The ECDSA key by which the server knows a node, in OpenSSH's format."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mops_fl.errors import ConfigError
from mops_fl.files import replacing

MAKE = 'ssh-keygen -t ecdsa -b 384 -N "" -C "" -f FILE'
"""The command that makes such a key without this project."""


def make_key(path: Path) -> Path:
    """Write a private key that only the user may read, and its public half beside it; the latter.

    Raises:
        ConfigError: there is one already.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: a key is never overwritten; name another file")
    key = ec.generate_private_key(ec.SECP384R1())
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
    return write_public(path)


def write_public(path: Path) -> Path:
    """Write the public half of a private key beside it; its path."""
    public = public_path(path)
    with replacing(public) as temporary:
        temporary.write_bytes(_public_bytes(read_private(path).public_key()))
    return public


def public_path(path: Path) -> Path:
    """Where the public half of a private key lies."""
    return path.with_name(f"{path.name}.pub")


def read_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        ConfigError: it is not there, is none, or others may read it.
    """
    try:
        mode, content = path.stat().st_mode & 0o777, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--key {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"--key {path} has mode {mode:04o}: others may read or change it; chmod 600 {path}"
        )
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"--key {path} is not a private ECDSA key without a passphrase: {MAKE} makes one"
        )
    return key


def read_public(content: bytes, where: str) -> bytes:
    """A node's public key, without the comment behind it.

    Raises:
        ConfigError: it is none, or a private one.
    """
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"--public-key {where} holds a private key, which never leaves its node: give the "
            "file whose name ends in .pub"
        )
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"--public-key {where} is not a public ECDSA key: {MAKE} makes FILE.pub")
    return _public_bytes(key)


def _public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(encoding, form) + b"\n"
