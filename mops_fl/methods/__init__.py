"""What can be trained on a frozen LLaMA: each method a module with its tensors and its place in
the forward pass. Which of its tensors are averaged it says, too; how, is `strategies`' affair.

Nothing here imports torch before a forward pass: the server makes initial tensors from sizes alone.
"""

import importlib
from functools import cache

from mops_fl.config import METHODS
from mops_fl.methods.method import Method

__all__ = ["METHODS", "Method", "method_of"]


@cache
def method_of(name: str) -> Method:
    """The method that `METHODS` names."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
