"""A folder that was exported, ready to answer."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mops_fl.base.checkpoint import tensors_fault
from mops_fl.base.device import resolve_device
from mops_fl.base.load import load_llama
from mops_fl.compression.quantise import quantise
from mops_fl.errors import ModelError
from mops_fl.export.model_folder import ADAPTER, BASE, QUANTISED
from mops_fl.generation.answerer import Answering

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


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
            ModelError: it cannot be read, or a tensor is missing.
        """
        if (self.folder / ADAPTER).is_file():
            return self._with_adapter()
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") == "mops":
            return self._with_prompts()
        llama: Any = load_llama(self.folder, self._dtype)
        return llama.to(self._place).eval()

    @property
    def _place(self) -> "torch.device":
        return resolve_device(self._device)

    def _with_prompts(self) -> "LlamaForCausalLM":
        from mops_fl.models.causal_lm import MopsForCausalLM

        # quantised as it is read, where it will be
        where = {"device_map": {"": self._place}} if self._place.type != "cpu" else {}
        try:
            made, report = MopsForCausalLM.from_pretrained(
                self.folder, dtype=self._dtype, output_loading_info=True, **where
            )
        except Exception as error:  # readers of damaged files raise whatever comes
            raise ModelError(f"{self.folder} cannot be read: {error}: export it anew") from error
        if fault := tensors_fault(report["missing_keys"], report["unexpected_keys"], ()):
            raise ModelError(f"{self.folder} {fault}")
        return made.eval()

    def _with_adapter(self) -> "LlamaForCausalLM":
        llama: Any = load_llama(self.folder / BASE, self._dtype)
        note = self.folder / QUANTISED
        if note.is_file():
            quantise(llama, note.read_text(encoding="utf-8").strip(), self._place)
        llama = llama.to(self._place)
        try:
            return self._adapted(llama).eval()
        except Exception as error:  # as above
            raise ModelError(f"{self.folder} cannot be read: {error}: export it anew") from error

    def _adapted(self, llama: Any) -> Any:
        import torch
        from peft import PeftModel
        from safetensors.torch import load_file

        from mops_fl.models.causal_lm import MopsForCausalLM

        facts = json.loads((self.folder / ADAPTER).read_text(encoding="utf-8"))
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
        """The folder's.

        Raises:
            ModelError: it cannot be used.
        """
        from transformers import AutoTokenizer

        try:
            made = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            if made.eos_token_id is None or made.chat_template is None:
                raise ValueError("no end-of-sequence token, or no chat template")
        except Exception as error:  # as above
            raise ModelError(
                f"the tokenizer in {self.folder} cannot be used: {error}: export it anew"
            ) from error
        return made

    @property
    def experts(self) -> list[str]:
        """As the run called them."""
        config: Any = self.model.config
        numbers = map(str, range(getattr(config, "experts", 0)))
        return [*(getattr(config, "expert_names", None) or numbers)]
