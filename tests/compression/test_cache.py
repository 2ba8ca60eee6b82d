import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.golden.tiny import save_tiny_llama
from mops_fl.compression import cache, make
from mops_fl.compression.artifact import verify
from mops_fl.compression.cache import cache_key, ensure
from mops_fl.compression_spec import parse
from mops_fl.errors import ConfigError, ModelError, RunError

CPU = torch.device("cpu")

CHILD = """
import os, signal, sys, time
from pathlib import Path
from experiments.golden.tiny import byte_tokenizer
from mops_fl.compression import make
from mops_fl.compression_spec import parse
from mops_fl.compression.cache import ensure
from mops_fl.compression.calibration import load_calibration
from mops_fl.compression.pattern import is_prunable
from mops_fl.compression_spec import parse
from mops_fl.config import Config

base, log, dies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies"
data = Config.from_flat({"dataset": "skills", "max-length": 96}).data
calibration = load_calibration(data, byte_tokenizer(), samples=16, seed=0)
write = make.write_manifest

def prune(model, *_, **__):  # by position: quick to import, and slow enough to meet the other
    time.sleep(1)
    for name, weight in model.named_parameters():
        if is_prunable(name):
            weight.data[:, 0::4] = weight.data[:, 1::4] = 0

def logged(folder, manifest):
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    with log.open("a") as stream:
        stream.write("made\\n")
    write(folder, manifest)

make.write_manifest, make.prune = logged, prune
print(ensure(base, parse("2:4"), calibration), flush=True)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))


def start(base, log, *, dies):
    tests = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(base), str(log), "dies" if dies else "lives"],
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_nothing_and_two_others_make_it_once(base, calibration, tmp_path):
    log = tmp_path / "log"
    killed = start(base, log, dies=True)
    assert killed.wait(400) == -signal.SIGKILL
    killed.stdout.close()
    folder = tmp_path / "cache" / "compressed"
    left = [path.name for path in folder.iterdir() if path.is_dir()]
    assert [name.startswith(".") for name in left] == [True]
    assert not log.exists()

    children = [start(base, log, dies=False) for _ in range(2)]
    answers = [child.communicate(timeout=480)[0].strip().splitlines()[-1] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert answers[0] == answers[1]
    assert log.read_text() == "made\n"
    made = Path(answers[0])
    assert [path for path in folder.iterdir() if path.is_dir()] == [made]
    assert verify(made).key == made.name == cache_key(base, parse("2:4"), calibration, CPU)


@pytest.fixture
def counted(monkeypatch):
    """How often something was made, and with what."""
    calls = []
    original = make.make

    def counting(*arguments):
        calls.append(arguments)
        original(*arguments)

    monkeypatch.setattr(make, "make", counting)
    return calls


def test_it_is_made_once_and_quantisation_shares_it(base, calibration, counted):
    folder = ensure(base, parse("2:4"), calibration)
    assert ensure(base, parse("2:4"), calibration) == folder
    assert ensure(base, parse("2:4+nf4"), calibration) == folder
    assert len(counted) == 1
    assert verify(folder).compression == "2:4"


def test_the_base_model_on_disk_is_left_alone(base, calibration):
    """Its file is memory-mapped by the model that is pruned in place."""
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    ensure(base, parse("2:4"), calibration)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_the_key_holds_everything_that_matters(base, calibration, tmp_path, monkeypatch):
    key = cache_key(base, parse("2:4"), calibration, CPU)
    assert cache_key(base, parse("2:4"), replace(calibration, source="elsewhere"), CPU) == key
    copied = shutil.copytree(base, tmp_path / "copy")
    assert cache_key(copied, parse("2:4"), calibration, CPU) == key
    rows = calibration.rows
    others = {
        cache_key(base, parse("4:8"), calibration, CPU),
        cache_key(base, parse("unstructured-50"), calibration, CPU),
        cache_key(base, parse("2:4"), replace(calibration, rows=rows[:-1]), CPU),
        cache_key(base, parse("2:4"), replace(calibration, held_out=rows), CPU),
        cache_key(base, parse("2:4"), replace(calibration, seed=1), CPU),
        cache_key(base, parse("2:4"), calibration, torch.device("cuda")),
        cache_key(save_tiny_llama(tmp_path / "other", seed=1), parse("2:4"), calibration, CPU),
    }
    monkeypatch.setattr(cache, "version", lambda name: "0")
    others.add(cache_key(base, parse("2:4"), calibration, CPU))
    assert len(others | {key}) == 9


def test_an_error_on_the_way_leaves_nothing(base, calibration, monkeypatch, tmp_path):
    def fail(folder, manifest):
        raise ModelError("no")

    monkeypatch.setattr(make, "write_manifest", fail)
    with pytest.raises(ModelError, match="no"):
        ensure(base, parse("2:4"), calibration, out=tmp_path / "out")
    assert not any(path.is_dir() for path in tmp_path.iterdir() if path.name != "cache")


def test_what_was_written_badly_is_refused_at_once(base, calibration, monkeypatch, tmp_path):
    monkeypatch.setattr(make, "write_weights", lambda *_: ({}, {}, {}))
    with pytest.raises(ModelError):
        ensure(base, parse("2:4"), calibration, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_is_reused_for_the_same_only(base, calibration, counted, tmp_path):
    out = tmp_path / "out"
    assert ensure(base, parse("2:4"), calibration, out=out) == out
    assert ensure(base, parse("2:4"), calibration, out=out) == out
    assert len(counted) == 1
    for other in (parse("3:4"), parse("unstructured-50")):
        with pytest.raises(RunError, match="holds something else"):
            ensure(base, other, calibration, out=out)
    with pytest.raises(RunError, match="holds something else"):
        ensure(base, parse("2:4"), calibration, out=base)


def test_too_little_disk_is_said_before_anything_starts(base, calibration, monkeypatch, counted):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(RunError, match=r"not enough disk at .*: 0\.0 GB are free"):
        ensure(base, parse("2:4"), calibration)
    assert not counted


@pytest.mark.parametrize("text", ["none", "int8", "nf4"])
def test_nothing_to_prune_is_refused(base, calibration, text):
    with pytest.raises(ConfigError, match="nothing to prune"):
        ensure(base, parse(text), calibration)


def test_a_compressed_model_is_not_compressed_again(pruned, calibration):
    with pytest.raises(ModelError, match="compressed already"):
        ensure(pruned, parse("2:4"), calibration)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_type_on_disk_is_the_base_models(base, calibration, tmp_path, dtype):
    folder = shutil.copytree(base, tmp_path / "half")
    model = LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    made = ensure(folder, parse("2:4"), calibration)
    verify(made)
    loaded = LlamaForCausalLM.from_pretrained(made, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, dtype)}


def test_the_pruned_model_is_not_kept_in_memory(base, calibration):
    """llmcompressor holds on to the model object for good; its weights must not stay with it."""
    import gc

    def models() -> list[LlamaForCausalLM]:
        # not isinstance, which asks objects of torch that warn when they are asked
        return [o for o in gc.get_objects() if issubclass(type(o), LlamaForCausalLM)]

    before = set(map(id, models()))
    ensure(base, parse("2:4"), calibration)
    gc.collect()
    alive = [model for model in models() if id(model) not in before]
    assert all(p.device.type == "meta" for model in alive for p in model.parameters())
