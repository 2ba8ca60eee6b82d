"""Perplexity of the untouched base model against compression, on answer tokens, without prompts.

    python experiments/compression.py measure results/compression.csv \
        --dolly dolly-15k.jsonl --superni super-natural-instructions
    python experiments/compression.py plot results/compression.csv results/compression.png

`measure` writes one row for each dataset, seed and compression, and skips those that are there;
SparseGPT is calibrated on other rows of the same dataset. `plot` reads the CSV only.
"""

import gc
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console

from mops_fl.cli.progress import showing
from mops_fl.compression_spec import Compression, parse
from mops_fl.config import Config, DataConfig
from mops_fl.data import Tokenised, load_corpus, tokenise
from mops_fl.errors import ConfigError, DataError, MopsError, RunError
from mops_fl.files import write_text
from mops_fl.run.folder import Kind, csv_line, read_table
from mops_fl.seeding import numpy_generator

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from mops_fl.compression.calibration import Calibration

COMPRESSIONS = (
    "none,int8,nf4,unstructured-50,unstructured-75,unstructured-85,unstructured-90,"
    "2:4,4:8,3:4,7:8,2:4+nf4"
)
SETTINGS: dict[str, Kind] = {
    **{"model": str, "base": str, "dtype": str, "device": str, "dataset": str, "tasks": str},
    **{"data": str, "seed": int, "samples": int, "max_length": int, "rows": int},
    **{"compression": str},
}
"""What a measurement is of; two with the same settings are one.

`base` and `data` begin the digests of the model and of the dataset; empty where they are not known.
"""
COLUMNS = {**SETTINGS, "sparsity": float, "nll": float, "tokens": int, "perplexity": float}
ONE_A_FILE = ["model", "base", "dtype", "device", "samples", "max_length", "rows"]
ONE_A_DATASET = ["tasks", "data"]
DIGITS = 12
"""Of a digest."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Setting:
    """The base model and how it is measured."""

    model: str
    dtype: str
    device: str
    samples: int
    max_length: int
    rows: int


@app.command()
def measure(
    out: Annotated[Path, typer.Argument(metavar="RESULTS.csv")],
    dolly: Annotated[str, typer.Option(help="JSONL with Dolly's schema.")] = "",
    superni: Annotated[str, typer.Option(help="Folder of Super-NaturalInstructions.")] = "",
    tasks: Annotated[str, typer.Option(help="Super-Natural tasks; the paper's if empty.")] = "",
    compressions: Annotated[str, typer.Option(help="Comma-separated.")] = COMPRESSIONS,
    seeds: Annotated[str, typer.Option(help="Comma-separated; each draws its own rows.")] = "0",
    model: Annotated[str, typer.Option(help="As the key `model`.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="As the key `dtype`.")] = "float32",
    device: Annotated[str, typer.Option(help="As the key `device`.")] = "auto",
    samples: Annotated[int, typer.Option(help="Calibration rows.")] = 128,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    rows: Annotated[int, typer.Option(help="Rows that perplexity is measured on.")] = 500,
    bench_sparse: Annotated[
        bool, typer.Option("--bench-sparse", help="Only time 2:4 on sparse tensor cores.")
    ] = False,
) -> None:
    """Measure, one row of the CSV at a time; run it again to carry on."""
    from mops_fl.base.dtype import resolve_dtype

    setting = Setting(model, resolve_dtype(dtype, device), device, samples, max_length, rows)
    if bench_sparse:
        _bench_sparse(setting)
        return
    wanted = [parse(text.strip()) for text in compressions.split(",")]
    sources = {"dolly": (dolly, ""), "superni": (superni, tasks)}
    sources = {name: source for name, source in sources.items() if source[0]}
    if not sources:
        raise ConfigError("nothing to measure on: give --dolly or --superni")
    for name, (path, names) in sources.items():
        for seed in (int(text) for text in seeds.split(",")):
            values = {"dataset": name, "data-path": path, "tasks": names}
            for row in _measure(setting, values, seed, wanted, _read(out)):
                table = [tuple(COLUMNS), *_read(out), row]
                write_text(out, "".join(map(csv_line, table)))
                print(*row, flush=True)


@app.command()
def plot(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.csv")],
    out: Annotated[Path, typer.Argument(metavar="FIGURE.png")],
) -> None:
    """Draw the figure, and print the table in Markdown; seeds are pooled by answer tokens."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from mops_fl.pictures import plain, save
    from mops_fl.run.plots import COLOURS, MARKERS

    table = pd.DataFrame(_read(results), columns=[*COLUMNS])
    if table.empty:
        raise RunError(f"{results} has no measurement: run `measure` first")
    _check_unmixed(table)
    sums = table.groupby(["compression", "dataset"], sort=False)[["nll", "tokens"]].sum()
    pooled = np.exp(sums["nll"] / sums["tokens"]).unstack(sort=False)
    spread = table.pivot_table("perplexity", "compression", "dataset", ["min", "max"], sort=False)
    figure = Figure(figsize=(max(5.0, 1.6 + 0.55 * len(pooled)), 4.2), layout="constrained")
    panel = figure.subplots()
    for index, dataset in enumerate(pooled):
        low, high = (spread[edge, dataset] for edge in ("min", "max"))
        panel.errorbar(
            pooled.index,
            pooled[dataset],
            # a perplexity read back and one computed again differ in their last bits
            yerr=np.maximum(0.0, [pooled[dataset] - low, high - pooled[dataset]]),
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle="none",
            capsize=3,
            label=dataset,
        )
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,g}"))
    panel.set_xticks(
        range(len(pooled)), pooled.index, rotation=30, ha="right", rotation_mode="anchor"
    )
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylabel("perplexity on answer tokens")
    model, dtype, samples, rows = (
        table[name].iloc[0] for name in ("model", "dtype", "samples", "rows")
    )
    seeds = sorted(table["seed"].unique())
    figure.suptitle(
        f"{plain(model, limit=40)} without prompts, {dtype}; "
        f"SparseGPT on {samples} rows of the dataset, perplexity on {rows} others; "
        + (f"bars over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"),
        fontsize=8,
    )
    panel.legend(frameon=False)
    save(figure, out)
    print("| compression | " + " | ".join(pooled) + " |")
    print("|---|" + "---:|" * len(pooled.columns))
    for compression, values in pooled.iterrows():
        print(f"| {compression} | " + " | ".join(f"{value:,.2f}" for value in values) + " |")


