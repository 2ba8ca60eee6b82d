"""`mops-fl deploy`: a federation of real machines, on Flower's SuperLink and SuperNodes."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mops_fl.cli import options
from mops_fl.cli.ending import tell_result
from mops_fl.cli.progress import showing, watching
from mops_fl.cli.run import (
    RunFailedError,
    completed,
    console,
    default_name,
    placed,
    resumed,
    say_data,
)
from mops_fl.config import Config, Scalar
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import absolute

if TYPE_CHECKING:
    from mops_fl.deploy.folders import ServerFolder
    from mops_fl.deploy.submit import Submission

app = typer.Typer(
    help="A federation of real machines: its server, its nodes and its runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ServerDir = Annotated[Path, typer.Option("--dir", help="Folder of the federation's server.")]
Systemd = Annotated[
    bool, typer.Option("--systemd", help="Print a systemd unit that runs this, instead of it.")
]
FEDERATION = Path("federation")


@app.command()
def certs(
    host: Annotated[str, typer.Option(metavar="NAME[,IP…]", help="As nodes will call the server.")],
    folder: ServerDir = FEDERATION,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new server certificate of the CA that is there.")
    ] = False,
) -> None:
    """Make the federation's CA and its server's certificate."""
    from mops_fl.deploy.folders import server_folder

    server = server_folder(folder)
    hosts = [name.strip() for name in host.split(",") if name.strip()]
    if not hosts:
        raise ConfigError("--host is empty: name the server as nodes will call it")
    server.make(hosts, renew=renew)
    console.print(f"{server.certificate} is valid for {', '.join(hosts)} and this machine itself")
    if not renew:
        console.print(f"{server.authority} goes to every node; {server.authority_key} to nobody")


@app.command()
def server(
    folder: ServerDir = FEDERATION,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Which of this machine's addresses.")
    ] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    systemd: Systemd = False,
) -> None:
    """Run the server in the foreground: TLS, only registered nodes, state in a database."""
    from mops_fl.deploy.edge import check_port
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    place.check()
    if systemd:
        ours = ["deploy", "server", "--dir", str(place.folder), "--listen", listen]
        _print_unit("MoPs-FL server", [*ours, "--port", str(port)], place.folder)
        return
    check_port(listen, port)
    place.connect(listen, port)
    command = [
        *(sys.executable, "-P", "-m", "mops_fl.deploy.fenced_superlink"),
        *("--ssl-ca-certfile", str(place.authority), "--ssl-certfile", str(place.certificate)),
        *("--ssl-keyfile", str(place.key), "--enable-supernode-auth"),
        *("--database", str(place.database), "--isolation", "subprocess"),
        *("--host", listen, "--port", str(port)),
    ]
    environment = place.environment()
    _say_command(command, {"FLWR_HOME": environment["FLWR_HOME"]})
    _become(command, environment, place.work)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="What the node is to be called.")],
    public_key: Annotated[
        str, typer.Option(metavar="FILE", help="What the node made itself; - for standard input.")
    ] = "",
    folder: ServerDir = FEDERATION,
) -> None:
    """Let a node in. Without --public-key a pair of keys is made here, and one must travel."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    content = _read_key(public_key) if public_key else None
    _say_flwr(place, ["supernode", "register", str(place.keys / f"{name}.pub")], ["--name", name])
    number = members.register(place, name, content, public_key)
    partition = len(place.noted("nodes")) - 1
    console.print(f"{name} is node {number}; a partition that is not taken yet: {partition}")
    if content is None:
        console.print(f"carry {place.keys / name} to the node on a safe way, and delete it here")


@app.command()
def unregister(
    name: Annotated[str, typer.Argument(help="Of the node.")], folder: ServerDir = FEDERATION
) -> None:
    """Shut a node out: its key is refused from now on."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    number = place.noted("nodes").get(name, name)
    _say_flwr(place, ["supernode", "unregister", number])
    members.unregister(place, name)


@app.command()
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
    systemd: Systemd = False,
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
        _print_unit("MoPs-FL node", [*words, *named], place.folder, reads)
        return
    with showing("reading data and model", console):
        console.print(f"data: {load_once(node.configured({}), own_data=node.own_data)}")
    if reason := check_server(server, edge.authority):
        console.print(f"{server} does not answer yet ({reason}): waiting for it")
    environment = place.environment()
    shown = {"FLWR_HOME": environment["FLWR_HOME"], "PATH": f"{place.commands}:$PATH"}
    _say_command(edge.command, shown)
    supervisor = [sys.executable, "-P", "-m", "mops_fl.deploy.supervise", str(place.folder)]
    _become([*supervisor, *edge.command], environment, place.work)


@app.command()
def run(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: Annotated[
        int | None, typer.Option(help="Nodes (num-clients).", show_default="those online")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Carry on after the last whole round.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it to the server; see status and stop.")
    ] = False,
    folder: ServerDir = FEDERATION,
) -> None:
    """Train on the federation's nodes; leaves a run folder in the server's folder."""
    from mops_fl.deploy.folders import server_folder
    from mops_fl.deploy.submit import staged

    place = server_folder(folder)
    if resume is None:
        given = options.read_values(config_file, clients, values)
        config = Config.from_flat(_suited(given, place))
        config = placed(config, place.runs, name or default_name(config))
    else:
        if config_file or name or clients is not None:
            raise ConfigError("--resume takes the run's own configuration: give no other values")
        config = resumed(resume, values or ())
    _check_server_rows(config)
    with staged(place, config.flat(), *(() if detach else ("--stream",))) as submission:
        _say_command(submission.command, {"FLWR_HOME": str(place.flwr_home)})
        _submit(submission, detach=detach)


def _submit(submission: "Submission", *, detach: bool) -> None:
    from mops_fl.deploy.submit import follow, hand_over

    run_dir = submission.run_dir
    if detach:
        run_id = hand_over(submission)
        console.print(f"run {run_id} goes on; its folder: {run_dir}")
        return
    try:
        with watching(run_dir, console) as watch:
            outcome = follow(submission, watch)
    except RunError as error:
        raise RunFailedError(f"{run_dir.name} failed: {error}") from error
    tell_result(completed(run_dir, outcome))


@app.command()
def status(folder: ServerDir = FEDERATION) -> None:
    """Show the federation's nodes and runs."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder
    from mops_fl.deploy.submit import settle_ended

    place = server_folder(folder)
    _say_flwr(place, ["supernode", "list"])
    found = members.members(place)
    nodes = Table("node", "id", "status", "last seen (UTC)", title="nodes", box=None)
    for member in found:
        nodes.add_row(member.name, member.node, member.status, member.seen)
    _say_flwr(place, ["list"])
    runs = Table("run", "status", "seconds", title="runs", box=None)
    runs.add_column("folder", overflow="fold")
    known = members.submitted(place)
    for each in known:
        runs.add_row(each.run_id, each.status, f"{each.seconds:.0f}", each.folder)
    settle_ended(place, {each.run_id: each.status for each in known})
    console.print(nodes)
    console.print(runs)


