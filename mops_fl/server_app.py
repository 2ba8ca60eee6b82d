"""The ServerApp: find the clients, pretrain, run the strategy's rounds, leave a run folder."""

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from mops_fl.config import Config
from mops_fl.data.split import malicious_partitions
from mops_fl.engine.choose import start_engine
from mops_fl.engine.watched import FIRST_ANSWER_SECONDS, WatchedGrid
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import cache_folder, held
from mops_fl.membership import find_clients
from mops_fl.methods import method_of
from mops_fl.run.figures import draw_figures
from mops_fl.run.folder import RunFolder, now
from mops_fl.run.provenance import commit, machine, versions
from mops_fl.run.recorder import Recorder
from mops_fl.start import start
from mops_fl.wire.records import Tensors, from_array_record, to_array_record
from mops_fl.wire.shapes import ModelSizes
from strategies import STRATEGIES, Client

_LINGERING_SECONDS = 120.0
"""A ServerApp whose SuperLink ended tries for about a minute to reach it, and then writes how its
run ended: whoever carries the run on waits for that."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the configuration describes."""
    config = Config.from_flat(context.run_config)
    path = Path(config.run_dir or cache_folder() / "runs" / str(context.run_id))
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with held(cache_folder() / "locks" / name, _LINGERING_SECONDS) as alone:
        if not alone:
            raise RunError(f"{path}: another process still writes this run; end it first")
        _record(config, path, grid)


