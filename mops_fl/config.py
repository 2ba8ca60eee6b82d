"""The configuration: flat, kebab-case keys on the outside, frozen typed objects on the inside.

The keys and their defaults stand in ``[tool.flwr.app.config]`` of ``pyproject.toml``, where Flower
wants them. `Config.from_flat` parses a flat mapping once, and refuses unknown keys, unknown values
and contradictions before anything starts. Nothing here imports torch.
"""

import difflib
import functools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from mops_fl.compression_spec import Compression, parse
from mops_fl.errors import ConfigError

Scalar = str | int | float | bool

_LEAST_NOISE = 1e-9
"""z with which the accountant's numbers still hold."""

DATASETS = ("skills", "dolly", "superni", "jsonl")

METHODS = {
    "mops": "mops_fl.methods.mops:MoPs",
    "fedprompt": "mops_fl.methods.fedprompt:FedPrompt",
    "prompt-tuning": "mops_fl.methods.prompt_tuning:PromptTuning",
    "lora": "mops_fl.methods.lora:LoRA",
    "ia3": "mops_fl.methods.ia3:IA3",
    "base": "mops_fl.methods.base:Base",
}
"""The values of `method`, and the class of each."""

AGGREGATIONS = (
    *("fedavg", "fedavgm", "fedadam", "median", "trimmed-mean", "multi-krum", "gate-weighted"),
)


def _choice(*values: str) -> Any:
    return field(metadata={"choices": values})


def _at_least(low: float, *, below: float = math.inf) -> Any:
    return field(metadata={"low": low, "below": below})


