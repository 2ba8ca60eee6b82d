import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from experiments.golden.tiny import save_tiny_llama
from mops_fl.compression.pattern import is_prunable
from mops_fl.compression.sparse24 import _SparseProduct, use_sparse_cores
from mops_fl.config import Config
from mops_fl.errors import ConfigError, ModelError
from mops_fl.models.backbone import load_backbone

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_without_cuda_it_is_refused(base):
    with pytest.raises(ConfigError, match="device=cpu: sparse tensor cores need CUDA"):
        use_sparse_cores(LlamaForCausalLM.from_pretrained(base))
    if not torch.cuda.is_available():
        config = Config.from_flat({"model": str(base), "dtype": "bfloat16", "sparse-kernels": True})
        with pytest.raises(ConfigError, match="need CUDA"):
            load_backbone(config.backbone)


def test_the_gradient_is_that_of_a_linear_layer():
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4), torch.randn(6)
    states = torch.randn(2, 3, 4, requires_grad=True)
    expected = F.linear(states, weight, bias)
    found = _SparseProduct.apply(states, weight, weight, bias)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, states, upstream)[0] for out in (expected, found)]
    torch.testing.assert_close(*gradients)


@pytest.fixture
def on_cuda(tmp_path):
    """A 2:4 model of widths that sparse tensor cores take, in bfloat16."""
    folder = save_tiny_llama(tmp_path, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    for name, weight in model.named_parameters():
        if is_prunable(name):
            weight.data[:, 0::4] = 0
            weight.data[:, 1::4] = 0
    return model.requires_grad_(False)


@needs_cuda
def test_forward_and_backward_are_those_of_the_dense_weights(on_cuda):
    ids = torch.arange(40, device="cuda").view(2, 20)
    results = []
    for prepare in (lambda model: None, use_sparse_cores):
        prepare(on_cuda)
        states = on_cuda.model.embed_tokens(ids).detach().requires_grad_()
        logits = on_cuda(inputs_embeds=states).logits.float()
        logits.logsumexp(-1).sum().backward()
        results.append((logits.flatten(), states.grad.float().flatten()))
    for wanted, found in zip(*results, strict=True):
        assert torch.cosine_similarity(wanted, found, 0) > 0.999


@needs_cuda
def test_another_pattern_is_refused(on_cuda):
    on_cuda.model.layers[1].mlp.up_proj.weight.data.fill_(1.0)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*2:4 only"):
        use_sparse_cores(on_cuda)
