"""The model for `generate` against the forward pass that trained it, and plain transformers."""

from itertools import product

import numpy as np
import pytest
import torch
from trainables import initial_tensors
from transformers import DynamicCache, LlamaForCausalLM

from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.models.adapted import with_prompts
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture, collate
from mops_fl.models.trainable import Trainable
from mops_fl.wire.records import PRETRAINED, PROMPTS

SIZES = {"experts": 3, "prompts-per-expert": 2, "gate-hidden": 8}
HIDDEN = 32
EOS = 2


def tensors(layout, *, gated: bool, pretrained: int):
    """Initial tensors, the prompts made large enough to matter, and P¹."""
    drawn = initial_tensors(layout, HIDDEN, 0, gated)
    drawn[PROMPTS] = drawn[PROMPTS] * 20
    if pretrained:
        vectors = np.random.default_rng(1).standard_normal((pretrained, HIDDEN), np.float32)
        drawn[PRETRAINED] = vectors
    return drawn


def questions(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed).integers
    return [draw(3, 250, length).tolist() for length in lengths]


class Slow:
    """The next token after a question and what was answered so far, by training's forward pass."""

    def __init__(self, llama, layout, layer, values) -> None:
        values = dict(values)
        pretrained = values.pop(PRETRAINED, None)
        tensor = None if pretrained is None else torch.tensor(pretrained)
        self.mixture = Mixture(Backbone(llama), layout, layer, tensor)
        self.trainable = Trainable([values], torch.device("cpu"))

    def logits(self, question: list[int], answer: list[int]) -> torch.Tensor:
        """Of the token after question and answer; a stand-in is fed for it, and unseen."""
        batch = collate([Tokenised(tuple(question), (*answer, 0), "t")], torch.device("cpu"))
        mixture = self.mixture
        states = mixture.prefix_states(batch)
        features = mixture.gate_features(states, batch)
        log_gate = None
        if self.trainable.gated:
            log_gate = self.trainable.log_gate(features, None)
            if mixture.layout.gate_scale == "mean-one":
                log_gate = log_gate + float(np.log(mixture.layout.experts))
        sets = mixture._sets(self.trainable.prompts, batch, log_gate, None)
        out = mixture._run_suffix(sets, states, batch, None)
        return mixture.backbone.logits(out)[-1]

    def answer(self, question: list[int], length: int) -> list[int]:
        found: list[int] = []
        with torch.no_grad():
            while len(found) < length and EOS not in found:
                found.append(int(self.logits(question, found).argmax()))
        return found


BOTH = ("attention", "hidden"), ("replace", "append"), (0, 2)
CASES: list[dict | None] = [
    *(
        {"gate-mode": mode, "injection": place, "gate-top": top}
        for mode, place, top in product(*BOTH)
    ),
    {"gate-scale": "mean-one"},
    {"gate-scale": "mean-one", "gate-mode": "hidden", "gate-top": 1},
    None,
]
PLACES = [(0, 0), (0, 6), (1, 0), (1, 6), (3, 4)]
"""L_int, and vectors of P¹."""


@pytest.fixture(scope="module")
def llamas(tiny_llama) -> list[LlamaForCausalLM]:
    """In float64: what is chosen must not hang on the order of sums."""
    return [
        LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).eval() for _ in range(2)
    ]


def layout_of(keys: dict | None):
    return Config.from_flat({**SIZES, **(keys or {})}).prompts


def generated(model, ids, length: int, **options) -> list[list[int]]:
    """Answers to rows of equal length."""
    made = model.generate(
        torch.tensor(ids), max_new_tokens=length, eos_token_id=EOS, pad_token_id=0, **options
    )
    return made[:, len(ids[0]) :].tolist()


def until_end(answer: list[int]) -> list[int]:
    return answer[: answer.index(EOS) + 1] if EOS in answer else answer


def padded(asked: list[list[int]]) -> tuple[list[list[int]], torch.Tensor]:
    longest = max(map(len, asked))
    rows = [[0] * (longest - len(ids)) + ids for ids in asked]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked]
    return rows, torch.tensor(mask)


@pytest.mark.parametrize(("layer", "pretrained"), PLACES)
@pytest.mark.parametrize("keys", CASES, ids=str)
def test_greedy_answers_are_those_of_the_whole_sequence(llamas, keys, layer, pretrained):
    layout = layout_of(keys)
    values = tensors(layout, gated=keys is not None, pretrained=pretrained)
    slow = Slow(llamas[0], layout, layer, values)
    model = with_prompts(llamas[1], layout, layer, values)
    asked = questions(1, 11, 5)
    wanted = [slow.answer(question, 8) for question in asked]
    alone = [until_end(generated(model, [question], 8)[0]) for question in asked]
    assert alone == wanted
    rows, mask = padded(asked)
    together = generated(model, rows, 8, attention_mask=mask)
    assert [until_end(answer) for answer in together] == wanted


