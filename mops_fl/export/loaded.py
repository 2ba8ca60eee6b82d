"""A folder that was exported, ready to answer."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mops_fl.base.device import resolve_device
from mops_fl.errors import ModelError
from mops_fl.export.model_folder import BASE
from mops_fl.generation.answerer import Answering

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
"""What `peft` says of an adapter, in its folder."""


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter, and no run."""
    there = [(folder / name).is_file() for name in ("config.json", ADAPTER)]
    return any(there) and not (folder / "run.json").is_file()


class Exported(Answering):
    """What `mops_fl.export.model_folder.export` wrote."""

    def __init__(self, folder: Path, *, dtype: str = "", device: str = "") -> None:
        """Nothing is loaded before it is asked for.

        Args:
            folder: that was exported.
            dtype: what it computes in; empty for the type in which it is stored.
            device: where; empty for the best that there is.
        """
        self.folder = folder
        self._dtype, self._device = dtype or "auto", device or "auto"

    @cached_property
    def model(self) -> "LlamaForCausalLM":
        """The model, with its adapter where there is one.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            made = self._loaded()
        except Exception as error:  # readers of damaged files raise whatever comes
            raise ModelError(f"{self.folder} cannot be read: {error}: export it anew") from error
        return made.to(resolve_device(self._device)).eval()

    def _loaded(self) -> Any:
        import torch
        from peft import PeftModel
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        # it also registers the class of what was exported whole
        from mops_fl.models.causal_lm import MopsForCausalLM

        file = self.folder / ADAPTER
        if not file.is_file():
            return AutoModelForCausalLM.from_pretrained(self.folder, dtype=self._dtype)
        facts = json.loads(file.read_text(encoding="utf-8"))
        base = facts["base_model_name_or_path"]
        where = self.folder / BASE if base == BASE else base
        own = {"revision": facts["revision"]} if facts.get("revision") else {}
        llama: Any = AutoModelForCausalLM.from_pretrained(where, dtype=self._dtype, **own)
        if facts["peft_type"] != "PROMPT_TUNING":
            return PeftModel.from_pretrained(llama, str(self.folder))
        # peft's own ignores where a padded row begins
        vectors = load_file(self.folder / "adapter_model.safetensors")["prompt_embeddings"]
        made = MopsForCausalLM.around(llama, num_prompts=len(vectors))
        with torch.no_grad():
            made.model.prompts.copy_(vectors)
        return made

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The folder's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @property
    def experts(self) -> list[str]:
        """As the run called them."""
        return [*(getattr(self.model.config, "expert_names", None) or ())]
