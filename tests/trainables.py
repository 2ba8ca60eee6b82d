"""Initial tensors of the two prompt methods, for tests that have no model's sizes at hand."""

from dataclasses import replace

from mops_fl.config import Config, PromptConfig
from mops_fl.methods import method_of
from mops_fl.wire.records import Tensors
from mops_fl.wire.shapes import ModelSizes


def sizes(hidden_size: int, num_layers: int = 4) -> ModelSizes:
    return ModelSizes(hidden_size, num_layers, hidden_size, hidden_size // 2, 2 * hidden_size)


def initial_tensors(layout: PromptConfig, hidden_size: int, seed: int, gated: bool) -> Tensors:
    method = method_of("mops" if gated else "fedprompt")
    config = replace(Config.from_flat({}), prompts=layout)
    return method.initial(config, sizes(hidden_size), seed)
