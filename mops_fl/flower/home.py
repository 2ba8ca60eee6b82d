"""What one run of Flower needs around it: a folder of its own, an environment, the app, a config.

Nothing is shared between two runs: each has its own `FLWR_HOME`, port, working directory and Ray
folder, so that any number of them may run on one machine at the same time.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mops_fl.activity import FOLDER_VARIABLE
from mops_fl.config import Scalar
from mops_fl.errors import RunError
from mops_fl.files import SHARED_VARIABLE, absolute, cache_folder
from mops_fl.flower.environment import OURS, passed_on, with_commands
from mops_fl.machine import GPU_WORKERS_VARIABLE, WORKERS_VARIABLE
from mops_fl.run.provenance import COMMIT_VARIABLE, commit

_RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes a socket at, below its folder."""

_LONGEST_PARENT = (103 if sys.platform == "darwin" else 107) - len(f"/mops-12345678/{_RAY_SOCKET}")
"""Bytes in the path of a folder below which Ray can have its own."""


@dataclass(frozen=True)
class Resources:
    """What Ray may use, and for how many virtual clients."""

    clients: int
    cpus_per_client: int
    gpus_per_client: float
    workers: int
    """Client processes at a time; unused with `ray_address`, where the cluster decides."""
    ray_address: str = ""
    """An existing Ray cluster; empty for one that lives as long as the run."""

    @property
    def workers_per_gpu(self) -> int:
        """Client processes that share one GPU."""
        if not 0 < self.gpus_per_client < 1:
            return 1
        return min(self.workers, int(1 / self.gpus_per_client))

    @property
    def federation_config(self) -> str:
        """The text of Flower's ``--federation-config``."""
        values: dict[str, Scalar] = {
            "num-supernodes": self.clients,
            "client-resources-num-cpus": self.cpus_per_client,
            "client-resources-num-gpus": float(self.gpus_per_client),
        }
        if not self.ray_address:
            values["init-args-num-cpus"] = self.workers * self.cpus_per_client
        return " ".join(f"{key}={value}" for key, value in values.items())


