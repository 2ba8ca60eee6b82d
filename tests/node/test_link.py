"""A real resident trainer in a process of its own, and what it lets out."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from edge import SECRETS, context_of, message_of, round_of, trainers, write_rows
from flwr.app import ConfigRecord

from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.errors import ConfigError
from mops_fl.node import link
from mops_fl.node.node_config import NodeConfig
from mops_fl.node.node_home import NodeHome
from mops_fl.training import messages
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import ARRAYS, CONFIG, from_array_record
from mops_fl.wire.requests import DESCRIBE, EVALUATE, TRAIN

pytestmark = pytest.mark.slow


def until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def asked(node, kind, content=None, *, number=1, **run):
    served = link.ask(message_of(kind, content, run=number), context_of(node, **run))
    return served.answers[0].reply


def test_one_trainer_serves_all_messages_and_dies_unnoticed(node, tmp_path):
    described = asked(node, DESCRIBE)
    assert described.content[CONFIG]["tasks"] == ["billing", "poems"]
    (first,) = trainers(tmp_path)
    trained = asked(node, TRAIN, round_of(node))
    assert [process.pid for process in trainers(tmp_path)] == [first.pid]

    # the same as what a trainer in this process makes of it
    config = NodeConfig.from_flat(node).configured(context_of(node).run_config)
    here = messages.answer(
        message_of(TRAIN, round_of(node)), context_of(node), Trainer(config, own_data=True)
    )
    for name, value in from_array_record(here.content[ARRAYS]).items():
        np.testing.assert_allclose(
            from_array_record(trained.content[ARRAYS])[name], value, rtol=1e-4, atol=1e-6
        )

    # killed in the middle of a long piece of work, it is replaced and asked again
    answers = []
    long = {"local_steps": 400}
    work = threading.Thread(
        target=lambda: answers.append(asked(node, TRAIN, round_of(node), **long))
    )
    work.start()
    time.sleep(1.0)
    first.kill()
    work.join(timeout=400)
    assert answers[0].has_content()
    (second,) = trainers(tmp_path)
    assert second.pid != first.pid

    # another configuration of the node is another trainer, and the old one is gone
    evaluated = asked({**node, "threads": 1}, EVALUATE, round_of(node))
    assert evaluated.has_content()
    until(lambda: not second.is_running())
    assert len(trainers(tmp_path)) == 1

    # states of private rows are the user's alone, and go with the run
    home = NodeHome.of(NodeConfig.from_flat(node))
    states = [path for path in home.states.rglob("*") if path.is_file()]
    assert states
    assert not any(path.stat().st_mode & 0o077 for path in states)
    for folder in (home.folder, home.sockets):
        assert folder.stat().st_mode & 0o077 == 0
    assert home.log.stat().st_mode & 0o077 == 0
    asked({**node, "threads": 1}, DESCRIBE, number=2)
    assert not any(path.is_file() for path in home.states.rglob("*"))


def fill(file):
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_is_a_reason_and_room_on_it_the_end_of_it(node, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own takes Linux and root")
    try:
        monkeypatch.setenv("MOPS_FL_CACHE", str(small))
        fill(small / "filler")
        refused = asked(node, DESCRIBE)
        assert "No space left on device" in refused.error.reason
        (small / "filler").unlink()
        assert asked(node, DESCRIBE).has_content()
        # one that fills up later costs nothing that was there
        fill(small / "filler")
        assert asked(node, TRAIN, round_of(node)).has_content()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_trainer_ends_when_idle_and_with_its_node(node, tmp_path):
    idle = {**node, "idle-minutes": 0.02}
    asked(idle, DESCRIBE)
    (process,) = trainers(tmp_path)
    home = NodeHome.of(NodeConfig.from_flat(idle))
    until(lambda: not process.is_running() and not home.socket.exists())

    # `ask` watches the parent of the process that asks: Flower's, which lives as long as the node
    (tmp_path / "ask.py").write_text(
        "import pickle, sys\nfrom mops_fl.node import link\n"
        "link.ask(*pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    (tmp_path / "request").write_bytes(pickle.dumps((message_of(DESCRIBE), context_of(node))))
    command = f"{sys.executable} {tmp_path}/ask.py {tmp_path}/request; sleep 600"
    parent = subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True)
    try:
        (resident,) = until(lambda: trainers(tmp_path))
        until(lambda: NodeHome.of(NodeConfig.from_flat(node)).socket.exists())
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    until(lambda: not resident.is_running())


def test_nothing_of_the_rows_leaves(node, tmp_path):
    replies = [
        asked(node, DESCRIBE),
        asked(node, TRAIN, round_of(node)),
        asked(node, EVALUATE, round_of(node)),
        asked(node, TRAIN, round_of(node), method="nonsense"),
    ]
    # rows that cannot be read are quoted in the node's log, and nowhere else
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f'{{"instruction": "{SECRETS[0]}", "response": ["{SECRETS[1]}"]}}\n')
    refused = asked({**node, "data-path": str(bad)}, DESCRIBE)
    assert refused.error.reason == "DataError: the log of this node's trainer says more"

    config = NodeConfig.from_flat(node).configured(context_of(node).run_config)
    tokenizer = load_tokenizer(config.backbone)
    trainer = Trainer(config, own_data=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SECRETS]
    forbidden = [text.encode() for text in SECRETS]
    forbidden += [np.array(own, kind).tobytes() for own in ids for kind in ("int64", "int32")]
    forbidden += [trainer.corpus.digest.encode(), str(tmp_path).encode()]
    for sent in map(pickle.dumps, [*replies, refused]):
        for secret in forbidden:
            assert secret not in sent


def test_who_guesses_the_rows_cannot_confirm_them(node, tmp_path, monkeypatch):
    told = asked(node, DESCRIBE).content[CONFIG]
    again = asked(node, DESCRIBE).content[CONFIG]
    assert isinstance(told, ConfigRecord)
    assert told["data-digest"] == again["data-digest"]
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "other-machine"))
    with tempfile.TemporaryDirectory(prefix="mops-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        elsewhere = asked(node, DESCRIBE).content[CONFIG]
        for process in trainers(tmp_path):
            process.kill()
    assert elsewhere["data-digest"] != told["data-digest"]


def test_small_tasks_are_left_out(node, tmp_path):
    rows = write_rows(tmp_path / "more.jsonl", 20)
    with rows.open("a") as file:
        file.write('{"instruction":"a","context":"","response":"b","category":"rare disease"}\n')
    told = asked({**node, "data-path": str(rows), "min-task-rows": 5}, DESCRIBE).content[CONFIG]
    assert "rare disease" not in told["tasks"]
    assert told["skipped-reasons"] == ["task has fewer than 5 rows"]
    assert told["skipped-rows"] == [1]


def test_a_wrong_node_is_told_to_its_owner(node):
    with pytest.raises(ConfigError, match="partition-id='x'"):
        asked({**node, "partition-id": "x"}, DESCRIBE)


def test_a_stuck_trainer_is_replaced_when_the_message_has_lived(node, tmp_path):
    asked(node, DESCRIBE)
    (process,) = trainers(tmp_path)
    process.suspend()
    message = message_of(DESCRIBE)
    vars(message.metadata)["_ttl"] = 1.0
    assert message.metadata.ttl == 1.0
    with pytest.raises(Exception, match="did not"):
        link.ask(message, context_of(node))
    until(lambda: not process.is_running())
    assert asked(node, DESCRIBE).has_content()


def test_a_long_path_is_no_place_for_a_socket(node, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    home = NodeHome.of(NodeConfig.from_flat(node))
    assert len(os.fsencode(home.socket)) <= 103
    assert home.folder.is_dir()
