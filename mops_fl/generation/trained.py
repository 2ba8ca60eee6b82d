"""What a run has trained: its configuration, and the tensors of one of its rounds."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mops_fl.config import EARLIER, Config, Scalar
from mops_fl.errors import RunError
from mops_fl.methods import Method, method_of
from mops_fl.models.weights import ModelFacts, model_facts
from mops_fl.run.folder import RunFolder
from mops_fl.run.results import Run
from mops_fl.training import local_gate
from mops_fl.wire.records import Tensors

_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of a run's tensors are meant, and where they are to be used."""

    server_round: int | None = None
    """0 for the tensors before training; None for the run's result."""
    client: int | None = None
    """Partition id, where each client has its own tensors or its own gate."""
    model: str = ""
    """Where the base model lies here; empty for the run's."""
    dtype: str = ""
    """What it computes in; empty for the type in which the run did."""
    device: str = ""
    """Where it computes; empty for the run's."""


@dataclass(frozen=True)
class Trained:
    """Tensors that were trained, and on what."""

    run: Run
    config: Config
    """The run's; where its model lies and what computes may be another's."""
    server_round: int
    client: int | None
    """Whose tensors these are, where clients have tensors of their own."""
    tensors: Tensors
    """What the method trains, and P¹ where there is one."""

    @classmethod
    def read(cls, folder: Path, wanted: Wanted = Wanted()) -> Self:
        """The tensors of a round.

        Raises:
            RunError: there is no such run, round or client, or the round is not there any more.
        """
        run, server_round = Run.read(folder), wanted.server_round
        known = run.facts.get("dtype", "")
        own = {
            "model": wanted.model,
            # nodes of a deployment may compute in several
            "dtype": wanted.dtype or (known if known in _TYPES else ""),
            "device": wanted.device,
        }
        given: dict[str, Scalar] = {key: value for key, value in own.items() if value}
        # the same weights, without kernels that only some GPUs have
        given["sparse-kernels"] = False
        config = Config.from_flat({**EARLIER, **run.facts["config"], **given})
        held = RunFolder(folder)
        last = held.last_round()
        if last < 0:
            raise RunError(f"{folder} has no whole round yet: wait for its first, or resume it")
        if server_round is None:
            kept = run.facts.get("kept_round")
            server_round = last if kept is None else int(kept)
        if not (found := held.checkpoint(server_round)).is_file():
            raise RunError(
                f"round {server_round}: {folder} has no {found.name}; its last is {last}"
            )
        tensors = held.load_checkpoint(server_round)
        tensors = _of_client(run, config, tensors, server_round, wanted.client)
        return cls(run, config, server_round, wanted.client, tensors)

    @property
    def method(self) -> Method:
        """What was trained."""
        return method_of(self.config.method)

    @property
    def layer(self) -> int:
        """L_int.

        Raises:
            RunError: as `facts`.
        """
        return self.method.injection_layer(self.config.prompts, self.facts.sizes.num_layers)

    @property
    def experts(self) -> list[str]:
        """What each expert is called: its number, and the tasks that the gate was pretrained to
        give it, where it was.
        """
        layout = self.config.prompts
        if not self.method.pretrains_gate(layout):
            return [str(expert) for expert in range(layout.experts)]
        tasks = [*dict.fromkeys(str(row[1]) for row in self.run.rows("partition.csv"))]
        unseen = self.run.facts.get("unseen_tasks") or ()
        known = [task for task in tasks if task not in unseen]
        given = [known[expert :: layout.experts] for expert in range(layout.experts)]
        return [" ".join([str(e), *(f"({t})" for t in own[:1])]) for e, own in enumerate(given)]

    @property
    def facts(self) -> ModelFacts:
        """Of the base model, which is the one that the run was trained on.

        Raises:
            RunError: it is another one.
        """
        facts = model_facts(self.config.backbone)
        here = {"model_digest": facts.digest, "tokenizer_digest": facts.tokenizer_digest}
        for key, digest in here.items():
            known = self.run.facts.get(key)
            if known and digest not in known.split(", "):
                raise RunError(
                    f"model={self.config.backbone.model} is not what {self.run.folder} was trained "
                    f"on: its {key.replace('_', ' ')} is {digest[:12]}…, the run's {known[:12]}…: "
                    "name that model with --model"
                )
        return facts

    def base(self) -> Self:
        """The same without anything that was trained."""
        return replace(self, config=replace(self.config, method="base"), tensors={})


def own_tensors(config: Config) -> bool:
    """Whether each client of a run has tensors, or a gate, of its own."""
    return config.method != "base" and (config.training == "local" or _own_gate(config))


def _own_gate(config: Config) -> bool:
    return config.method == "mops" and config.prompts.gate_sync == "local"


def _of_client(
    run: Run, config: Config, tensors: Tensors, server_round: int, client: int | None
) -> Tensors:
    """A client's tensors, where clients have their own; else those of all.

    Raises:
        RunError: a client must be named, there is no such client, or none may be named.
    """
    if not own_tensors(config):
        if client is not None:
            raise RunError(f"--client {client}: all clients of {run.folder} share their tensors")
        return tensors
    if client is None:
        why = "training=local" if config.training == "local" else "gate-sync=local"
        raise RunError(f"{run.folder} has {why}: say with --client whose tensors are meant")
    if client not in {row[0] for row in run.rows("partition.csv")}:
        raise RunError(f"--client {client}: {run.folder} has no such client")
    if config.training == "local":
        shared = {name: value for name, value in tensors.items() if "/" not in name}
        own = f"{client}/"
        found = {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
        tensors = {**shared, **found}
    if _own_gate(config):
        rounds = [row[0] for row in run.rows("clients.csv") if row[1] == client]
        if trained := [number for number in rounds if number <= server_round]:
            tensors = {**tensors, **local_gate.read(run.facts["id"], client, max(trained))}
    return tensors
