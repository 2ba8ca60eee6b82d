"""The ServerApp: find the clients, pretrain, run the strategy's rounds, leave a run folder."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from mops_fl.config import Config
from mops_fl.engine import engine_grid
from mops_fl.engine.watched import WatchedGrid
from mops_fl.errors import RunError
from mops_fl.files import cache_folder
from mops_fl.models.initial import initial_tensors
from mops_fl.run.folder import RunFolder, now
from mops_fl.run.provenance import commit, machine, versions
from mops_fl.run.recorder import Recorder
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    PARTITION,
    Tensors,
    from_array_record,
    num_bytes,
    to_array_record,
    whole,
)
from strategies import STRATEGIES, error_text

_PATIENCE_SECONDS = 60.0
"""How long to wait for a further node to connect."""

app = ServerApp()


@dataclass(frozen=True)
class Clients:
    """What the nodes said of themselves."""

    nodes: dict[int, int]
    """Partition id to node id."""
    hidden_size: int
    facts: dict[str, Any]
    """For run.json."""
    holdings: list[tuple[int, str, int, int]]
    """Rows of partition.csv."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the configuration describes."""
    config = Config.from_flat(context.run_config)
    path = Path(config.run_dir or cache_folder() / "runs" / str(context.run_id))
    if config.resume:
        folder = RunFolder.reopen(path, config.flat())
    else:
        folder = RunFolder.create(
            path,
            {
                "method": config.method,
                "seed": config.seed,
                "config": config.flat(),
                "versions": versions(),
                "commit": commit(),
                "machine": machine(),
            },
        )
    log(logging.INFO, "run folder: %s", path)
    recorder = Recorder(config, folder, folder.last_round())
    try:
        grid = WatchedGrid(engine_grid(config, grid), recorder.on_replies)
        _run(config, folder, recorder, grid)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        recorder.finish(status="failed", error=reason, finished=now())
        raise
    _draw(folder.path, gated=STRATEGIES[config.method].gated)
    recorder.finish(status="completed", error=None, finished=now())


def _run(config: Config, folder: RunFolder, recorder: Recorder, grid: Grid) -> None:
    method = STRATEGIES[config.method]
    clients = _find_clients(grid, config.partition.num_clients)
    _check_same(folder, clients.facts)
    done = folder.last_round()
    if done >= 0:
        tensors = folder.load_checkpoint(done)
    else:
        folder.add_rows("partition.csv", clients.holdings)
        tensors = _pretrained(config, clients, grid, folder, gated=method.gated)
    names = method.averaged(config)
    frozen = {name: value for name, value in tensors.items() if name not in names}
    strategy = method(config, clients.nodes, to_array_record(frozen), recorder, max(done, 0))
    arrays = to_array_record({name: tensors[name] for name in names})
    if done < 0:
        strategy.evaluate_initial(grid, arrays)

    def end_round(server_round: int, arrays) -> None:
        current = max(done, 0) + server_round
        if current > done:
            recorder.on_round_end(current, {**frozen, **from_array_record(arrays)})

    strategy.start(
        grid,
        arrays,
        num_rounds=config.federation.num_server_rounds - max(done, 0),
        timeout=float("inf"),
        evaluate_fn=end_round,
    )


def _check_same(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Record what the clients run on; a resumed run must run on the same.

    Raises:
        RunError: model or data are not those that the run began with.
    """
    for key in ("model_digest", "data_digest"):
        if folder.facts.get(key, facts[key]) != facts[key]:
            raise RunError(
                f"{key} is {facts[key]} but the run began with {folder.facts[key]}: a run is "
                "resumed on its own model and data"
            )
    folder.update(**facts)


def _find_clients(grid: Grid, expected: int) -> Clients:
    """Wait for all nodes and ask each what it is.

    Raises:
        RunError: too few or too many nodes, or nodes that do not fit together.
    """
    node_ids = _wait_for_nodes(grid, expected)
    replies = _ask(grid, "describe", node_ids, RecordDict())
    answers = {
        reply.metadata.src_node_id: reply.content.config_records[CONFIG] for reply in replies
    }
    nodes = {whole(answer, PARTITION): node for node, answer in answers.items()}
    if sorted(nodes) != list(range(expected)):
        raise RunError(
            f"the {expected} nodes have the partition ids {sorted(nodes)}: give every node its own "
            f"partition-id from 0 to {expected - 1}"
        )
    first = answers[nodes[0]]
    for partition, node in sorted(nodes.items()):
        for key in ("hidden-size", "num-layers"):
            if answers[node][key] != first[key]:
                raise RunError(
                    f"client {partition} has a model of {key}={whole(answers[node], key)}, "
                    f"client 0 of {whole(first, key)}: all clients must hold the same backbone"
                )
    holdings = [
        (partition, task, train, test)
        for partition, node in sorted(nodes.items())
        for task, train, test in zip(
            *(cast(list, answers[node][key]) for key in ("tasks", "train", "test")), strict=True
        )
    ]
    ordered = [answers[node] for _, node in sorted(nodes.items())]
    facts = {
        "model_digest": _joined(answer["model-digest"] for answer in ordered),
        "data_digest": _joined(answer["data-digest"] for answer in ordered),
        "device": _joined(answer["device"] for answer in ordered),
        "skipped_rows": first["skipped"],
        "cut_questions": first["cut-questions"],
        "cut_answers": first["cut-answers"],
    }
    return Clients(nodes, whole(first, "hidden-size"), facts, holdings)


def _joined(values) -> str:
    """One value where all agree, else all of them in order, each once."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _wait_for_nodes(grid: Grid, expected: int) -> list[int]:
    connected: list[int] = []
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        now_connected = list(grid.get_node_ids())
        if len(now_connected) >= expected:
            connected = now_connected
            break
        if len(now_connected) > len(connected):
            deadline = time.monotonic() + _PATIENCE_SECONDS
        connected = now_connected
        time.sleep(0.1)
    if len(connected) != expected:
        raise RunError(
            f"num-clients={expected} but {len(connected)} nodes are connected: make num-clients "
            "and the number of nodes (num-supernodes in a simulation) the same"
        )
    return connected


def _ask(grid: Grid, action: str, node_ids: list[int], content: RecordDict) -> list[Message]:
    """Query nodes; every one must answer.

    Raises:
        RunError: a node answered with an error, or not at all.
    """
    replies = list(
        grid.send_and_receive(
            [
                Message(content, message_type=f"{MessageType.QUERY}.{action}", dst_node_id=node)
                for node in node_ids
            ]
        )
    )
    for reply in replies:
        if reply.has_error():
            raise RunError(f"a client could not {action}: {error_text(reply)}")
    if len(replies) < len(node_ids):
        raise RunError(f"{len(node_ids) - len(replies)} clients did not answer '{action}'")
    return replies


def _pretrained(
    config: Config, clients: Clients, grid: Grid, folder: RunFolder, *, gated: bool
) -> Tensors:
    """Initial tensors from shapes alone, then pretraining on the first client's worker."""
    initial = to_array_record(
        initial_tensors(config.prompts, clients.hidden_size, config.seed, gated)
    )
    (reply,) = _ask(grid, "pretrain", [clients.nodes[0]], RecordDict({ARRAYS: initial}))
    received = reply.content.array_records[ARRAYS]
    folder.update(bytes_up=num_bytes(received), bytes_down=num_bytes(initial))
    return from_array_record(received)


def _draw(path: Path, *, gated: bool) -> None:
    from mops_fl.run.plots import gate_figure, perplexity_figure

    perplexity_figure([path], path / "perplexity.png")
    if gated:
        gate_figure(path, path / "gate.png")
