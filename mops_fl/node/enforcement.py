"""The node's policy, enforced: what a message may ask and bring, and what a reply may hold.

A crafted prompt is how a server asks whether a text is in a client's data (PromptMIA, arXiv
2601.06641), so what arrives is bounded, too, not only what leaves.
"""

import secrets
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file, save_file

from mops_fl.config import Config
from mops_fl.errors import PolicyError
from mops_fl.files import replacing
from mops_fl.node.node_config import Policy
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    METRICS,
    Tensors,
    clip_factor,
    difference,
    from_array_record,
    norm,
    to_array_record,
)
from mops_fl.wire.replies import GATE_WEIGHTS, LOSS
from mops_fl.wire.requests import DESCRIBE, EVALUATE, PERSONALISE, PRETRAIN, TRAIN


def check_request(policy: Policy, config: Config, message: Message, kept: Path) -> None:
    """Refuse what the node's owner does not allow, before any of it is done.

    Args:
        policy: the owner's.
        config: of the run.
        message: from the server.
        kept: folder of what was last received, by run.

    Raises:
        PolicyError: the message asks for more.
    """
    if policy.methods and config.method not in policy.methods:
        raise PolicyError(f"method={config.method}: allow-methods={policy.allow_methods} here")
    kind = message.metadata.message_type
    if kind in (TRAIN, PERSONALISE, PRETRAIN):
        _check_steps(policy, config, kind)
    if kind == DESCRIBE:
        return
    if kind in (EVALUATE, PERSONALISE) and LOSS not in policy.metrics:
        raise PolicyError(f"share-metrics={policy.share_metrics} here: no losses are told")
    _check_clients(policy, message.content)
    _check_tensors(policy, message.content, kept / f"{message.metadata.run_id}.safetensors")


def _check_steps(policy: Policy, config: Config, kind: str) -> None:
    prompts = config.prompts
    key, steps = {
        TRAIN: ("local-steps", config.train.local_steps),
        PERSONALISE: ("personal-steps", config.train.personal_steps),
        PRETRAIN: (
            "pretrain-prompt-steps and pretrain-gate-steps",
            prompts.pretrain_prompt_steps + prompts.pretrain_gate_steps,
        ),
    }[kind]
    if 0 < policy.max_local_steps < steps:
        raise PolicyError(f"{key}={steps}: max-local-steps={policy.max_local_steps} here")
    rows = steps * config.train.batch_size
    if 0 < policy.max_rows < rows:
        raise PolicyError(
            f"{key}={steps} of batch-size={config.train.batch_size} read {rows} rows: "
            f"max-rows={policy.max_rows} here"
        )


def _check_clients(policy: Policy, content: RecordDict) -> None:
    told = content.get(CONFIG)
    clients = told.get("clients") if isinstance(told, ConfigRecord) else None
    if isinstance(clients, int) and clients < policy.min_clients:
        raise PolicyError(f"a round of {clients} clients: min-clients={policy.min_clients} here")


def _check_tensors(policy: Policy, content: RecordDict, last: Path) -> None:
    if not (policy.max_norm or policy.max_change):
        return
    received = _received(content)
    size = norm(received)
    if not size <= (policy.max_norm or np.inf):
        raise PolicyError(f"tensors of norm {size:.4g}: max-norm={policy.max_norm:g} here")
    if not policy.max_change:
        return
    before = load_file(last) if last.is_file() else {}
    known = {name: value for name, value in before.items() if name in received}
    if any(value.shape != received[name].shape for name, value in known.items()):
        raise PolicyError("tensors of other shapes than the last ones of this run")
    change = norm(difference({name: received[name] for name in known}, known))
    if not change <= policy.max_change:
        raise PolicyError(
            f"tensors {change:.4g} from the last ones: max-change={policy.max_change:g} here"
        )
    with replacing(last, private=True) as file:
        save_file({**before, **received}, file)


def _received(content: RecordDict) -> Tensors:
    """All tensors of a message."""
    records = [content[name] for name in (ARRAYS, FROZEN) if name in content]
    return {
        name: value
        for record in records
        if isinstance(record, ArrayRecord)
        for name, value in from_array_record(record).items()
    }


def guard_reply(policy: Policy, message: Message, reply: Message) -> None:
    """Clip what was trained, put noise on it, and keep metrics back, in place.

    Args:
        policy: the owner's.
        message: what was asked.
        reply: what the trainer answers, its tensors absolute.
    """
    if not reply.has_content():
        return
    made, sent = reply.content.get(ARRAYS), message.content.get(ARRAYS)
    if policy.clip_norm and isinstance(made, ArrayRecord) and isinstance(sent, ArrayRecord):
        start = from_array_record(sent)
        protected = blurred(policy, start, from_array_record(made))
        reply.content[ARRAYS] = to_array_record(protected)
    told = reply.content.get(METRICS)
    if isinstance(told, MetricRecord):
        _keep_back(policy, told)


def _keep_back(policy: Policy, told: MetricRecord) -> None:
    if GATE_WEIGHTS not in policy.metrics:
        for key in [key for key in told if key.partition("/")[0].startswith("gate")]:
            del told[key]
    if LOSS not in policy.metrics and "nll" in told:
        told["nll"], told["tokens"] = 0.0, 0


def blurred(policy: Policy, start: Tensors, trained: Tensors) -> Tensors:
    """The trained tensors, no further than `clip-norm` from the received ones, and with noise.

    The noise is of the system's entropy: whoever knows the run's seed cannot take it off again.
    """
    update = difference(trained, start)
    scale = clip_factor(update, policy.clip_norm)
    generator = np.random.default_rng(secrets.randbits(256))
    return {
        name: (start[name] + scale * value + generator.normal(0, policy.noise, value.shape)).astype(
            np.float32
        )
        for name, value in update.items()
    }
