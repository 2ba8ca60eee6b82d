"""Running a function over many clients at once, where one failure must not be everyone's."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together:
    """Calls a function on as many clients at once as memory allows.

    When memory runs out, the clients are halved until they fit, and no later call is larger; after
    any other exception they are run one by one, so that only the culprit's outcome is an exception.
    """

    def __init__(self) -> None:
        """Begin without a limit."""
        self._limit: int | None = None
        self.warnings: list[str] = []
        """What the user should know; whoever tells them empties it."""

    def run(
        self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> list[Result | Exception]:
        """The outcome of each item, in their order.

        Args:
            function: gives one result an item; a result may depend on its own item only.
            items: one a client.

        Raises:
            torch.AcceleratorError: the device is lost to this process.
        """
        size = min(len(items), self._limit or len(items))
        return [
            outcome
            for start in range(0, len(items), max(size, 1))
            for outcome in self._part(function, items[start : start + size])
        ]

    def _part(
        self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> list[Result | Exception]:
        try:
            return list(function(items))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            # A traceback would keep the tensors of the failed attempt alive.
            failure = error.with_traceback(None)
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(items) == 1:
            return [failure]
        if isinstance(failure, torch.OutOfMemoryError):
            self._halve(len(items), failure)
            return self.run(function, items)
        return [outcome for item in items for outcome in self._part(function, [item])]

    def _halve(self, size: int, failure: Exception) -> None:
        first = self._limit is None
        self._limit = size // 2
        if first:
            self.warnings.append(
                f"{size} clients in one forward need more memory than there is; halving their "
                f"number until they fit (cohort-size sets it): {failure}"
            )
