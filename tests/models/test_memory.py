"""The memory of a forward pass, as stated and as autograd really keeps it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trainables import initial_tensors
from transformers import LlamaForCausalLM

from experiments.golden.tiny import save_tiny_llama
from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.models import memory as memory_module
from mops_fl.models.backbone import Backbone, load_backbone
from mops_fl.models.memory import Memory, footprint
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable
from mops_fl.training.local import LocalData, train

LAYOUT = Config.from_flat({"experts": 2, "prompts-per-expert": 4, "gate-hidden": 8}).prompts
WIDTH = 128


def rows(*lengths: tuple[int, int]) -> list[Tokenised]:
    draw = np.random.default_rng(0).integers
    return [
        Tokenised(tuple(draw(0, 256, q).tolist()), tuple(draw(0, 256, a).tolist()), "task")
        for q, a in lengths
    ]


def backbone(folder, dtype=torch.float32, **shape) -> Backbone:
    save_tiny_llama(folder, hidden_size=WIDTH, num_hidden_layers=5, **shape)
    return Backbone(LlamaForCausalLM.from_pretrained(folder, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [WIDTH, 3 * WIDTH])
@pytest.mark.parametrize("lengths", [((20, 6), (40, 30)), ((150, 100), (180, 20))])
def test_a_footprint_is_what_autograd_keeps(tmp_path, dtype, inner, lengths):
    llama = backbone(tmp_path, dtype, intermediate_size=inner)
    examples, layer = rows(*lengths), 1
    mixture = Mixture(llama, LAYOUT, layer, None)
    clients = [initial_tensors(LAYOUT, WIDTH, seed, True) for seed in (0, 1)]
    trainable = Trainable(clients, llama.device)
    batch, states, features = mixture.prepare(examples)
    weights = {w.untyped_storage().data_ptr() for w in llama.model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixture.nll(trainable, batch, states, features, [0, 1])
    really = sum(storage.nbytes() for storage in kept.values())
    size = footprint(llama.model.config, dtype, llama.device, 5 - layer)
    fed, answers = [row.fed for row in examples], sum(len(row.answer) for row in examples)
    stated = size.bytes(2, max(fed), sum(fed), answers, 2, LAYOUT.num_prompts)
    assert really <= stated <= 2 * really


def groups_of(memory: Memory, examples, owner=None, layers=2) -> list[list[int]]:
    owner = owner or [0] * len(examples)
    return [group for group, _ in memory.in_groups(lambda g: None, examples, owner, 8, layers)]


def test_everything_fits_where_there_is_memory_and_groups_are_of_similar_length(tmp_path):
    llama = backbone(tmp_path)
    examples = rows((30, 5), (3, 2), (31, 5), (4, 2), (90, 9))
    assert groups_of(llama.memory, examples) == [[1, 3, 0, 2, 4]]
    fed = [example.fed for example in examples]
    size = footprint(llama.model.config, llama.dtype, llama.device, 2)
    llama.memory._limit = size.bytes(2, fed[2], fed[0] + fed[2], 10, 1, 8)
    assert groups_of(llama.memory, examples) == [[1, 3, 0], [2], [4]]
    llama.memory._limit = 0
    assert [len(group) for group in groups_of(llama.memory, examples)] == [1] * 5


@pytest.mark.parametrize("sharers", [1, 4])
def test_little_free_memory_is_said_and_the_default_limit_is_a_constant(
    tmp_path, monkeypatch, sharers
):
    llama = backbone(tmp_path)
    needed = sharers * memory_module.CPU_BYTES / 0.45
    for available, halvings in ((needed + 1, 0), (needed - 1, 1), (needed / 4 - 1, 3)):
        memory = Memory(llama.model.config, llama.dtype, llama.device)
        monkeypatch.setattr(memory_module, "available_memory", lambda free=available: int(free))
        monkeypatch.setattr(memory_module, "workers", lambda: sharers)
        groups_of(memory, rows((3, 2)))
        assert memory._limit == memory_module.CPU_BYTES >> halvings
        assert len(memory.warnings) == bool(halvings)
        for warning in memory.warnings:
            assert f"are free for {sharers} worker processes" in warning


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60),
        lambda: [0] * 2**60,
        lambda: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")),
    ],
)
def test_groups_are_halved_where_the_cpu_has_no_memory(tmp_path, fail):
    memory = backbone(tmp_path).memory

    def only_pairs(group):
        if len(group) > 2:
            next(iter(fail()))
        return group

    groups = [
        group for group, _ in memory.in_groups(only_pairs, rows(*[(3, 2)] * 8), [0] * 8, 8, 2)
    ]
    assert sorted(index for group in groups for index in group) == list(range(8))
    assert max(map(len, groups)) <= 2
    (warning,) = memory.warnings
    assert "need more memory than there is" in warning


def test_another_error_is_not_want_of_memory(tmp_path):
    memory = backbone(tmp_path).memory

    def fail(group):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        list(memory.in_groups(fail, rows((3, 2), (3, 2)), [0, 0], 8, 2))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
def test_the_weights_stay_pages_of_the_file_that_processes_share(tmp_path):
    """What training and evaluation would copy, every worker process would hold for itself."""
    folder = save_tiny_llama(tmp_path, hidden_size=WIDTH, num_hidden_layers=5)
    config = Config.from_flat({"model": str(folder), "dtype": "float32", "local-steps": 2})
    mixture = Mixture(load_backbone(config.backbone), LAYOUT, 1, None)
    data = LocalData(rows((20, 6), (40, 30)), (0, 1))
    train(mixture, [initial_tensors(LAYOUT, WIDTH, 0, True)], [data], config.train)
    size = (folder / "model.safetensors").stat().st_size
    mapped = copied = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(folder / "model.safetensors"))
        elif ours and line.startswith("Size:"):
            mapped += 1024 * int(line.split()[1])
        elif ours and line.startswith("Anonymous:"):
            copied += 1024 * int(line.split()[1])
    assert mapped >= size
    assert copied == 0