def _measure(
    setting: Setting,
    values: dict[str, str],
    seed: int,
    wanted: Iterable[Compression],
    table: list[tuple[Any, ...]],
) -> Iterator[tuple[Any, ...]]:
    """A row for each compression that is not in `table`.

    Raises:
        RunError: the table holds other settings.
    """
    from mops_fl.base.device import resolve_device
    from mops_fl.base.identity import digest
    from mops_fl.base.prepare import prepared
    from mops_fl.base.source import find
    from mops_fl.base.tokenizer import load_tokenizer
    from mops_fl.compression.artifact import verify
    from mops_fl.compression.cache import ensure
    from mops_fl.compression.calibration import answer_tally, load_calibration

    config = Config.from_flat(
        {
            **values,
            "model": setting.model,
            "dtype": setting.dtype,
            "max-length": setting.max_length,
        }
    )
    tokenizer = load_tokenizer(config.backbone)
    calibration = load_calibration(config.data, tokenizer, samples=setting.samples, seed=seed)
    examples, data = _examples(config.data, tokenizer, calibration, setting.rows)
    base, device = prepared(config.backbone), resolve_device(setting.device)
    measured = (setting.model, digest(find(setting.model))[:DIGITS], setting.dtype, device.type)
    measured += (values["dataset"], values["tasks"], data[:DIGITS], seed, setting.samples)
    measured += (setting.max_length, setting.rows)
    begun = [row[: len(measured)] for row in table]
    _check_unmixed(pd.DataFrame([*begun, measured], columns=[*SETTINGS][: len(measured)]))
    for compression in wanted:
        if (*measured, str(compression)) in {row[: len(SETTINGS)] for row in table}:
            continue
        folder, sparsity = base, 0.0
        if compression.pruning:
            with showing(f"pruning to {compression}", Console(stderr=True)):
                folder = ensure(base, compression, calibration, device=device)
            sparsity = verify(folder).sparsity
        tally = answer_tally(_load(folder, compression, device), examples, device)
        gc.collect()
        result = (sparsity, tally.nll, tally.tokens, tally.perplexity)
        yield (*measured, str(compression), *result)


