import math

import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.golden.tiny import byte_tokenizer, save_tiny_llama
from mops_fl.compression.calibration import answer_tally
from mops_fl.compression.pattern import TOLERANCE, is_prunable
from mops_fl.compression.sparsegpt import prune
from mops_fl.compression_spec import parse
from mops_fl.errors import ConfigError, DataError, ModelError

PATTERNS = ("unstructured-50", "unstructured-90", "2:4", "4:8", "3:4", "7:8")


@pytest.fixture
def model(base):
    return LlamaForCausalLM.from_pretrained(base).eval()


@pytest.fixture
def rows(calibration):
    return [row.ids for row in calibration.rows]


@pytest.mark.parametrize("text", PATTERNS)
def test_the_mask_is_exact_and_nothing_else_changes(model, rows, calibration, text):
    compression = parse(text)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    named = []
    prune(model, byte_tokenizer(), rows, compression, progress=named.append)
    for name, weight in model.state_dict().items():
        if not is_prunable(name):
            assert torch.equal(weight, before[name]), name
        elif compression.m:
            zeros = (weight.unflatten(1, (-1, compression.m)) == 0).sum(-1)
            assert (zeros == compression.n).all(), name
        else:
            assert (weight == 0).double().mean() == pytest.approx(
                compression.sparsity, abs=TOLERANCE
            )
    pruned = [name.removesuffix(".weight") for name in before if is_prunable(name)]
    assert sorted(named) == sorted(pruned)
    assert len(pruned) == 14
    held_out = [row.tokens for row in calibration.held_out]
    assert math.isfinite(answer_tally(model, held_out, "cpu").perplexity)


def test_lm_head_tied_to_the_embeddings_stays(tmp_path, rows):
    folder = save_tiny_llama(tmp_path, tie_word_embeddings=True, num_hidden_layers=1)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    before = model.lm_head.weight.detach().clone()
    prune(model, byte_tokenizer(), rows, parse("2:4"))
    assert torch.equal(model.lm_head.weight, before)
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_the_model_is_left_as_it_was_found(model, rows):
    prune(model, byte_tokenizer(), rows, parse("2:4"))
    assert not any(module._forward_hooks for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    ids = torch.tensor([rows[0]])
    states = model.model.embed_tokens(ids).detach().requires_grad_()
    model(inputs_embeds=states).logits.sum().backward()
    assert states.grad.abs().sum() > 0


def test_the_same_rows_give_the_same_weights(base, rows):
    models = [LlamaForCausalLM.from_pretrained(base).eval() for _ in range(2)]
    for model in models:
        prune(model, byte_tokenizer(), rows, parse("3:4"))
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_sparsegpt_is_better_than_magnitude(model, base, rows, calibration):
    dense = LlamaForCausalLM.from_pretrained(base).eval()
    magnitude = LlamaForCausalLM.from_pretrained(base).eval()
    for name, weight in magnitude.named_parameters():
        if is_prunable(name):
            groups = weight.data.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, dim=1, largest=False).indices, 0.0)
    prune(model, byte_tokenizer(), rows, parse("2:4"))
    ids = torch.tensor([calibration.held_out[0].ids])
    with torch.no_grad():
        states = [m.model(ids).last_hidden_state for m in (dense, model, magnitude)]
    assert (states[1] - states[0]).norm() < (states[2] - states[0]).norm()


def test_a_hessian_that_is_not_positive_definite_is_an_error(model, rows, monkeypatch):
    monkeypatch.setenv("LLM_COMPRESSOR_LOG_DISABLED", "true")
    model.model.layers[1].input_layernorm.weight.data.fill_(math.nan)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj: the Hessian"):
        prune(model, byte_tokenizer(), rows, parse("2:4"))


def test_a_refused_pruning_does_not_spoil_the_next(base, model, rows):
    broken = LlamaForCausalLM.from_pretrained(base)
    broken.model.layers[0].input_layernorm.weight.data.fill_(math.inf)
    with pytest.raises(ModelError, match="Hessian"):
        prune(broken, byte_tokenizer(), rows, parse("2:4"))
    prune(model, byte_tokenizer(), rows, parse("2:4"))


def test_a_base_model_that_is_sparser_already_is_refused(model, rows):
    model.model.layers[1].mlp.up_proj.weight.data[:60] = 0.0
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*dense base model"):
        prune(model, byte_tokenizer(), rows, parse("unstructured-50"))


@pytest.mark.parametrize("text", ["2:5", "3:7", "1:64"])
def test_a_width_that_m_does_not_divide_is_refused(model, rows, text):
    with pytest.raises(ConfigError, match=r"does not divide the width 32 of model\.layers\.0"):
        prune(model, byte_tokenizer(), rows, parse(text))


@pytest.mark.parametrize("block_size", [0, 2, 24, 64, 128])
def test_a_block_size_that_does_not_fit_is_refused(model, rows, block_size):
    with pytest.raises(ConfigError, match=f"block size {block_size}: .*: 4, 8, 16, 32$"):
        prune(model, byte_tokenizer(), rows, parse("2:4"), block_size=block_size)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        ([[1, 2], []], "row 1: holds no tokens"),
        ([[1, 258]], "from 1 to 258"),
        ([[-1, 2]], "from -1 to 2"),
    ],
)
def test_bad_rows_are_refused(model, rows, match):
    with pytest.raises(DataError, match=match):
        prune(model, byte_tokenizer(), rows, parse("2:4"))


def test_nothing_to_prune_is_refused(model, rows):
    with pytest.raises(ConfigError, match="nothing to prune"):
        prune(model, byte_tokenizer(), rows, parse("nf4"))
