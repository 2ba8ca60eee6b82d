"""A run's result as a folder that others load.

Prompts and gate need the forward pass of `MopsForCausalLM`, so their folder holds the whole model.
LoRA, IA³ and prompts at the input layer are adapters of `peft`, with the base model beside them.
"""

import json
from dataclasses import replace
from pathlib import Path

from transformers import LlamaForCausalLM

from mops_fl.base.dtype import resolve_dtype
from mops_fl.base.load import load_llama, writing
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.errors import ConfigError, RunError
from mops_fl.export.card import card
from mops_fl.export.peft_adapters import adapted
from mops_fl.files import check_disk, made_once
from mops_fl.generation.chat_template import put_chat_template
from mops_fl.generation.trained import Trained
from mops_fl.models.adapted import generates_plainly, with_prompts
from mops_fl.models.weights import ensure_weights
from mops_fl.wire.records import GATE_HIDDEN, PROMPTS

BASE = "base"
"""Folder of the base model, inside that of an adapter."""

ADAPTER = "adapter_config.json"
"""What `peft` says of an adapter, in its folder."""

QUANTISED = "quantisation.txt"
"""Says int8 or nf4 where an adapter was trained on that; beside it."""


def format_of(trained: Trained) -> str:
    """One of `FORMATS`.

    Raises:
        ConfigError: nobody else has a format for what the method trains.
    """
    tensors, layout = trained.tensors, trained.config.prompts
    if not tensors:
        return "llama"
    if trained.config.method in ("lora", "ia3"):
        return "peft"
    if PROMPTS not in tensors:
        raise ConfigError(
            f"method={trained.config.method} has no format that others load: export knows mops, "
            "fedprompt, prompt-tuning, lora, ia3 and base"
        )
    plain = GATE_HIDDEN not in tensors and layout.injection == "replace" and not trained.layer
    return "peft" if plain else "mops"


def export(trained: Trained, out: Path) -> str:
    """Write a folder, whole or not at all.

    Args:
        trained: of a run.
        out: the folder; its parents are made.

    Returns:
        One of `FORMATS`.

    Raises:
        RunError: the folder exists or cannot be written, or the model is not the run's.
        ConfigError: as `format_of`.
    """
    if out.exists():
        raise RunError(f"--out {out} exists: name a new folder, or remove that one")
    facts, kind, backbone = trained.facts, format_of(trained), trained.config.backbone
    dtype = resolve_dtype(backbone.dtype, backbone.device)
    # quantised anew by whoever loads it, from the same floats
    floats = replace(backbone, compression=backbone.spec.pruning or "none", device="cpu")
    weights = ensure_weights(floats)
    check_disk(out, sum(file.stat().st_size for file in weights.glob("*.safetensors")), str(out))
    llama = load_llama(weights, dtype, model=backbone.model)
    tokenizer = load_tokenizer(backbone)
    put_chat_template(tokenizer)
    # for batches of questions; the side is saved only where it was made with one
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side
    generates_plainly(llama, tokenizer)
    with made_once(out) as made:
        if made.folder is None:
            raise RunError(f"--out {out} was made by another process meanwhile: remove it")
        with writing(out):
            _write(trained, kind, llama, made.folder)
            tokenizer.save_pretrained(made.folder)
            if (made.folder / BASE).is_dir():
                tokenizer.save_pretrained(made.folder / BASE)
        (made.folder / "README.md").write_text(card(trained, kind, facts), encoding="utf-8")
    return kind


def _write(trained: Trained, kind: str, llama: LlamaForCausalLM, folder: Path) -> None:
    """Weights and configuration."""
    if kind == "llama":
        llama.save_pretrained(folder)
    elif kind == "mops":
        quantisation = trained.config.backbone.spec.quantisation
        layout, layer = trained.config.prompts, trained.layer
        model = with_prompts(llama, layout, layer, trained.tensors)
        model.config.quantisation = quantisation
        model.config.expert_names = trained.experts if trained.method.gated else None
        model.save_pretrained(folder)
    else:
        _write_adapter(trained, llama, folder)


def _write_adapter(trained: Trained, llama: LlamaForCausalLM, folder: Path) -> None:
    """An adapter, its base model beside it, and what that is turned into once it is read."""
    llama.save_pretrained(folder / BASE)
    adapted(llama, trained).save_pretrained(str(folder))
    path = folder / ADAPTER
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["base_model_name_or_path"] = BASE
    path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if quantisation := trained.config.backbone.spec.quantisation:
        (folder / QUANTISED).write_text(quantisation + "\n", encoding="utf-8")
