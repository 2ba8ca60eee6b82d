"""The prefix store: warm is cold to the bit, and nothing wrong on disk is ever used."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trainables import initial_tensors
from transformers import LlamaForCausalLM

from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.machine import WORKERS_VARIABLE
from mops_fl.metrics import total
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture
from mops_fl.models.prefix_store import DiskStore, MemoryStore, open_store
from mops_fl.models.trainable import Trainable
from mops_fl.training.evaluation import evaluate
from mops_fl.training.local import LocalData, draw_order, train
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED

CONFIG = Config.from_flat(
    {"experts": 3, "prompts-per-expert": 2, "gate-hidden": 8, "local-steps": 6}
)
HIDDEN = 32
GENEROUS = 10**9
IDENTITY = b"a" * 32


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def backbone(request, tiny_llama) -> Backbone:
    return Backbone(LlamaForCausalLM.from_pretrained(tiny_llama, dtype=request.param))


def examples(*lengths: tuple[int, int], seed: int = 0) -> list[Tokenised]:
    draw = np.random.default_rng(seed).integers
    return [
        Tokenised(tuple(draw(0, 256, q).tolist()), tuple(draw(0, 256, a).tolist()), "task")
        for q, a in lengths
    ]


ROWS = examples((7, 3), (12, 5), (3, 9), (1, 1))


def disk(folder, dtype=torch.float32, *, identity=IDENTITY, limit=GENEROUS) -> DiskStore:
    return DiskStore(folder, identity, HIDDEN, dtype, limit)


def mixture(backbone, store=None) -> Mixture:
    prompt = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1))
    return Mixture(backbone, CONFIG.prompts, 2, prompt, store)


def kept_files(folder):
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def must_not_run():
    raise AssertionError("what is kept was computed again")


def example_of(length: int):
    """An example, and states and features that a store can keep for it."""
    (row,) = examples((length, 1), seed=length)
    draw = torch.Generator().manual_seed(length)
    return row, (torch.randn(length, HIDDEN, generator=draw), torch.randn(HIDDEN, generator=draw))


def test_warm_is_cold_to_the_bit_in_any_company(tmp_path, backbone):
    cold = mixture(backbone, disk(tmp_path, backbone.dtype)).prepare(ROWS)
    assert len(kept_files(tmp_path)) == len(ROWS)
    reordered = list(reversed(ROWS))
    warm = mixture(backbone, disk(tmp_path, backbone.dtype)).prepare(reordered)
    before, after = (states.split(batch.lengths) for batch, states, _ in (cold, warm))
    for row in range(len(ROWS)):
        assert torch.equal(before[row], after[-1 - row])
        assert torch.equal(cold[2][row], warm[2][-1 - row])
    in_memory = mixture(backbone, MemoryStore(GENEROUS)).prepare(ROWS)
    assert torch.equal(cold[1], in_memory[1])
    assert torch.equal(cold[2], in_memory[2])


def test_without_a_store_the_states_are_the_same_to_tolerance(tmp_path, backbone):
    _, states, features = mixture(backbone).prepare(ROWS)
    store = disk(tmp_path, backbone.dtype)
    _, kept_states, kept_features = mixture(backbone, store).prepare(ROWS)
    torch.testing.assert_close(kept_states, states)
    torch.testing.assert_close(kept_features, features, rtol=1e-2, atol=1e-2)


def test_training_and_evaluation_with_and_without(tmp_path, tiny_llama):
    backbone = Backbone(LlamaForCausalLM.from_pretrained(tiny_llama))
    values = initial_tensors(CONFIG.prompts, HIDDEN, 0, True)
    held = LocalData(ROWS, draw_order(len(ROWS), 6, 0, "client"))

    def numbers(store):
        at = mixture(backbone, store)
        (result,) = train(at, [values], [held], CONFIG.train)
        losses = total(evaluate(at, Trainable([result.tensors], backbone.device), ROWS).tallies)
        return result.tensors, losses.nll

    without, off = numbers(None)
    cold, first = numbers(disk(tmp_path))
    warm, second = numbers(disk(tmp_path))
    for name, value in cold.items():
        np.testing.assert_array_equal(warm[name], value)
        np.testing.assert_allclose(without[name], value, rtol=1e-4, atol=1e-5)
    assert first == second == pytest.approx(off, rel=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:-8] + bytes(8),
        lambda data: data + b"more",
        lambda data: b"other" + data[5:],
    ],
    ids=["half", "short", "empty", "zeros", "long", "magic"],
)
def test_a_spoilt_file_is_made_again(tmp_path, spoil):
    row, kept = example_of(20)
    disk(tmp_path).get(row, lambda: kept)
    (file,) = kept_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert disk(tmp_path).get(row, lambda: kept)[0] is kept[0]
    assert file.read_bytes() == whole
    states, features = disk(tmp_path).get(row, must_not_run)
    assert torch.equal(states, kept[0])
    assert torch.equal(features, kept[1])


def test_a_file_under_another_name_is_not_used(tmp_path):
    (one, kept), (_, other_kept) = example_of(20), example_of(21)
    other = Tokenised((*one.question[:-1], one.question[-1] ^ 1), one.answer, "task")
    store = disk(tmp_path)
    store.get(one, lambda: kept)
    (first,) = kept_files(tmp_path)
    store.get(other, lambda: kept)
    second = next(path for path in kept_files(tmp_path) if path != first)
    second.write_bytes(first.read_bytes())
    made = (other_kept[0][:20], other_kept[1])
    assert store.get(other, lambda: made)[0] is made[0]


def test_question_answer_and_prefix_are_told_apart(tmp_path):
    row, kept = example_of(20)
    store = disk(tmp_path)
    store.get(row, lambda: kept)
    # the same tokens, one of them moved from question to answer: the gate's input differs
    moved = Tokenised(row.question[:-1], (row.question[-1], *row.answer), "task")
    # the last answer token is never fed
    same = Tokenised(row.question, ((row.answer[0] + 1) % 256,), "other")
    store.get(same, must_not_run)
    for at, other in ((store, moved), (disk(tmp_path, identity=b"b" * 32), row)):
        with pytest.raises(AssertionError, match="again"):
            at.get(other, must_not_run)


def same_size(count: int):
    """Examples of one length, with what a store can keep for them."""
    _, kept = example_of(20)
    return [(*examples((20, 1), seed=seed), kept) for seed in range(count)]


def bytes_below(folder) -> int:
    return sum(file.stat().st_size for file in kept_files(folder))


def made_in_a_pass(store, rows) -> int:
    """How many rows are computed when all are read once, in their order."""
    made = []
    for row, kept in rows:
        store.get(row, lambda kept=kept: made.append(1) or kept)
    return len(made)


def age(folder, days: float) -> None:
    for file in kept_files(folder):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(days * 86_400 * 10**9)))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_working_set_larger_than_the_store_is_mostly_found(tmp_path, where):
    rows = same_size(110)
    size = sum(part.nbytes for part in rows[0][1]) + (64 if where == "disk" else 0)
    limit = 100 * size
    store = disk(tmp_path, limit=limit) if where == "disk" else MemoryStore(limit)
    assert made_in_a_pass(store, rows) == 110
    assert made_in_a_pass(store, rows) <= 11
    if where == "disk":
        assert bytes_below(tmp_path) <= 1.1 * limit
        # the next process, the next day
        age(tmp_path, 0.9)
        store = disk(tmp_path, limit=limit)
        assert made_in_a_pass(store, rows) <= 11
        assert bytes_below(tmp_path) <= 1.1 * limit
    assert made_in_a_pass(store, rows) <= 11


def test_what_nobody_reads_makes_room(tmp_path):
    rows = same_size(60)
    limit = 100 * (sum(part.nbytes for part in rows[0][1]) + 64)
    other = disk(tmp_path, identity=b"b" * 32, limit=limit)
    made_in_a_pass(other, rows)
    age(tmp_path, 0.01)
    store = disk(tmp_path, limit=limit)
    made_in_a_pass(other, rows[:30])
    assert made_in_a_pass(store, rows) == 60
    assert made_in_a_pass(store, rows) == 0
    assert bytes_below(tmp_path) <= 1.1 * limit
    # a run beside this one keeps what it has read since
    assert made_in_a_pass(disk(tmp_path, identity=b"b" * 32, limit=limit), rows[:30]) == 0


def test_rows_of_its_own_prefix_that_no_run_has_read_for_a_day_make_room(tmp_path):
    rows = same_size(200)
    limit = 100 * (sum(part.nbytes for part in rows[0][1]) + 64)
    made_in_a_pass(disk(tmp_path, limit=limit), rows[:100])
    age(tmp_path, 1.1)
    store = disk(tmp_path, limit=limit)
    assert made_in_a_pass(store, rows[100:190]) == 90
    assert made_in_a_pass(store, rows[100:190]) <= 5


def test_the_workers_of_a_machine_share_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(WORKERS_VARIABLE, "10")
    rows = same_size(20)
    limit = 100 * (sum(part.nbytes for part in rows[0][1]) + 64)
    stores = [disk(tmp_path, limit=limit) for _ in range(10)]
    for part in range(20):
        for number, store in enumerate(stores):
            row = examples((20, 1), seed=1000 * number + part)[0]
            store.get(row, lambda: rows[0][1])
    assert bytes_below(tmp_path) <= 1.2 * limit


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_what_is_kept_is_the_users_alone(tmp_path, umask):
    before = os.umask(umask)
    row, kept = example_of(20)
    root = tmp_path / "prefix"
    root.mkdir()
    disk(root).get(row, lambda: kept)
    os.umask(before)
    assert root.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in kept_files(root)] == [0o600]


def test_leftovers_of_a_dead_process_are_removed_in_time(tmp_path):
    row, kept = example_of(20)
    disk(tmp_path, identity=b"b" * 32).get(row, lambda: kept)
    left = kept_files(tmp_path)[0].with_name(".half.tmp")
    left.write_bytes(bytes(10_000))
    os.utime(left, (0, 0))
    disk(tmp_path, limit=9_000).get(row, lambda: kept)
    assert not left.exists()


def test_a_disk_that_cannot_be_written_is_said_once(tmp_path, caplog):
    root = tmp_path / "file"
    root.write_text("in the way")
    store = disk(root)
    for length in (20, 21):
        row, kept = example_of(length)
        assert store.get(row, lambda kept=kept: kept) is kept
    assert len([r for r in caplog.records if "not kept" in r.message]) == 1


@pytest.mark.parametrize("name", ["chmod", "mkdir", "stat", "glob", "unlink", "replace"])
def test_no_failure_of_the_disk_is_the_clients(tmp_path, monkeypatch, caplog, name):
    rows = same_size(8)
    old = disk(tmp_path, identity=b"b" * 32)
    made_in_a_pass(old, rows)
    age(tmp_path, 2)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, name, fail)
    store = disk(tmp_path, limit=2_000)
    for row, kept in rows:
        assert store.get(row, lambda kept=kept: kept) is kept
    assert len([r for r in caplog.records if "not kept" in r.message]) == 1


def test_a_folder_in_the_place_of_a_file(tmp_path, caplog):
    row, kept = example_of(20)
    store = disk(tmp_path)
    store.get(row, lambda: kept)
    (file,) = kept_files(tmp_path)
    file.unlink()
    file.mkdir()
    for _ in range(2):
        assert store.get(row, lambda: kept) is kept
    assert len([r for r in caplog.records if "not kept" in r.message]) == 1


def test_what_can_only_be_read_is_read(tmp_path, monkeypatch):
    row, kept = example_of(20)
    disk(tmp_path).get(row, lambda: kept)

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", fail)
    disk(tmp_path).get(row, must_not_run)


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_prefix_store import disk, example_of
while True:
    for length in range(20, 40):
        row, kept = example_of(length)
        store = disk(Path(sys.argv[1]))
        store.get(row, lambda: kept)
        for file in store._folder.iterdir():
            file.unlink(missing_ok=True)
        print("made", flush=True)
"""


