"""A method's tensors, round by round: seeded sampling, strict replies, one rule of aggregation."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from mops_fl.config import Config
from mops_fl.data.split import unseen_partitions
from mops_fl.errors import RunError
from mops_fl.methods import method_of
from mops_fl.metrics import GateSum, Tallies, merge, total
from mops_fl.seeding import python_generator
from mops_fl.wire.parsing import LARGEST_VALUE
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    PROMPTS,
    Tensors,
    from_array_record,
    num_bytes,
    to_array_record,
)
from mops_fl.wire.replies import (
    GATE_WEIGHTS,
    LOSS,
    Evaluated,
    EvaluationAsked,
    Trained,
    TrainingAsked,
    sift,
)
from mops_fl.wire.requests import PERSONALISE, Assignment
from mops_fl.wire.rounds import Drift, EvaluateRound, Observer, TrainRound, TrainRow
from strategies.aggregation import AGGREGATIONS, Contribution, by_examples, clipped
from strategies.drift import expert_drift
from strategies.privacy import CentralDP
from strategies.quorum import minimum, require
from strategies.roster import Roster
from strategies.sampling import sample_partitions

Reply = TypeVar("Reply")


class PromptFedAvg(FedAvg):
    """Aggregates the tensors that the method names; clients count by the examples they described.

    Rounds are those of the run, not of this process: `first_round` shifts Flower's count, which
    begins at 1, so that a resumed run samples and evaluates as if it had never stopped.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        roster: Roster,
        frozen: ArrayRecord,
        observer: Observer,
        first_round: int = 0,
        last_trained: Mapping[int, int] | None = None,
        *,
        simulated: bool = True,
    ) -> None:
        """Set up for the rounds after `first_round`.

        Args:
            config: the run.
            run: names it for the clients.
            roster: who takes part.
            frozen: tensors that clients need and do not train.
            observer: told of every round.
            first_round: the last whole round of the run so far.
            last_trained: the round in which each client last trained; without those that never did.
            simulated: whether randomness is the seed's in all.

        Raises:
            ConfigError: there is no differential privacy as it is asked for.
        """
        super().__init__(arrayrecord_key=ARRAYS, configrecord_key=CONFIG)
        self.config, self.run, self.roster, self.frozen = config, run, roster, frozen
        self.observer, self.first_round = observer, first_round
        self.method = method_of(config.method)
        sizes = next(iter(roster.clients.values())).description.sizes
        self.averaged = self.method.travelling(config, sizes)
        """Names of the tensors that travel both ways."""
        self._unseen = unseen_partitions(config.partition, config.seed)
        self.privacy = None
        if config.privacy.on:
            self.privacy = CentralDP(config, len(self.trainees), simulated=simulated)
        rule, mean = AGGREGATIONS[config.aggregation.aggregation], by_examples
        self.aggregation = rule(config.aggregation, self.privacy.mean if self.privacy else mean)
        """The rule, and what it carries from round to round."""
        self.last_round = config.federation.num_server_rounds if self.averaged else 0
        """That all are evaluated in."""
        self._last_trained = dict(last_trained or {})
        self._current = ArrayRecord()
        self._asked: list[tuple[int, Message]] = []
        self._absent: dict[int, str] = {}
        self._tokens: dict[int, tuple[dict[str, int], dict[str, int]]] = {}

    def summary(self) -> None:
        """Log who is asked for what."""
        federation = self.config.federation
        log(
            logging.INFO,
            "\t└──> %s of %s: %d of %d clients a round, at least %d valid replies",
            type(self).__name__,
            ", ".join(self.averaged),
            len(self.active(1)),
            len(self.trainees),
            minimum(len(self.active(1)), federation.min_reply_fraction),
        )

    @property
    def state(self) -> Tensors:
        """What the next rounds need beside the averaged tensors, for the checkpoint."""
        return {**self.aggregation.state, **(self.privacy.state if self.privacy else {})}

    def carry_on(self, state: Tensors, releases: int) -> None:
        """Go on after a whole round.

        Args:
            state: of its checkpoint.
            releases: rounds whose tensors may have left the server so far, as `CentralDP` has it.
        """
        if self.privacy:
            self.privacy.carry_on(state, releases)
        own = self.privacy.state if self.privacy else ()
        self.aggregation.state = {n: value for n, value in state.items() if n not in own}

    @property
    def rounds(self) -> int:
        """How many rounds there are to come: fewer than wanted where privacy would cost more."""
        left = self.last_round - self.first_round
        return self.privacy.rounds(left) if self.privacy else left

    @property
    def _gate_asked(self) -> int:
        """Experts whose mean gate weight a client tells with what it trained."""
        weighted = self.config.aggregation.aggregation == "gate-weighted"
        return self.config.prompts.experts if weighted else 0

    @property
    def trainees(self) -> list[int]:
        """The clients that may train, by partition id."""
        return sorted(self.roster.own - self._unseen)

    @property
    def unseen_tasks(self) -> list[str]:
        """Tasks that no client trains on, though some are evaluated on them."""
        described = [client.description for client in self.roster.clients.values()]
        trained = {task for own in described for task in own.trained_tasks}
        return list(dict.fromkeys(t for own in described for t in own.tasks if t not in trained))

    def initial(self, tensors: Tensors) -> Tensors:
        """What the rounds begin with, from the averaged tensors at their start."""
        return tensors

    def active(self, current: int) -> list[int]:
        """Who is to train in a round, as sorted partition ids.

        Drawn from those who are there; where these are too few, with some who are not.
        """
        if self.privacy:
            return self.privacy.active(self.trainees, current)
        seats = self.roster.seats(self.trainees)
        everyone = {*self.trainees, *seats}
        active = min(self.config.federation.active_clients, len(everyone))
        there = min(active, len(seats))
        drawn = sample_partitions(seats, there, self.config.seed, current)
        absent = sorted(everyone - seats.keys())[: active - there]
        return sorted([*(seats[partition] for partition in drawn), *absent])

    def arrays_of(self, partition: int, arrays: ArrayRecord) -> ArrayRecord:
        """What a client is sent of a round's tensors."""
        return arrays

    def combined(
        self, server_round: int, arrays: ArrayRecord, valid: Mapping[int, Trained]
    ) -> Tensors:
        """The next round's tensors, from this one's and the valid replies by partition id."""
        sent = from_array_record(arrays)
        norm = 0.0 if self.privacy else self.config.aggregation.clip_norm
        replies = [
            Contribution(
                clipped(sent, reply.tensors, norm) if norm else reply.tensors,
                self.examples(partition),
                reply.gate,
            )
            for partition, reply in valid.items()
        ]
        made = self.aggregation(server_round, sent, replies)
        # momentum and spoilt replies may lead beyond what clients accept
        limits = -LARGEST_VALUE, LARGEST_VALUE
        return {name: np.clip(value, *limits) for name, value in made.items()}

    def examples(self, partition: int) -> int:
        """Rows that a client trains on: its weight."""
        return self.roster.client(partition).description.examples

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's active clients to train."""
        current = self.first_round + server_round
        self.roster.look(current)
        return self._messages(MessageType.TRAIN, current, self.active(current), arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the valid replies in the order of partition ids.

        Raises:
            RunError: too few of them are valid.
        """
        current, bytes_down = self.first_round + server_round, self._bytes_down()

        def read(partition: int, content: RecordDict) -> Trained:
            train = self.config.train
            tokens = train.local_steps * train.batch_size * self.config.data.max_length
            sent = self.arrays_of(partition, self._current)
            shapes = {name: tuple(array.shape) for name, array in sent.items()}
            examples = self.examples(partition)
            told = LOSS in self.roster.client(partition).description.metrics and not self.privacy
            steps, experts = train.local_steps, self._gate_asked
            asked = TrainingAsked(shapes, examples, steps, tokens, experts, told)
            return Trained.read(content, asked)

        valid, failures = self._sift(replies, current, "train", read)
        made = self.combined(current, self._current, valid)
        self.observer.on_train(
            TrainRound(
                server_round=current,
                rows=tuple(
                    TrainRow(partition, reply.examples, reply.steps, reply.tally, reply.seconds)
                    for partition, reply in valid.items()
                ),
                failures=failures,
                bytes_up=sum(reply.bytes for reply in valid.values()),
                bytes_down=bytes_down,
                drift=self._drift(valid),
                privacy=self.privacy.spent if self.privacy else None,
            )
        )
        self._last_trained |= dict.fromkeys(valid, current)
        return to_array_record(made), None

    def _drift(self, valid: Mapping[int, Trained]) -> list[Drift]:
        """Of each expert's prompts, where all clients began with the same and may be compared."""
        if PROMPTS not in self._current or self.privacy:
            return []
        versions = [reply.tensors[PROMPTS] for reply in valid.values()]
        start = self._current[PROMPTS].numpy()
        return expert_drift(start, versions, self.config.prompts.experts)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all clients to evaluate, in the rounds that are evaluated."""
        current = self.first_round + server_round
        federation = self.config.federation
        skipped = current % federation.eval_every and current != self.last_round
        if not skipped:
            self.roster.look(current)
        partitions = [] if skipped else self._evaluated(current)
        return self._messages(MessageType.EVALUATE, current, partitions, arrays)

    def _evaluated(self, current: int) -> list[int]:
        """The clients whose rows a round is evaluated on."""
        federation = self.config.federation
        count = federation.evaluate_clients
        if self.privacy:
            return self._telling(self._unseen & self.roster.own)
        if not 0 < count < len(self.trainees) or current == self.last_round:
            return self._telling(self.roster.own)
        draw = python_generator(self.config.seed, "evaluate-clients")
        return self._telling(draw.sample(self.trainees, count))

    def _telling(self, partitions: Iterable[int]) -> list[int]:
        """Those of some clients that tell their losses, sorted; absent ones are taken to do so.

        Raises:
            RunError: none does.
        """
        if not (asked := {*partitions}):
            raise RunError(
                f"none of the unseen clients {', '.join(map(str, sorted(self._unseen)))} is there, "
                "by whose rows dp=central evaluates: have one of them join before the run begins"
            )
        silent = {p for p, c in self.roster.clients.items() if LOSS not in c.description.metrics}
        if not (telling := asked - silent):
            raise RunError("share-metrics=none on every node: there is nothing to evaluate by")
        return sorted(telling)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Sum the clients' losses: the global test set is the union of their test parts.

        Raises:
            RunError: too few replies are valid.
        """
        if not self._asked and not self._absent:
            return None
        result = self._summed(self.first_round + server_round, "evaluate", replies)
        self.observer.on_evaluate(result)
        unseen = self.unseen_tasks
        overall = total({t: tally for t, tally in result.tallies.items() if t not in unseen})
        return MetricRecord({"nll": overall.nll, "tokens": overall.tokens})

    def _summed(self, current: int, what: str, replies: Iterable[Message]) -> EvaluateRound:
        """The valid replies to an evaluation, added up over the clients that may train."""
        bytes_down = self._bytes_down()
        valid, failures = self._sift(replies, current, what, self._read_evaluation)
        for partition, reply in valid.items():
            self._tokens[partition] = _tokens(reply.tallies), _tokens(reply.validation)
        counted = {p: reply for p, reply in valid.items() if self.counts(p)}
        gates: dict[str, GateSum] = {}
        for reply in counted.values():
            for task, gate in reply.gate.items():
                gates[task] = gates[task] + gate if task in gates else gate
        return EvaluateRound(
            server_round=current,
            tallies=merge(reply.tallies for reply in counted.values()),
            gate=dict(sorted(gates.items())),
            clients={partition: reply.tallies for partition, reply in valid.items()},
            validation={partition: reply.validation for partition, reply in counted.items()},
            failures=failures,
            bytes_down=bytes_down,
        )

    def counts(self, partition: int) -> bool:
        """Whether a client's held-out rows are of the global test set.

        They are where it may train; with differential privacy, where it may not.
        """
        return (partition in self._unseen) == bool(self.privacy)

    def evaluate(self, grid: Grid, current: int, arrays: ArrayRecord) -> None:
        """Evaluate outside of `start`: before the first round, or after the last.

        Args:
            grid: of the run.
            current: round of the run whose tensors they are.
            arrays: the tensors.
        """
        self.roster.look(current)
        partitions = self._evaluated(current)
        messages = self._messages(MessageType.EVALUATE, current, partitions, arrays)
        self.aggregate_evaluate(current - self.first_round, grid.send_and_receive(messages))

    def personalise(self, grid: Grid, server_round: int, arrays: ArrayRecord) -> None:
        """Have every client take `personal-steps` from a round's tensors, and evaluate that.

        Args:
            grid: of the run.
            server_round: whose tensors they are.
            arrays: the tensors.

        Raises:
            RunError: too few replies are valid.
        """
        now = self.config.federation.num_server_rounds
        self.roster.look(now)
        messages = self._messages(PERSONALISE, now, self._telling(self.roster.own), arrays)
        replies = grid.send_and_receive(messages)
        self.observer.on_personalise(self._summed(server_round, "personalise", replies))

    def _read_evaluation(self, partition: int, content: RecordDict) -> Evaluated:
        own = self.roster.clients[partition].description
        most = self.config.data.eval_samples
        test, validation = (
            {task: min(rows, most or rows) for task, rows in zip(own.tasks, part, strict=True)}
            for part in (own.test, own.validation)
        )
        known, known_validation = self._tokens.get(partition, (None, None))
        gated = self.method.gated and GATE_WEIGHTS in own.metrics
        asked = EvaluationAsked(
            rows=test,
            validation=validation,
            tokens_a_row=self.config.data.max_length,
            experts=self.config.prompts.experts if gated else 0,
            known=known,
            known_validation=known_validation,
        )
        return Evaluated.read(content, asked)

    def _messages(
        self, message_type: str, current: int, partitions: list[int], arrays: ArrayRecord
    ) -> list[Message]:
        self._current, self._asked = arrays, []
        absent = self.roster.absent
        self._absent = {
            partition: absent[partition] for partition in partitions if partition in absent
        }
        there = [partition for partition in partitions if partition not in absent]
        for partition in there:
            last = self._last_trained.get(partition, 0)
            # with privacy it is not to be known how many of those that were drawn are there
            count = len(partitions) if self.privacy else len(there)
            assignment = Assignment(self.run, current, last, count)
            own = self.arrays_of(partition, arrays)
            content = RecordDict({ARRAYS: own, CONFIG: assignment.record()})
            if self.frozen:
                content[FROZEN] = self.frozen
            node = self.roster.client(partition).node
            message = Message(content, message_type=message_type, dst_node_id=node)
            self._asked.append((partition, message))
        return [message for _, message in self._asked]

    def bytes_per_round(self, arrays: ArrayRecord) -> int:
        """What a round of training takes both ways, of tensors."""
        active = self.active(1) if self.averaged else []
        sent = sum(num_bytes(self.arrays_of(partition, arrays)) for partition in active)
        return 2 * sent + len(active) * num_bytes(self.frozen)

    def _bytes_down(self) -> int:
        """Of the tensors of all messages that wait for a reply."""
        sent = sum(num_bytes(self.arrays_of(p, self._current)) for p, _ in self._asked)
        return sent + len(self._asked) * num_bytes(self.frozen)

    def _sift(
        self,
        replies: Iterable[Message],
        current: int,
        what: str,
        read: Callable[[int, RecordDict], Reply],
    ) -> tuple[dict[int, Reply], dict[int, str]]:
        """Valid replies by partition id, and the reasons why the others are not used."""
        asked = {message.metadata.message_id: partition for partition, message in self._asked}
        valid, failures = sift(asked, replies, read)
        failures |= self._absent
        self._asked, self._absent = [], {}
        for partition, reason in failures.items():
            log(logging.WARNING, "round %d: client %d refused: %s", current, partition, reason)
        require(
            f"round {current}: {{}} gave a valid {what} reply",
            len(valid),
            len(valid) + len(failures),
            self.config.federation,
            {f"client {partition}": reason for partition, reason in failures.items()},
            "min-reply-fraction" if what == "train" else "min-evaluate-fraction",
        )
        return valid, failures


def _tokens(tallies: Tallies) -> dict[str, int]:
    return {task: tally.tokens for task, tally in tallies.items()}
