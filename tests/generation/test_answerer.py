"""A run's tensors read back, and questions answered with them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from trained_run import trained_run
from transformers import LlamaForCausalLM, TextStreamer

from mops_fl.data import Example, Tokenised, tokenise
from mops_fl.data.tokens import question_ids
from mops_fl.errors import DataError, RunError
from mops_fl.export.model_folder import export
from mops_fl.generation import answerer
from mops_fl.generation.answerer import Answerer, Sampling
from mops_fl.generation.trained import Trained, Wanted, _of_client
from mops_fl.models.trainable import Trainable
from mops_fl.training.trainer import Trainer

METHODS = ("mops", "fedprompt", "prompt-tuning", "lora", "ia3", "base")
QUESTIONS = [Example("Sort these words: b, a", "", "x", "t"), Example("Say", "it", "x", "t")]


@pytest.fixture(scope="module")
def runs(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, tiny_llama, method=name) for name in METHODS}


def slow_answer(trained: Trained, ids: list[int], length: int, end: int) -> list[int]:
    """Greedy, by the losses of training's forward pass: what is likeliest has the least."""
    trainer = Trainer(trained.config)
    frozen = {n: v for n, v in trained.tensors.items() if n == "pretrained"}
    tensors = {n: v for n, v in trained.tensors.items() if n != "pretrained"}
    mixture = trainer.mixture(frozen)
    trainable, found = Trainable([tensors], torch.device("cpu")), list[int]()
    vocabulary = range(trained.facts.vocab_size)
    while len(found) < length and end not in found:
        rows = [Tokenised(tuple(ids), (*found, token), "t") for token in vocabulary]
        batch, states, features = mixture.prepare(rows)
        with torch.no_grad():
            nll = mixture.nll(trainable, batch, states, features)[0]
        found.append(int(nll.argmin()))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_the_trained_model(runs, name):
    answerer = Answerer(Trained.read(runs[name]))
    ids = [answerer.ids(question) for question in QUESTIONS]
    end = answerer.tokenizer.eos_token_id
    wanted = [
        answerer.tokenizer.decode(
            slow_answer(answerer.trained, own, 4, end), skip_special_tokens=True
        )
        for own in ids
    ]
    sampling = Sampling(max_new_tokens=4)
    assert [answerer.answer(own, sampling) for own in ids] == wanted
    assert answerer.answers(ids, sampling) == wanted


def test_settings_of_the_base_model_decide_nothing(tiny_llama, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    run = trained_run(tmp_path / "run", model)
    sampling, ids = Sampling(max_new_tokens=6), [5, 6, 7]
    wanted = Answerer(Trained.read(run)).answer(ids, sampling)
    settings = {"repetition_penalty": 5.0, "num_beams": 4, "use_cache": False, "temperature": 0.9}
    (model / "generation_config.json").write_text(json.dumps(settings))
    answerer._frozen.cache_clear()
    read = Answerer(Trained.read(run))
    streamer = TextStreamer(read.tokenizer)
    assert read.answer(ids, sampling, streamer) == wanted
    export(read.trained, tmp_path / "out")


def test_questions_are_asked_as_in_training(runs):
    tokenizer = Answerer(Trained.read(runs["base"])).tokenizer
    trained_on = tokenise(QUESTIONS, tokenizer, 400).examples
    assert [question_ids(q, tokenizer) for q in QUESTIONS] == [[*e.question] for e in trained_on]


def test_the_base_model_is_itself_after_an_adapter_answered(runs, tiny_llama):
    lora = Answerer(Trained.read(runs["lora"]))
    ids = lora.ids(QUESTIONS[0])
    plain = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    lora.answer(ids, Sampling(max_new_tokens=3))
    base = Answerer(lora.trained.base())
    with torch.no_grad():
        found, wanted = (m(torch.tensor([ids])).logits for m in (base.model, plain))
    torch.testing.assert_close(found, wanted)


def test_the_gate_is_shown_as_shares(runs):
    answerer = Answerer(Trained.read(runs["mops"]))
    weights = answerer.gate(answerer.ids(QUESTIONS[0]))
    assert weights is not None
    assert len(weights) == 3
    assert sum(weights) == pytest.approx(1)
    assert answerer.trained.experts[0].startswith("0 (")
    assert Answerer(Trained.read(runs["fedprompt"])).gate([1, 2]) is None


def test_a_question_beyond_the_context_is_refused(runs):
    answerer = Answerer(Trained.read(runs["mops"]))
    with pytest.raises(DataError, match="ask a shorter one"):
        answerer.ids(Example("long " * 2000, "", "", ""))
    room = answerer.context
    assert room == answerer.model.config.max_position_embeddings - 6
    long = [*range(5, 250)] * 20
    assert len(answerer.answers([long[: room - 2]], Sampling(max_new_tokens=50))) == 1


def test_rounds_clients_and_models_are_checked(runs, tiny_llama, tmp_path):
    first = Trained.read(runs["mops"], Wanted(server_round=0))
    last = Trained.read(runs["mops"])
    assert not np.array_equal(first.tensors["prompts"], last.tensors["prompts"])
    with pytest.raises(RunError, match=r"round 7: .* has no round-007"):
        Trained.read(runs["mops"], Wanted(server_round=7))
    with pytest.raises(RunError, match="--client 1: all clients"):
        Trained.read(runs["mops"], Wanted(client=1))
    other = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    for file in tiny_llama.glob("*token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    read = Trained.read(runs["mops"], Wanted(model=str(tmp_path / "other")))
    with pytest.raises(RunError, match=r"is not what .* was trained on: its model digest"):
        _ = Answerer(read).model


def test_a_client_s_own_tensors_must_be_named(tiny_llama, tmp_path):
    run = trained_run(tmp_path / "run", tiny_llama)
    read = Trained.read(run)
    config = replace(read.config, training="local")
    held = {f"{c}/{n}": v + c for c in range(3) for n, v in read.tensors.items() if "." not in n}
    with pytest.raises(RunError, match="say with --client"):
        _of_client(read.run, config, held, 1, None)
    with pytest.raises(RunError, match="has no such client"):
        _of_client(read.run, config, held, 1, 9)
    own = _of_client(read.run, config, held, 1, 2)
    np.testing.assert_array_equal(own["prompts"], read.tensors["prompts"] + 2)
