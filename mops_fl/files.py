"""Writing files so that a reader, or a process that died, never leaves half of one."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mops_fl.errors import RunError

_SLACK = 64 * 1024**2
"""Bytes kept free beside weights, for a tokenizer and a manifest."""


def cache_folder() -> Path:
    """Where converted models and artifacts live: `MOPS_FL_CACHE`, else the user's cache."""
    root = os.environ.get("MOPS_FL_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "mops-fl"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    Raises:
        RunError: there is no permission or no space to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_disk(target: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        target: what will be written; it need not exist.
        needed: bytes of its weights.
        what: names it in the message.

    Raises:
        RunError: there is not enough disk.
    """
    there = next(folder for folder in target.absolute().parents if folder.is_dir())
    free, needed = shutil.disk_usage(there).free, needed + _SLACK
    if free < needed:
        raise RunError(
            f"not enough disk at {there}: {free / 1e9:.1f} GB are free and {what} needs "
            f"{needed / 1e9:.1f} GB: free some, or put it elsewhere with MOPS_FL_CACHE (with "
            "`mops-fl compress`, --out)"
        )


@dataclass
class Made:
    """What `made_once` gives: the final folder, and one to fill when this process makes it."""

    target: Path
    folder: Path | None


@contextlib.contextmanager
def made_once(target: Path) -> Iterator[Made]:
    """Make a folder once, however many processes ask for it at the same time.

    Where `target` is missing, the block gets an empty folder to fill, renamed to `target` when the
    block ends without an error; other processes wait meanwhile. A lock of a process that died is
    released by the system, and what it left is removed by the next.

    Raises:
        RunError: there is no permission or no space to write.
    """
    if target.is_dir():
        yield Made(target, None)
        return
    half = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_dir():
                yield Made(target, None)
                return
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            try:
                yield Made(target, half)
                half.replace(target)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