@dataclass(frozen=True)
class Home:
    """The folder that holds everything of one launch, outside its run folder."""

    folder: Path
    ray_folder: Path
    port: int
    """Where the SuperLink of this launch listens on 127.0.0.1."""

    @classmethod
    def create(cls) -> "Home":
        """A new one in the cache.

        Raises:
            RunError: the cache cannot be written, or there is no place for Ray's sockets.
        """
        ray_folder = _ray_folder()
        parent = cache_folder() / "flower"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            home = cls(Path(tempfile.mkdtemp(dir=parent)), ray_folder, free_port())
            home.work.mkdir()
            home.activity.mkdir()
        except OSError as error:
            shutil.rmtree(ray_folder, ignore_errors=True)
            raise RunError(
                f"cannot write {error.filename or parent}: {error.strerror}; "
                "MOPS_FL_CACHE names another cache folder"
            ) from error
        return home

    @property
    def work(self) -> Path:
        """The neutral working directory: Ray's workers would import code that lies there."""
        return self.folder / "work"

    @property
    def activity(self) -> Path:
        """Where the processes at work say what they are doing; see `mops_fl.activity`."""
        return self.folder / "activity"

    @property
    def shared(self) -> Path:
        """What one process makes for all of them; see `mops_fl.files.shared_folder`."""
        return self.folder / "shared"

    @property
    def app(self) -> Path:
        """The staged app."""
        return self.folder / "app"

    @property
    def run_config(self) -> Path:
        """The flat configuration, as Flower reads it."""
        return self.folder / "run.toml"

    @property
    def log(self) -> Path:
        """What `flwr run --stream` prints."""
        return self.folder / "flower.log"

    @property
    def superlink_log(self) -> Path:
        """What the SuperLink prints."""
        return self.folder / "superlink.log"

    def prepare(self, app: Path, flat: Mapping[str, Scalar]) -> None:
        """Write what Flower reads: the connection, the configuration and a copy of the app.

        The copy makes the bundle the same from a checkout and from an installed wheel.

        Raises:
            RunError: there is no permission or no space to write.
        """
        try:
            local: dict[str, Scalar] = {"address": f"127.0.0.1:{self.port}", "insecure": True}
            write_connection(self.folder, "local", local)
            self.run_config.write_text(toml(flat), encoding="utf-8")
            copy_app(app, self.app)
        except OSError as error:
            self.remove()
            raise RunError(f"cannot stage the Flower app in {self.folder}: {error}") from error

    def remove(self) -> None:
        """Delete everything of this launch."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def environment(self, resources: Resources) -> dict[str, str]:
        """The environment of every process of this launch."""
        inner = passed_on(os.environ, cluster=bool(resources.ray_address))
        own = {
            "FLWR_HOME": str(self.folder),
            "MOPS_FL_CACHE": str(cache_folder()),
            COMMIT_VARIABLE: commit(),
            FOLDER_VARIABLE: str(self.activity),
            SHARED_VARIABLE: str(self.shared),
            "RAY_ADDRESS": resources.ray_address or "local",
            "RAY_TMPDIR": str(self.ray_folder),
            "OMP_NUM_THREADS": str(resources.cpus_per_client),
            "PATH": with_commands(inner.get("PATH", "")),
        }
        if resources.ray_address:
            # Flower hands this to its actors; Ray puts in what the variable is on their machine
            paths = [inner.get("PYTHONPATH"), "${PYTHONPATH}"]
            own["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        else:
            own[WORKERS_VARIABLE] = str(resources.workers)
            own[GPU_WORKERS_VARIABLE] = str(resources.workers_per_gpu)
        return {**inner, **OURS, **own}


def write_connection(flwr_home: Path, name: str, values: Mapping[str, Scalar]) -> None:
    """Tell the `flwr` commands of a `FLWR_HOME` where its SuperLink is."""
    text = f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\n{toml(values)}'
    (flwr_home / "config.toml").write_text(text, encoding="utf-8")


def copy_app(app: Path, target: Path) -> None:
    """Copy the parts of the Flower app in the folder `app` into a new folder."""
    target.mkdir()
    for source in _app_parts(app):
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / source.name, ignore=ignore)
        else:
            shutil.copyfile(source, target / source.name)


def toml(values: Mapping[str, Scalar]) -> str:
    """Flat keys and values as a TOML document."""
    # JSON's strings, whole numbers, floats and booleans are TOML's too.
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
    )


def _app_parts(app: Path) -> list[Path]:
    """The app's ``pyproject.toml`` and the folders of its ``fab-include``."""
    settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["flwr"]["app"]["fab-include"]
    packages = dict.fromkeys(pattern.split("/")[0] for pattern in patterns)
    # In an installed wheel pyproject.toml lies inside the first package, not beside it.
    root = app if (app / next(iter(packages))).is_dir() else app.parent
    return [app / "pyproject.toml", *(root / package for package in packages)]


def _ray_folder() -> Path:
    """A new private folder below which Ray's sockets can be made.

    Raises:
        RunError: there is none.
    """
    tried = []
    for parent in _ray_parents():
        try:
            folder = Path(tempfile.mkdtemp(prefix="mops-", dir=parent))
        except OSError as error:
            tried.append(f"{parent}: {error.strerror}")
            continue
        if _takes_sockets(folder):
            return folder
        folder.rmdir()
        tried.append(f"{parent}: too long a path, or no place for sockets")
    raise RunError(
        f"Ray finds no folder for its sockets ({'; '.join(tried)}): set TMPDIR to a folder that "
        f"can be written and whose path has at most {_LONGEST_PARENT} bytes"
    )


def _ray_parents() -> list[Path]:
    """Where Ray's folder may be, the user's own choice first."""
    chosen = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")]
    places = filter(None, [*chosen, "/tmp", "/var/tmp", "/dev/shm"])
    return list(dict.fromkeys(map(absolute, places)))


def _takes_sockets(folder: Path) -> bool:
    """Whether a socket as deep as Ray's can be made below a folder."""
    probe = folder / ("s" * len(_RAY_SOCKET))
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.bind(os.fsencode(probe))
        except OSError:
            return False
    probe.unlink()
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
