"""A resident trainer: one backbone and one corpus, serving any client's messages.

It knows nothing of Flower, so that whatever keeps a process alive between messages can hold one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mops_fl.activity import doing
from mops_fl.base.device import named, resolve_device
from mops_fl.base.dtype import resolve_dtype
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import Config
from mops_fl.data import (
    Corpus,
    Holding,
    Share,
    Tokenised,
    TokenisedCorpus,
    evaluated,
    holding,
    load_corpus,
    load_server_data,
    made_by_one,
    malicious_partitions,
    tokenise,
    unseen_partitions,
)
from mops_fl.errors import ConfigError
from mops_fl.methods import Method, method_of
from mops_fl.models.backbone import Backbone, load_backbone
from mops_fl.models.mixture import Mixture
from mops_fl.models.numerics import numerics
from mops_fl.models.prefix_store import PrefixStore, open_store
from mops_fl.models.trainable import Trainable
from mops_fl.models.weights import ModelFacts, check_fit, model_facts
from mops_fl.training.attack import attacked
from mops_fl.training.evaluation import Evaluation, evaluate_clients
from mops_fl.training.kept import kept
from mops_fl.training.local import LocalData, LocalResult, draw_order, train
from mops_fl.training.pretraining import pretrain_gate, pretrain_prompt, vocabulary_prompts
from mops_fl.wire.records import PRETRAINED, PROMPTS, Tensors
from mops_fl.wire.replies import Description
from partitions import own_share, server_rows, shares


@dataclass(frozen=True)
class HeldOut:
    """One client's evaluation."""

    test: Evaluation
    validation: Evaluation


