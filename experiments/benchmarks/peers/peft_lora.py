"""LoRA by `peft` on a frozen LLaMA, as both peers train it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from experiments.benchmarks.peers.exchange import Row, Task

IGNORED = -100
"""The label that transformers leaves out of the loss."""

Batch = dict[str, torch.Tensor]

optimiser = partial(torch.optim.AdamW, weight_decay=0.0)
"""As ours."""


def load(task: Task) -> PeftModel:
    """The base model from its files, and LoRA at peft's own initial values beside it."""
    base = AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=task.rank,
        lora_alpha=task.alpha,
        target_modules=["q_proj", "v_proj"],
    )
    return cast(PeftModel, get_peft_model(base, config).train())


def load_initial(task: Task) -> PeftModel:
    """The model at our method's initial values."""
    model = load(task)
    set_peft_model_state_dict(model, peft_state(load_file(Path(task.initial))))
    return model


def peft_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors, `lora.<module>.a` and `.b` stacked over the layers, by peft's names."""
    state = {}
    for name, stacked in tensors.items():
        module, part = name.removeprefix("lora.").rsplit(".", 1)
        for layer, value in enumerate(stacked):
            place = f"base_model.model.model.layers.{layer}.{module}"
            state[f"{place}.lora_{part.upper()}.weight"] = value
    return state


def trainable(model: torch.nn.Module) -> int:
    """Parameters that are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def collate(rows: Sequence[Row]) -> Batch:
    """Rows as tensors [B, T], padded on the right."""
    longest = max(len(row.question) + len(row.answer) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        whole, first = [*row.question, *row.answer], len(row.question)
        ids[index, : len(whole)] = torch.tensor(whole)
        labels[index, first : len(whole)] = torch.tensor(row.answer)
        mask[index, : len(whole)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True)
class Local:
    """One client's local steps."""

    steps: int
    nll: float
    tokens: int
    seconds: float


def train(model: PeftModel, rows: Sequence[Row], task: Task) -> Local:
    """AdamW on each batch in turn, on the mean loss of its answers' tokens."""
    began = time.perf_counter()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adamw = optimiser(weights, lr=task.learning_rate)
    nll, tokens = 0.0, 0
    starts = range(0, len(rows), task.batch_size)
    for start in starts:
        part = rows[start : start + task.batch_size]
        loss = model(**collate(part)).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        counted = sum(len(row.answer) for row in part)
        nll, tokens = nll + loss.item() * counted, tokens + counted
    return Local(len(starts), nll, tokens, time.perf_counter() - began)


def versions(*packages: str) -> dict[str, str]:
    """Of some packages, beside those that are used here."""
    return {name: version(name) for name in ("torch", "transformers", "peft", *packages)}
