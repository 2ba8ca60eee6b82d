"""Writing files so that a reader, or a process that died, never leaves half of one.

New files and folders have the permissions that the user's umask gives.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mops_fl.errors import RunError

SHARED_VARIABLE = "MOPS_FL_SHARED"
"""Environment variable that names the folder of `shared_folder`; in simulations only."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_SLACK = 64 * 1024**2
"""Bytes kept free beside weights, for a tokenizer and a manifest."""


def cache_folder() -> Path:
    """Where converted models and artifacts live: `MOPS_FL_CACHE`, else the user's cache.

    Raises:
        RunError: the user has no home.
    """
    root = os.environ.get("MOPS_FL_CACHE")
    try:
        return absolute(root) if root else Path.home() / ".cache" / "mops-fl"
    except RuntimeError as error:
        raise RunError(f"there is no home ({error}): name a folder in MOPS_FL_CACHE") from error


def shared_folder() -> Path | None:
    """Where processes of one launch on this machine leave what others need, too; None elsewhere."""
    root = os.environ.get(SHARED_VARIABLE)
    return Path(root) if root else None


def absolute(path: str | Path) -> Path:
    """The absolute path, its `~` expanded and its links left as they are."""
    # unlike Path.expanduser, this takes the name of no user as it stands
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    Args:
        path: what is written; its folders are made.
        private: whether only the user may read it, whatever the umask is.

    Raises:
        RunError: there is no permission or no space to write; what else goes wrong in the block is
            raised as it is.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        how = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        handle = os.open(temporary, how, 0o600 if private else 0o666)
        mode = os.fstat(handle).st_mode
        os.close(handle)
    try:
        with _filling(path):
            yield temporary
        with _writing(path):
            # whoever wrote it may have put another file in its place
            temporary.chmod(mode & 0o777)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def version(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is written anew; None where there is none.

    A clock would not do, since the times of files are up to a tick behind it.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


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
    released by the system, and what it left is removed by the next. Where the file system has no
    locks, several processes may make the folder, and the first one's stays.

    Raises:
        RunError: there is no permission or no space to write; what else goes wrong in the block is
            raised as it is.
    """
    with _writing(target):
        there = target.is_dir()
    if there:
        yield Made(target, None)
        return
    with _locked(target) as locked:
        if target.is_dir():
            yield Made(target, None)
            return
        half = target.with_name(f".{target.name}{'' if locked else f'.{uuid.uuid4().hex}'}.tmp")
        with _writing(target):
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
        try:
            with _filling(target):
                yield Made(target, half)
            with _writing(target):
                _publish(half, target)
        finally:
            shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def held(lock: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Hold a lock file for the length of the block; False where another process does.

    The system releases the lock of a process that died. Where the file system has no locks, nobody
    is kept out.

    Args:
        lock: the file, whose folder is made.
        seconds: how long to wait for another process.

    Raises:
        RunError: there is no permission or no space to write.
    """
    with _writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    deadline = time.monotonic() + seconds
    with file:
        while taken := _is_taken(file):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        yield not taken


def _is_taken(file: TextIO) -> bool:
    """Whether another process has the lock; it is this one's otherwise, where there are locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Wait for the lock of a folder and hold it; False where there is no lock to be had."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


def _publish(half: Path, target: Path) -> None:
    """Give a folder its name, unless somebody else's has it by now."""
    mode = half.stat().st_mode & 0o666
    for path in half.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    try:
        half.replace(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which path cannot be written."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def _filling(path: Path) -> Iterator[None]:
    """Tell a full disk, or one that may not be written, from what else a block may raise."""
    try:
        yield
    except OSError as error:
        name = error.filename
        inside = isinstance(name, str | Path) and Path(name).is_relative_to(path.parent)
        if error.errno in _FULL or (inside and error.errno in _FORBIDDEN):
            where = Path(name) if isinstance(name, str | Path) and not inside else path
            raise _cannot_write(where, error.strerror or str(error)) from error
        raise
    except Exception as error:
        # libraries in Rust have errors of their own for it
        for reason in map(os.strerror, _FULL):
            if reason in str(error) and not isinstance(error, RunError):
                raise _cannot_write(path, reason) from error
        raise


def _cannot_write(path: Path, reason: str) -> RunError:
    hint = ""
    with contextlib.suppress(RunError):
        if absolute(path).is_relative_to(cache_folder()):
            hint = "; MOPS_FL_CACHE names another cache folder"
    return RunError(f"cannot write {path}: {reason}{hint}")
