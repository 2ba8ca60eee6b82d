"""Letting a method change what linear modules of the frozen layers take and give."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mops_fl.config import AdapterConfig
from mops_fl.methods import Method
from mops_fl.methods.method import LayerTensors, Whose


class Adapters:
    """A method's tensors at their places in the layers, for one forward pass."""

    def __init__(
        self,
        method: Method,
        config: AdapterConfig,
        tensors: Mapping[str, Tensor],
        client: Tensor | None,
    ) -> None:
        """Nothing is changed before `within`.

        Args:
            method: says which modules it changes, and how.
            config: of the adapters.
            tensors: [C, L, ...] by name.
            client: [N], the client of each position; None for one client.
        """
        self._method, self._config, self._tensors = method, config, tensors
        self._whose: Whose | None = None
        if client is not None:
            count = len(next(iter(tensors.values())))
            self._whose = Whose(
                client, client[:, None] == torch.arange(count, device=client.device)
            )

    @contextlib.contextmanager
    def within(self, layers: Mapping[int, nn.Module]) -> Iterator[None]:
        """Have the method's way with the modules of some layers, by their indices."""
        with contextlib.ExitStack() as stack:
            for index, layer in layers.items():
                own = LayerTensors(self._tensors, index, lambda: self._whose, self._config)
                for name in self._method.adapted:
                    module = layer.get_submodule(name)
                    before = partial(self._before, name, own)
                    after = partial(self._after, name, own)
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(after).remove)
            yield

    def pick(self, places: Tensor) -> None:
        """Go on with some of the positions only."""
        if self._whose is not None:
            self._whose = Whose(self._whose.index[places], self._whose.own[places])

    def _before(self, name: str, own: LayerTensors, _module: Any, inputs: tuple) -> tuple:
        return (self._method.before(name, inputs[0], own), *inputs[1:])

    def _after(
        self, name: str, own: LayerTensors, _module: Any, inputs: tuple, outputs: Tensor
    ) -> Tensor:
        return self._method.after(name, inputs[0], outputs, own)
