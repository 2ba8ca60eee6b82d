"""`mops-fl serve`: what a run has trained, behind OpenAI's interface."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.errors import ConfigError


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8080,
    server_round: options.TrainedRound = None,
    client: options.TrainedClient = None,
    model: options.BaseModel = "",
    dtype: options.Dtype = "",
    device: options.Device = "",
) -> None:
    """Answer over HTTP, as OpenAI's chat completions do, with what a run has trained.

    Streams, too. Every answer tells the weights of the experts. Ctrl-C ends it.
    """
    _check_installed()
    from mops_fl.generation import http_server

    with http_server.listening(host, port) as held:
        if not http_server.is_loopback(host):
            console.print(
                f"warning: --host {host}: there is no authentication, whoever reaches port {port} "
                "may ask",
                style="bold yellow",
            )
        from mops_fl.generation.answerer import Answerer
        from mops_fl.generation.chat_completions import chat_app
        from mops_fl.generation.desk import Desk
        from mops_fl.generation.trained import Trained

        with showing("reading the model", console):
            trained = Trained.read(run, options.wanted(server_round, client, model, dtype, device))
            answerer = Answerer(trained)
            _ = answerer.model
        name, desk = trained.run.name, Desk(answerer)
        console.print(
            f"{trained.run.label}, round {trained.server_round}: model {name} at "
            f"{http_server.address(held)}/v1; Ctrl-C ends"
        )
        http_server.serve_until_told(chat_app(desk, name, trained.experts), desk, held)


def _check_installed() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`mops-fl serve` needs {' and '.join(missing)}: pip install 'mops-fl[serve]'"
        )
