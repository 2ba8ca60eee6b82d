"""`mops-fl generate`: ask what a run has trained."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.errors import ConfigError, DataError, MopsError

if TYPE_CHECKING:
    from mops_fl.data import Example
    from mops_fl.generation.answerer import Answerer, Sampling
    from mops_fl.generation.trained import Trained


def generate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    prompt: Annotated[str | None, typer.Option(help="A question.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Questions, one a line: text, or JSON with instruction and context."),
    ] = None,
    context: Annotated[str, typer.Option(help="What the question of --prompt speaks of.")] = "",
    compare: Annotated[
        bool, typer.Option("--compare", help="The base model's answer, too.")
    ] = False,
    server_round: options.TrainedRound = None,
    client: options.TrainedClient = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the most likely tokens.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="With a temperature.")] = 0,
    model: options.BaseModel = "",
    dtype: options.Dtype = "",
    device: options.Device = "",
) -> None:
    """Answer questions with the prompts and the gate of a run, on its compressed model.

    Several runs, and the base model with --compare, answer each question one after the other.
    Without --prompt and --file, questions are read from the terminal, each by itself.
    """
    if prompt is not None and file is not None:
        raise ConfigError("--prompt and --file are both given: give one of them")
    if context and prompt is None:
        raise ConfigError("--context goes with --prompt")
    from mops_fl.generation.answerer import Sampling
    from mops_fl.generation.trained import Trained

    wanted = options.wanted(server_round, client, model, dtype, device)
    with showing("reading the model", console):
        read = [Trained.read(run, wanted) for run in runs]
        answerers = _answerers(read, compare)
        for answerer in answerers.values():
            _ = answerer.model
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    asked = _asked(prompt, context, file)
    for number, question in enumerate(asked):
        if number or prompt is None:
            console.print()
        if file is not None:
            console.print(question.instruction, style="bold")
        _ask(answerers, question, sampling, interactive=prompt is None and file is None)


def _answerers(read: "Sequence[Trained]", compare: bool) -> "dict[str, Answerer]":
    """What answers, by what it is called."""
    from mops_fl.generation.answerer import Answerer
    from mops_fl.generation.entrants import bases, names

    named = {n: Answerer(base) for n, base in bases(read).items()} if compare else {}
    for name, trained in zip(names(read), read, strict=True):
        named[f"{name}, round {trained.server_round}"] = Answerer(trained)
    return named


def _asked(prompt: str | None, context: str, file: Path | None) -> "Iterator[Example]":
    """The questions.

    Raises:
        DataError: there is none, or the file cannot be read.
    """
    if prompt is not None:
        yield _question("--prompt", prompt, context)
    elif file is not None:
        yield from _of_file(file)
    else:
        yield from _typed()


def _question(where: str, instruction: object, context: object) -> "Example":
    """A question as a row of data would have it.

    Raises:
        DataError: it is no text, or empty.
    """
    from mops_fl.data import Example
    from mops_fl.data.examples import UnusableError, text_of

    try:
        texts = text_of("instruction", instruction), text_of("context", context)
    except UnusableError as error:
        raise DataError(f"{where}: {error}") from error
    if not texts[0]:
        raise DataError(f"{where} is empty: ask something")
    return Example(*texts, answer="", task="")


def _of_file(file: Path) -> "Iterator[Example]":
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"--file {file}: {error}") from error
    if not any(line.strip() for line in lines):
        raise DataError(f"--file {file} has no question")
    for number, line in enumerate(lines, 1):
        where = f"--file {file}, line {number}"
        if not line.lstrip().startswith("{"):
            if line.strip():
                yield _question(where, line, "")
            continue
        try:
            row = json.loads(line)
            instruction, context = row["instruction"], row.get("context")
        except (ValueError, KeyError) as error:
            raise DataError(f"{where}: no JSON with an instruction") from error
        yield _question(where, instruction, context)


def _typed() -> "Iterator[Example]":
    """Lines of the terminal, until it ends."""
    console.print("a question a line; Ctrl-D ends", style="dim")
    while True:
        try:
            line = console.input("> ")
        except EOFError:
            console.print()
            return
        if line.strip():
            yield _question("the question", line, "")


def _ask(
    answerers: "dict[str, Answerer]",
    question: "Example",
    sampling: "Sampling",
    *,
    interactive: bool,
) -> None:
    """Print the weights of the experts and the answer of each, as it comes."""
    from transformers import TextStreamer

    from mops_fl.generation.answerer import DECODED

    for name, answerer in answerers.items():
        try:
            ids = answerer.ids(question)
        except MopsError as error:
            if not interactive:
                raise
            console.print(str(error), style="red")
            return
        if len(answerers) > 1:
            console.print(name, style="bold cyan")
        if weights := answerer.gate(ids):
            console.print(_weights(answerer, weights), style="dim")
        streamer = TextStreamer(answerer.tokenizer, skip_prompt=True, **DECODED)
        answerer.answer(ids, sampling, streamer)


def _weights(answerer: "Answerer", weights: Sequence[float]) -> str:
    """The experts from the heaviest on."""
    experts = answerer.experts
    order = sorted(range(len(weights)), key=lambda expert: -weights[expert])
    return "experts: " + ", ".join(f"{experts[e]} {weights[e]:.2f}" for e in order)
