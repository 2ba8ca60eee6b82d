"""Requests of lm-evaluation-harness, against what training computes for the same tokens."""

import abc
from types import SimpleNamespace

import pytest
import torch
from trained_run import trained_run

from mops_fl.data import Example, Tokenised, tokenise
from mops_fl.data.template import TAIL, head
from mops_fl.errors import ConfigError
from mops_fl.generation.answerer import Answerer, Sampling
from mops_fl.generation.lm_eval import TrainedLM, _parts
from mops_fl.generation.trained import Trained
from mops_fl.models.trainable import Trainable
from mops_fl.training.trainer import Trainer

METHODS = ("mops", "fedprompt", "lora", "base")
EXAMPLES = [
    Example("Sort these words: b, a", "", "a < b", "t"),
    Example("Say it", "that", "yes", "t"),
    Example("Count", "one two three", "3", "t"),
]


class LM(abc.ABC):
    """The harness's class, as far as it asks something of those that derive from it."""

    def __init__(self):
        self._rank = 0

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def loglikelihood_rolling(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @property
    def tokenizer_name(self):
        raise NotImplementedError

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        raise NotImplementedError


class Joined(TrainedLM, LM):
    """As the documentation joins them."""


@pytest.fixture(scope="module")
def models(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: Joined(Answerer(Trained.read(trained_run(folder / name, tiny_llama, method=name))))
        for name in METHODS
    }


def asked(*arguments):
    return SimpleNamespace(args=arguments)


def losses(trained: Trained, rows: list[Tokenised]) -> list[float]:
    """Of training's forward pass."""
    frozen = {n: v for n, v in trained.tensors.items() if n == "pretrained"}
    tensors = {n: v for n, v in trained.tensors.items() if n != "pretrained"}
    mixture = Trainer(trained.config).mixture(frozen)
    with torch.no_grad():
        nll, _ = mixture.nll(Trainable([tensors], torch.device("cpu")), *mixture.prepare(rows))
    return nll.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_log_likelihoods_are_those_of_training(models, name):
    model = models[name]
    rows = [*tokenise(EXAMPLES, model.answerer.tokenizer, 400).examples]
    rows = [Tokenised(row.question, row.answer[:-1], row.task) for row in rows]
    requests = [asked(head(each) + TAIL, each.answer) for each in EXAMPLES]
    found = model.loglikelihood(requests)
    wanted = losses(model.answerer.trained, rows)
    assert [-value for value, _ in found] == pytest.approx(wanted, rel=1e-4)
    alone = [model.loglikelihood([request])[0] for request in requests]
    assert [value for value, _ in alone] == pytest.approx([v for v, _ in found], rel=1e-4)
    assert model.loglikelihood([]) == []


@pytest.mark.parametrize("name", METHODS)
def test_greedy_answers_are_told_from_others(models, name):
    model = models[name]
    question = [*model.answerer.ids(EXAMPLES[0])]
    made = model.answerer.model
    ids = list(question)
    with torch.no_grad(), model.answerer.adapted():
        for _ in range(3):
            ids.append(
                int(made(torch.tensor([ids]), **_asks(made, ids, question)).logits[0, -1].argmax())
            )
    answer = ids[len(question) :]
    (_, greedy), (_, other) = model.answerer.loglikelihoods(
        [(question, answer), (question, [*answer[:-1], (answer[-1] + 1) % 256])]
    )
    assert (greedy, other) == (True, False)


def _asks(made, ids, question):
    if not hasattr(made.model, "gate_weights"):
        return {}
    return {"question_mask": (torch.arange(len(ids)) < len(question))[None].long()}


def test_a_text_without_a_context_follows_the_first_token(models):
    model = models["mops"]
    tokenizer = model.answerer.tokenizer
    ids = tokenizer("hello", add_special_tokens=False)["input_ids"]
    row = Tokenised((tokenizer.bos_token_id,), tuple(ids), "t")
    (wanted,) = losses(model.answerer.trained, [row])
    assert -model.loglikelihood([asked("", "hello")])[0][0] == pytest.approx(wanted, rel=1e-4)
    found = model.loglikelihood_rolling([asked("hello"), asked("")])
    assert found == [pytest.approx(-wanted, rel=1e-4), 0.0]


def test_a_long_text_is_predicted_part_by_part(models):
    # the harness's own example, with room for four
    assert [*_parts([*range(10)], 99, 4)] == [
        ([99], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    model = models["mops"]
    context = model.answerer.context
    text = "abcdefg " * (context // 4)
    ids = model.answerer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > context
    parts = [*_parts(ids, 256, context)]
    rows = [Tokenised(tuple(question), tuple(answer), "t") for question, answer in parts]
    (found,) = model.loglikelihood_rolling([asked(text)])
    assert -found == pytest.approx(sum(losses(model.answerer.trained, rows)), rel=1e-4)
    (cut,) = model.loglikelihood([asked(text, "x")])
    row = Tokenised(tuple([256, *ids][-context:]), tuple(model._ids("x")), "t")
    assert -cut[0] == pytest.approx(losses(model.answerer.trained, [row])[0], rel=1e-4)


def test_answers_end_where_a_task_ends_them(models):
    model = models["mops"]
    context = head(EXAMPLES[0]) + TAIL
    whole = model.answerer.answer(model.answerer.ids(EXAMPLES[0]), Sampling(max_new_tokens=6))
    stop = whole[2]
    options = {"until": [stop, ""], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    requests = [
        asked(context, options),
        asked(context, {"max_gen_toks": 6}),
        asked(context, {"until": stop, "max_gen_toks": 1}),
    ]
    found = model.generate_until(requests)
    assert found[:2] == [whole[: whole.index(stop)], whole]
    assert len(found[2]) <= 1
    with pytest.raises(ConfigError, match="do_sample=true"):
        model.generate_until([asked(context, {"do_sample": True})])


def test_turns_become_the_template_of_training(models):
    model = models["base"]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "Say b"},
    ]
    shown = "### Instruction:\nBe brief.\n\nSay a\n\n### Response:\na\n\n### Instruction:\nSay b"
    assert model.apply_chat_template(turns) == shown + TAIL
    assert model.apply_chat_template(turns[1:3], add_generation_prompt=False).endswith(":\na")
    assert model.tokenizer_name == model.answerer.trained.facts.tokenizer_digest
