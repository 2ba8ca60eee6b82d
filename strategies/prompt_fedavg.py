"""FedAvg (McMahan et al., 2017) over prompt tensors: seeded sampling, strict replies."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.metrics import merge, total
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    FROZEN,
    METRICS,
    PROMPTS,
    ROUND,
    SECONDS,
    STEPS,
    get_gate_sums,
    get_tallies,
    num_bytes,
    whole,
)
from mops_fl.wire.replies import evaluate_fault, sort_replies, train_fault
from mops_fl.wire.rounds import EvaluateRound, Observer, TrainRound, TrainRow
from strategies.sampling import sample_partitions


class PromptFedAvg(FedAvg):
    """Averages the tensors that `averaged` names, weighted by examples.

    Rounds are those of the run, not of this process: `first_round` shifts Flower's count, which
    begins at 1, so that a resumed run samples and evaluates as if it had never stopped.
    """

    gated: ClassVar[bool] = False
    """Whether the method has a gate."""

    @classmethod
    def averaged(cls, config: Config) -> tuple[str, ...]:
        """Names of the tensors that travel both ways."""
        return (PROMPTS,)

    def __init__(
        self,
        config: Config,
        nodes: Mapping[int, int],
        frozen: ArrayRecord,
        observer: Observer,
        first_round: int = 0,
    ) -> None:
        """Set up for the rounds after `first_round`.

        Args:
            config: the run.
            nodes: partition id to node id of every client.
            frozen: tensors that clients need and do not train.
            observer: told of every round.
            first_round: the last whole round of the run so far.
        """
        super().__init__(weighted_by_key=EXAMPLES, arrayrecord_key=ARRAYS, configrecord_key=CONFIG)
        self.config, self.nodes, self.frozen = config, dict(nodes), frozen
        self.observer, self.first_round = observer, first_round
        self._partition_of = {node: partition for partition, node in nodes.items()}
        self._current = ArrayRecord()
        self._asked: list[int] = []

    def summary(self) -> None:
        """Log who is asked for what."""
        federation = self.config.federation
        log(
            logging.INFO,
            "\t└──> %s averages %s: %d of %d clients a round, at least %d valid replies",
            type(self).__name__,
            ", ".join(self.averaged(self.config)),
            federation.active_clients,
            len(self.nodes),
            self._minimum(federation.active_clients),
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's active clients to train."""
        current = self.first_round + server_round
        active = self.config.federation.active_clients
        picked = sample_partitions(self.nodes, active, self.config.seed, current)
        return self._messages(MessageType.TRAIN, current, picked, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the valid replies in the order of partition ids.

        Raises:
            RunError: too few of them are valid.
        """
        current = self.first_round + server_round
        valid, failures = self._sift(
            replies, current, "train", lambda reply: train_fault(reply, self._current)
        )
        contents = [reply.content for reply in valid.values()]
        arrays = aggregate_arrayrecords(contents, EXAMPLES)
        bytes_down = len(self._asked) * (num_bytes(self._current) + num_bytes(self.frozen))
        self.observer.on_train(
            TrainRound(
                server_round=current,
                rows=tuple(_train_row(p, reply) for p, reply in valid.items()),
                failures=failures,
                arrays=arrays,
                bytes_up=sum(num_bytes(content.array_records[ARRAYS]) for content in contents),
                bytes_down=bytes_down,
            )
        )
        self._current = arrays
        return arrays, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all clients to evaluate, in the rounds that are evaluated."""
        current = self.first_round + server_round
        federation = self.config.federation
        if current % federation.eval_every and current != federation.num_server_rounds:
            return []
        return self._messages(MessageType.EVALUATE, current, sorted(self.nodes), arrays)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Sum the clients' losses: the global test set is the union of their test parts.

        Raises:
            RunError: too few replies are valid.
        """
        if not replies:
            return None
        current = self.first_round + server_round
        valid, failures = self._sift(replies, current, "evaluate", evaluate_fault)
        records = [reply.content.metric_records[METRICS] for reply in valid.values()]
        tallies = merge(get_tallies(record) for record in records)
        gates: dict = {}
        for record in records:
            for task, gate in get_gate_sums(record).items():
                gates[task] = gates[task] + gate if task in gates else gate
        bytes_down = len(self._asked) * (num_bytes(self._current) + num_bytes(self.frozen))
        self.observer.on_evaluate(
            EvaluateRound(
                current, tallies, dict(sorted(gates.items())), len(valid), failures, bytes_down
            )
        )
        overall = total(tallies)
        return MetricRecord({"nll": overall.nll, "tokens": overall.tokens})

    def evaluate_initial(self, grid: Grid, arrays: ArrayRecord) -> None:
        """Evaluate before the first round, which `start` does not do."""
        messages = self._messages(MessageType.EVALUATE, 0, sorted(self.nodes), arrays)
        self.aggregate_evaluate(0, grid.send_and_receive(messages))

    def _messages(
        self, message_type: str, current: int, partitions: list[int], arrays: ArrayRecord
    ) -> list[Message]:
        self._current, self._asked = arrays, partitions
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: current})})
        if self.frozen:
            content[FROZEN] = self.frozen
        nodes = [self.nodes[partition] for partition in partitions]
        return list(self._construct_messages(content, nodes, message_type))

    def _minimum(self, asked: int) -> int:
        return max(1, math.ceil(self.config.federation.min_reply_fraction * asked - 1e-9))

    def _sift(
        self, replies: Iterable[Message], current: int, what: str, fault_of
    ) -> tuple[dict[int, Message], dict[int, str]]:
        """Valid replies by partition id, and the reasons why the others are not used."""
        failures = dict.fromkeys(self._asked, "no reply")
        valid: dict[int, Message] = {}
        for partition, reply in sort_replies(replies, self._partition_of):
            fault = fault_of(reply)
            if fault is None:
                valid[partition] = reply
                del failures[partition]
            else:
                failures[partition] = fault
        for partition, reason in failures.items():
            log(logging.WARNING, "round %d: client %d refused: %s", current, partition, reason)
        if len(valid) < self._minimum(len(self._asked)):
            partition, reason = next(iter(failures.items()))
            raise RunError(
                f"round {current}: {len(valid)} of {len(self._asked)} clients gave a valid "
                f"{what} reply, fewer than the {self._minimum(len(self._asked))} that "
                f"min-reply-fraction={self.config.federation.min_reply_fraction} asks for; "
                f"client {partition}: {reason}"
            )
        return valid, failures


def _train_row(partition: int, reply: Message) -> TrainRow:
    metrics = reply.content.metric_records[METRICS]
    return TrainRow(
        partition=partition,
        examples=whole(metrics, EXAMPLES),
        steps=whole(metrics, STEPS),
        tally=total(get_tallies(metrics)),
        seconds=cast(float, metrics[SECONDS]),
    )
