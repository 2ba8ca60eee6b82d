"""Running a function over many clients at once, where one failure must not be everyone's."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def together(
    function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result | Exception]:
    """The outcome of each item, in their order: all at once, one by one after an exception.

    Args:
        function: gives one result an item; a result may depend on its own item only.
        items: one a client.

    Raises:
        torch.AcceleratorError: the device is lost to this process.
    """
    try:
        return list(function(items))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if len(items) == 1:
            # A traceback would keep the tensors of the failed attempt alive.
            return [error.with_traceback(None)]
    return [outcome for item in items for outcome in together(function, [item])]
