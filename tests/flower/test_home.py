"""What Flower is given: the app, the configuration, the environment."""

import io
import os
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from mops_fl.activity import FOLDER_VARIABLE
from mops_fl.config import Config, app_folder
from mops_fl.errors import RunError
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


def test_the_environment(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    environment = home.environment(Resources(100, 2, 0, 4))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["RAY_ADDRESS"] == "local"
    there = Resources(100, 2, 0, 4, "10.0.0.1:6379")
    assert home.environment(there)["RAY_ADDRESS"] == "10.0.0.1:6379"
    first = environment["PATH"].split(os.pathsep)[0]
    assert (Path(first) / "flower-superlink").is_file()


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
