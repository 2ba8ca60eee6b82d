"""Exported folders give the numbers of the run's last row, in their own libraries."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trained_run import trained_run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    pipeline,
)

from experiments.golden.tiny import save_tiny_llama
from mops_fl.data import Example
from mops_fl.errors import ConfigError, ModelError, RunError
from mops_fl.export.card import card
from mops_fl.export.loaded import Exported, is_exported
from mops_fl.export.model_folder import export, format_of
from mops_fl.generation.answerer import Answerer, Sampling
from mops_fl.generation.trained import Trained
from mops_fl.models.causal_lm import MopsForCausalLM
from mops_fl.training.trainer import Trainer

INPUT = {"injection-layer": 0, "pretrain-data": "none"}
RUNS: dict[str, tuple[str, dict]] = {
    "mops": ("mops", {"method": "mops"}),
    "hidden": ("mops", {"method": "mops", "gate-mode": "hidden", "injection": "append"}),
    "top": ("mops", {"method": "mops", "gate-top": 1, "gate-scale": "mean-one"}),
    "pruned": ("mops", {"method": "mops", "compression": "2:4"}),
    "nf4": ("mops", {"method": "mops", "compression": "nf4"}),
    "int8": ("mops", {"method": "mops", "compression": "2:4+int8"}),
    "fedprompt": ("mops", {"method": "fedprompt"}),
    "fedprompt-input": ("peft", {"method": "fedprompt", **INPUT}),
    "prompt-tuning": ("peft", {"method": "prompt-tuning"}),
    "lora": ("peft", {"method": "lora", "lora-alpha": 5.0}),
    "lora-pruned": ("peft", {"method": "lora", "compression": "2:4"}),
    "lora-nf4": ("peft", {"method": "lora", "compression": "nf4"}),
    "ia3": ("peft", {"method": "ia3"}),
    "base": ("llama", {"method": "base"}),
}


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory) -> Path:
    """Widths that nf4's blocks divide."""
    folder = tmp_path_factory.mktemp("wide-llama")
    return save_tiny_llama(folder, hidden_size=64, intermediate_size=128, initializer_range=0.1)


def load(folder: Path, kind: str, quantisation: str):
    if kind == "mops":
        return MopsForCausalLM.from_pretrained(folder)
    if kind == "llama":
        return LlamaForCausalLM.from_pretrained(folder)
    how = {}
    if quantisation == "nf4":
        how = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            )
        }
    base = LlamaForCausalLM.from_pretrained(folder / "base", **how)
    return PeftModel.from_pretrained(base, folder)


@pytest.mark.filterwarnings("ignore:(int8|nf4) on the CPU")
@pytest.mark.parametrize("name", RUNS)
def test_the_exported_model_has_the_perplexity_of_the_run(wide_llama, tmp_path, name):
    kind, changes = RUNS[name]
    run = trained_run(tmp_path / "run", wide_llama, **{"calibration-samples": 16, **changes})
    trained = Trained.read(run)
    assert format_of(trained) == kind
    assert export(trained, tmp_path / "out") == kind
    loaded = load(tmp_path / "out", kind, trained.config.backbone.spec.quantisation).eval()
    rows = [row for client in range(3) for row in Trainer(trained.config).held_out(client)[0]]
    total = 0.0
    for row in rows:
        labels = torch.tensor([[-100] * len(row.question) + [*row.answer]])
        with torch.no_grad():
            loss = loaded(input_ids=torch.tensor([row.question + row.answer]), labels=labels).loss
        total += float(loss) * len(row.answer)
    last = trained.run.rounds.query("round == 1 and task == 'all'")
    assert sum(len(row.answer) for row in rows) == last["tokens"].item()
    # LLM.int8() picks outliers over the whole batch
    close = 2e-2 if "int8" in trained.config.backbone.compression else 1e-4
    assert total == pytest.approx(last["nll"].item(), rel=close)


