"""Initial values of the trainable tensors, from shapes alone; without torch, for the server."""

import numpy as np

from mops_fl.config import PromptConfig
from mops_fl.seeding import numpy_generator
from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PROMPTS, Tensors
from mops_fl.wire.shapes import tensor_shapes

INIT_STD = 0.02
"""Standard deviation of randomly initialised prompt vectors."""


def initial_tensors(prompts: PromptConfig, hidden_size: int, seed: int, gated: bool) -> Tensors:
    """Seeded initial values from shapes alone, without a backbone.

    Prompts are N(0, 0.02²); W₁ is N(0, 1) and W₂ N(0, 1/d_g): the gate's input has norm 1 at most,
    its hidden units are about 1.

    Returns:
        `prompts` [K, d], and for a gated method `gate.hidden` [d_g, d] and `gate.output` [E, d_g].
    """
    stds = {PROMPTS: INIT_STD, GATE_HIDDEN: 1.0, GATE_OUTPUT: prompts.gate_hidden**-0.5}
    shapes = tensor_shapes(prompts, hidden_size, gated=gated, pretrained=False)
    return {
        name: np.float32(stds[name])
        * numpy_generator(seed, "initial", name).standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
