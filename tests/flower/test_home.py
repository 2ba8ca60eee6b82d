"""What Flower is given: the app, the configuration, the environment."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from mops_fl.activity import FOLDER_VARIABLE
from mops_fl.config import Config, app_folder
from mops_fl.errors import RunError
from mops_fl.flower import home as home_module
from mops_fl.flower.home import Home, Resources


@pytest.fixture
def home():
    created = Home.create()
    yield created
    shutil.rmtree(created.folder)
    shutil.rmtree(created.ray_folder)


def installed(folder: Path) -> Path:
    """The app as a wheel lays it out: the packages side by side, pyproject.toml in the first."""
    for part in ("mops_fl", "strategies", "partitions"):
        shutil.copytree(app_folder() / part, folder / part)
    shutil.copy(app_folder() / "pyproject.toml", folder / "mops_fl" / "pyproject.toml")
    return folder / "mops_fl"


@pytest.mark.parametrize("layout", ["checkout", "wheel"])
def test_flower_bundles_the_whole_app_and_nothing_else(home, layout, tmp_path):
    app = app_folder() if layout == "checkout" else installed(tmp_path / "site-packages")
    home.prepare(app, {})
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(home.app)))
    names = {name for name in bundle.namelist() if not name.startswith(".info/")}
    sources = {
        path.relative_to(app_folder()).as_posix()
        for part in ("mops_fl", "strategies", "partitions")
        for path in (app_folder() / part).rglob("*.py")
    }
    assert names == sources | {"pyproject.toml"}


def test_flower_reads_the_configuration_back(home):
    flat = Config.from_flat({"data-path": 'a "quoted" ü\\path', "learning-rate": 1e-5}).flat()
    home.prepare(app_folder(), flat)
    assert tomllib.loads(home.run_config.read_text(encoding="utf-8")) == flat
    connection = tomllib.loads((home.folder / "config.toml").read_text())["superlink"]
    assert connection[connection["default"]]["address"] == f"127.0.0.1:{home.port}"


def test_every_process_is_told_where_to_say_what_it_does(home):
    resources = Resources(clients=2, cpus_per_client=1, gpus_per_client=0, workers=1)
    assert home.environment(resources)[FOLDER_VARIABLE] == str(home.activity)
    assert home.activity.is_dir()
    assert home.activity.parent == home.folder


def test_two_homes_share_nothing(home):
    other = Home.create()
    assert {other.folder, other.ray_folder, other.port}.isdisjoint(
        {home.folder, home.ray_folder, home.port}
    )
    shutil.rmtree(other.folder)
    shutil.rmtree(other.ray_folder)


NASTY = {
    **{"ALL_PROXY": "socks5://127.0.0.1:1080", "all_proxy": "socks://127.0.0.1:7890/"},
    **{"HTTP_PROXY": "http://p:1", "https_proxy": "http://p:1", "grpc_proxy": "http://p:1"},
    **{"NO_PROXY": "localhost,[::1]", "no_proxy": "10.0.0.0/8,fd07:b51a:cc66:f0::/64"},
    **{"SSL_CERT_FILE": "/nowhere", "REQUESTS_CA_BUNDLE": "/nowhere", "SSLKEYLOGFILE": "/nowhere"},
    **{"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1", "NO_COLOR": "1"},
    **{"COLUMNS": "20", "TERM": "xterm-256color", "LANG": "de_DE", "LC_ALL": "C", "LC_CTYPE": "C"},
    **{"LANGUAGE": "de", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONWARNINGS": "error"},
    **{"PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1", "PYTHONSTARTUP": "x", "PYTHONSAFEPATH": "1"},
    **{"PYTHONDEVMODE": "1", "PYTHONBREAKPOINT": "x", "PYTHONASYNCIODEBUG": "1"},
    **{
        "RAY_ADDRESS": "auto",
        "RAY_TMPDIR": "/x",
        "RAY_RUNTIME_ENV_HOOK": "x",
        "RAY_LOG_TO_STDERR": "1",
    },
    **{"FLWR_HOME": "/x", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "1", "FLWR_LOG_LEVEL": "DEBUG"},
    **{"SLURM_JOB_ID": "1", "PMI_RANK": "0", "PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "0"},
    **{"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64", "OPENBLAS_NUM_THREADS": "64"},
    **{"GOMP_CPU_AFFINITY": "0", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    **{"MPLBACKEND": "module://nowhere", "BASH_ENV": "/x", "MOPS_TEST": "x"},
}
NEEDED = {
    **{"HOME": "/home/me", "USER": "me", "TZ": "UTC", "LD_PRELOAD": "libjemalloc.so"},
    **{"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_TF32_OVERRIDE": "0", "NCCL_DEBUG": "INFO"},
    **{"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
    **{"OPENBLAS_CORETYPE": "Haswell", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0"},
    **{"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    **{"HF_TOKEN": "secret", "HF_HOME": "/hf", "TRANSFORMERS_VERBOSITY": "error"},
    **{"TOKENIZERS_PARALLELISM": "false", "XDG_CACHE_HOME": "/cache", "TMPDIR": "/scratch"},
    **{"VIRTUAL_ENV": "/venv", "LD_LIBRARY_PATH": "/a:/b", "PYTHONPATH": "/c:/d"},
    **{"MOPS_FL_TEST_FAULT": "die"},
}


def test_the_environment_is_made_from_what_is_needed(home, monkeypatch):
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in {**NASTY, **NEEDED, "PATH": "/bin"}.items():
        monkeypatch.setenv(name, value)
    environment = home.environment(Resources(100, 2, 0, 4))
    assert {name: environment.get(name) for name in NEEDED} == NEEDED
    changed = {name for name in NASTY if environment.get(name) not in (None, NASTY[name])}
    assert {name for name in NASTY if name in environment} == changed
    assert changed == {
        *("NO_PROXY", "no_proxy", "LANG", "LC_ALL", "PYTHONUTF8", "FLWR_HOME", "RAY_ADDRESS"),
        *("RAY_TMPDIR", "OMP_NUM_THREADS"),
    }
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["MOPS_FL_WORKERS"] == "4"
    assert environment["RAY_ADDRESS"] == "local"
    first, second = environment["PATH"].split(os.pathsep)
    assert (Path(first) / "flower-superlink").is_file()
    assert second == "/bin"


def test_a_cluster_is_told_what_it_asks_for(home, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "RAY_USE_TLS" not in home.environment(Resources(100, 2, 0, 4))
    environment = home.environment(Resources(100, 2, 0, 4, "10.0.0.1:6379"))
    assert environment["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert (environment["RAY_USE_TLS"], environment["RAY_AUTH_TOKEN"]) == ("1", "secret")
    # how many processes share a machine of the cluster is not known here
    assert "MOPS_FL_WORKERS" not in environment


def test_folders_are_those_of_the_user_s_own_directory(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "hf")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", "/lib"]))
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setenv("MOPS_FL_CACHE", "cache")
    environment = home.environment(Resources(100, 2, 0, 4))
    assert environment["HF_HOME"] == str(tmp_path / "hf")
    assert environment["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "src"), "/lib"])
    assert environment["MOPS_FL_CACHE"] == str(tmp_path / "cache")
    assert "LD_LIBRARY_PATH" not in environment


def test_flower_s_http_client_can_be_made_in_it(home, monkeypatch):
    for name, value in NASTY.items():
        monkeypatch.setenv(name, value)
    code = (
        "import httpx, sys\n"
        "client = httpx.Client()\n"
        "direct = client._transport_for_url(httpx.URL('http://127.0.0.1:1')) is client._transport\n"
        "print(direct, sys.stdout.encoding, sys.flags.optimize, 'ü')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=home.environment(Resources(1, 1, 0, 1)),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "True utf-8 0 ü\n"


@pytest.mark.parametrize(("gpus", "expected"), [(0, 1), (0.25, 4), (0.3, 3), (1, 1), (2, 1)])
def test_clients_that_share_a_gpu(gpus, expected):
    assert Resources(100, 1, gpus, 8).workers_per_gpu == expected


@pytest.fixture
def folder_of():
    """Makes a folder whose path has so many bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:

        def make(length: int) -> Path:
            folder = Path(top) / ("d" * (length - len(top) - 1))
            folder.mkdir()
            return folder

        yield make


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_has_a_private_folder_with_room_for_its_sockets(
    monkeypatch, tmp_path, folder_of, variable
):
    long = tmp_path / ("ü" * 60)
    long.mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    for parent in (folder_of(25), folder_of(26), tmp_path / "missing", long):
        monkeypatch.setenv(variable, str(parent))
        created = Home.create()
        fits = len(os.fsencode(parent)) <= 25
        assert (created.ray_folder.parent == parent) == fits
        assert created.ray_folder.stat().st_mode & 0o777 == 0o700
        assert list(created.ray_folder.iterdir()) == []
        created.remove()
        if fits or parent == long:
            assert list(parent.iterdir()) == []


def test_no_place_for_sockets_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(home_module, "_ray_parents", lambda: [tmp_path / "no", tmp_path])
    monkeypatch.setattr(home_module, "_takes_sockets", lambda folder: False)
    with pytest.raises(RunError, match=r"no: No such file.*too long a path.*TMPDIR.*at most 25"):
        Home.create()
    assert list(tmp_path.iterdir()) == []


def test_federation_config():
    assert Resources(100, 2, 0.25, 4).federation_config == (
        "num-supernodes=100 client-resources-num-cpus=2 client-resources-num-gpus=0.25 "
        "init-args-num-cpus=8"
    )
    # Ray refuses to be told the resources of a cluster that exists.
    assert "init-args" not in Resources(100, 2, 0.25, 4, "10.0.0.1:6379").federation_config


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="MOPS_FL_CACHE names another"):
        Home.create()
