"""Shapes of the tensors that travel, from the configuration and the backbone's width alone."""

from mops_fl.config import PromptConfig
from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PRETRAINED, PROMPTS, Shapes


def tensor_shapes(
    prompts: PromptConfig, hidden_size: int, *, gated: bool, pretrained: bool
) -> Shapes:
    """Of all tensors of a method.

    Args:
        prompts: numbers of experts, vectors and hidden units.
        hidden_size: d.
        gated: whether the method has a gate.
        pretrained: whether there is a P¹; it has as many vectors as there are prompts.

    Returns:
        `prompts` [K, d], and where there are such `gate.hidden` [d_g, d], `gate.output` [E, d_g]
        and `pretrained` [K, d].
    """
    shapes: dict[str, tuple[int, ...]] = {PROMPTS: (prompts.num_prompts, hidden_size)}
    if gated:
        shapes[GATE_HIDDEN] = (prompts.gate_hidden, hidden_size)
        shapes[GATE_OUTPUT] = (prompts.experts, prompts.gate_hidden)
    if pretrained:
        shapes[PRETRAINED] = shapes[PROMPTS]
    return shapes
