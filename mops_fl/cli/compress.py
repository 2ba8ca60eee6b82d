"""`mops-fl compress`: prune a base model with SparseGPT."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mops_fl.cli.options import with_absolute_paths
from mops_fl.cli.progress import showing


def compress(
    model: Annotated[
        str, typer.Option(help="smollm2-135m, a hub id, a local folder or a GGUF file.")
    ],
    compression: Annotated[
        str, typer.Option(help="unstructured-<percent> or <N>:<M> (N of every M pruned).")
    ],
    calibration: Annotated[str, typer.Option(help="skills, dolly, superni or jsonl.")] = "skills",
    data_path: Annotated[str, typer.Option(help="File or folder of the calibration data.")] = "",
    tasks: Annotated[str, typer.Option(help="Comma-separated; empty for the dataset's own.")] = "",
    samples: Annotated[int, typer.Option(help="Rows that SparseGPT sees.")] = 128,
    max_length: Annotated[int, typer.Option(help="Tokens of a row, at most.")] = 256,
    seed: Annotated[int, typer.Option(help="Decides which rows.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float32 or float16: here and on disk.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="A folder to make.", show_default="in the cache")
    ] = None,
) -> None:
    """Prune a base model, and say what it cost; `-c compression=...` then finds it in the cache."""
    from mops_fl.base.device import resolve_device
    from mops_fl.base.dtype import is_emulated, resolve_dtype
    from mops_fl.base.prepare import prepared
    from mops_fl.base.tokenizer import load_tokenizer
    from mops_fl.compression.artifact import verify
    from mops_fl.compression.cache import ensure
    from mops_fl.compression.calibration import load_calibration
    from mops_fl.compression_spec import parse
    from mops_fl.config import Config, Scalar

    wanted = parse(compression)
    values: dict[str, Scalar] = {
        "model": model,
        "dtype": dtype,
        "device": device,
        "dataset": calibration,
        "data-path": data_path,
        "tasks": tasks,
        "max-length": max_length,
        "seed": seed,
    }
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    config = Config.from_flat(with_absolute_paths(values))
    where, dtype = resolve_device(device), resolve_dtype(dtype, device)
    if is_emulated(dtype, device):
        messages.print(f"warning: {where} has no instructions for dtype={dtype}: this is slow")
    with showing("pruning", messages):
        rows = load_calibration(
            config.data, load_tokenizer(config.backbone), samples=samples, seed=seed
        )
        folder = ensure(prepared(config.backbone), wanted, rows, device=where, out=out)
    manifest = verify(folder)

    table = Table(show_header=False, title=f"{model} in {dtype} at {manifest.compression}")
    rows_seen, held_out = (len(manifest.calibration[part]) for part in ("rows", "held_out"))
    memory = manifest.peak_memory
    for name, value in {
        "sparsity achieved": f"{manifest.sparsity:.2%} of {len(manifest.layers)} matrices",
        "calibration": f"{rows_seen} rows of {manifest.calibration['source']}",
        f"perplexity on {held_out} held-out rows": f"{manifest.perplexity['before']:.2f} → "
        f"{manifest.perplexity['after']:.2f}",
        "time": f"{manifest.seconds:.0f} s on {manifest.device}",
        "peak memory": f"{memory['host'] / 1e9:.2f} GB"
        + (f", {memory['cuda'] / 1e9:.2f} GB on the GPU" if memory["cuda"] else ""),
    }.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    # whole, however narrow the terminal is
    console.print(str(folder.resolve()), soft_wrap=True, highlight=False)
    if wanted.quantisation:
        console.print(f"{wanted.quantisation} is applied when the model is loaded.")
