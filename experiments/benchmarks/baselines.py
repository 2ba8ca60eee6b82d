"""Prompt tuning, LoRA and IA³ through peft, as one would write them from its documentation."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import LlamaForCausalLM

from mops_fl.data import Tokenised

BASELINES: dict[str, Callable[[], PeftConfig]] = {
    "peft prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=70),
    "peft LoRA": lambda: LoraConfig(task_type="CAUSAL_LM"),
    "peft IA³": lambda: IA3Config(task_type="CAUSAL_LM"),
}
"""As many virtual tokens as our seven experts have; otherwise peft's defaults."""

IGNORED = -100
"""The label that transformers leaves out of the loss."""


class Baseline:
    """One peft method on one frozen LLaMA, trained with AdamW at batch 1."""

    def __init__(self, name: str, model: LlamaForCausalLM, learning_rate: float) -> None:
        """Wrap a model with transformers' usual attention.

        Args:
            name: one of `BASELINES`.
            model: changed in place.
            learning_rate: AdamW's, without weight decay.
        """
        model.set_attn_implementation("sdpa")
        # peft's factory is typed for any model of transformers
        self.model = cast(PeftModel, get_peft_model(model, BASELINES[name]()))  # type: ignore[arg-type]
        self.model.train()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)

    def steps(self, rows: Sequence[Tokenised]) -> None:
        """One optimiser step on each row, the loss on its answer."""
        device = self.model.device
        for row in rows:
            ids = torch.tensor([row.question + row.answer], device=device)
            labels = torch.tensor([(IGNORED,) * len(row.question) + row.answer], device=device)
            mask = torch.ones_like(ids)
            self.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            self._optimiser.step()
            self._optimiser.zero_grad()