class Trainer:
    """The backbone, the data and the forward pass of one configuration in one process."""

    def __init__(
        self,
        config: Config,
        *,
        own_data: bool = False,
        least_rows: int = 0,
        states: Path | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        """Nothing is loaded before it is asked for.

        Args:
            config: the run.
            own_data: the corpus is this client's alone, not one that is partitioned over all.
            least_rows: of own data, tasks with fewer rows are left out.
            states: folder of the states at L_int; None for the cache's.
            backbone: that of another trainer with the same `config.backbone`; None to load it.
        """
        if own_data and config.training == "centralised":
            raise ConfigError(
                "training=centralised where clients have data of their own: they stay with the "
                "clients; use training=federated or training=local"
            )
        self.config, self._own_data, self._least_rows = config, own_data, least_rows
        self._states = states
        self._mixtures: dict[str, Mixture] = {}
        if backbone is not None:
            vars(self)["backbone"] = backbone

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen LLaMA."""
        return load_backbone(self.config.backbone)

    @property
    def method(self) -> Method:
        """What is trained."""
        return method_of(self.config.method)

    @property
    def dtype(self) -> str:
        """The type of the backbone, whatever `dtype` leaves open."""
        backbone = self.config.backbone
        return resolve_dtype(backbone.dtype, backbone.device)

    @cached_property
    def model_facts(self) -> ModelFacts:
        """Sizes and digest of the backbone."""
        return model_facts(self.config.backbone)

    @cached_property
    def corpus(self) -> Corpus:
        """All examples that this process can see."""
        config = self.config
        owner_column = "" if self._own_data else config.partition.partition_column
        return load_corpus(
            config.data,
            config.seed,
            owner_column,
            own_data=self._own_data,
            least_rows=self._least_rows,
        )

    @cached_property
    def tokenised(self) -> TokenisedCorpus:
        """The corpus as token ids."""
        with doing(f"tokens of {len(self.corpus.examples):,} rows"):
            return made_by_one(self.corpus.digest, lambda: self._tokenise(self.corpus))

    def _tokenise(self, corpus: Corpus) -> TokenisedCorpus:
        tokenizer = load_tokenizer(self.config.backbone)
        length, known = self.config.data.max_length, self.model_facts.vocab_size
        return tokenise(corpus.examples, tokenizer, length, known)

    @cached_property
    def _shares(self) -> list[Share]:
        """What each client holds, less the examples that the model has no tokens for."""
        config = self.config
        whole = [own_share(self.corpus, config)] if self._own_data else shares(self.corpus, config)
        return [share.without(self.tokenised.unknown) for share in whole]

    def _share(self, partition: int) -> Share:
        return self._shares[0 if self._own_data else partition]

    def _examples(self, indices: tuple[int, ...]) -> list[Tokenised]:
        return [self.tokenised.examples[index] for index in indices]

    def holding(self, partition: int) -> Holding:
        """How many examples of each task a client trains and tests on."""
        return holding(self.corpus.examples, self.corpus.tasks, self._share(partition))

    def description(self, partition: int) -> Description:
        """What a client says of itself.

        Raises:
            ConfigError: the method or the rows do not fit the model.
        """
        holding, facts, tokenised = self.holding(partition), self.model_facts, self.tokenised
        check_fit(self.config, facts)
        tasks = self.corpus.tasks
        return Description(
            partition=partition,
            tasks=tasks,
            train=tuple(holding.train[task] for task in tasks),
            test=tuple(holding.test[task] for task in tasks),
            validation=tuple(holding.validation[task] for task in tasks),
            unseen_tasks=len(self.corpus.unseen_tasks),
            own_data=self._own_data,
            sizes=facts.sizes,
            injection_layer=self._injection_layer,
            model_digest=facts.digest,
            tokenizer_digest=facts.tokenizer_digest,
            data_digest=self.corpus.digest,
            skipped={**self.corpus.skipped, **tokenised.skipped},
            cut_questions=tokenised.cut_questions,
            cut_answers=tokenised.cut_answers,
            device=named(resolve_device(self.config.backbone.device)),
            dtype=self.dtype,
        )

    @property
    def _injection_layer(self) -> int:
        """L_int."""
        sizes = self.model_facts.sizes
        return self.method.injection_layer(self.config.prompts, sizes.num_layers)

    def mixture(self, frozen: Tensors) -> Mixture:
        """The forward pass past a pretrained prompt; the last one asked for is kept."""
        pretrained = frozen.get(PRETRAINED)
        key = "" if pretrained is None else hashlib.sha256(pretrained.tobytes()).hexdigest()
        if key not in self._mixtures:
            layout = self.config.prompts
            tensor = None if pretrained is None else torch.tensor(pretrained)
            layer = self._injection_layer
            store = self._prefix_store({"pretrained": key, "layer": layer}) if layer else None
            mixture = Mixture(
                *(self.backbone, layout, layer, tensor, store, self.method, self.config.adapters)
            )
            self._mixtures = {key: mixture}
        return self._mixtures[key]

    def _pretrained_prompt(self, examples: Sequence[Tokenised], start: np.ndarray) -> Tensors:
        """P¹; on the CPU kept, since methods that are compared share it."""
        layout, train, seed = self.config.prompts, self.config.train, self.config.seed
        backbone, steps = self.backbone, layout.pretrain_prompt_steps

        def make() -> Tensors:
            with doing("steps of the prompt", of=steps) as on_step:
                return pretrain_prompt(backbone, layout, train, examples, start, seed, on_step)

        if self._own_data or backbone.device.type != "cpu":
            return make()
        tokens = repr([(example.question, example.answer) for example in examples])
        facts = {
            **self._weights(),
            **numerics(backbone),
            "data": hashlib.sha256(tokens.encode()).hexdigest(),
            "start": hashlib.sha256(start.tobytes()).hexdigest(),
            "training": [steps, train.batch_size, train.learning_rate, seed],
        }
        return kept(facts, make)

    def _weights(self) -> dict[str, str]:
        """What identifies the weights of the backbone."""
        compression = self.config.backbone.compression
        return {"model": self.model_facts.digest, "compression": compression}

    def _prefix_store(self, prefix: dict[str, str | int]) -> PrefixStore | None:
        config = self.config
        if not config.prefix_store_gb:
            return None
        facts = {**self._weights(), **prefix}
        return open_store(facts, self.backbone, config.prefix_store_gb, self._states)

    def take_warnings(self) -> list[str]:
        """What the user should know since the last call."""
        if "backbone" not in vars(self):
            return []
        memory = self.backbone.memory
        warnings, memory.warnings = memory.warnings, []
        return warnings

    def train(
        self, partition: int, server_round: int, tensors: Tensors, frozen: Tensors
    ) -> LocalResult:
        """One client's local steps of one round: a cohort of one."""
        (result,) = self.train_cohort([partition], server_round, [tensors], frozen)
        return result

    def train_cohort(
        self,
        partitions: Sequence[int],
        server_round: int,
        tensors: Sequence[Tensors],
        frozen: Tensors,
    ) -> list[LocalResult]:
        """Local steps of one round for several clients, all in one forward pass a step.

        Under ``training = centralised`` each trains on the rows of all clients.

        Args:
            partitions: the clients.
            server_round: the round, from 1; with the seed it fixes the order of examples.
            tensors: for each client all trainable tensors of the method, the gate included.
            frozen: P¹, where there is one.

        Returns:
            One result a client, in the same order.

        Raises:
            DataError: a client has no training examples.
        """
        steps = self.config.train.local_steps
        data = [
            self._local_data(partition, self._trained_on(partition), server_round, steps)
            for partition in partitions
        ]
        results = self._train(tensors, data, steps, frozen)
        return [
            self._told(partition, server_round, own, result)
            for partition, own, result in zip(partitions, tensors, results, strict=True)
        ]

    def _told(
        self, partition: int, server_round: int, sent: Tensors, result: LocalResult
    ) -> LocalResult:
        """What a client makes known of a round: its gate where that counts, or an attack."""
        own, seed = self.config.aggregation, self.config.seed
        if result.broken:
            self.backbone.memory.warnings.append(
                f"round {server_round}: gradients of client {partition} were not finite and "
                "counted as zero: its tensors are too large, or dtype has too small a range"
            )
        if own.aggregation != "gate-weighted":
            result = replace(result, gate=())
        if partition not in self._malicious:
            return result
        names = self.method.averaged(self.config, tuple(sent))
        shared = {name: sent[name] for name in names}
        made = attacked(shared, result.tensors, own, seed, partition, server_round)
        return replace(result, tensors=made)

    @cached_property
    def _malicious(self) -> frozenset[int]:
        return malicious_partitions(self.config)

    def _train(
        self,
        tensors: Sequence[Tensors],
        data: Sequence[LocalData],
        steps: int,
        frozen: Tensors,
    ) -> list[LocalResult]:
        mixture, config = self.mixture(frozen), replace(self.config.train, local_steps=steps)
        trained = self.method.trained(self.config, tuple(tensors[0]))
        with doing("steps", of=steps, clients=len(data)) as on_step:
            return train(mixture, tensors, data, config, trained=trained, on_step=on_step)

    def _local_data(
        self, partition: int, rows: tuple[int, ...], when: int | str, steps: int
    ) -> LocalData:
        """Rows in the order in which a client trains on them, in a round or at a named time."""
        examples = self._examples(rows)
        wanted = steps * self.config.train.batch_size
        order = draw_order(len(examples), wanted, self.config.seed, partition, when)
        return LocalData(examples, order)

    def _trained_on(self, partition: int) -> tuple[int, ...]:
        """Rows that a client trains on in a round: its own, or those of all in one place."""
        if self.config.training == "centralised":
            return self._pooled
        return self._share(partition).train

    def personalise_cohort(
        self, partitions: Sequence[int], tensors: Sequence[Tensors], frozen: Tensors
    ) -> list[HeldOut]:
        """Evaluation of several clients after `personal-steps` more steps of each on its own rows.

        Nothing of what is trained here is kept.

        Returns:
            One result a client, in the same order.
        """
        steps = self.config.train.personal_steps
        data = [self._local_data(p, self._share(p).train, "personal", steps) for p in partitions]
        results = self._train(tensors, data, steps, frozen)
        made = [{**t, **r.tensors} for t, r in zip(tensors, results, strict=True)]
        return self.evaluate_cohort(partitions, made, frozen)

    def evaluate(self, partition: int, tensors: Tensors, frozen: Tensors) -> HeldOut:
        """Losses and gate weights of one client's held-out examples."""
        (result,) = self.evaluate_cohort([partition], [tensors], frozen)
        return result

    def evaluate_cohort(
        self, partitions: Sequence[int], tensors: Sequence[Tensors], frozen: Tensors
    ) -> list[HeldOut]:
        """Losses and gate weights of several clients' held-out examples, in batches over all.

        Clients whose tensors are the same are evaluated with one set of them.

        Returns:
            One result a client, in the same order.
        """
        clients = tensors[:1] if all(_same(own, tensors[0]) for own in tensors) else tensors
        trainable = Trainable(clients, self.backbone.device)
        parts = [self.held_out(partition) for partition in partitions]
        sets = [part for test_and_validation in parts for part in test_and_validation]
        owner = [client for client in range(len(parts)) for _ in range(2)]
        mixture, examples = self.mixture(frozen), sum(map(len, sets))
        with doing("examples", of=examples, clients=len(partitions)) as on_step:
            results = evaluate_clients(mixture, trainable, sets, owner, on_step)
        return [HeldOut(*pair) for pair in zip(results[::2], results[1::2], strict=True)]

    def held_out(self, partition: int) -> tuple[list[Tokenised], list[Tokenised]]:
        """A client's held-out rows, of unseen tasks too, and its validation rows."""
        part = self.held_out_rows(partition)
        return self._examples(part.test + part.unseen), self._examples(part.validation)

    def held_out_rows(self, partition: int) -> Share:
        """The same rows as indices into the corpus; none to train on."""
        config, share = self.config, self._share(partition)
        return evaluated(share, config.data.eval_samples, config.seed, partition)

    def pretraining_data(self, partition: int) -> tuple[list[Tokenised], tuple[str, ...]]:
        """What pretraining may use, by `pretrain-data`.

        Args:
            partition: the client whose training examples are used if each pretrains on its own.

        Returns:
            Examples, and their tasks in expert order.

        Raises:
            ConfigError: they are not to be had in a process with one client's own data.
        """
        source, tasks = self.config.prompts.pretrain_data, self.corpus.trained_tasks
        if source == "none":
            return [], tasks
        if source == "own":
            return self._examples(self._share(partition).train), tasks
        if source == "server" and self.config.data.server_data:
            return self._server_data
        if self._own_data:
            raise ConfigError(
                f"pretrain-data={source} where a client has its own data alone: name the server's "
                "rows in server-data (with pretrain-data=server), or set pretrain-data to own or "
                "none"
            )
        rows = self._pooled if source == "pooled" else server_rows(self.corpus, self.config)
        unknown = self.tokenised.unknown
        return self._examples(tuple(row for row in rows if row not in unknown)), tasks

    @cached_property
    def _pooled(self) -> tuple[int, ...]:
        """Training examples of all clients that train."""
        unseen = unseen_partitions(self.config.partition, self.config.seed)
        seen = (share for number, share in enumerate(self._shares) if number not in unseen)
        return tuple(index for share in seen for index in share.train)

    @cached_property
    def _server_data(self) -> tuple[list[Tokenised], tuple[str, ...]]:
        """Examples of the trained tasks in `server-data`, and these tasks."""
        corpus = load_server_data(self.config.data, self.config.seed)
        tokenised = self._tokenise(corpus)
        known = np.setdiff1d(corpus.trained, list(tokenised.unknown)).tolist()
        return [tokenised.examples[index] for index in known], corpus.trained_tasks

    def pretrain(self, initial: Tensors, partition: int = 0, tasks: Sequence[str] = ()) -> Tensors:
        """Everything that is trained before round 1, on the examples that `pretrain-data` names.

        Args:
            initial: all trainable tensors of the method at their initial values.
            partition: the client whose examples are used where each pretrains on its own.
            tasks: of the run, in expert order; examples of others do not train the gate. Those of
                the data by default.

        Returns:
            `initial` with `prompt-init` and the pretrained gate in place, and `pretrained` (P¹)
            where there is one.
        """
        config, layout = self.config, self.config.prompts
        tensors, frozen = dict(initial), Tensors()
        if PROMPTS not in tensors:
            return tensors
        start, examples = initial[PROMPTS], list[Tokenised]()
        if self.method.needs_rows(layout):
            examples, own_tasks = self.pretraining_data(partition)
            tasks = tasks or own_tasks
        if layout.prompt_init == "vocab":
            start, tensors[PROMPTS] = vocabulary_prompts(
                self.backbone, self.mixture({}), layout.num_prompts, config.seed
            )
        if self.method.pretrains(layout):
            frozen = self._pretrained_prompt(examples, start)
        if self.method.pretrains_gate(layout):
            mixture = self.mixture(frozen)
            with doing("steps of the gate", of=layout.pretrain_gate_steps) as on_step:
                tensors = pretrain_gate(mixture, tensors, examples, tasks, config.seed, on_step)
        return {**tensors, **frozen}


def _same(own: Tensors, other: Tensors) -> bool:
    return own.keys() == other.keys() and all(np.array_equal(own[k], other[k]) for k in own)
