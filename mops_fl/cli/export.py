"""`mops-fl export`: hand on what a run has trained."""

from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.files import absolute


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    server_round: options.TrainedRound = None,
    client: options.TrainedClient = None,
    model: options.BaseModel = "",
    dtype: options.Dtype = "",
) -> None:
    """Write a folder that transformers or peft load, with a model card.

    mops, and prompts at a middle layer: the whole model, for `MopsForCausalLM`. lora, ia3, and
    prompts at the input layer: an adapter of peft, and its base model beside it.
    """
    from mops_fl.export.card import FORMATS
    from mops_fl.export.model_folder import export as write
    from mops_fl.generation.trained import Trained

    wanted = options.wanted(server_round, client, model, dtype, "cpu")
    with showing("writing the model", console):
        kind = write(Trained.read(run, wanted), absolute(out))
    console.print(f"{absolute(out)} is {FORMATS[kind]}; its README.md says how to load it")
