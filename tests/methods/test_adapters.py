"""LoRA and IA³ in one forward pass against plain `peft` on the same model and rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.errors import ConfigError
from mops_fl.methods import METHODS, method_of
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture, collate
from mops_fl.models.trainable import Trainable
from mops_fl.training.local import LocalData, train
from mops_fl.wire.shapes import ModelSizes

CONFIG = Config.from_flat({"lora-rank": 3, "lora-alpha": 5.0})
PEFT = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5.0),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def backbone(tiny_llama) -> Backbone:
    return Backbone(LlamaForCausalLM.from_pretrained(tiny_llama))


def rows(*lengths: tuple[int, int]) -> list[Tokenised]:
    draw = np.random.default_rng(0).integers
    return [
        Tokenised(tuple(draw(0, 256, q).tolist()), tuple(draw(0, 256, a).tolist()), "task")
        for q, a in lengths
    ]


ROWS = rows((7, 3), (12, 5), (3, 9), (20, 1), (5, 5), (9, 2))


def mixture_of(name: str, backbone: Backbone) -> Mixture:
    return Mixture(*(backbone, CONFIG.prompts, 0, None, None, method_of(name), CONFIG.adapters))


def tensors(name: str, backbone: Backbone, seed: int = 0):
    """Initial values moved by noise, so that nothing is zero or one."""
    sizes = ModelSizes.of(backbone.model.config.to_dict())
    draw = np.random.default_rng(seed)
    return {
        key: value + 0.1 * draw.standard_normal(value.shape, np.float32)
        for key, value in method_of(name).initial(CONFIG, sizes, seed).items()
    }


def losses(mixture: Mixture, trainable: Trainable, examples, owner=None) -> torch.Tensor:
    batch = collate(examples, mixture.backbone.device)
    states = mixture.prefix_states(batch)
    return mixture.nll(trainable, batch, states, mixture.gate_features(states, batch), owner)[0]


class Peft:
    """peft's model with our tensors in it."""

    def __init__(self, name: str, folder, values) -> None:
        self.model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), PEFT[name])
        self.weights = dict(self._places(name, values))
        for (key, layer), weight in self.weights.items():
            value = torch.from_numpy(values[key][layer])
            weight.data.copy_(value.reshape(weight.shape))

    def _places(self, name, values):
        for key in values:
            _, module, part = (*key.split(".", 1)[:1], *self._parsed(key))
            for layer, block in enumerate(self.model.base_model.model.model.layers):
                own = block.get_submodule(module)
                if name == "ia3":
                    yield (key, layer), own.ia3_l["default"]
                else:
                    yield (key, layer), getattr(own, f"lora_{part.upper()}")["default"].weight

    @staticmethod
    def _parsed(key: str) -> tuple[str, str]:
        """``lora.self_attn.q_proj.a`` to ``self_attn.q_proj`` and ``a``."""
        rest = key.split(".", 1)[1]
        return (rest[:-2], rest[-1]) if rest[-2:] in (".a", ".b") else (rest, "")

    def nll(self, example: Tokenised) -> torch.Tensor:
        ids = torch.tensor([example.question + example.answer])
        logs = self.model(ids).logits[0].log_softmax(-1)
        first = len(example.question) - 1
        return -sum(logs[first + i, token] for i, token in enumerate(example.answer))


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_outputs_and_gradients_are_those_of_peft(name, backbone, tiny_llama):
    values = tensors(name, backbone)
    peft = Peft(name, tiny_llama, values)
    trainable = Trainable([values], backbone.device)
    ours = losses(mixture_of(name, backbone), trainable, ROWS)
    theirs = torch.stack([peft.nll(row) for row in ROWS])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    ours.sum().backward()
    theirs.sum().backward()
    assert {key for key, _ in peft.weights} == set(values)
    for (key, layer), weight in peft.weights.items():
        gradient = trainable.tensors[key].grad[0, layer].reshape(weight.shape)
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-4)
    assert all(weight.grad is None for weight in backbone.model.parameters())


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_fresh_adapter_is_the_frozen_model(name, backbone):
    sizes = ModelSizes.of(backbone.model.config.to_dict())
    fresh = Trainable([method_of(name).initial(CONFIG, sizes, 0)], backbone.device)
    frozen = Trainable([{}], backbone.device)
    theirs = losses(mixture_of("base", backbone), frozen, ROWS)
    torch.testing.assert_close(losses(mixture_of(name, backbone), fresh, ROWS), theirs)


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_cohort_is_its_clients_one_by_one(name, backbone):
    config = replace(CONFIG.train, local_steps=3, batch_size=2)
    clients = [tensors(name, backbone, seed) for seed in range(3)]
    data = [LocalData(ROWS[2 * c : 2 * c + 2], (0, 1, 1, 0, 0, 1)) for c in range(3)]
    mixture = mixture_of(name, backbone)
    together = train(mixture, clients, data, config)
    for client, own, result in zip(clients, data, together, strict=True):
        (alone,) = train(mixture, [client], [own], config)
        assert result.tally.nll == pytest.approx(alone.tally.nll, rel=1e-4)
        for key, value in alone.tensors.items():
            np.testing.assert_allclose(result.tensors[key], value, rtol=1e-3, atol=2e-4)
            assert (value != client[key]).any(), key