def _positive(*, below: float = math.inf) -> Any:
    return field(metadata={"low": math.ulp(0.0), "below": below})


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The frozen LLaMA."""

    model: str
    """`smollm2-135m` (embedded), a hub id, a local folder, or a GGUF file."""
    dtype: str = _choice("auto", "float32", "bfloat16", "float16")
    """Type of the frozen weights and of the activations; trainable tensors are float32 always.
    `auto` is bfloat16 where the device computes it natively, float32 elsewhere."""
    device: str
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    compression: str
    """`none`, `unstructured-<percent>`, `<N>:<M>` (N of every M pruned), `int8`, `nf4`, or a
    pruning and a quantisation joined by `+`."""
    sparse_kernels: bool
    """Whether a 2:4 backbone runs on the GPU's sparse tensor cores: more memory, and faster on some
    GPUs and sizes (`experiments/compression.py --bench-sparse` says)."""
    calibration: str = _choice(*DATASETS)
    """Dataset whose rows SparseGPT prunes by."""
    calibration_path: str
    """Its `data-path`."""
    calibration_tasks: str
    """Its `tasks`; where the run has unseen tasks of the same dataset, leave them out here."""
    calibration_samples: int = _at_least(1)
    """Rows that SparseGPT sees; 128 in its paper."""

    @property
    def spec(self) -> Compression:
        """The compression, parsed."""
        return parse(self.compression)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which examples there are, and how long."""

    dataset: str = _choice(*DATASETS)
    data_path: str
    """File or folder; may be empty for `skills` (generated) and `dolly` (from the hub)."""
    tasks: str
    """Comma-separated task names to keep, in expert order; empty for the dataset's own list."""
    unseen_tasks: str
    """Comma-separated names of tasks that are evaluated and never trained on, in addition to
    `tasks`, or taken out of the dataset's own list."""
    num_samples: int = _at_least(0)
    """Examples drawn by the seed from the whole dataset; 0, or more than there are, for all. Those
    of unseen tasks come on top, the same share of each."""
    test_fraction: float = _positive(below=1)
    """Share of each client's examples that is held out for evaluation."""
    validation_fraction: float = _at_least(0, below=1)
    """Share that is held out besides, to choose rounds, rates and recipes by."""
    server_fraction: float = _at_least(0, below=1)
    """Share of each task that is the server's and no client's, whether it pretrains on that or not;
    0 for none."""
    server_data: str
    """File or folder that holds the server's rows; empty to take them out of the clients' data."""
    max_length: int = _at_least(16)
    """Tokens of question and answer together, at most; prompt vectors come on top."""
    eval_samples: int = _at_least(0)
    """Size of the sample of its test examples that each client evaluates, the same in every round;
    0 for all. Validation examples and those of unseen tasks are sampled apart, as many of each."""

    @property
    def task_list(self) -> tuple[str, ...]:
        """The names in `tasks`; empty when the dataset decides."""
        return _names(self.tasks)

    @property
    def unseen_task_list(self) -> tuple[str, ...]:
        """The names in `unseen-tasks`; as many tasks stand last among those of the corpus."""
        return _names(self.unseen_tasks)


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """Which client holds which examples."""

    partition: str = _choice("dirichlet", "iid", "pathological", "natural-id")
    partition_column: str
    """Column of the data that names the client; `natural-id` only."""
    alpha: float = _positive()
    """Dirichlet concentration over tasks; smaller is more skewed."""
    min_client_samples: int = _at_least(2)
    """Examples that every client has at least."""
    num_clients: int = _at_least(1)
    unseen_clients: float = _at_least(0, below=1)
    """Share of the clients that never train and are evaluated apart; at least one, if not 0."""

    @property
    def num_unseen(self) -> int:
        """Clients that never train."""
        if not self.unseen_clients:
            return 0
        return max(1, min(round(self.unseen_clients * self.num_clients), self.num_clients - 1))


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The trainable prompts and the gate (paper, section "Mixture of Experts (MoPs) Design")."""

    experts: int = _at_least(1)
    """E, groups of prompt vectors; 7 in the paper, one a task."""
    prompts_per_expert: int = _at_least(1)
    """Prompt vectors of one expert; 10 in the paper."""
    injection_layer: int = _at_least(-1)
    """L_int, the layer (from 0) whose input receives the prompts; -1 for a third of the depth."""
    injection: str = _choice("replace", "append")
    """Whether the transformed pretrained prompt is dropped at L_int (Algorithm 1) or kept."""
    prompt_init: str = _choice("random", "vocab")
    """N(0, 0.02²), or the backbone's own states for random vocabulary tokens."""
    gate_mode: str = _choice("attention", "hidden")
    """Where the gate acts: on attention to prompts, or on their hidden states (Algorithm 1)."""
    gate_scale: str = _choice("softmax", "mean-one")
    """Gate weights that sum to 1, or to E."""
    gate_sync: str = _choice("fedavg", "local", "frozen")
    """Averaged by the server, kept by each client, or left as pretrained."""
    gate_hidden: int = _at_least(1)
    """d_g, hidden units of the gate."""
    gate_top: int = _at_least(0)
    """k: an example passes the vectors of its k best experts only, which keep the weights that the
    gate gives them among all; 0 for all experts."""
    pretrain_prompt_steps: int = _at_least(0)
    """Steps that train the pretrained prompt P¹ before round 1; 0 for no P¹."""
    pretrain_gate_steps: int = _at_least(0)
    """Steps that train the gate on instructions before round 1 (`mops` only)."""
    pretrain_data: str = _choice("server", "pooled", "own", "none")
    """What both are trained on: rows that no client holds, the training rows of all clients
    together (in a simulation), each client's own, or nothing: then neither is trained."""

    @property
    def num_prompts(self) -> int:
        """K = E × prompts per expert; P¹ has as many, so that token positions stay the same."""
        return self.experts * self.prompts_per_expert


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA beside linear modules (Hu et al., 2021)."""

    lora_rank: int = _at_least(1)
    """r, rows of A and columns of B."""
    lora_alpha: float = _positive()
    """Their product is scaled by alpha / r."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One client's work in one round."""

    local_steps: int = _at_least(1)
    """Optimiser steps."""
    batch_size: int = _at_least(1)
    """Examples a step; 1 in the paper."""
    learning_rate: float = _positive()
    """AdamW's, without weight decay."""
    personal_steps: int = _at_least(0)
    """Steps that every client takes by itself after the last round, before a last evaluation."""
    proximal: float = _at_least(0)
    """μ of FedProx (Li et al., 2020): μ/2 times the squared distance to the tensors that the client
    was sent is added to its loss; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """From a round's replies to the next round's tensors, and clients that would spoil them."""

    aggregation: str = _choice(*AGGREGATIONS)
    """The rule; `strategies/aggregation.py` has each with its source."""
    clip_norm: float = _at_least(0)
    """L2 norm, over all averaged tensors together, to which a client's update is scaled down before
    it is aggregated; 0 for no limit."""
    server_learning_rate: float = _at_least(0)
    """η of `fedavgm` and `fedadam`; 0 for 1 with the former and 0.01 with the latter."""
    server_momentum: float = _at_least(0, below=1)
    """β of `fedavgm`, β₁ of `fedadam`."""
    server_beta2: float = _at_least(0, below=1)
    """β₂ of `fedadam`."""
    server_tau: float = _positive()
    """τ of `fedadam`, its degree of adaptivity."""
    trim_fraction: float = _at_least(0, below=0.5)
    """Share of the values that `trimmed-mean` leaves out at either end."""
    krum_malicious: int = _at_least(0)
    """f of `multi-krum`: clients of a round that may be malicious; so many are left out."""
    malicious_clients: int = _at_least(0)
    """Clients, drawn by the seed, that send an attack instead of what they trained (simulations
    only: to see what a rule withstands)."""
    attack: str = _choice("noise", "sign-flip", "scale")
    """In place of an update u: noise as long as s·u, -s·u, or s·u."""
    attack_scale: float = _positive()
    """s of the attack."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy of whole clients (McMahan et al., 2018), put on by the server."""

    dp: str = _choice("none", "central")
    """`central`: of `clip-norm`'s clipped updates, counted alike, only the noised mean leaves a
    round; losses and gates of clients that train are not told."""
    noise_multiplier: float = _at_least(0)
    """z: the noise on the sum of the updates has the standard deviation z × `clip-norm`; 0 to have
    it solved for from `target-epsilon`."""
    target_epsilon: float = _at_least(0)
    """ε that all rounds together are to cost; 0 where `noise-multiplier` is given."""
    max_epsilon: float = _at_least(0)
    """ε before which the run stops, after its last round within; 0 for no limit."""
    delta: float = _at_least(0, below=1)
    """δ at which ε is told; 0 for a tenth of one over the clients that may train."""
    noise_cohort: int = _at_least(0)
    """n: noise and ε as if n clients took part in each round, in a federation that is larger by as
    much; in simulations only. 0 for `active-clients`."""

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.dp != "none"

    @property
    def limit(self) -> tuple[str, float]:
        """The key that bounds ε, and its value; 0 for no bound."""
        if self.max_epsilon or not self.target_epsilon:
            return "max-epsilon", self.max_epsilon
        return "target-epsilon", self.target_epsilon


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """The rounds."""

    active_clients: int = _at_least(1)
    """Clients that train in a round."""
    num_server_rounds: int = _at_least(1)
    eval_every: int = _at_least(1)
    """Rounds between evaluations; round 0 and the last one are always evaluated."""
    evaluate_clients: int = _at_least(0)
    """Size of the sample of clients that are evaluated, the same in every round but the last, in
    which all are; 0 for all in every round."""
    keep: str = _choice("last", "best")
    """The round that counts as the run's result: the last, or that of the lowest loss on validation
    rows."""
    min_reply_fraction: float = _positive(below=math.nextafter(1.0, 2.0))
    """Share of the asked clients that must answer validly, whether they are asked to describe
    themselves, to pretrain or to train; below it the run fails."""
    min_evaluate_fraction: float = _positive(below=math.nextafter(1.0, 2.0))
    """The same of clients that are asked to evaluate."""
    round_timeout: float = _at_least(0)
    """Seconds after which replies are waited for no longer, of training, of evaluation and of what
    comes before round 1 (at least 300 for a node's first answer, for which it loads its model); 0
    for none, when a node that is alive and silent may take 12 hours."""
    mixed_backbones: bool
    """Whether clients may hold other models or tokenizers than most clients do."""
    engine: str = _choice("clients", "cohort", "auto")
    """`clients`: Flower's own, one client a task; `cohort`: several in one forward; `auto`: the
    latter on CUDA. Simulation only: in a deployment every node runs its own client."""
    cohort_size: int = _at_least(0)
    """Clients in one forward; 0 for a worker's whole share on CUDA, and for 5 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    method: str = field(metadata={"choices": METHODS})
    """What is trained on the frozen model; `base` trains nothing."""
    training: str = _choice("federated", "local", "centralised")
    """`federated`: averaged over the active clients of a round. `local`: every client trains alone
    in every round, nothing is averaged. `centralised`: all clients' training rows in one place, in
    simulations only. The last two are what a federation is measured against."""
    seed: int = _at_least(0)
    run_dir: str
    """Folder that the run writes; empty for a new one in the cache."""
    resume: bool
    """Carry on in `run-dir` after its last whole round."""
    prefix_store_gb: float = _at_least(0)
    """10⁹ bytes for states at L_int, which are then computed once an example: on disk for all runs
    together, or in GPU memory; 0 for none."""
    backbone: BackboneConfig
    data: DataConfig
    partition: PartitionConfig
    prompts: PromptConfig
    adapters: AdapterConfig
    train: TrainConfig
    aggregation: AggregationConfig
    privacy: PrivacyConfig
    federation: FederationConfig

    def __post_init__(self) -> None:
        check_fields(self)
        for group in _groups(type(self)):
            check_fields(getattr(self, group.name))
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        clients, active = self.partition.num_clients, self.federation.active_clients
        if active > clients:
            raise ConfigError(
                f"active-clients={active} is more than num-clients={clients}: "
                f"choose active-clients of at most {clients}"
            )
        self._check_unseen_clients()
        self._check_aggregation()
        self._check_privacy()
        _check_path("dataset", self.data.dataset, "data-path", self.data.data_path)
        _check_parts(self.data)
        self._check_server_data()
        backbone = self.backbone
        if backbone.spec.pruning:
            path = backbone.calibration_path
            _check_path("calibration", backbone.calibration, "calibration-path", path)
        wants_column = self.partition.partition == "natural-id"
        if wants_column != bool(self.partition.partition_column):
            raise ConfigError(
                f"partition={self.partition.partition} with "
                f"partition-column={self.partition.partition_column!r}: partition-column names the "
                "column of the data that holds the client, and goes with partition=natural-id only"
            )
        needed = clients * self.partition.min_client_samples
        if 0 < self.data.num_samples < needed:
            raise ConfigError(
                f"num-samples={self.data.num_samples} is too few for num-clients={clients} with "
                f"min-client-samples={self.partition.min_client_samples}: at least {needed} "
                "are needed"
            )
        backbone = self.backbone
        sparse = backbone.compression in ("none", "2:4") and backbone.dtype != "float32"
        if backbone.sparse_kernels and not (sparse and backbone.device != "cpu"):
            raise ConfigError(
                "sparse-kernels=true needs a GPU, dtype=auto, float16 or bfloat16, and "
                "compression=2:4 (or none, for a model that is 2:4 already), not "
                f"device={backbone.device}, dtype={backbone.dtype}, "
                f"compression={backbone.compression}"
            )
        if self.prompts.gate_top > self.prompts.experts:
            raise ConfigError(
                f"gate-top={self.prompts.gate_top} is more than experts={self.prompts.experts}: "
                "choose at most as many, or 0 for all"
            )
        kept_gates = self.method == "mops" and self.prompts.gate_sync == "local"
        if self.training == "centralised" and kept_gates:
            raise ConfigError(
                "training=centralised with gate-sync=local: one worker trains for all clients, and "
                "they would be evaluated with gates of their own; use gate-sync=fedavg"
            )
        if self.federation.keep == "best" and self.federation.evaluate_clients:
            raise ConfigError(
                f"keep=best with evaluate-clients={self.federation.evaluate_clients}: the round "
                "that is kept is to be evaluated on all clients; use evaluate-clients=0"
            )
        if self.federation.keep == "best" and not self.data.validation_fraction:
            raise ConfigError(
                "keep=best needs validation-fraction above 0: a round is chosen by validation rows"
            )
        if self.federation.keep == "best" and kept_gates and self.train.personal_steps:
            raise ConfigError(
                "keep=best and personal-steps with gate-sync=local: a client keeps its latest gate "
                "only, not that of an earlier round; use keep=last"
            )
        if self.resume and not self.run_dir:
            raise ConfigError("resume=true needs run-dir: the folder of the run to carry on")

    def _check_unseen_clients(self) -> None:
        partition, active = self.partition, self.federation.active_clients
        seen = partition.num_clients - partition.num_unseen
        if active > seen:
            raise ConfigError(
                f"unseen-clients={partition.unseen_clients:g} of num-clients="
                f"{partition.num_clients} leaves {seen} clients that train, fewer than "
                f"active-clients={active}: choose smaller unseen-clients or active-clients"
            )

    def _check_aggregation(self) -> None:
        own, training = self.aggregation, self.training
        averaged = "training=federated, where replies are aggregated"
        if own.aggregation != "fedavg" and training != "federated":
            raise ConfigError(
                f"aggregation={own.aggregation} with training={training}: it goes with {averaged}"
            )
        if own.clip_norm and training != "federated":
            raise ConfigError(
                f"clip-norm={own.clip_norm:g} with training={training}: it goes with {averaged}"
            )
        if own.aggregation == "gate-weighted" and self.method != "mops":
            raise ConfigError(
                f"aggregation=gate-weighted with method={self.method}: it weighs experts by their "
                "gate, which only mops has"
            )
        active = self.federation.active_clients
        needed = 2 * own.krum_malicious + 3
        if own.aggregation == "multi-krum" and needed > active:
            raise ConfigError(
                f"krum-malicious={own.krum_malicious} with active-clients={active}: multi-krum "
                f"withstands so many of {needed} clients or more a round"
            )
        if own.malicious_clients and training != "federated":
            raise ConfigError(
                f"malicious-clients={own.malicious_clients} with training={training}: attacks are "
                f"on {averaged}"
            )
        seen = self.partition.num_clients - self.partition.num_unseen
        if own.malicious_clients > seen:
            raise ConfigError(
                f"malicious-clients={own.malicious_clients} is more than the {seen} clients that "
                f"train: choose at most {seen}"
            )

    def _check_privacy(self) -> None:
        own = self.privacy
        if not own.on:
            for item in fields(own):
                value, key = getattr(own, item.name), key_of(item)
                if key != "dp" and value:
                    raise ConfigError(f"{key}={value:g} with dp=none: it goes with dp=central")
            return
        if not self.aggregation.clip_norm:
            raise ConfigError("dp=central with clip-norm=0: noise covers updates of a known length")
        if 0 < own.noise_multiplier < _LEAST_NOISE:
            raise ConfigError(
                f"noise-multiplier={own.noise_multiplier:g} is too little to account for: at least "
                f"{_LEAST_NOISE:g}"
            )
        if bool(own.noise_multiplier) == bool(own.target_epsilon):
            raise ConfigError(
                f"noise-multiplier={own.noise_multiplier:g} with target-epsilon="
                f"{own.target_epsilon:g}: dp=central needs one of them above 0, and the other at 0"
            )
        if 0 < own.noise_cohort < self.federation.active_clients:
            raise ConfigError(
                f"noise-cohort={own.noise_cohort} is less than active-clients="
                f"{self.federation.active_clients}: it stands for a larger round than is simulated"
            )
        if not self.partition.num_unseen:
            raise ConfigError(
                "dp=central with unseen-clients=0: losses of clients that train are not told, so "
                "others are needed to evaluate by; set unseen-clients, for instance to 0.2"
            )
        for key, value, reason in self._unprotected():
            raise ConfigError(f"{key}={value} with dp=central: {reason}")

    def _unprotected(self) -> Iterator[tuple[str, Scalar, str]]:
        """What would leave clients that train beside the noised mean: key, value and reason."""
        if self.training != "federated":
            yield "training", self.training, "noise is put on a mean, which only federated has"
        rule = self.aggregation.aggregation
        if rule not in ("fedavg", "fedavgm", "fedadam"):
            yield (
                *("aggregation", rule),
                "it reads single updates, which noise on their mean does not cover; use fedavg, "
                "fedavgm or fedadam",
            )
        source = self.prompts.pretrain_data
        if source in ("pooled", "own"):
            yield (
                "pretrain-data",
                source,
                "it reads the clients' rows without noise; use server, or none",
            )
        if self.method == "mops" and self.prompts.gate_sync == "local":
            yield "gate-sync", "local", "gates of the clients' own have no noise; use frozen"
        backbone, data = self.backbone, self.data
        if backbone.spec.pruning and backbone.calibration != "skills":
            same = backbone.calibration_path in ("", data.data_path)
            if backbone.calibration == data.dataset and same:
                yield "calibration", backbone.calibration, "it prunes by the clients' rows"
        if self.train.personal_steps:
            yield "personal-steps", self.train.personal_steps, "it tells each client's losses"
        if self.data.validation_fraction:
            yield (
                *("validation-fraction", self.data.validation_fraction),
                "it tells losses of clients that train",
            )
        if self.federation.evaluate_clients:
            yield (
                *("evaluate-clients", self.federation.evaluate_clients),
                "it is a sample of the clients that train, whose losses are not told; all unseen "
                "clients are evaluated",
            )

    def _check_server_data(self) -> None:
        path, source = self.data.server_data, self.prompts.pretrain_data
        if source == "server" and not path and not self.data.server_fraction:
            raise ConfigError(
                "pretrain-data=server with server-fraction=0 and no server-data: the server has no "
                "rows; name a file of them, or set pretrain-data to pooled, own or none"
            )
        if path and source != "server":
            raise ConfigError(
                f"server-data={path} with pretrain-data={source}: server-data holds the rows of "
                "pretrain-data=server and goes with it only"
            )
        if path and self.data.dataset == "skills":
            raise ConfigError(
                f"server-data={path} with dataset=skills, which is generated: leave server-data "
                "empty, or use a dataset of files"
            )

    @classmethod
    def from_flat(cls, flat: Mapping[str, Scalar]) -> "Config":
        """Parse flat keys over the defaults.

        Raises:
            ConfigError: a key or value is unknown, or two values contradict each other.
        """
        values = dict(defaults())
        for key, value in flat.items():
            if key not in values:
                close = difflib.get_close_matches(key, values, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(values)}"
                raise ConfigError(f"unknown configuration key {key}={value!r}: {hint}")
            values[key] = value
        return _build(cls, values)

    def flat(self) -> dict[str, Scalar]:
        """The flat keys and values of this configuration, in the order of the defaults."""
        found: dict[str, Scalar] = {}
        for owner in (self, *(getattr(self, f.name) for f in _groups(type(self)))):
            for item in fields(owner):
                value = getattr(owner, item.name)
                if not is_dataclass(value):
                    found[key_of(item)] = value
        return {key: found[key] for key in defaults()}


@functools.cache
def app_folder() -> Path:
    """The folder whose ``pyproject.toml`` describes the Flower app: a checkout or this package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent, package):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise ConfigError(f"no pyproject.toml beside or inside {package}: reinstall mops-fl")


