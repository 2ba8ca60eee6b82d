"""Images and compose file, held against the command line and the tree."""

import re
from pathlib import Path, PurePosixPath

import pytest
import typer
import yaml

from mops_fl.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
SERVICES = COMPOSE["services"]
CLIENTS = [name for name in SERVICES if name != "server"]


def options_of(words: list[str]) -> dict[str, str]:
    """The options of a command, each one that the command line has."""
    command = typer.main.get_command(app).commands[words[0]].commands[words[1]]
    known = {text for option in command.params for text in option.opts}
    flat = [part for word in words[2:] for part in word.split("=", 1)]
    given = dict(zip(flat[::2], flat[1::2], strict=True))
    assert given.keys() <= known
    return given


def mounts(service: dict) -> dict[str, tuple[str, str]]:
    """Place inside to place outside and mode."""
    parts = [volume.split(":") for volume in service["volumes"]]
    return {inside: (outside, *(mode or ["rw"])) for outside, inside, *mode in parts}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_of_compose_is_started_with_what_is_mounted(name):
    service = SERVICES[name]
    given, mounted = options_of(service["command"]), mounts(service)
    for option in ("--ca", "--data", "--model"):
        assert mounted[given[option]][1] == "ro"
    for option in ("--key", "--dir"):
        place = PurePosixPath(given[option])
        assert mounted[str(place if option == "--dir" else place.parent)][0] == name
    host, port = given["--server"].split(":")
    assert options_of(SERVICES[host]["command"])["--port"] == port
    assert f"127.0.0.1', {given['--port']})" in DOCKERFILE


def test_clients_share_no_volume_and_no_number():
    numbers = [options_of(SERVICES[name]["command"])["--partition"] for name in CLIENTS]
    assert sorted(numbers) == ["0", "1", "2"]
    own = {outside for name in CLIENTS for outside, mode in mounts(SERVICES[name]).values()}
    assert own & COMPOSE["volumes"].keys() == set(CLIENTS)
    assert set(COMPOSE["volumes"]) == {"federation", *CLIENTS}


def test_every_service_is_hardened_and_built_from_a_target_that_is_there():
    targets = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE))
    for service in SERVICES.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        build = service["build"]
        assert build["target"] in targets
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).is_file()
        assert build["args"].keys() <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_the_images_have_what_they_copy_and_do_not_run_as_root():
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    user = DOCKERFILE.index("\nUSER 10001")
    assert user < DOCKERFILE.index("FROM base AS server")
    assert "USER root" not in DOCKERFILE
    assert DOCKERFILE.count("HEALTHCHECK") == 2


def test_the_ignored_files_are_not_those_that_are_copied():
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = {
        word.rstrip("/")
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    }
    assert not copied & set(ignored)