@app.command()
def stop(
    run_id: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Its id.", show_default="all that run")
    ] = "",
    folder: ServerDir = FEDERATION,
) -> None:
    """Stop a run; its folder can be resumed."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder
    from mops_fl.deploy.submit import stop as stop_run

    place = server_folder(folder)
    running = [run.run_id for run in members.submitted(place) if not run.over]
    if run_id and run_id not in running:
        raise ConfigError(f"no run {run_id} goes on: {', '.join(running) or 'none does'}")
    if not running:
        console.print("no run goes on")
    for each in [run_id] if run_id else running:
        _say_flwr(place, ["stop", each])
        stop_run(place, each)


def _suited(flat: Mapping[str, Scalar], place: "ServerFolder") -> dict[str, Scalar]:
    """A configuration with what suits nodes that hold rows of their own, where nothing was said."""
    from mops_fl.deploy.members import members

    found = dict(flat)
    if "num-clients" not in found:
        found["num-clients"] = sum(node.status == "online" for node in members(place))
        if not found["num-clients"]:
            raise RunError(
                "no node is online (mops-fl deploy status shows them): start one with mops-fl "
                "deploy client, or say with --clients how many are to come"
            )
    found.setdefault("active-clients", min(10, int(found["num-clients"])))
    if server_data := found.get("server-data"):
        found.setdefault("dataset", "jsonl")
        found.setdefault("data-path", server_data)
    else:
        found.setdefault("pretrain-data", "own")
    return found


def _check_server_rows(config: Config) -> None:
    """Have the rows and the model here that the server pretrains on, before anything starts."""
    from mops_fl.data import load_server_data

    if config.data.server_data:
        with showing("checking the server's data and model", console):
            from mops_fl.models.weights import check_backbone

            say_data(load_server_data(config.data, config.seed))
            check_backbone(replace(config, backbone=replace(config.backbone, device="cpu")))


def _new_key(path: Path) -> None:
    from mops_fl.deploy.keys import make_key

    public = make_key(path)
    console.print(
        f"made {path}, which stays here; the server lets this node in after\n"
        f"  mops-fl deploy register NAME --public-key {public.name}\n{public.read_text().strip()}"
    )


def _read_key(where: str) -> bytes:
    if where == "-":
        return sys.stdin.buffer.read()
    try:
        return absolute(where).read_bytes()
    except OSError as error:
        raise ConfigError(f"--public-key {where} cannot be read: {error.strerror}") from error


def _places(flat: Mapping[str, Scalar]) -> list[Path]:
    """Weights and data of a node that lie on its disk."""
    found = (flat.get(key) for key in ("data-path", "model", "calibration-path"))
    return [Path(path) for path in found if isinstance(path, str) and Path(path).is_absolute()]


def _toml_word(value: Scalar) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _say_flwr(place: "ServerFolder", words: Sequence[str], more: Sequence[str] = ()) -> None:
    from mops_fl.deploy.folders import CONNECTION

    _say_command(["flwr", *words, CONNECTION, *more], {"FLWR_HOME": str(place.flwr_home)})


def _say_command(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Print a command as it can be typed."""
    settings = [
        f'{name}="{value}"' if "$" in value else f"{name}={shlex.quote(value)}"
        for name, value in environment.items()
    ]
    console.print("$ " + " ".join([*settings, shlex.join(command)]), style="dim")


def _print_unit(
    description: str, words: Sequence[str], state: Path, reads: Sequence[Path] = ()
) -> None:
    from mops_fl.deploy.units import Unit

    ours = str(Path(sys.executable).with_name("mops-fl"))
    print(Unit(description, [ours, *words], state, reads), end="")


def _become(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Let the command take the place of this process."""
    sys.stdout.flush()
    os.chdir(folder)
    os.execvpe(command[0], list(command), dict(environment))
