"""Turns what a strategy and a Grid report into the run folder's files."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple

from mops_fl.config import Config
from mops_fl.metrics import TOTAL, GateSum, Tallies, Tally, total
from mops_fl.run.folder import LATER, RunFolder
from mops_fl.run.missing import missing_tokens
from mops_fl.wire.records import Tensors
from mops_fl.wire.requests import EVALUATE, PERSONALISE, TRAIN
from mops_fl.wire.rounds import EvaluateRound, TrainRound

_PHASES = {TRAIN: "training", EVALUATE: "evaluating", PERSONALISE: "personalising"}


class Recorder:
    """Writes every round as it ends, and where the run stands as replies come."""

    def __init__(self, config: Config, folder: RunFolder, first_round: int) -> None:
        """Watch the rounds after `first_round`."""
        self._config, self._folder = config, folder
        self._round, self._first_round = max(first_round, 0), max(first_round, 0)
        self.rounds = config.federation.num_server_rounds
        """Those that there will be."""
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
            *(astuple(result.privacy) if result.privacy else LATER["train.csv"]),
        )
        self._folder.add_rows("train.csv", [row])
        self._keep_failures("train_failures", result.server_round, result.failures)
        drift = [
            (result.server_round, expert, own.cosine, own.update_cosine)
            for expert, own in enumerate(result.drift)
        ]
        if drift:
            self._folder.add_rows("drift.csv", drift)
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
        unseen = self._folder.facts.get("unseen_tasks", [])
        overall = total({t: tally for t, tally in result.tallies.items() if t not in unseen})
        order = self._folder.tasks()
        tasks = [task for task in order if task in result.tallies]
        self._perplexity = overall.perplexity
        row = (
            *(result.server_round, len(result.clients), len(result.failures), overall.tokens),
            *(round(seconds, 3), result.bytes_down),
        )
        self._folder.add_rows("evaluate.csv", [row])
        self._folder.add_rows("evaluation.csv", self._by_client(result, result.clients))
        if any(result.validation.values()):
            self._folder.add_rows("validation.csv", self._by_client(result, result.validation))
        missing = self._missing(result)
        lacks = sum(tokens for task, tokens in missing.items() if task not in unseen)
        each = [(task, result.tallies[task], missing.get(task, 0)) for task in tasks]
        self._folder.add_rows(
            "rounds.csv",
            (
                (
                    *(result.server_round, task, tally.nll, tally.tokens, tally.perplexity),
                    tally.tokens / ((tally.tokens + absent) or math.nan),
                )
                for task, tally, absent in [(TOTAL, overall, lacks), *each]
            ),
        )
        if result.gate:
            self._write_gate(result.server_round, {t: result.gate[t] for t in tasks})
        self._keep_failures("evaluation_failures", result.server_round, result.failures)

    def _keep_failures(self, key: str, server_round: int, failures: Mapping[int, str]) -> None:
        """Note why clients gave no valid reply, for the next time that run.json is written."""
        if failures:
            noted = self._folder.facts.setdefault(key, {})
            noted[str(server_round)] = {str(p): reason for p, reason in failures.items()}

    def on_personalise(self, result: EvaluateRound) -> None:
        """Write what clients reach by steps of their own."""
        self._end_phase()
        self._folder.set_rows("personal.csv", self._by_client(result, result.clients))

    def _missing(self, result: EvaluateRound) -> Mapping[str, float]:
        """Answer tokens of each task of the clients whose losses the totals lack."""
        unseen, private = self._folder.facts.get("unseen_clients", []), self._config.privacy.on
        held = self._folder.held_out()
        rows = {p: own for p, own in held.items() if (p in unseen) == private}
        tokens = self._folder.evaluated_tokens()
        return missing_tokens([*result.clients], rows, tokens, self._config.data.eval_samples)

    def _by_client(
        self, result: EvaluateRound, clients: Mapping[int, Tallies]
    ) -> list[tuple[int, int, str, float, int]]:
        """Rows of round, client, task and its sums."""
        order = self._folder.tasks()
        return [
            (result.server_round, partition, task, own[task].nll, own[task].tokens)
            for partition, own in clients.items()
            for task in order
            if task in own
        ]

    def _write_gate(self, server_round: int, gate: Mapping[str, GateSum]) -> None:
        for name, values in (("gate.csv", "mean"), ("load.csv", "mean_load")):
            rows = (
                (server_round, task, expert, value)
                for task, own in gate.items()
                for expert, value in enumerate(getattr(own, values))
            )
            self._folder.add_rows(name, rows)
        entropies = ((server_round, task, own.mean_entropy) for task, own in gate.items())
        self._folder.add_rows("entropy.csv", entropies)

    def on_round_end(self, server_round: int, tensors: Tensors, state: Tensors) -> None:
        """Write the checkpoint that makes a round whole."""
        self._folder.save_checkpoint(server_round, tensors, state)
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
            rounds=self.rounds,
            done=done,
            of=of,
            train_loss=self._train_loss,
            perplexity=self._perplexity,
            seconds_left=self._seconds_left(done, of),
        )

    def _seconds_left(self, done: int, of: int) -> float | None:
        """An estimate from the phases so far; None before there is one of each kind."""
        federation = self._config.federation
        rounds = self.rounds
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