@pytest.fixture(scope="module")
def exported(tiny_llama, tmp_path_factory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("exported")
    trained = Trained.read(trained_run(folder / "run", tiny_llama))
    export(trained, folder / "out")
    return trained, folder / "out"


def test_transformers_generate_and_pipelines_take_it(exported):
    trained, folder = exported
    answerer, sampling = Answerer(trained), Sampling(max_new_tokens=6)
    asked = ["Sort these words: b, a", "Say it"]
    chats = [[{"role": "user", "content": text}] for text in asked]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for chat in chats
    ]
    wanted = answerer.answers(ids, sampling)
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**batch, max_new_tokens=6, do_sample=False)
    found = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found == wanted
    answers = pipeline("text-generation", model=model, tokenizer=tokenizer)(
        chats, max_new_tokens=6, do_sample=False, batch_size=2
    )
    assert [answer[0]["generated_text"][-1]["content"] for answer in answers] == wanted


def test_only_the_gate_stays_in_float32_in_a_half_type(exported):
    _, folder = exported
    model = MopsForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found = {name: parameter.dtype for name, parameter in model.named_parameters()}
    gate = {"model.gate.hidden", "model.gate.output"}
    assert {name for name, dtype in found.items() if dtype == torch.float32} == gate
    assert {found[name] for name in found.keys() - gate} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:(int8|nf4) on the CPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mops", "nf4", "fedprompt-input", "lora", "lora-nf4", "base"])
def test_an_exported_folder_answers_as_the_run_does(wide_llama, tmp_path, name, dtype):
    changes = {**RUNS[name][1], "dtype": dtype}
    trained = Trained.read(trained_run(tmp_path / "run", wide_llama, **changes))
    export(trained, tmp_path / "out")
    assert is_exported(tmp_path / "out")
    assert not is_exported(tmp_path / "run")
    ours, theirs = Answerer(trained), Exported(tmp_path / "out", device="cpu")
    ids = ours.ids(Example("Sort these words: b, a", "", "", ""))
    assert theirs.ids(Example("Sort these words: b, a", "", "", "")) == ids
    sampling = Sampling(max_new_tokens=6)
    assert theirs.answer(ids, sampling) == ours.answer(ids, sampling)
    assert theirs.experts == ours.experts
    assert theirs.gate(ids) == (None if ours.gate(ids) is None else pytest.approx(ours.gate(ids)))
    assert theirs.context == ours.context


def test_the_card_of_a_client_and_of_a_deployment(exported):
    trained, _ = exported
    own = card(replace(trained, client=1), "mops", trained.facts)
    assert "of client 1, after round 1" in own
    assert "worst 10 %" not in own
    run = replace(trained.run, facts={**trained.run.facts, "simulated": False})
    deployed = card(replace(trained, run=run), "mops", trained.facts)
    assert "each node its own; 3 clients" in deployed
    assert "that of their owner" in deployed
    assert "generated by" not in deployed


def test_a_damaged_folder_is_refused(exported, tmp_path):
    _, folder = exported
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    held = load_file(damaged / "model.safetensors")
    held.pop("model.gate.hidden")
    save_file(held, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.gate\.hidden"):
        _ = Exported(damaged).model


def test_the_card_names_what_it_is_and_no_place_of_this_machine(exported):
    trained, folder = exported
    text = (folder / "README.md").read_text()
    for wanted in (
        "# mops on",
        "6 vectors in 3 experts",
        "Apache-2.0",
        "| all |",
        "worst 10 %",
        "alpha",
    ):
        assert wanted in text
    assert str(trained.run.folder.parent) not in text
    assert trained.config.backbone.model not in text


def test_what_cannot_be_exported_is_said(exported):
    trained, folder = exported
    with pytest.raises(RunError, match="exists: name a new folder"):
        export(trained, folder)
    own = replace(trained, tensors={"bias": trained.tensors["prompts"]})
    with pytest.raises(ConfigError, match="has no format that others load"):
        format_of(own)
