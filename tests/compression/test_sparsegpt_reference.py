"""llmcompressor, as we use it, against an independent statement of SparseGPT in numpy.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
ICML 2023, Algorithm 1, in float64.
"""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.golden.tiny import byte_tokenizer
from mops_fl.compression.sparsegpt import prune
from mops_fl.compression_spec import parse

DAMPENING = 0.01
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def sparsegpt(weight, inputs, *, sparsity, n, m, block_size):
    """Algorithm 1: weights [rows, columns] and inputs [columns, tokens] to pruned weights and mask.

    The mask is chosen once a block for a sparsity, and every m columns for n of m, from the
    weights as they are by then.
    """
    weight = weight.copy()
    rows, columns = weight.shape
    hessian = 2 * inputs @ inputs.T
    hessian += DAMPENING * np.mean(np.diag(hessian)) * np.eye(columns)
    # upper triangular, with factor.T @ factor the inverse Hessian
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    pruned = np.zeros((rows, columns), dtype=bool)
    for start in range(0, columns, block_size):
        end = start + block_size
        errors = np.zeros((rows, block_size))
        for j in range(start, end):
            if not m and j == start:
                score = (weight[:, start:end] / np.diag(factor)[start:end]) ** 2
                # "p%" of a block is not always whole: the library rounds down and takes one more
                count = int(score.size * sparsity) + 1
                chosen = np.zeros(score.size, dtype=bool)
                chosen[np.argsort(score, axis=None)[:count]] = True
                pruned[:, start:end] = chosen.reshape(score.shape)
            if m and j % m == 0:
                score = (weight[:, j : j + m] / np.diag(factor)[j : j + m]) ** 2
                for row in range(rows):
                    pruned[row, j + np.argsort(score[row])[:n]] = True
            errors[:, j - start] = np.where(pruned[:, j], weight[:, j] / factor[j, j], 0.0)
            weight[:, j:end] -= np.outer(errors[:, j - start], factor[j, j:end])
        weight[:, end:] -= errors @ factor[start:end, end:]
    return np.where(pruned, 0.0, weight), pruned


def inputs_of(model, name, rows):
    """What goes into a linear layer of the dense model, [columns, tokens]."""
    seen = []
    layer = model.model.layers[0].get_submodule(name)
    hook = layer.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0]))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    hook.remove()
    return torch.cat(seen).double().numpy().T


@pytest.mark.parametrize("text", ["unstructured-50", "unstructured-75", "2:4", "3:4", "4:8", "7:8"])
def test_one_linear_layer_is_pruned_as_the_paper_says(base, calibration, text):
    compression = parse(text)
    rows = [row.ids for row in calibration.rows]
    dense, model = (LlamaForCausalLM.from_pretrained(base).eval() for _ in range(2))
    prune(model, byte_tokenizer(), rows, compression, block_size=16)
    for name in LAYERS:
        expected, mask = sparsegpt(
            dense.model.layers[0].get_submodule(name).weight.detach().double().numpy(),
            inputs_of(dense, name, rows),
            sparsity=compression.sparsity,
            n=compression.n,
            m=compression.m,
            block_size=16,
        )
        found = model.model.layers[0].get_submodule(name).weight.detach().double().numpy()
        assert np.array_equal(found == 0, mask), name
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