def test_sizes_are_those_of_the_model(backbone):
    sizes = ModelSizes.of(backbone.model.config.to_dict())
    for name, module in backbone.model.model.layers[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            assert sizes.linear(name) == (module.in_features, module.out_features)


def test_every_method_says_what_it_trains(backbone):
    sizes = ModelSizes.of(backbone.model.config.to_dict())
    config = Config.from_flat({})
    counts = {name: method_of(name).parameters(config, sizes) for name in METHODS}
    assert counts == {
        "mops": 70 * 32 + 64 * 32 + 7 * 64,
        "fedprompt": 70 * 32,
        "prompt-tuning": 70 * 32,
        # queries 32 -> 32, values 32 -> 16, four layers of rank 8
        "lora": 4 * 8 * (32 + 32 + 32 + 16),
        # keys and values of 16, the MLP's 64
        "ia3": 4 * (16 + 16 + 64),
        "base": 0,
    }


@pytest.mark.parametrize("name", ["mops", "fedprompt", "prompt-tuning", "lora"])
@pytest.mark.parametrize("parameters", [3000, 20_000])
def test_sizes_are_chosen_to_match_a_number_of_parameters(name, parameters):
    sizes = ModelSizes(64, 4, 64, 32, 128)
    config = Config.from_flat({"method": name, "gate-hidden": 16, "experts": 3})
    method = method_of(name)
    matched = method.matched(config, sizes, parameters)
    # the step from one size to the next: a rank, a vector, or one vector an expert
    step = {"lora": 4 * (64 + 64 + 64 + 32), "mops": 3 * 64}.get(name, 64)
    assert abs(method.parameters(matched, sizes) - parameters) <= step / 2 + 1
    Config.from_flat(matched.flat())


@pytest.mark.parametrize("name", ["ia3", "base"])
def test_a_method_of_one_size_says_so(name):
    config = Config.from_flat({"method": name})
    with pytest.raises(ConfigError, match=f"method={name} always trains"):
        method_of(name).matched(config, ModelSizes(64, 4, 64, 32, 128), 1000)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_method_on_a_backbone_in_half_precision(name, dtype, backbone, tiny_llama):
    half = Backbone(LlamaForCausalLM.from_pretrained(tiny_llama, dtype=dtype))
    values = tensors(name, backbone)
    exact = losses(
        mixture_of(name, backbone), Trainable([values] * 2, half.device), ROWS[:2], [0, 1]
    )
    trainable = Trainable([values] * 2, half.device)
    near = losses(mixture_of(name, half), trainable, ROWS[:2], [0, 1])
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.3)
    if trainable.parameters():
        near.sum().backward()
        assert all(torch.isfinite(tensor.grad).all() for tensor in trainable.parameters())
