"""The fused attention of CUDA against the explicit one, and sequences packed without padding."""

import pytest
import torch

from mops_fl.models.attention import Packing, _explicit, _fused, _terms, prompt_attention

pytestmark = pytest.mark.filterwarnings(
    # the CPU has none of the kernels that these tests stand in for
    "ignore:.*(can't be used|attention).*:UserWarning"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.01}


def both(dtype, length: int, prompts: int, *, heads: int = 4, groups: int = 2, size: int = 20):
    """Outputs and gradients of both variants on the same numbers, the bias being far from zero."""
    found = []
    for attend in (_explicit, _fused):
        draw = torch.Generator().manual_seed(0)
        span = prompts + length
        query = torch.randn(3, heads, length, size, generator=draw).to(dtype).requires_grad_()
        key, value = (
            torch.randn(3, groups, span, size, generator=draw).to(dtype).requires_grad_()
            for _ in range(2)
        )
        # on the last two prompts only, as with `injection = append`
        bias = (torch.randn(3, min(prompts, 2), generator=draw) * 3 - 4).requires_grad_()
        wanted = [query, key, value, *([bias] if prompts else [])]
        out = attend(query, key, value, size**-0.5, bias if prompts else None)
        upstream = torch.randn(out.shape, generator=draw).to(dtype)
        found.append([out, *torch.autograd.grad(out, wanted, upstream)])
    return found


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("length", "prompts"), [(7, 0), (7, 2), (5, 6), (1, 3)])
def test_fused_is_explicit_forward_and_backward(dtype, length, prompts):
    explicit, fused = both(dtype, length, prompts)
    for one, other in zip(explicit, fused, strict=True):
        assert one.dtype == other.dtype
        scale = one.abs().max().item() + 1e-3
        torch.testing.assert_close(other, one, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_three_terms_hold_a_bias_exactly(dtype):
    bias = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 5
    bias.requires_grad_()
    terms = _terms(bias, dtype)
    torch.testing.assert_close(terms.double().sum(-1), bias.double(), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(terms.float().sum(), bias)
    assert torch.equal(gradient, torch.ones_like(bias))


def starts(packing: Packing, lengths) -> list[int]:
    return [packing.first_token + sum(lengths[:row]) for row in range(len(lengths))]


@pytest.mark.parametrize("owner", [None, [1, 0, 1]])
@pytest.mark.parametrize("lengths", [(5, 2, 4), (3, 3, 3), (4,)])
def test_packed_is_padded_forward_and_backward(owner, lengths):
    owner = torch.tensor(owner)[: len(lengths)] if owner else None
    sets, prompts, heads, groups, size = 2 if owner is not None else 1, 3, 4, 2, 8
    packing = Packing(sets, prompts, lengths, owner, torch.device("cpu"))
    count = sets * prompts + sum(lengths)
    draw = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(1, n, count, size, generator=draw, requires_grad=True)
        for n in (heads, groups, groups)
    ]
    bias = torch.randn(len(lengths), prompts, generator=draw, requires_grad=True)
    module = torch.nn.Identity()
    packed, _ = prompt_attention(
        module, *parts, None, size**-0.5, prompt_bias=bias, packing=packing
    )
    assert packed.shape == (1, count, heads, size)
    expected = torch.zeros_like(packed)
    for index in range(sets):
        part = slice(index * prompts, (index + 1) * prompts)
        own = [tensor[:, :, part] for tensor in parts]
        expected[:, part], _ = prompt_attention(module, *own, None, size**-0.5)
    for row, (start, length) in enumerate(zip(starts(packing, lengths), lengths, strict=True)):
        first = 0 if owner is None else int(owner[row]) * prompts
        seen = [*range(first, first + prompts), *range(start, start + length)]
        query, key, value = parts
        own = (query[:, :, start : start + length], key[:, :, seen], value[:, :, seen])
        expected[:, start : start + length], _ = prompt_attention(
            module, *own, None, size**-0.5, prompt_bias=bias[row : row + 1]
        )
    torch.testing.assert_close(packed, expected)
    upstream = torch.randn(packed.shape, generator=draw)
    for one, other in zip(
        torch.autograd.grad(packed, [*parts, bias], upstream),
        torch.autograd.grad(expected, [*parts, bias], upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_positions_of_a_packed_sequence():
    packing = Packing(2, 3, (2, 4), torch.tensor([1, 0]), torch.device("cpu"))
    assert packing.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 3, 4, 5, 6]]
    assert packing.first_token == 6
