"""`mops-fl serve`: what a run has trained, behind OpenAI's interface."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.errors import ConfigError

if TYPE_CHECKING:
    from mops_fl.generation.answerer import Answering
    from mops_fl.generation.trained import Wanted


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run, or an exported folder.")],
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
        from mops_fl.generation.chat_completions import chat_app
        from mops_fl.generation.desk import Desk

        with showing("reading the model", console):
            wanted = options.wanted(server_round, client, model, dtype, device)
            label, answering = _answering(run, wanted)
            _ = answering.model, answering.tokenizer
        name, desk = run.resolve().name, Desk(answering)
        console.print(f"{label}: model {name} at {http_server.address(held)}/v1; Ctrl-C ends")
        http_server.serve_until_told(chat_app(desk, name, answering.experts), desk, held)


def _answering(folder: Path, wanted: "Wanted") -> "tuple[str, Answering]":
    """What answers, and what it is called.

    Raises:
        ConfigError: an exported folder has one round and one model.
    """
    from mops_fl.export.loaded import Exported, is_exported
    from mops_fl.generation.answerer import Answerer
    from mops_fl.generation.trained import Trained

    if not is_exported(folder):
        trained = Trained.read(folder, wanted)
        return f"{trained.run.label}, round {trained.server_round}", Answerer(trained)
    if wanted.server_round is not None or wanted.client is not None or wanted.model:
        raise ConfigError(
            f"{folder} is exported: --round, --client and --model are for run folders"
        )
    return folder.resolve().name, Exported(folder, dtype=wanted.dtype, device=wanted.device)


def _check_installed() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`mops-fl serve` needs {' and '.join(missing)}: pip install 'mops-fl[serve]'"
        )
