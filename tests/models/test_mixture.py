"""The mixture against plain transformers, and the identities that define its methods."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainables import initial_tensors
from transformers import LlamaForCausalLM

from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture, collate
from mops_fl.models.trainable import Trainable
from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PROMPTS

LAYOUT = Config.from_flat({"experts": 3, "prompts-per-expert": 2, "gate-hidden": 8}).prompts
HIDDEN = 32


@pytest.fixture(scope="module")
def backbone(tiny_llama) -> Backbone:
    return Backbone(LlamaForCausalLM.from_pretrained(tiny_llama))


@pytest.fixture(scope="module")
def reference(tiny_llama) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_llama).eval()


def examples(*lengths: tuple[int, int], seed: int = 0) -> list[Tokenised]:
    draw = np.random.default_rng(seed).integers
    return [
        Tokenised(tuple(draw(0, 256, q).tolist()), tuple(draw(0, 256, a).tolist()), "task")
        for q, a in lengths
    ]


def pretrained(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1))


def tensors(layout=LAYOUT, *, gated: bool = True, scale: float = 20.0):
    """Initial tensors, the prompts made large enough to matter."""
    drawn = initial_tensors(layout, HIDDEN, 0, gated)
    drawn[PROMPTS] = drawn[PROMPTS] * scale
    return drawn


def losses(mixture: Mixture, values, rows, owner=None, clients=None) -> torch.Tensor:
    batch = collate(rows, mixture.backbone.device)
    states = mixture.prefix_states(batch)
    features = mixture.gate_features(states, batch)
    trainable = Trainable(clients or [values], mixture.backbone.device)
    return mixture.nll(trainable, batch, states, features, owner)[0]


def gate_of(mixture: Mixture, values, rows) -> torch.Tensor:
    batch = collate(rows, mixture.backbone.device)
    states = mixture.prefix_states(batch)
    features = mixture.gate_features(states, batch)
    return Trainable([values], mixture.backbone.device).log_gate(features, None).exp()


def reference_nll(model: LlamaForCausalLM, example: Tokenised) -> float:
    ids = torch.tensor([example.question + example.answer])
    with torch.no_grad():
        logs = model(ids).logits[0].log_softmax(-1)
    first = len(example.question) - 1
    return -sum(logs[first + i, token].item() for i, token in enumerate(example.answer))


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_without_prompts_is_the_plain_llama_padded_and_unpadded(backbone, reference, layer):
    rows = examples((7, 3), (12, 5), (3, 9), (1, 1))
    mixture = Mixture(backbone, LAYOUT, layer, None)
    nothing = {PROMPTS: np.zeros((0, HIDDEN), np.float32)}
    together = losses(mixture, nothing, rows)
    alone = torch.cat([losses(mixture, nothing, [row]) for row in rows])
    expected = torch.tensor([reference_nll(reference, row) for row in rows])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-4)


def test_prompts_at_the_input_are_prompt_tuning_in_transformers(backbone, reference):
    (row,) = examples((9, 4))
    prompts = pretrained(5)
    ids = torch.tensor([row.question + row.answer])
    embedded = reference.get_input_embeddings()(ids)
    with torch.no_grad():
        logits = reference(inputs_embeds=torch.cat((prompts[None], embedded), 1)).logits[0, 5:]
    expected = torch.nn.functional.cross_entropy(
        logits[8:-1], torch.tensor(row.answer), reduction="sum"
    )
    at_input = losses(Mixture(backbone, LAYOUT, 0, None), {PROMPTS: prompts.numpy()}, [row])
    torch.testing.assert_close(at_input[0], expected, rtol=1e-5, atol=1e-4)


def test_pretrained_prompt_replaced_by_itself_is_prompt_tuning(backbone):
    """P¹ through the prefix, then its own states at L_int injected: nothing has changed."""
    rows = examples((9, 4), (4, 6))
    prompts = pretrained(6)
    with torch.no_grad():
        own = backbone.run(prompts[None], range(2))[0]
    injected = losses(Mixture(backbone, LAYOUT, 2, prompts), {PROMPTS: own.numpy()}, rows)
    plain = losses(Mixture(backbone, LAYOUT, 0, None), {PROMPTS: prompts.numpy()}, rows)
    torch.testing.assert_close(injected, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["attention", "hidden"])
@pytest.mark.parametrize("injection", ["replace", "append"])
def test_padding_changes_nothing(backbone, mode, injection):
    layout = replace(LAYOUT, gate_mode=mode, injection=injection)
    mixture = Mixture(backbone, layout, 1, pretrained(6))
    rows = examples((7, 3), (20, 5), (3, 9), (1, 2))
    together = losses(mixture, tensors(layout), rows)
    alone = torch.cat([losses(mixture, tensors(layout), [row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_one_expert_is_fedprompt_for_any_gate(backbone, mode):
    layout = replace(LAYOUT, experts=1, gate_mode=mode)
    mixture = Mixture(backbone, layout, 1, pretrained(2))
    rows = examples((7, 3), (12, 5))
    values = tensors(layout)
    values[GATE_OUTPUT] += 3.0
    with_gate = losses(mixture, values, rows)
    without = losses(mixture, {PROMPTS: values[PROMPTS]}, rows)
    torch.testing.assert_close(with_gate, without, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", ["attention", "hidden"])
@pytest.mark.parametrize("experts", [2, 5])
def test_a_uniform_mean_one_gate_is_fedprompt(backbone, experts, mode):
    layout = replace(LAYOUT, experts=experts, gate_mode=mode, gate_scale="mean-one")
    mixture = Mixture(backbone, layout, 1, pretrained(4))
    rows = examples((7, 3), (12, 5))
    values = tensors(layout)
    values[GATE_OUTPUT] = np.zeros_like(values[GATE_OUTPUT])
    with_gate = losses(mixture, values, rows)
    without = losses(mixture, {PROMPTS: values[PROMPTS]}, rows)
    torch.testing.assert_close(with_gate, without, rtol=1e-6, atol=1e-5)


def test_attention_mode_scales_and_renormalises_attention_to_prompts(backbone):
    """One layer of prompt_attention against the paper's words, written out head by head."""
    from mops_fl.models.attention import prompt_attention

    torch.manual_seed(0)
    batch, heads, groups, length, prompts, size = 2, 4, 2, 5, 3, 8
    query = torch.randn(batch, heads, length, size)
    key, value = torch.randn(2, batch, groups, prompts + length, size)
    gate = torch.rand(batch, prompts) + 0.1
    out, _ = prompt_attention(
        torch.nn.Identity(), query, key, value, None, size**-0.5, prompt_bias=gate.log()
    )
    for b in range(batch):
        for h in range(heads):
            keys, values = key[b, h // 2], value[b, h // 2]
            for t in range(length):
                seen = prompts + t + 1
                weight = (keys[:seen] @ query[b, h, t] * size**-0.5).exp()
                weight[:prompts] *= gate[b]
                expected = (weight / weight.sum()) @ values[:seen]
                torch.testing.assert_close(out[b, t, h], expected, rtol=1e-5, atol=1e-5)


def test_the_gate_sees_the_question_and_not_the_answer(backbone):
    mixture = Mixture(backbone, LAYOUT, 2, pretrained(6))
    (row,) = examples((9, 6))
    before = gate_of(mixture, tensors(), [row])
    other_answer = replace(row, answer=(*((t + 7) % 256 for t in row.answer), 1, 2, 3))
    torch.testing.assert_close(gate_of(mixture, tensors(), [other_answer]), before, rtol=0, atol=0)
    other_question = replace(row, question=tuple((t + 7) % 256 for t in row.question))
    assert (gate_of(mixture, tensors(), [other_question]) - before).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_every_trainable_tensor_has_a_gradient_and_the_backbone_none(backbone, mode):
    mixture = Mixture(backbone, replace(LAYOUT, gate_mode=mode), 1, pretrained(6))
    batch = collate(examples((7, 3), (12, 5)), backbone.device)
    states = mixture.prefix_states(batch)
    trainable = Trainable([tensors()], backbone.device)
    nll, _ = mixture.nll(trainable, batch, states, mixture.gate_features(states, batch))
    nll.sum().backward()
    for name, tensor in trainable.tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().max() > 0, name
    assert all(weight.grad is None for weight in backbone.model.parameters())


@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_a_cohort_in_one_forward_is_its_clients_one_by_one(backbone, mode):
    layout = replace(LAYOUT, gate_mode=mode)
    mixture = Mixture(backbone, layout, 1, pretrained(6))
    rows = examples((7, 3), (12, 5), (2, 8), (30, 1))
    clients = [initial_tensors(layout, HIDDEN, seed, True) for seed in (1, 2)]
    for client in clients:
        client[PROMPTS] = client[PROMPTS] * 20
    owner = [0, 1, 1, 0]
    together = losses(mixture, None, rows, owner, clients)
    alone = [losses(mixture, clients[o], [row])[0] for o, row in zip(owner, rows, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-4)


def test_prompts_change_the_loss(backbone):
    """What the identities above would not notice: prompts that are ignored."""
    mixture = Mixture(backbone, LAYOUT, 1, None)
    rows = examples((7, 3))
    values = tensors()
    assert abs(losses(mixture, values, rows) - losses(mixture, tensors(scale=1), rows)) > 1e-3
    values[GATE_HIDDEN] = values[GATE_HIDDEN] * 5
    assert abs(losses(mixture, values, rows) - losses(mixture, tensors(), rows)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_trains_in_float32(tiny_llama, backbone, dtype):
    half = Backbone(LlamaForCausalLM.from_pretrained(tiny_llama, dtype=dtype))
    rows = examples((7, 3), (12, 5))
    exact = losses(Mixture(backbone, LAYOUT, 1, pretrained(6)), tensors(scale=1), rows)
    near = losses(Mixture(half, LAYOUT, 1, pretrained(6)), tensors(scale=1), rows)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.1)


def chosen_reference(model, mixture, row, values, layer) -> torch.Tensor:
    """One example through transformers' own layers, past the chosen experts' vectors alone.

    The vectors keep the positions that they have among all, and the tokens theirs after all.
    """
    batch, layout = collate([row], mixture.backbone.device), mixture.layout
    states, top = mixture.prefix_states(batch), layout.gate_top
    gate = gate_of(mixture, values, [row])[0]
    best = sorted(gate.topk(top).indices.tolist())
    each = layout.prompts_per_expert
    places = [expert * each + i for expert in best for i in range(each)]
    vectors = torch.from_numpy(values[PROMPTS])[places]
    count, length = len(places), len(states)
    positions = torch.tensor([*places, *range(layout.num_prompts, layout.num_prompts + length)])
    mask = torch.full((count + length, count + length), float("-inf")).triu(1)
    mask[count:, :count] = gate[best].log().repeat_interleave(each)
    hidden = torch.cat((vectors, states))[None]
    rotary = model.model.rotary_emb(hidden, positions[None])
    for block in model.model.layers[layer:]:
        hidden = block(hidden, attention_mask=mask[None, None], position_embeddings=rotary)
    logits = model.lm_head(model.model.norm(hidden[0, count + batch.places]))
    return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")


@pytest.mark.parametrize("top", [1, 2])
def test_only_the_best_experts_vectors_are_passed(tiny_llama, backbone, top):
    layout = replace(LAYOUT, gate_top=top)
    mixture = Mixture(backbone, layout, 1, pretrained(6))
    plain = LlamaForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    values = tensors()
    values[GATE_HIDDEN] = values[GATE_HIDDEN] * 5
    rows = examples((7, 3), (20, 5), (3, 9), (1, 2))
    ours = losses(mixture, values, rows)
    for row, loss in zip(rows, ours, strict=True):
        expected = chosen_reference(plain, mixture, row, values, 1)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["attention", "hidden"])
@pytest.mark.parametrize("injection", ["replace", "append"])
def test_a_chosen_expert_keeps_its_gate_alive(backbone, mode, injection):
    layout = replace(LAYOUT, gate_top=1, gate_mode=mode, injection=injection)
    mixture = Mixture(backbone, layout, 1, pretrained(6))
    batch = collate(examples((7, 3), (12, 5)), backbone.device)
    states = mixture.prefix_states(batch)
    trainable = Trainable([tensors()], backbone.device)
    nll, gate = mixture.nll(trainable, batch, states, mixture.gate_features(states, batch))
    nll.sum().backward()
    torch.testing.assert_close(gate.sum(-1), torch.ones(2))
    for name in (GATE_HIDDEN, GATE_OUTPUT):
        assert trainable.tensors[name].grad.abs().max() > 0, name
    moved = trainable.tensors[PROMPTS].grad[0].abs().sum(-1).view(3, 2).sum(-1) > 0
    assert moved.tolist() == [e in gate.argmax(-1).tolist() for e in range(3)]


@pytest.mark.parametrize("mode", ["attention", "hidden"])
def test_all_experts_at_the_top_are_the_whole_mixture(backbone, mode):
    rows = examples((7, 3), (12, 5))
    whole, top = (
        losses(
            Mixture(backbone, replace(LAYOUT, gate_top=k, gate_mode=mode), 1, None), tensors(), rows
        )
        for k in (0, 3)
    )
    assert torch.equal(whole, top)


def test_a_sparse_cohort_is_its_clients_one_by_one(backbone):
    layout = replace(LAYOUT, gate_top=2)
    mixture = Mixture(backbone, layout, 1, pretrained(6))
    rows = examples((7, 3), (12, 5), (2, 8), (30, 1))
    clients = [initial_tensors(layout, HIDDEN, seed, True) for seed in (1, 2)]
    owner = [0, 1, 1, 0]
    together = losses(mixture, None, rows, owner, clients)
    alone = [losses(mixture, clients[o], [row])[0] for o, row in zip(owner, rows, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-4)
