"""How many examples go through the backbone at once: as many as memory holds.

On the CPU the limit is a constant wherever there is memory for it, because which examples share a
forward pass decides the last bits of the results. On CUDA it is a share of what is free. What is
free is divided among the worker processes of the machine, or of the GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from transformers import LlamaConfig

from mops_fl.data import Tokenised
from mops_fl.machine import WORKERS_VARIABLE, available_memory, workers, workers_per_gpu

CPU_BYTES = 2 * 1024**3
_SHARE_OF_FREE = 0.45
"""As much is left to the prefix store, and some to the allocator."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a forward pass holds on to, with a gradient until its backward."""

    position: int
    """For each prompt vector or token of the sequence."""
    score: int
    """For each pair of a (padded) token and a key that it may see."""
    answer: int
    """For each answer token: its logits."""

    def bytes(
        self, rows: int, longest: int, tokens: int, answers: int, sets: int, prompts: int
    ) -> int:
        """For rows of so many tokens and answer tokens in all, and sets of K prompt vectors."""
        vectors = sets * prompts
        pairs = rows * longest * (longest + prompts) + vectors * prompts
        return (vectors + tokens) * self.position + pairs * self.score + answers * self.answer


def footprint(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, layers: int
) -> Footprint:
    """The footprint of a forward pass that keeps the activations of so many layers.

    Autograd saves, of each layer and position, four states and three inner ones of the MLP in the
    backbone's type and two states in float32; without fused attention, also the float32 scores and
    their rounded copy. One layer is added for what a backward pass makes meanwhile.
    """
    width, inner = cast(int, config.hidden_size), cast(int, config.intermediate_size)
    heads, vocabulary = cast(int, config.num_attention_heads), cast(int, config.vocab_size)
    kept, exact = dtype.itemsize, torch.float32.itemsize
    score = exact if kept == exact else exact + kept
    return Footprint(
        position=(layers + 1) * (width * (4 * kept + 2 * exact) + 3 * inner * kept),
        score=0 if device.type == "cuda" else (layers + 1) * heads * score,
        answer=3 * vocabulary * exact,
    )


class Memory:
    """Runs functions on groups of examples that fit, in one process and on one device."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Nothing is measured before the first call of `in_groups`.

        Args:
            config: the backbone's.
            dtype: of its states.
            device: where it is.
        """
        self._config, self._dtype, self._device = config, dtype, device
        self._limit: int | None = None
        self._told = False
        self.warnings: list[str] = []
        """What the user should know; whoever tells them empties it."""

    def in_groups(
        self,
        function: Callable[[list[int]], Result],
        examples: Sequence[Tokenised],
        owner: Sequence[int],
        prompts: int,
        layers: int,
    ) -> Iterator[tuple[list[int], Result]]:
        """Call a function on all examples, a group of them at a time.

        Groups are of similar length. When memory runs out a group is halved and tried again, and
        no later one is larger.

        Args:
            function: takes indices of examples; what it changes, it changes at its end.
            examples: at least one.
            owner: whose prompt vectors each example sees.
            prompts: vectors of an owner.
            layers: whose activations are kept: those with a gradient, or one without any.

        Yields:
            Each group of indices with the function's result.

        Raises:
            torch.OutOfMemoryError, RuntimeError, MemoryError: one example alone does not fit.
        """
        size = footprint(self._config, self._dtype, self._device, layers)
        waiting = sorted(range(len(examples)), key=lambda i: (examples[i].fed, i))
        while waiting:
            group, taken = self._fitting(waiting, examples, owner, prompts, size)
            result, failure = _attempt(function, group)
            if failure is None:
                waiting = waiting[len(group) :]
                yield group, cast(Result, result)
            elif len(group) == 1:
                raise failure
            else:
                self._halve(len(group), taken, failure)

    def _fitting(
        self,
        waiting: list[int],
        examples: Sequence[Tokenised],
        owner: Sequence[int],
        prompts: int,
        size: Footprint,
    ) -> tuple[list[int], int]:
        """The first indices, at least one, of which all fit; and their bytes."""
        if self._limit is None:
            self._limit = self._free()
        tokens = answers = taken = 0
        sets: set[int] = set()
        for count, index in enumerate(waiting):
            row = examples[index]
            tokens, answers = tokens + row.fed, answers + len(row.answer)
            sets.add(owner[index])
            more = size.bytes(count + 1, row.fed, tokens, answers, len(sets), prompts)
            if count and more > self._limit:
                return waiting[:count], taken
            taken = more
        return waiting, taken

    def _halve(self, count: int, taken: int, failure: Exception) -> None:
        self._limit = taken // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._told:
            self._told = True
            self.warnings.append(
                f"{count} examples in one forward need more memory than there is; halving "
                f"their number until they fit: {failure}"
            )

    def _free(self) -> int:
        """Bytes that one group may take."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            cached = torch.cuda.memory_reserved(self._device)
            unused = free + cached - torch.cuda.memory_allocated(self._device)
            return int(_SHARE_OF_FREE * unused / workers_per_gpu())
        sharers, free = workers(), available_memory()
        limit = CPU_BYTES
        while limit > _SHARE_OF_FREE * free / sharers:
            limit //= 2
        if limit < CPU_BYTES:
            self.warnings.append(
                f"only {free / 1e9:.1f} GB of memory are free for {sharers} worker processes "
                f"({WORKERS_VARIABLE}): fewer examples go through the backbone at once, and "
                "results may differ in their last bits"
            )
        return limit


def _attempt(
    function: Callable[[list[int]], Result], group: list[int]
) -> tuple[Result | None, Exception | None]:
    """The function's result, or that memory ran out."""
    try:
        return function(group), None
    except (RuntimeError, MemoryError) as error:
        if not _is_want_of_memory(error):
            raise
        # A traceback would keep the tensors of the failed attempt alive.
        return None, error.with_traceback(None)


def _is_want_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on the CPU only the words of a RuntimeError tell."""
    words = ("DefaultCPUAllocator", "not enough memory", "bad_alloc", "STATUS_ALLOC_FAILED")
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)
