"""What a server lets other machines do, and what a node lets its server do."""

import asyncio
import importlib
import subprocess
import sys

import pytest

from mops_fl import client_app
from mops_fl.deploy import fenced_clientapp
from mops_fl.deploy.fenced_superlink import Fence
from mops_fl.deploy.folders import NodeFolder

FAR, HERE, SERVER = ("192.0.2.7", 5), ("127.0.0.1", 5), ("192.0.2.1", 8000)


def answer(path: str, client, kind: str = "http") -> int:
    """The status with which a request is answered; 200 where it gets through."""
    sent = []

    async def through(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "client": client, "server": SERVER, "method": "POST"}
    asyncio.run(Fence(through)(scope, None, send))
    return sent[0]["status"] if sent else 0


@pytest.mark.parametrize(
    ("path", "client", "status"),
    [
        ("/v1/fleet/pull-messages", FAR, 200),
        ("/v1/control/start-run", FAR, 403),
        ("/v1/control/register-node", FAR, 403),
        ("/v1/runtime/acquire-task", FAR, 403),
        ("/v1/fleet", FAR, 403),
        ("/docs", FAR, 403),
        ("/v1/control/start-run", None, 403),
        ("/v1/control/start-run", HERE, 200),
        ("/v1/control/start-run", ("::1", 5), 200),
        ("/v1/control/start-run", ("::ffff:127.0.0.1", 5), 200),
        ("/v1/control/start-run", ("::ffff:192.0.2.7", 5), 403),
        ("/v1/runtime/acquire-task", (SERVER[0], 5), 200),
    ],
)
def test_other_machines_reach_what_supernodes_need(path, client, status):
    assert answer(path, client) == status


def test_other_machines_open_no_websocket():
    assert answer("/v1/fleet/x", FAR, "websocket") == 0


def test_the_paths_are_flowers():
    """Every path of the SuperLink that is let through is a SuperNode's."""
    router = importlib.import_module("flwr.superlink.routers.fleet.router").router
    control = importlib.import_module("flwr.superlink.routers.control.router").router
    assert all(answer(route.path, FAR) == 200 for route in router.routes)
    assert all(answer(route.path, FAR) == 403 for route in control.routes)
    assert router.routes
    assert control.routes


def test_the_installed_app_answers_whatever_a_run_came_with():
    assert fenced_clientapp.installed_app("publisher/evil", "1.0", "0" * 64) is client_app.app
    # what is replaced is what Flower uses
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    assert {"install_from_fab", "get_load_client_app_fn"} <= set(
        runtime.run_clientapp.__code__.co_names
    )


def test_a_supernode_finds_our_commands_first_and_no_other_kind_of_task_runs(tmp_path):
    node = NodeFolder(tmp_path / "node")
    node.make()
    assert node.environment()["PATH"].startswith(str(node.commands))
    for name in ("flwr-agentapp", "flwr-serverapp", "flwr-model"):
        done = subprocess.run(
            [node.commands / name, "--token", "x"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"{name} is refused" in done.stderr
    asked = subprocess.run(
        [node.commands / "flwr-clientapp", "--help"], capture_output=True, text=True, check=False
    )
    assert "Run a Flower ClientApp" in asked.stdout
    assert sys.executable in (node.commands / "flwr-clientapp").read_text()
