"""Bytes and seconds of one round's messages, as Flower makes bytes of them.

Down go the prompts, the gate and the frozen P¹; up come the prompts and the gate. Seconds are one
process's: tensors to Flower's objects to bytes, and back to tensors.
"""

from collections.abc import Callable
from statistics import median

import torch
from flwr.app import ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from experiments.benchmarks.common import LLAMA_7B, arguments, report, seconds
from mops_fl.config import Config
from mops_fl.methods import method_of
from mops_fl.wire.records import PRETRAINED, PROMPTS, Tensors, from_array_record, to_array_record
from mops_fl.wire.shapes import ModelSizes

CPU = torch.device("cpu")
SIZES = {"smollm2-135m": 576, LLAMA_7B: 4096}
"""Hidden size d: all that the messages depend on."""
COLUMNS = {
    "name": "",
    "active": "active clients",
    "bytes_down": "bytes down",
    "bytes_up": "bytes up",
    "seconds_packing": "s packing",
    "seconds_unpacking": "s unpacking",
}


def packed(tensors: Tensors) -> tuple[str, dict[str, bytes]]:
    """An ArrayRecord as the bytes that travel, by object id; and its own id."""
    record = to_array_record(tensors)
    contents = {key: part.deflate() for key, part in get_all_nested_objects(record).items()}
    return record.object_id, contents


def unpacked(name: str, contents: dict[str, bytes]) -> Tensors:
    """The tensors that `packed` was given."""
    record = inflate_object_from_contents(name, dict(contents))
    assert isinstance(record, ArrayRecord)
    return from_array_record(record)


def _timed(action: Callable[[], object], times: int) -> float:
    return median(seconds(action, CPU) for _ in range(times))


def main() -> None:
    """Run the benchmark."""
    options = arguments("communication", __doc__).parse_args()
    times = 5 if options.quick else 30
    config = Config.from_flat({"seed": options.seed})
    active = config.federation.active_clients
    results = []
    for shape, hidden_size in SIZES.items():
        sizes = ModelSizes.of({"hidden_size": hidden_size, "num_hidden_layers": 32})
        for method in ("mops", "fedprompt"):
            up = method_of(method).initial(config, sizes, options.seed)
            other = method_of("fedprompt").initial(config, sizes, options.seed + 1)
            down = {**up, PRETRAINED: other[PROMPTS]}
            taken = {"packing": 0.0, "unpacking": 0.0}
            size = {}
            for way, tensors in (("down", down), ("up", up)):
                name, contents = packed(tensors)
                size[way] = sum(map(len, contents.values()))
                taken["packing"] += _timed(lambda t=tensors: packed(t), times)  # type: ignore[misc]
                taken["unpacking"] += _timed(lambda n=name, c=contents: unpacked(n, c), times)  # type: ignore[misc]
            results.append(
                {
                    "name": f"{shape}, {method}",
                    "active": active,
                    **{f"bytes_{way}": active * count for way, count in size.items()},
                    **{f"seconds_{what}": active * took for what, took in taken.items()},
                }
            )
    report("messages of a round, training only", COLUMNS, results, options)


if __name__ == "__main__":
    main()