def _record(config: Config, path: Path, grid: Grid) -> None:
    """Run it, and leave its folder whole whatever happens."""
    if config.resume:
        folder = RunFolder.reopen(path, config.flat())
    else:
        folder = RunFolder.create(
            path,
            {
                "id": uuid4().hex,
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
        engine, placement = start_engine(config, grid)
        folder.update(**placement.facts)
        seconds = config.federation.round_timeout or math.inf
        grid = WatchedGrid(engine, recorder.on_replies, seconds, FIRST_ANSWER_SECONDS)
        _run(config, folder, recorder, grid, simulated=placement.simulated)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        recorder.finish(status="failed", error=reason, finished=now())
        raise
    recorder.finish(status="completed", error=None, finished=now())
    for warning in draw_figures(folder.path):
        log(logging.WARNING, "%s", warning)


def _run(
    config: Config, folder: RunFolder, recorder: Recorder, grid: Grid, *, simulated: bool
) -> None:
    if config.training == "centralised" and not simulated:
        raise ConfigError(
            "training=centralised in a deployment: the clients' rows stay with the clients; use "
            "training=federated or training=local"
        )
    if config.aggregation.malicious_clients and not simulated:
        raise ConfigError(
            f"malicious-clients={config.aggregation.malicious_clients} in a deployment: attacks "
            "are for simulations, set it to 0"
        )
    roster = find_clients(config, folder, grid, simulated=simulated)
    clients, done = dict(roster.clients), folder.last_round()
    if not any(sum(client.description.test) for client in clients.values()):
        raise RunError(
            "no client holds out a row to evaluate on: one of them at least needs two rows"
        )
    if simulated:
        _check_same(folder, _facts(clients))
    elif done < 0:
        folder.update(**_facts(clients))
    if done >= 0:
        tensors = folder.load_checkpoint(done)
    else:
        folder.add_rows("partition.csv", _holdings(clients))
        tensors = start(config, clients, grid, recorder, simulated=simulated)
    frozen = _frozen(config, clients, tensors)
    strategy = STRATEGIES[config.training](
        config,
        folder.facts["id"],
        roster,
        to_array_record(frozen),
        recorder,
        max(done, 0),
        folder.last_trained(),
        simulated=simulated,
    )
    if done >= 0:
        # what a deployment began again had noise of its own, a simulation's is the same
        repeated = 0 if simulated else folder.facts.get("unfinished_rounds", 0)
        strategy.carry_on(folder.load_state(done), done + repeated)
    trained = {name: value for name, value in tensors.items() if name not in frozen}
    arrays = to_array_record(trained if done >= 0 else strategy.initial(trained))
    folder.update(
        trainable_parameters=strategy.method.parameters(config, _sizes(clients)),
        bytes_per_round=strategy.bytes_per_round(arrays),
        malicious_clients=sorted(malicious_partitions(config)),
    )
    if done < 0:
        folder.update(
            unseen_clients=sorted(roster.own - {*strategy.trainees}),
            unseen_tasks=strategy.unseen_tasks,
        )
        strategy.evaluate(grid, 0, arrays)

    def end_round(server_round: int, arrays) -> None:
        current = max(done, 0) + server_round
        if current > done:
            made = {**frozen, **from_array_record(arrays)}
            recorder.on_round_end(current, made, strategy.state)

    if strategy.privacy:
        folder.update(noise_multiplier=strategy.privacy.noise_multiplier)
    rounds = strategy.rounds
    strategy.last_round = recorder.rounds = max(done, 0) + rounds
    if strategy.averaged:
        _check_budget(config, folder, strategy.last_round)
    if not rounds and done > 0 and not folder.is_evaluated(done):
        strategy.evaluate(grid, done, arrays)
    strategy.start(grid, arrays, num_rounds=rounds, timeout=math.inf, evaluate_fn=end_round)
    kept = _settle(config, folder)
    if config.train.personal_steps and strategy.averaged:
        tensors = folder.load_checkpoint(kept)
        rest = {name: value for name, value in tensors.items() if name not in frozen}
        strategy.personalise(grid, kept, to_array_record(rest))


def _check_budget(config: Config, folder: RunFolder, rounds: int) -> None:
    """Say where privacy's budget ends a run before its last round.

    Raises:
        RunError: it ends it before the first.
    """
    wanted, (key, most) = config.federation.num_server_rounds, config.privacy.limit
    if not most or rounds == wanted:
        return
    if not rounds:
        raise RunError(
            f"{key}={most:g} is less than a round costs, with those that were begun and not ended: "
            "begin a run with more of it, more noise or more clients"
        )
    reason = f"{key}={most:g}: round {rounds + 1} would cost more"
    folder.update(stopped=reason)
    log(logging.WARNING, "the run ends after round %d of %d: %s", rounds, wanted, reason)


def _settle(config: Config, folder: RunFolder) -> int:
    """Write which round counts as the run's result."""
    best, last = folder.best_round(), folder.last_round()
    kept = last if best is None or config.federation.keep == "last" else best
    folder.update(best_round=best, kept_round=kept)
    return kept


def _frozen(config: Config, clients: Mapping[int, Client], tensors: Tensors) -> Tensors:
    """P¹ and whatever else of the tensors the method does not average."""
    method, sizes = method_of(config.method), _sizes(clients)
    known = method.all_shapes(config, sizes)
    averaged = method.travelling(config, sizes)
    return {n: v for n, v in tensors.items() if n in known and n not in averaged}


def _sizes(clients: Mapping[int, Client]) -> ModelSizes:
    return next(iter(clients.values())).description.sizes


def _check_same(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Record what the clients run on; a resumed run must run on the same.

    Raises:
        RunError: model, tokenizer or data are not those that the run began with.
    """
    for key in ("model_digest", "tokenizer_digest", "data_digest", "dtype"):
        if folder.facts.get(key, facts[key]) != facts[key]:
            raise RunError(
                f"{key} is {facts[key]} but the run began with {folder.facts[key]}: a run is "
                "resumed on its own model and data"
            )
    folder.update(**facts)


def _facts(clients: Mapping[int, Client]) -> dict[str, Any]:
    """What the clients said together, for run.json; what they share is counted once."""
    described = [client.description for client in clients.values()]
    corpora = {description.data_digest: description for description in described}.values()
    skipped: dict[str, int] = {}
    for corpus in corpora:
        for reason, rows in corpus.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + rows
    return {
        "model_digest": _joined(description.model_digest for description in described),
        "tokenizer_digest": _joined(description.tokenizer_digest for description in described),
        "data_digest": _joined(description.data_digest for description in described),
        "device": _joined(sorted({description.device for description in described})),
        "dtype": _joined(description.dtype for description in described),
        "skipped_rows": skipped,
        "cut_questions": sum(corpus.cut_questions for corpus in corpora),
        "cut_answers": sum(corpus.cut_answers for corpus in corpora),
    }


def _joined(values: Iterable[str]) -> str:
    """One value where all agree, a few in order, or a digest of many."""
    different = list(dict.fromkeys(values))
    if len(different) <= 3:
        return ", ".join(different)
    whole = hashlib.sha256("\n".join(different).encode()).hexdigest()
    return f"{len(different)} different, SHA-256 of all {whole}"


def _holdings(clients: Mapping[int, Client]) -> list[tuple[int, str, int, int]]:
    """Rows of partition.csv."""
    return [
        (partition, task, train, test)
        for partition, client in clients.items()
        for task, train, test in zip(
            client.description.tasks,
            client.description.train,
            client.description.test,
            strict=True,
        )
    ]