def _examples(
    data: DataConfig, tokenizer: "PreTrainedTokenizerBase", calibration: "Calibration", rows: int
) -> tuple[tuple[Tokenised, ...], str]:
    """Rows that SparseGPT has not seen, the same for every compression; the dataset's digest."""
    whole = load_corpus(replace(data, num_samples=0), calibration.seed)
    corpus = whole.examples
    seen = {row.index for row in calibration.rows + calibration.held_out}
    order = numpy_generator(calibration.seed, "measure").permutation(len(corpus)).tolist()
    chosen = [index for index in order if index not in seen][:rows]
    if len(chosen) < rows:
        raise DataError(f"rows={rows}: {calibration.source} has {len(chosen)} unseen rows left")
    tokenised = tokenise([corpus[index] for index in chosen], tokenizer, data.max_length)
    return tuple(tokenised.examples), whole.digest


def _load(folder: Path, compression: Compression, device: "torch.device") -> "LlamaForCausalLM":
    import torch

    from mops_fl.base.load import load_llama
    from mops_fl.compression.quantise import quantise

    model = load_llama(folder)
    if compression.quantisation:
        return quantise(model, compression.quantisation, device).eval()
    return torch.nn.Module.to(model, device).eval()


def _bench_sparse(setting: Setting) -> None:
    """Print whether 2:4 on sparse tensor cores is faster, for every shape of the model."""
    import torch

    from experiments.benchmarks.sparse_product import time_product
    from mops_fl.base.device import resolve_device
    from mops_fl.base.prepare import prepared
    from mops_fl.base.source import llama_config

    backbone = Config.from_flat({"model": setting.model, "dtype": setting.dtype}).backbone
    config = llama_config(setting.model, prepared(backbone))
    width, inner = config["hidden_size"], config["intermediate_size"]
    device, dtype = resolve_device(setting.device), getattr(torch, setting.dtype)
    for out_features, in_features in ((width, width), (inner, width), (width, inner)):
        for tokens in (setting.max_length, 8 * setting.max_length):
            timing = time_product(out_features, in_features, tokens, dtype, device)
            print(
                f"{out_features} × {in_features}, {tokens} tokens: dense {timing.dense:.1f} µs, "
                f"sparse {timing.sparse:.1f} µs: sparse is {timing.speedup:.2f} times as fast"
            )


def _read(path: Path) -> list[tuple[Any, ...]]:
    return read_table(path, COLUMNS) if path.exists() else []


def _check_unmixed(table: pd.DataFrame) -> None:
    """Refuse to put beside each other what was measured in different ways.

    Raises:
        RunError: the settings of some rows differ in more than dataset, seed and compression.
    """
    a_dataset = table[["dataset", *ONE_A_DATASET]].drop_duplicates()
    mixed = [name for name in ONE_A_FILE if table[name].nunique() > 1]
    mixed += [
        name for name in ONE_A_DATASET if (a_dataset.groupby("dataset")[name].nunique() > 1).any()
    ]
    if mixed:
        raise RunError(
            f"the results mix settings ({', '.join(mixed)}): give each a file of its own"
        )


if __name__ == "__main__":
    try:
        app()
    except MopsError as error:
        sys.exit(f"compression: {error}")