def test_what_is_read_depends_on_prompts_gate_and_pretrained_prompt(llamas):
    layout, asked = layout_of({}), torch.tensor(questions(9))
    values = tensors(layout, gated=True, pretrained=6)
    with torch.no_grad():
        before = with_prompts(llamas[1], layout, 1, values)(asked).logits
        for name in values:
            other = {**values, name: values[name][::-1].copy()}
            after = with_prompts(llamas[1], layout, 1, other)(asked).logits
            assert not torch.allclose(before, after), name


@pytest.mark.parametrize("keys", [{}, {"gate-top": 1}, {"gate-mode": "hidden"}, None], ids=str)
def test_losses_are_those_of_training(llamas, keys):
    layout, gated = layout_of(keys), keys is not None
    values = tensors(layout, gated=gated, pretrained=6)
    model = with_prompts(llamas[1], layout, 1, values)
    row = Tokenised(tuple(questions(7)[0]), tuple(questions(4, seed=1)[0]), "task")
    slow = Slow(llamas[0], layout, 1, values)
    batch, states, features = slow.mixture.prepare([row])
    with torch.no_grad():
        wanted = slow.mixture.nll(slow.trainable, batch, states, features)[0]
        labels = torch.tensor([[-100] * len(row.question) + [*row.answer]])
        loss = model(torch.tensor([row.question + row.answer]), labels=labels).loss
    assert float(loss) * len(row.answer) == pytest.approx(float(wanted[0]), rel=1e-5)


def test_beams_a_crop_and_no_cache_keep_each_row_to_its_own_gate(llamas):
    layout = layout_of({})
    values = tensors(layout, gated=True, pretrained=6)
    model = with_prompts(llamas[1], layout, 1, values)
    asked = questions(6, 6)
    alone = [generated(model, [question], 6, num_beams=3)[0] for question in asked]
    assert generated(model, asked, 6, num_beams=3) == alone
    asked_mask = torch.ones(2, 6, dtype=torch.long)
    greedy = generated(model, asked, 6)
    assert generated(model, asked, 6, use_cache=False, question_mask=asked_mask) == greedy
    with pytest.raises(ValueError, match="use_cache=False needs a question_mask"):
        generated(model, asked, 6, use_cache=False)
    cache = DynamicCache()
    ids = torch.tensor(asked)
    with torch.no_grad():
        whole = model(ids, past_key_values=cache, question_mask=asked_mask[:, :4]).logits
        cache.crop(-2)
        again = model(ids[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, 4:])


def test_a_cache_that_cannot_hold_prompts_is_refused(llamas):
    layout = layout_of({})
    model = with_prompts(llamas[1], layout, 1, tensors(layout, gated=True, pretrained=6))
    with pytest.raises(ValueError, match="leave cache_implementation unset"):
        generated(model, questions(5), 3, cache_implementation="static")


def test_changed_prompts_are_seen(llamas):
    layout = layout_of({})
    values = tensors(layout, gated=True, pretrained=6)
    model, asked = with_prompts(llamas[1], layout, 1, values), torch.tensor(questions(5))
    with torch.no_grad():
        before = model(asked).logits
        model.model.prompts.mul_(-1)
        assert not torch.allclose(model(asked).logits, before)
        model.model.prompts.mul_(-1)
        torch.testing.assert_close(model(asked).logits, before)


def test_prompts_and_gate_can_be_trained_on(llamas):
    layout = layout_of({})
    model = with_prompts(llamas[1], layout, 1, tensors(layout, gated=True, pretrained=6))
    ids = torch.tensor(questions(8))
    labels = ids.clone()
    labels[:, :4] = -100
    model(ids, labels=labels).loss.backward()
    for parameter in (model.model.prompts, *model.model.gate.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_gate_weights_are_those_of_training_and_ignore_padding(llamas):
    layout = layout_of({})
    values = tensors(layout, gated=True, pretrained=6)
    slow = Slow(llamas[0], layout, 1, values)
    model = with_prompts(llamas[1], layout, 1, values)
    asked = questions(3, 9)
    batch = collate([Tokenised(tuple(q), (0,), "t") for q in asked], torch.device("cpu"))
    features = slow.mixture.gate_features(slow.mixture.prefix_states(batch), batch)
    rows, mask = padded(asked)
    with torch.no_grad():
        found = model.model.gate_weights(torch.tensor(rows), mask)
    wanted = slow.trainable.log_gate(features, None).exp().detach()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_stays_near_float32(tiny_llama):
    layout = layout_of({})
    values = tensors(layout, gated=True, pretrained=6)
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        llama = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=dtype).eval()
        model = with_prompts(llama, layout, 1, values)
        with torch.no_grad():
            logits.append(model(torch.tensor(questions(9))).logits.float())
        assert model.model.gate.hidden.dtype == torch.float32
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()