EARLIER: Mapping[str, Scalar] = {"pretrain-data": "pooled", "server-fraction": 0.0}
"""What runs of earlier versions did, whose configuration lacks these keys."""


MENDABLE = ("min-reply-fraction", "min-evaluate-fraction", "round-timeout")
"""The keys that a run may be resumed with other values of: they let it go on, with its numbers."""


@functools.cache
def defaults() -> Mapping[str, Scalar]:
    """Every key with its default, from ``[tool.flwr.app.config]``."""
    text = (app_folder() / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["flwr"]["app"]["config"]


def parse_assignment(text: str) -> tuple[str, Scalar]:
    """``key=value`` as typed on a command line; the value takes the type of the key's default.

    Raises:
        ConfigError: there is no ``=``, or the value is not of the key's type.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"{text!r} is not of the form key=value")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    default = defaults().get(key)
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={value!r}: must be true or false")
        return key, value.lower() == "true"
    if isinstance(default, int | float):
        try:
            return key, type(default)(value)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise ConfigError(f"{key}={value!r}: must be {kind}") from None
    return key, value


def split_entry(text: str) -> tuple[str, list[str]]:
    """Method and values of ``method[:key=value…]``; a value may hold colons, as 2:4 does."""
    method, _, rest = text.partition(":")
    values = re.split(r":(?=\s*[a-z][a-z0-9-]*\s*=)", rest) if rest else []
    return method.strip(), ["=".join(map(str.strip, value.split("=", 1))) for value in values]


def _groups(cls: type) -> Iterator[Field]:
    return (f for f in fields(cls) if is_dataclass(f.type))


def key_of(item: Field) -> str:
    """A field's key outside."""
    return item.name.replace("_", "-")


def _build(cls: type, values: Mapping[str, Scalar]) -> Any:
    arguments: dict[str, Any] = {}
    for item in fields(cls):
        if is_dataclass(item.type):
            arguments[item.name] = _build(item.type, values)  # type: ignore[arg-type]
        else:
            arguments[item.name] = typed(key_of(item), values[key_of(item)], item.type)
    return cls(**arguments)


def typed(key: str, value: Scalar, kind: Any) -> Scalar:
    """A value of a key, whole numbers as numbers where these are wanted.

    Raises:
        ConfigError: it is of another type.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{key}={value!r}: must be {names[kind]}")
    return value


def _names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_parts(data: DataConfig) -> None:
    """Refuse parts of a client that leave nothing for training, and tasks in two roles."""
    if data.test_fraction + data.validation_fraction >= 1:
        raise ConfigError(
            f"test-fraction={data.test_fraction:g} and validation-fraction="
            f"{data.validation_fraction:g} leave nothing to train on: together they must be less "
            "than 1"
        )
    if both := [name for name in data.unseen_task_list if name in data.task_list]:
        raise ConfigError(
            f"tasks and unseen-tasks both name {', '.join(both)}: a task is trained on or unseen"
        )


def _check_path(key: str, dataset: str, path_key: str, path: str) -> None:
    if dataset in ("superni", "jsonl") and not path:
        kind = "a folder of task files" if dataset == "superni" else "a JSONL file"
        raise ConfigError(f"{key}={dataset} needs {path_key}: {kind}")


def check_fields(owner: Any) -> None:
    """Check each field of a dataclass by its metadata: `choices`, or `low` and `below`.

    Raises:
        ConfigError: a value is not allowed.
    """
    for item in fields(owner):
        value, key = getattr(owner, item.name), key_of(item)
        choices = item.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(f"{key}={value!r}: must be one of {', '.join(choices)}")
        low = item.metadata.get("low")
        if low is None:
            continue
        if not low <= value < item.metadata["below"] or math.isinf(value):
            raise ConfigError(f"{key}={value!r}: must be {_range(low, item.metadata['below'])}")


def _range(low: float, below: float) -> str:
    text = "more than 0" if low == math.ulp(0.0) else f"at least {low}"
    if math.isinf(below):
        return text
    return f"{text} and at most 1" if below > 1 else f"{text} and less than {below}"
