"""The rows that a federated number stands beside, against what they are said to be."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from mops_fl.config import Config
from mops_fl.data import unseen_partitions
from mops_fl.metrics import total
from mops_fl.training.trainer import Trainer

FLAT = {
    "dtype": "float32",
    "device": "cpu",
    "num-samples": 60,
    "max-length": 64,
    "local-steps": 5,
    "pretrain-data": "none",
    "learning-rate": 0.01,
}


def trainer(model, **changes) -> Trainer:
    changes = {key.replace("_", "-"): value for key, value in changes.items()}
    clients = {"num-clients": 3, "active-clients": 1}
    return Trainer(Config.from_flat({**FLAT, **clients, "model": str(model), **changes}))


def test_base_is_the_plain_llama(tiny_llama):
    base, plain = trainer(tiny_llama, method="base"), LlamaForCausalLM.from_pretrained(tiny_llama)
    expected = tokens = 0
    for example in base.held_out(1)[0]:
        ids = torch.tensor([example.question + example.answer])
        with torch.no_grad():
            logs = plain(ids).logits[0].log_softmax(-1)
        places = range(len(example.question) - 1, ids.shape[1] - 1)
        expected -= sum(logs[place, ids[0, place + 1]].item() for place in places)
        tokens += len(example.answer)
    tally = total(base.evaluate(1, {}, {}).test.tallies)
    assert tally.nll == pytest.approx(expected, rel=1e-5)
    assert tally.tokens == tokens


@pytest.mark.parametrize("method", ["mops", "lora"])
def test_centralised_with_one_clients_data_is_that_client_alone(tiny_llama, method):
    results = []
    for training in ("local", "centralised"):
        one = trainer(tiny_llama, method=method, training=training, num_clients=1)
        tensors = one.method.initial(one.config, one.model_facts.sizes, 0)
        for server_round in (1, 2):
            tensors = {**tensors, **one.train(0, server_round, tensors, {}).tensors}
        results.append((tensors, one.evaluate(0, tensors, {})))
    (local, evaluated), (together, again) = results
    for name, value in local.items():
        np.testing.assert_array_equal(together[name], value)
    assert evaluated == again


def test_centralised_trains_on_all_rows_but_those_of_unseen_clients(tiny_llama):
    together = trainer(tiny_llama, training="centralised", unseen_clients=0.4)
    alone = trainer(tiny_llama, training="local", unseen_clients=0.4)
    (unseen,) = unseen_partitions(together.config.partition, together.config.seed)
    rows = [alone._examples(alone._trained_on(client)) for client in range(3) if client != unseen]
    everything = together._examples(together._trained_on(0))
    assert sorted(everything, key=repr) == sorted((row for own in rows for row in own), key=repr)


def test_personalisation_is_on_a_clients_own_rows_whatever_came_before(tiny_llama):
    results = []
    for training in ("federated", "centralised"):
        one = trainer(tiny_llama, method="lora", training=training, personal_steps=4)
        tensors = one.method.initial(one.config, one.model_facts.sizes, 0)
        results.append(one.personalise_cohort([1, 2], [tensors, tensors], {}))
    assert results[0] == results[1]
