"""Turns what a strategy and a Grid report into the run folder's files."""

import time
from collections import defaultdict
from collections.abc import Iterable

from mops_fl.config import Config
from mops_fl.metrics import TOTAL, Tally, total
from mops_fl.run.folder import RunFolder
from mops_fl.wire.records import Tensors
from mops_fl.wire.rounds import EvaluateRound, TrainRound

_PHASES = {"train": "training", "evaluate": "evaluating"}


class Recorder:
    """Writes every round as it ends, and where the run stands as replies come."""

    def __init__(self, config: Config, folder: RunFolder, first_round: int) -> None:
        """Watch the rounds after `first_round`."""
        self._config, self._folder = config, folder
        self._round, self._first_round = max(first_round, 0), max(first_round, 0)
        self._phase = "starting"
        self._phase_start = time.monotonic()
        self._durations: defaultdict[str, list[float]] = defaultdict(list)
        self._train_loss: float | None = None
        self._perplexity: float | None = None

    def on_replies(self, message_type: str, done: int, of: int) -> None:
        """Some replies of a phase have come."""
        phase = _PHASES.get(message_type, "pretraining" if of == 1 else "starting")
        if done == 0:
            self._phase, self._phase_start = phase, time.monotonic()
            if phase == "training":
                self._round += 1
        self._write_progress(done, of)

    def on_pretrain(self, bytes_up: int, bytes_down: int) -> None:
        """Write what came before round 0: its time, and the bytes of its tensors."""
        seconds = round(self._end_phase(), 3)
        pretraining = {"seconds": seconds, "bytes_up": bytes_up, "bytes_down": bytes_down}
        self._folder.update(pretraining=pretraining)

    def on_train(self, result: TrainRound) -> None:
        """Write a round's training."""
        seconds = self._end_phase()
        whole = sum((row.tally for row in result.rows), Tally())
        self._train_loss = whole.nll / whole.tokens if whole.tokens else None
        row = (
            *(result.server_round, len(result.rows), len(result.failures)),
            *(sum(row.steps for row in result.rows), whole.nll, whole.tokens),
            *(round(seconds, 3), result.bytes_up, result.bytes_down),
        )
        self._folder.add_rows("train.csv", [row])
        self._folder.add_rows(
            "clients.csv",
            (
                (
                    *(result.server_round, r.partition, r.examples, r.steps),
                    *(r.tally.nll, r.tally.tokens, round(r.seconds, 3)),
                )
                for r in result.rows
            ),
        )

    def on_evaluate(self, result: EvaluateRound) -> None:
        """Write a round's evaluation."""
        seconds = self._end_phase()
        overall = total(result.tallies)
        order = self._folder.tasks()
        tasks = [task for task in order if task in result.tallies]
        self._perplexity = overall.perplexity
        row = (
            *(result.server_round, result.clients, len(result.failures), overall.tokens),
            *(round(seconds, 3), result.bytes_down),
        )
        self._folder.add_rows("evaluations.csv", [row])
        self._folder.add_rows(
            "rounds.csv",
            (
                (result.server_round, task, tally.nll, tally.tokens, tally.perplexity)
                for task, tally in [(TOTAL, overall), *((t, result.tallies[t]) for t in tasks)]
            ),
        )
        if result.gate:
            rows = (
                (result.server_round, task, expert, weight)
                for task in tasks
                if task in result.gate
                for expert, weight in enumerate(result.gate[task].mean)
            )
            self._folder.add_rows("gate.csv", rows)
        if result.failures:
            missing = self._folder.facts.setdefault("evaluation_failures", {})
            missing[str(result.server_round)] = {str(p): w for p, w in result.failures.items()}

    def on_round_end(self, server_round: int, tensors: Tensors) -> None:
        """Write the checkpoint that makes a round whole."""
        self._folder.save_checkpoint(server_round, tensors)
        self._folder.update(rounds_done=server_round)

    def finish(self, **facts: object) -> None:
        """Write how the run ended."""
        self._phase = "finished"
        self._folder.update(**facts)
        self._write_progress(0, 0)

    def _end_phase(self) -> float:
        seconds = time.monotonic() - self._phase_start
        self._durations[self._phase].append(seconds)
        return seconds

    def _write_progress(self, done: int, of: int) -> None:
        self._folder.progress(
            phase=self._phase,
            round=self._round,
            rounds=self._config.federation.num_server_rounds,
            done=done,
            of=of,
            train_loss=self._train_loss,
            perplexity=self._perplexity,
            seconds_left=self._seconds_left(done, of),
        )

    def _seconds_left(self, done: int, of: int) -> float | None:
        """An estimate from the phases so far; None before there is one of each kind."""
        federation = self._config.federation
        rounds = federation.num_server_rounds
        after = range(self._round + 1, rounds + 1)
        evaluations = sum(r % federation.eval_every == 0 or r == rounds for r in after)
        evaluate, train = _mean(self._durations["evaluating"]), _mean(self._durations["training"])
        spent = time.monotonic() - self._phase_start
        if self._phase == "training":
            evaluations += self._round % federation.eval_every == 0 or self._round == rounds
            train = train or (spent * of / done if done else None)
        elif self._phase != "evaluating":
            return None if self._phase != "finished" else 0.0
        if train is None or evaluate is None:
            return None
        phase = train if self._phase == "training" else evaluate
        return round(max(phase - spent, 0.0) + len(after) * train + evaluations * evaluate, 1)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
