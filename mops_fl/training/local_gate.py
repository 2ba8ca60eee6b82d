"""A client's own gate under ``gate-sync = local``: kept by the client, from round to round.

It stays in the client's context, which Flower keeps as long as a run lasts, and in a file of the
client's machine, from which a resumed run goes on. Which round's gate is wanted the server says:
the last in which this client was averaged. Older ones than that are of no use any more.
"""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from safetensors.numpy import load_file, save_file

from mops_fl.errors import RunError
from mops_fl.files import cache_folder, replacing
from mops_fl.wire.records import GATE, Tensors, from_array_record, to_array_record
from mops_fl.wire.requests import Assignment

_GATE, _ROUND = "local-gate", "local-gate-round"


def split(frozen: Tensors) -> tuple[Tensors, Tensors]:
    """The gate among the tensors that are not averaged, and the rest."""
    gate: Tensors = {name: frozen[name] for name in GATE if name in frozen}
    return gate, {name: value for name, value in frozen.items() if name not in gate}


def keep(gate: Tensors, context: Context, partition: int, assignment: Assignment) -> None:
    """Keep what a client has just trained.

    Raises:
        RunError: it cannot be written.
    """
    current = assignment.server_round
    context.state[_GATE] = to_array_record(gate)
    context.state[_ROUND] = ConfigRecord({"server-round": current})
    folder = _folder(assignment.run, partition)
    with replacing(folder / _name(current), private=True) as file:
        save_file({name: np.ascontiguousarray(value) for name, value in gate.items()}, file)
    wanted = {_name(current), _name(assignment.last_trained)}
    for file in folder.glob("round-*.safetensors"):
        if file.name not in wanted:
            file.unlink(missing_ok=True)


def kept(context: Context, partition: int, assignment: Assignment) -> Tensors:
    """The gate of the round in which this client was last averaged.

    Raises:
        RunError: it is not on this machine.
    """
    wanted = assignment.last_trained
    record, of_round = context.state.get(_GATE), context.state.get(_ROUND)
    known = of_round["server-round"] if isinstance(of_round, ConfigRecord) else None
    if known == wanted and isinstance(record, ArrayRecord):
        return from_array_record(record)
    return read(assignment.run, partition, wanted)


def read(run: str, partition: int, server_round: int) -> Tensors:
    """The gate that a client trained in a round, from this machine's files.

    Raises:
        RunError: it is not on this machine.
    """
    file = _folder(run, partition) / _name(server_round)
    if not file.is_file():
        raise RunError(
            f"gate-sync=local: client {partition} trained its gate in round {server_round}, and it "
            f"is not on this machine ({file}): go on where it was trained, or begin a new run"
        )
    return load_file(file)


def _folder(run: str, partition: int) -> Path:
    return cache_folder() / "gates" / run / f"{partition:04d}"


def _name(server_round: int) -> str:
    return f"round-{server_round:03d}.safetensors"
