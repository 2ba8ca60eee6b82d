"""`mops-fl evaluate`: how good the answers of runs are to the rows that they never trained on."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mops_fl.cli import answer_tables, options
from mops_fl.cli.progress import showing
from mops_fl.cli.run import console
from mops_fl.errors import ConfigError
from mops_fl.files import replacing

if TYPE_CHECKING:
    from mops_fl.generation.entrants import Entrant
    from mops_fl.generation.quality import Answer, Score


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="The base model's answers, too.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="A sample by the run's seed.", show_default="all")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows of your own, in place of those that the run held out."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json|csv", help="Every answer, as a file.")
    ] = None,
    server_round: options.TrainedRound = None,
    client: Annotated[
        int | None,
        typer.Option(min=0, help="Its rows alone, with its tensors where clients have their own."),
    ] = None,
    model: options.BaseModel = "",
    dtype: options.Dtype = "",
    device: options.Device = "",
) -> None:
    """Measure the answers of runs to their held-out rows: ROUGE-L, and exact match of labels.

    Several runs, and the base model with --compare, answer the same rows, greedily.
    """
    _check_out(out)
    from mops_fl.generation.answerer import Sampling
    from mops_fl.generation.entrants import entrants
    from mops_fl.generation.quality import answered, check_installed, scores

    check_installed()
    wanted = options.wanted(server_round, client, model, dtype, device)
    with showing("reading the rows", console):
        found = entrants(runs, wanted, data=data, sample=rows, compare=compare)
    console.print(_about(found[0], max_new_tokens))
    answers: list[Answer] = []
    with showing("answering", console):
        for entrant in found:
            answers += answered(entrant, Sampling(max_new_tokens))
    reached = scores(answers)
    for table in answer_tables.tables(answers, reached):
        console.print(table)
    if out is not None:
        _write(out, _facts(found, max_new_tokens), answers, reached)
        console.print(str(out.resolve()))


def _check_out(out: Path | None) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        ConfigError: it could not.
        RunError: its folder cannot be made or written.
    """
    if out is None:
        return
    if out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out {out}: name a file that ends in .json or .csv")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: name a file in it")
    probe = out.with_name(f".{out.name}.probe")
    with replacing(probe):
        pass
    probe.unlink()


def _about(entrant: "Entrant", max_new_tokens: int) -> str:
    """What is asked, in one line."""
    rows = entrant.held_out.rows
    clients = len({row.client for row in rows})
    whose = f"held-out rows of {clients:,} clients" if rows[0].client is not None else "own rows"
    return f"{len(rows):,} {whose}; answers of up to {max_new_tokens} tokens"


def _facts(found: "Sequence[Entrant]", max_new_tokens: int) -> dict[str, Any]:
    """What the answers stand on, for a file of them."""
    return {
        "max_new_tokens": max_new_tokens,
        "data_digest": found[0].held_out.corpus.digest,
        "seed": found[0].trained.config.seed,
        "models": [
            {
                "model": entrant.name,
                "run": entrant.trained.run.name,
                "method": entrant.trained.config.method,
                "round": entrant.trained.server_round,
                "dtype": entrant.trained.config.backbone.dtype,
                "compression": entrant.trained.config.backbone.compression,
                "model_digest": entrant.trained.facts.digest,
            }
            for entrant in found
        ],
    }


def _write(
    out: Path, facts: dict[str, Any], answers: "Sequence[Answer]", reached: "Sequence[Score]"
) -> None:
    """Answers, a line each; in JSON also what they stand on, and the scores.

    Raises:
        RunError: it cannot be written.
    """
    lines = [asdict(answer) for answer in answers]
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if out.suffix == ".csv":
            writer = csv.DictWriter(file, fieldnames=[*lines[0]])
            writer.writeheader()
            writer.writerows(lines)
        else:
            known = [{k: _known(v) for k, v in asdict(score).items()} for score in reached]
            content = {**facts, "scores": known, "answers": lines}
            file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _known(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
