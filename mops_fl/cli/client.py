"""`mops-fl deploy client`: a node of a federation."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.cli.shell import become, print_unit, say_command
from mops_fl.config import Scalar
from mops_fl.files import absolute


def client(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")],
    ca: Annotated[Path, typer.Option(help="The federation's ca.crt.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="The node's own rows.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The node's copy: folder, GGUF file, hub id or embedded.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The node's private key; made where it is missing.", show_default="…"),
    ] = None,
    partition: Annotated[
        int | None, typer.Option(min=0, help="The node's number, from 0; no other node's.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("-n", "--node-value", metavar="KEY=VALUE", help="One key; repeatable."),
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="NODE.toml", help="The node's keys.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the node.")] = Path("node"),
    port: Annotated[
        int, typer.Option(max=65535, help="Of 127.0.0.1, for the node's own processes; 0: any.")
    ] = 0,
    systemd: options.Systemd = False,
) -> None:
    """Run a node in the foreground: it waits for its server, and for being let in."""
    from mops_fl.deploy.edge import Edge, check_edge, check_server, load_once, node_flat
    from mops_fl.deploy.folders import node_folder
    from mops_fl.flower.home import free_port

    place = node_folder(folder)
    secret = absolute(key) if key else place.folder / "node.key"
    flat = node_flat(config_file, values or (), data, model, partition)
    edge = Edge(server, absolute(ca), secret, flat, port or free_port())
    place.make()
    if not secret.exists():
        _new_key(secret)
    node = check_edge(edge)
    if systemd:
        edge_words = ["--server", server, "--ca", str(edge.authority), "--key", str(secret)]
        words = ["deploy", "client", *edge_words, "--dir", str(place.folder), "--port", str(port)]
        named = [f"-n{name}={_toml_word(value)}" for name, value in flat.items()]
        reads = [edge.authority, secret, *_places(flat)]
        print_unit("MoPs-FL node", [*words, *named], place.folder, reads)
        return
    with showing("reading data and model", console):
        console.print(f"data: {load_once(node.configured({}), own_data=node.own_data)}")
    if reason := check_server(server, edge.authority):
        console.print(f"{server} does not answer yet ({reason}): waiting for it")
    environment = place.environment()
    shown = {"FLWR_HOME": environment["FLWR_HOME"], "PATH": f"{place.commands}:$PATH"}
    say_command(edge.command, shown)
    supervisor = [sys.executable, "-P", "-m", "mops_fl.deploy.supervise", str(place.folder)]
    become([*supervisor, *edge.command], environment, place.work)


def _new_key(path: Path) -> None:
    from mops_fl.deploy.keys import make_key

    public = make_key(path)
    console.print(
        f"made {path}, which stays here; the server lets this node in after\n"
        f"  mops-fl deploy register NAME --public-key {public.name}\n{public.read_text().strip()}"
    )


def _places(flat: Mapping[str, Scalar]) -> list[Path]:
    """Weights and data of a node that lie on its disk."""
    found = (flat.get(key) for key in ("data-path", "model", "calibration-path"))
    return [Path(path) for path in found if isinstance(path, str) and Path(path).is_absolute()]


def _toml_word(value: Scalar) -> str:
    return value if isinstance(value, str) else str(value).lower()
