"""Files and folders appear whole or not at all, whatever the disk, the umask or the locks are."""

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mops_fl import files
from mops_fl.errors import RunError
from mops_fl.files import Made, absolute, cache_folder, held, made_once, replacing, write_text


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@contextlib.contextmanager
def small_files():
    """No file may be larger than 1000 bytes: to whoever writes, a full disk.

    That holds for pytest's own output, too, where it goes to a file: no fixture, since pytest
    writes while fixtures live.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder: Path) -> None:
    save_file({"a": np.zeros(1000)}, folder / "model.safetensors")


def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    write_text(tmp_path / "new" / "text", "x")
    assert mode(tmp_path / "new" / "text") == 0o666 & ~umask
    with replacing(tmp_path / "tensors") as temporary:
        save_file({"a": np.zeros(4)}, temporary)
    assert mode(tmp_path / "tensors") == 0o666 & ~umask
    with made_once(tmp_path / "made") as made:
        save(made.folder)
    assert mode(tmp_path / "made") == 0o777 & ~umask
    assert mode(tmp_path / "made" / "model.safetensors") == 0o666 & ~umask


def test_a_private_file_is_the_users_alone(tmp_path, umask):
    with replacing(tmp_path / "rows", private=True) as temporary:
        temporary.write_text("x")
    assert mode(tmp_path / "rows") == 0o600


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("the hub went away"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/rows.jsonl"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.safetensors"),
        ValueError("not a number"),
    ],
)
def test_what_goes_wrong_in_the_block_is_raised_as_it_is(tmp_path, error):
    for block in (made_once(tmp_path / "made"), replacing(tmp_path / "file")):
        with pytest.raises(type(error)) as caught, block:
            raise error
        assert caught.value is error
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "file").exists()


def test_a_full_disk_is_said_by_whatever_library_met_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    hint = "too large; MOPS_FL_CACHE names another"
    made = made_once(tmp_path / "cache" / "model")
    with pytest.raises(RunError, match=hint), small_files(), made as folder:
        save(folder.folder)
    with pytest.raises(RunError, match=hint), small_files():
        write_text(tmp_path / "cache" / "file", "x" * 2000)
    with pytest.raises(RunError, match=r"run/state: File too large$"), small_files():
        write_text(tmp_path / "run" / "state", "x" * 2000)


def test_a_full_disk_elsewhere_is_named(tmp_path):
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/somewhere/else")
    with (
        pytest.raises(RunError, match="cannot write /somewhere/else: No space"),
        made_once(tmp_path / "made"),
    ):
        raise elsewhere


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "file"))
    with (
        pytest.raises(RunError, match="MOPS_FL_CACHE names another"),
        made_once(cache_folder() / "backbones" / "key"),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_first_whole_folder_stays(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    target = tmp_path / "made"
    with made_once(target) as ours:
        (ours.folder / "file").write_text("ours")
        with made_once(target) as theirs:
            assert theirs.folder != ours.folder
            (theirs.folder / "file").write_text("theirs")
    assert (target / "file").read_text() == "theirs"
    with made_once(target) as again:
        assert again == Made(target, None)
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


def test_what_a_killed_process_left_is_not_found_and_goes(tmp_path):
    left = tmp_path / ".made.tmp"
    left.mkdir()
    (left / "half").touch()
    with made_once(tmp_path / "made") as made:
        assert list(made.folder.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


def test_the_cache_is_absolute_wherever_a_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOPS_FL_CACHE", "some/cache")
    assert cache_folder() == tmp_path / "some" / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOPS_FL_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"


def test_absolute_follows_no_link_and_knows_no_unknown_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("blob").touch()
    Path("x.gguf").symlink_to("blob")
    assert absolute("x.gguf") == tmp_path / "x.gguf"
    assert absolute("~nobody-at-all/x") == tmp_path / "~nobody-at-all" / "x"


def test_a_user_without_a_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MOPS_FL_CACHE")
    monkeypatch.setattr(files.Path, "home", home)
    with pytest.raises(RunError, match="name a folder in MOPS_FL_CACHE"):
        cache_folder()


_MAKER = """
import sys, time
from pathlib import Path
from mops_fl.files import made_once
with made_once(Path(sys.argv[1])) as made:
    if made.folder is not None:
        time.sleep(0.3)
        (made.folder / "file").write_text("whole")
        print("made")
assert (made.target / "file").read_text() == "whole"
"""


def test_with_locks_one_of_many_processes_makes_it(tmp_path):
    command = [sys.executable, "-c", _MAKER, str(tmp_path / "made")]
    makers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(maker.communicate()[0] for maker in makers) == ["", "", "made\n"]
    assert not any(maker.returncode for maker in makers)


class TestALockFile:
    def holder(self, lock, seconds):
        code = (
            "import sys, time; from pathlib import Path; from mops_fl.files import held\n"
            "with held(Path(sys.argv[1])) as mine:\n"
            "    print(mine, flush=True); time.sleep(float(sys.argv[2]))"
        )
        command = [sys.executable, "-c", code, str(lock), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_one_process_holds_it(self, tmp_path):
        lock = tmp_path / "locks" / "a"
        with self.holder(lock, 600) as other:
            assert other.stdout.readline() == "True\n"
            with held(lock) as mine:
                assert not mine
            other.kill()
        with held(lock) as mine:
            assert mine

    def test_it_is_waited_for(self, tmp_path):
        lock = tmp_path / "a"
        with self.holder(lock, 1) as other:
            assert other.stdout.readline() == "True\n"
            with held(lock, 60) as mine:
                assert mine
            other.wait()

    def test_a_file_system_without_locks_keeps_nobody_out(self, tmp_path, monkeypatch):
        def none(*_):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr("mops_fl.files.fcntl.flock", none)
        with held(tmp_path / "a") as mine:
            assert mine
