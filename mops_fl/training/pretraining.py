"""What is trained before round 1: the pretrained prompt P¹, then the gate on instructions."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from mops_fl.activity import OnStep
from mops_fl.config import PromptConfig, TrainConfig
from mops_fl.data import Tokenised
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture, collate
from mops_fl.models.trainable import Trainable
from mops_fl.seeding import numpy_generator
from mops_fl.training.local import LocalData, draw_order, train
from mops_fl.wire.records import GATE, PRETRAINED, PROMPTS, Tensors

_GATE_BATCH = 16
_GATE_LEARNING_RATE = 1e-2
_GATE_EXAMPLES = 256


def pretrain_prompt(
    backbone: Backbone,
    layout: PromptConfig,
    config: TrainConfig,
    examples: Sequence[Tokenised],
    initial: np.ndarray,
    seed: int,
    on_step: OnStep = lambda _done, _of: None,
) -> Tensors:
    """Train P¹ as plain prompt tuning at the input layer, without gate or injection.

    Args:
        backbone: the frozen LLaMA.
        layout: gives the number of steps.
        config: batch size and learning rate.
        examples: what to train on.
        initial: [K₁, d].
        seed: of the order of the examples.
        on_step: as of `mops_fl.training.local.train`.

    Returns:
        `pretrained` [K₁, d].
    """
    steps = layout.pretrain_prompt_steps
    mixture = Mixture(backbone, layout, 0, None)
    order = draw_order(len(examples), steps * config.batch_size, seed, "pretrain-prompt")
    (result,) = train(
        mixture,
        [{PROMPTS: initial}],
        [LocalData(examples, order)],
        replace(config, local_steps=steps),
        on_step=on_step,
    )
    return {PRETRAINED: result.tensors[PROMPTS]}


def pretrain_gate(
    mixture: Mixture,
    initial: Tensors,
    examples: Sequence[Tokenised],
    tasks: Sequence[str],
    seed: int,
    on_step: OnStep = lambda _done, _of: None,
) -> Tensors:
    """Train the gate to give each task's instructions to one expert (as in the paper).

    Task i goes to expert i modulo E. Answers are not looked at. At most 256 questions are used,
    drawn by the seed.

    Args:
        mixture: gives the gate's input, and the number of steps and experts.
        initial: all tensors of a client.
        examples: their questions and tasks are used; those of other tasks are left out.
        tasks: task names in expert order.
        seed: of the order of the examples.
        on_step: called after every batch of questions, then after every step, with the number of
            both so far, and of all.

    Returns:
        The tensors, those of the gate trained.
    """
    layout, device = mixture.layout, mixture.backbone.device
    examples = [example for example in examples if example.task in tasks]
    pool = draw_order(len(examples), min(len(examples), _GATE_EXAMPLES), seed, "gate-examples")
    examples = [examples[index] for index in pool]
    trainable = Trainable([initial], device, GATE)
    experts = torch.tensor([tasks.index(e.task) % layout.experts for e in examples], device=device)
    order = draw_order(
        len(examples), layout.pretrain_gate_steps * _GATE_BATCH, seed, "pretrain-gate"
    )
    wanted, steps = sorted(set(order)), layout.pretrain_gate_steps
    batches = -(-len(wanted) // _GATE_BATCH)
    features = _all_features(mixture, examples, wanted, lambda n: on_step(n, batches + steps))
    optimiser = torch.optim.AdamW(trainable.parameters(), lr=_GATE_LEARNING_RATE, weight_decay=0.0)
    for step in range(steps):
        picked = torch.tensor(order[step * _GATE_BATCH : (step + 1) * _GATE_BATCH], device=device)
        loss = F.nll_loss(trainable.log_gate(features[picked], None), experts[picked])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        on_step(batches + step + 1, batches + steps)
    return {**initial, **trainable.of_client(0)}


def _all_features(
    mixture: Mixture,
    examples: Sequence[Tokenised],
    wanted: Sequence[int],
    on_batch: Callable[[int], None],
) -> torch.Tensor:
    """Gate inputs [examples, d] of the wanted examples' questions; zeros for the rest."""
    features = torch.zeros(len(examples), mixture.backbone.hidden_size)
    features = features.to(mixture.backbone.device)
    for count, start in enumerate(range(0, len(wanted), _GATE_BATCH), 1):
        rows = list(wanted[start : start + _GATE_BATCH])
        batch = collate([replace(examples[i], answer=(0,)) for i in rows], features.device)
        features[rows] = mixture.gate_features(mixture.prefix_states(batch), batch)
        on_batch(count)
    return features


def vocabulary_prompts(
    backbone: Backbone, mixture: Mixture, num_prompts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random vocabulary tokens as the backbone sees them: ``prompt-init = vocab``.

    Returns:
        Their embeddings, for P¹, and their states at L_int, for the trainable prompts; both [K, d].
    """
    vocabulary = backbone.model.config.vocab_size
    ids = numpy_generator(seed, "initial", "vocabulary").integers(0, vocabulary, num_prompts)
    tokens = Tokenised(question=tuple(ids.tolist()), answer=(0,), task="")
    batch = collate([tokens], backbone.device)
    with torch.no_grad():
        embedded = backbone.embed(batch.ids)
        states = mixture.prefix_states(batch)
    return embedded.float().cpu().numpy(), states.float().cpu().numpy()
