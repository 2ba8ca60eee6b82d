"""Results kept between runs, where the same computation would give the same bits."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mops_fl.errors import RunError
from mops_fl.files import cache_folder, replacing
from mops_fl.wire.records import Tensors


def kept(facts: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
    """What was made from the same facts before; else what `make` gives, which is kept.

    Args:
        facts: everything that decides the bits of the result, as JSON takes it.
        make: computes it.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "pretrained" / f"{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):
        return load_file(file)
    made = make()
    # a cache that cannot be written costs the next run its time, and this one nothing
    with contextlib.suppress(RunError), replacing(file, private=True) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in made.items()}, temporary)
    return made
