"""What a malicious client sends in place of what it trained: `attack`, to see what a rule
withstands.
"""

import numpy as np

from mops_fl.config import AggregationConfig
from mops_fl.seeding import numpy_generator
from mops_fl.wire.parsing import LARGEST_VALUE
from mops_fl.wire.records import Tensors, norm


def attacked(
    sent: Tensors, made: Tensors, config: AggregationConfig, seed: int, *purpose: str | int
) -> Tensors:
    """An update's attack, as far from what the client was sent as `attack-scale` updates.

    All values stay in the range that a server accepts.

    Args:
        sent: the tensors with which the client began; others in `made` are its own, and stay.
        made: the trained tensors.
        config: the attack.
        seed: the run's seed.
        purpose: names the draw of the noise: client and round.
    """
    updates = {name: value - sent[name] for name, value in made.items() if name in sent}
    if config.attack == "noise":
        length = norm(updates)
        draw = numpy_generator(seed, "attack", *purpose)
        noise = {n: draw.standard_normal(u.shape, np.float32) for n, u in updates.items()}
        updates = {name: value * np.float32(length / norm(noise)) for name, value in noise.items()}
    scale = np.float32(
        -config.attack_scale if config.attack == "sign-flip" else config.attack_scale
    )
    spoilt = {name: sent[name] + scale * update for name, update in updates.items()}
    limits = -LARGEST_VALUE, LARGEST_VALUE
    return {**made, **{name: np.clip(value, *limits) for name, value in spoilt.items()}}