def test_a_reader_beside_a_writer_that_is_killed(tmp_path):
    """Another process makes and removes files all the time, and dies somewhere in between."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(here), str(here.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline()
        for _ in range(10):
            for length in range(20, 40):
                row, kept = example_of(length)
                states, features = disk(tmp_path).get(row, lambda kept=kept: kept)
                assert torch.equal(states, kept[0])
                assert torch.equal(features, kept[1])
        writer.kill()
    row, kept = example_of(20)
    assert torch.equal(disk(tmp_path).get(row, lambda: kept)[0], kept[0])


def test_the_trainer_keeps_one_store_a_prefix_and_none_when_off(tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    flat = {
        "model": str(tiny_llama),
        "experts": 3,
        "prompts-per-expert": 2,
        "gate-hidden": 8,
        "num-samples": 60,
        "num-clients": 3,
        "active-clients": 1,
        "eval-samples": 2,
    }
    values = initial_tensors(Config.from_flat(flat).prompts, HIDDEN, 0, True)
    prefixes = [{PRETRAINED: np.full((6, HIDDEN), value, np.float32)} for value in (0.1, 0.2)]
    Trainer(Config.from_flat({**flat, "prefix-store-gb": 0.0})).evaluate(0, values, prefixes[0])
    assert not (tmp_path / "prefix").exists()
    trainer = Trainer(Config.from_flat(flat))
    for prefix in prefixes:
        first = trainer.evaluate(0, values, prefix)
        assert trainer.evaluate(0, values, prefix) == first
    assert len(list((tmp_path / "prefix").glob("*/"))) == 2
    held_out = min(2, sum(trainer.holding(0).test.values()))
    assert len(kept_files(tmp_path / "prefix")) == 2 * held_out


def test_everything_that_determines_a_prefix_is_in_its_key(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    facts = {"model": "m", "pretrained": "p", "layer": 2}
    row, kept = example_of(20)
    kept = (kept[0].to(backbone.dtype), kept[1])
    open_store(facts, backbone, 1.0).get(row, lambda: kept)
    open_store(facts, backbone, 1.0).get(row, must_not_run)
    for name in facts:
        with pytest.raises(AssertionError, match="again"):
            open_store({**facts, name: "other"}, backbone, 1.0).get(row, must_not_run)
