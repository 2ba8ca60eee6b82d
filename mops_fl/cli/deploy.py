"""`mops-fl deploy`: a federation of real machines, on Flower's SuperLink and SuperNodes."""

import sys
from typing import Annotated

import typer
from rich.table import Table

from mops_fl.cli import options
from mops_fl.cli.client import client
from mops_fl.cli.deploy_run import run
from mops_fl.cli.run import console
from mops_fl.cli.shell import become, print_unit, say_command, say_flwr
from mops_fl.errors import ConfigError
from mops_fl.files import absolute

app = typer.Typer(
    help="A federation of real machines: its server, its nodes and its runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def certs(
    host: Annotated[str, typer.Option(metavar="NAME[,IP…]", help="As nodes will call the server.")],
    folder: options.ServerDir = options.FEDERATION,
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
    folder: options.ServerDir = options.FEDERATION,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Which of this machine's addresses.")
    ] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    systemd: options.Systemd = False,
) -> None:
    """Run the server in the foreground: TLS, only registered nodes, state in a database."""
    from mops_fl.deploy.edge import check_port
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    place.check()
    if systemd:
        ours = ["deploy", "server", "--dir", str(place.folder), "--listen", listen]
        print_unit("MoPs-FL server", [*ours, "--port", str(port)], place.folder)
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
    say_command(command, {"FLWR_HOME": environment["FLWR_HOME"]})
    become(command, environment, place.work)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="What the node is to be called.")],
    public_key: Annotated[
        str, typer.Option(metavar="FILE", help="What the node made itself; - for standard input.")
    ] = "",
    folder: options.ServerDir = options.FEDERATION,
) -> None:
    """Let a node in. Without --public-key a pair of keys is made here, and one must travel."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    content = _read_key(public_key) if public_key else None
    say_flwr(place, ["supernode", "register", str(place.keys / f"{name}.pub")], ["--name", name])
    number = members.register(place, name, content, public_key)
    partition = len(place.noted("nodes")) - 1
    console.print(f"{name} is node {number}; a partition that is not taken yet: {partition}")
    if content is None:
        console.print(f"carry {place.keys / name} to the node on a safe way, and delete it here")


@app.command()
def unregister(
    name: Annotated[str, typer.Argument(help="Of the node.")],
    folder: options.ServerDir = options.FEDERATION,
) -> None:
    """Shut a node out: its key is refused from now on."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder

    place = server_folder(folder)
    number = place.noted("nodes").get(name, name)
    say_flwr(place, ["supernode", "unregister", number])
    members.unregister(place, name)


app.command()(client)
app.command()(run)


@app.command()
def status(folder: options.ServerDir = options.FEDERATION) -> None:
    """Show the federation's nodes and runs."""
    from mops_fl.deploy import members
    from mops_fl.deploy.folders import server_folder
    from mops_fl.deploy.submit import settle_ended

    place = server_folder(folder)
    say_flwr(place, ["supernode", "list"])
    found = members.members(place)
    nodes = Table("node", "id", "status", "last seen (UTC)", title="nodes", box=None)
    for member in found:
        nodes.add_row(member.name, member.node, member.status, member.seen)
    say_flwr(place, ["list"])
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
    folder: options.ServerDir = options.FEDERATION,
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
        say_flwr(place, ["stop", each])
        stop_run(place, each)


def _read_key(where: str) -> bytes:
    if where == "-":
        return sys.stdin.buffer.read()
    try:
        return absolute(where).read_bytes()
    except OSError as error:
        raise ConfigError(f"--public-key {where} cannot be read: {error.strerror}") from error
