"""From valid replies to one set of tensors."""

from collections.abc import Sequence

from mops_fl.wire.records import Tensors


def weighted_mean(tensors: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """The mean of each tensor over clients (FedAvg, McMahan et al. 2017).

    Args:
        tensors: of each client, at least one; the order decides the last bits.
        weights: of each client; training examples.
    """
    total = sum(weights)
    mean: Tensors = {}
    for own, weight in zip(tensors, weights, strict=True):
        for name, value in own.items():
            part = value * (weight / total)
            mean[name] = mean[name] + part if name in mean else part
    return mean
