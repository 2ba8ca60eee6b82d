"""What all benchmarks share: rows, models, clocks, and how results are shown and written."""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from mops_fl.base.device import resolve_device
from mops_fl.base.dtype import resolve_dtype
from mops_fl.base.prepare import prepared
from mops_fl.config import Config, Scalar
from mops_fl.data import Tokenised
from mops_fl.files import write_text
from mops_fl.methods import method_of
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture
from mops_fl.models.prefix_store import MemoryStore
from mops_fl.run.provenance import commit, machine, versions
from mops_fl.training.local import LocalData, train
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PROMPTS, Tensors
from mops_fl.wire.shapes import ModelSizes

LLAMA_7B = "llama-7b-shape"
SHAPES: dict[str, dict[str, int]] = {
    "llama-15m-shape": {
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    },
    "llama-110m-shape": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "llama-1b-shape": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    LLAMA_7B: {},
}
"""Models with random weights: what differs from transformers' defaults, which are LLaMA-7B's."""

STORE_BYTES = 8 * 10**9
_LENGTH = 185
"""Tokens of a random row: the mean of Dolly's with LLaMA's tokenizer."""


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *arguments: Any, **more: Any) -> Any:
        """The options, with the type that `auto` means on their device."""
        options = super().parse_args(*arguments, **more)
        options.dtype = resolve_dtype(options.dtype, options.device)
        return options


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = _Parser(f"python -m experiments.benchmarks.{name}", None, description)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--model", default="smollm2-135m", help=f"as in a run, or {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, help="random rows of so many tokens, not the data's")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / f"{name}.json")
    return parser


@dataclass(frozen=True)
class Workload:
    """A frozen model, rows, and the configuration of our method for them."""

    config: Config
    model: LlamaForCausalLM
    rows: Sequence[Tokenised]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def tokens(self) -> float:
        """Mean tokens of a row."""
        return float(np.mean([len(row.question) + len(row.answer) for row in self.rows]))

    @property
    def layer(self) -> int:
        """L_int."""
        layers = cast(int, self.model.config.num_hidden_layers)
        return method_of(self.config.method).injection_layer(self.config.prompts, layers)

    def with_values(self, **values: Scalar) -> "Workload":
        """The same model and rows for another configuration of ours."""
        flat = {key.replace("_", "-"): value for key, value in values.items()}
        return replace(self, config=Config.from_flat({**self.config.flat(), **flat}))

    def twin(self) -> LlamaForCausalLM:
        """A model of its own modules over the same weights."""
        shared = {id(weight): weight for weight in self.model.parameters()}
        return copy.deepcopy(self.model, shared)

    def clients(self, count: int) -> list[Tensors]:
        """Initial tensors of so many clients."""
        method, sizes = method_of(self.config.method), ModelSizes.of(self.model.config.to_dict())
        seeds = range(self.config.seed, self.config.seed + count)
        return [method.initial(self.config, sizes, seed) for seed in seeds]

    def mixture(self, *, warm: bool) -> Mixture:
        """Our forward pass, without a prefix store or with one that holds all rows."""
        method, layout = method_of(self.config.method), self.config.prompts
        pretrained = None
        if method.pretrains(layout):
            pretrained = torch.from_numpy(self.clients(1)[0][PROMPTS])
        store = MemoryStore(STORE_BYTES) if warm else None
        backbone, adapters = Backbone(self.twin()), self.config.adapters
        mixture = Mixture(backbone, layout, self.layer, pretrained, store, method, adapters)
        if warm:
            for row in self.rows:
                mixture.prepare([row])
        return mixture


def workload(options: argparse.Namespace, rows: int) -> Workload:
    """The model and `rows` rows that the options ask for."""
    flat: dict[str, Scalar] = {
        "dtype": options.dtype,
        "device": options.device,
        "seed": options.seed,
        "num-samples": max(rows, 1000),
    }
    length = options.length
    if options.model in SHAPES:
        config = Config.from_flat(flat)
        device = resolve_device(options.device)
        model = random_model(options.model, getattr(torch, options.dtype), device)
        length = length or _LENGTH
    else:
        config = Config.from_flat({**flat, "model": options.model})
        device = resolve_device(options.device)
        model = loaded(config, device)
    if length:
        drawn = random_rows(rows, length, cast(int, model.config.vocab_size), options.seed)
    else:
        tokenised = Trainer(config).tokenised.examples
        picked = np.random.default_rng(options.seed).permutation(len(tokenised))[:rows]
        drawn = [tokenised[index] for index in picked]
    return Workload(config, model, drawn)


def loaded(config: Config, device: torch.device) -> LlamaForCausalLM:
    """A model of its own, read from its files."""
    dtype = getattr(torch, config.backbone.dtype)
    model = LlamaForCausalLM.from_pretrained(prepared(config.backbone), dtype=dtype)
    return cast(LlamaForCausalLM, model.to(device))  # type: ignore[arg-type]


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """A model with random weights, made where they stay."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    finally:
        torch.set_default_dtype(before)


def random_rows(count: int, length: int, vocabulary: int, seed: int) -> list[Tokenised]:
    """Random rows of one length, a quarter of it the answer."""
    draw = np.random.default_rng(seed).integers(0, vocabulary, (count, length)).tolist()
    cut = length - length // 4
    return [Tokenised(tuple(row[:cut]), tuple(row[cut:]), "random") for row in draw]


def local_steps(mixture: Mixture, work: Workload, rows: Sequence[Tokenised], clients: int) -> float:
    """Seconds of one local step on each of the rows, dealt out over a cohort of clients."""
    config = replace(work.config.train, local_steps=len(rows) // clients)
    dealt = [
        LocalData(rows[client::clients], tuple(range(config.local_steps)))
        for client in range(clients)
    ]
    return seconds(lambda: train(mixture, work.clients(clients), dealt, config), work.device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of an action and of what it leaves on the device's queue."""
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    **facts: Any,
) -> None:
    """Print a table, and write the same rows as JSON with everything that says what they are.

    Args:
        title: of the table.
        columns: keys of the rows that are shown, and their headings.
        rows: the results.
        options: of the command line.
        **facts: what else to write.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, heading in enumerate(columns.values()):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    written = {
        "title": title,
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "options": {key: str(value) for key, value in vars(options).items()},
        "seed": options.seed,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "commit": commit(),
        **facts,
        "rows": rows,
    }
    write_text(options.out, json.dumps(written, indent=2) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
