import logging

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from experiments.golden.tiny import byte_tokenizer, save_tiny_llama
from mops_fl.compression.pattern import is_prunable, pattern_fault
from mops_fl.compression.quantise import quantise
from mops_fl.compression.sparsegpt import prune
from mops_fl.compression_spec import parse
from mops_fl.errors import ConfigError, ModelError
from mops_fl.models.backbone import Backbone

KINDS = ("int8", "nf4")
IDS = torch.arange(2 * 20).view(2, 20) % 256


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """A model whose outputs are not chaotic in its weights."""
    folder = tmp_path_factory.mktemp("smooth")
    return save_tiny_llama(
        folder, initializer_range=0.05, hidden_size=64, intermediate_size=128, num_hidden_layers=2
    )


def quantised(folder, kind, dtype=torch.float32):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    with pytest.warns(UserWarning, match=f"{kind} on the CPU"):
        assert quantise(model, kind, "cpu") is model
    return model.requires_grad_(False).eval()


def dequantised(linear):
    """[out features, in features], float32, of a bitsandbytes layer."""
    import bitsandbytes.functional as bnb

    if hasattr(linear.weight, "quant_state") and linear.weight.quant_state is not None:
        return bnb.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    return linear.weight.data.float() * linear.weight.SCB[:, None] / 127


def linears(model):
    return {
        name.removesuffix(".weight"): model.get_submodule(name.removesuffix(".weight"))
        for name, _ in model.named_parameters()
        if is_prunable(name)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_are_close_to_the_float_model(smooth, kind, dtype):
    reference = LlamaForCausalLM.from_pretrained(smooth, dtype=dtype).requires_grad_(False).eval()
    results = []
    for model in (reference, quantised(smooth, kind, dtype)):
        states = model.model.embed_tokens(IDS).detach().requires_grad_()
        logits = model(inputs_embeds=states).logits
        logits.float().logsumexp(-1).sum().backward()
        assert logits.dtype == dtype
        assert torch.isfinite(logits).all()
        assert torch.isfinite(states.grad).all()
        results.append((logits.float().flatten(), states.grad.float().flatten()))
    for wanted, found in zip(*results, strict=True):
        assert torch.cosine_similarity(wanted, found, 0) > (0.999 if kind == "int8" else 0.97)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_decoder_layers_are_quantised(smooth, kind):
    before = LlamaForCausalLM.from_pretrained(smooth)
    model = quantised(smooth, kind)
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert type(model.lm_head) is nn.Linear
    names = {type(linear).__name__ for linear in linears(model).values()}
    assert names == {"Linear8bitLt" if kind == "int8" else "Linear4bit"}
    assert len(linears(model)) == 14
    stored = {linear.weight.dtype for linear in linears(model).values()}
    assert stored == {torch.int8 if kind == "int8" else torch.uint8}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["2:4", "unstructured-90"])
def test_a_pruned_model_stays_pruned(smooth, calibration, kind, text):
    dense = LlamaForCausalLM.from_pretrained(smooth)
    prune(dense, byte_tokenizer(), [row.ids for row in calibration.rows], parse(text))
    # whole blocks and rows of zeros have a largest value of zero
    dense.model.layers[0].mlp.up_proj.weight.data[:4] = 0.0
    weights = {name: linear.weight.detach().clone() for name, linear in linears(dense).items()}
    with pytest.warns(UserWarning, match="on the CPU"):
        model = quantise(dense, kind, "cpu").eval()
    for name, linear in linears(model).items():
        found = dequantised(linear)
        assert torch.isfinite(found).all()
        assert (found[weights[name] == 0] == 0).all(), name
        assert not text.startswith("2") or not pattern_fault(found, parse(text))
        assert (found - weights[name]).norm() < 0.15 * weights[name].norm(), name
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_survive_a_pass_without_gradient(smooth, kind):
    """bitsandbytes repacks 4-bit weights on some processors for a kernel without backward."""
    model = quantised(smooth, kind)
    embedded = model.model.embed_tokens(IDS).detach()
    gradients = []
    for _ in range(2):
        states = embedded.clone().requires_grad_()
        model(inputs_embeds=states).logits.float().logsumexp(-1).sum().backward()
        gradients.append(states.grad)
        with torch.no_grad():
            model(inputs_embeds=embedded)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_backbone_runs_its_prefix_and_suffix(smooth, kind, dtype):
    backbone = Backbone(quantised(smooth, kind, dtype))
    with torch.no_grad():
        prefix = backbone.run(backbone.embed(IDS), range(1))
    assert torch.isfinite(prefix).all()
    prompts = torch.zeros(2, 3, 64, requires_grad=True)
    states = torch.cat((prompts.to(dtype), prefix), 1)
    logits = backbone.logits(backbone.run(states, range(1, 2))[:, -1])
    logits.logsumexp(-1).sum().backward()
    assert logits.dtype == prompts.grad.dtype == torch.float32
    assert torch.isfinite(prompts.grad).all()
    assert prompts.grad.abs().sum() > 0


def test_int8_does_not_flood_the_log(smooth, caplog):
    model = quantised(smooth, "int8")
    with caplog.at_level(logging.WARNING):
        model(IDS)
    assert not caplog.records


def test_a_quantised_model_is_not_quantised_again(smooth):
    model = quantised(smooth, "nf4")
    with (
        pytest.warns(UserWarning, match="on the CPU"),
        pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj is a Linear4"),
    ):
        quantise(model, "int8", "cpu")


def test_nf4_refuses_a_width_that_its_blocks_do_not_divide(base):
    """bitsandbytes dequantises such a matrix wrongly on the CPU, without a word."""
    model = LlamaForCausalLM.from_pretrained(base)
    with (
        pytest.warns(UserWarning, match="on the CPU"),
        pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj is 32 wide.*block size 64"),
    ):
        quantise(model, "nf4", "cpu")


def test_an_unknown_kind_is_refused(smooth):
    with pytest.raises(ConfigError, match="quantisation='fp4'"):
        quantise(LlamaForCausalLM.from_pretrained(smooth), "fp4", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_gives_what_the_cpu_gives(smooth, kind):
    on_cpu = quantised(smooth, kind)
    on_cuda = quantise(LlamaForCausalLM.from_pretrained(smooth), kind, "cuda").eval()
    with torch.no_grad():
        expected, found = on_cpu(IDS).logits, on_cuda(IDS.cuda()).logits.cpu()
    assert torch.cosine_similarity(expected.flatten(), found.flatten(), 0) > 0.999
