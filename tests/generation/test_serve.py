"""`mops-fl serve` asked by OpenAI's own client: a real process, and the application in this one."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import openai
import pytest
import uvicorn
from trained_run import trained_run
from transformers.convert_slow_tokenizer import bytes_to_unicode
from typer.testing import CliRunner

from experiments.golden.tiny import byte_tokenizer
from mops_fl.cli import app as commands
from mops_fl.data import Example
from mops_fl.errors import ConfigError
from mops_fl.generation.answerer import Answerer, Sampling
from mops_fl.generation.chat_completions import chat_app
from mops_fl.generation.desk import Desk, GrowingText
from mops_fl.generation.http_server import configuration, is_loopback, listening
from mops_fl.generation.trained import Trained

JSON = {"Content-Type": "application/json"}
QUESTIONS = ["Sort these words: b, a", "Count: one two three ✓"]


@pytest.fixture(scope="module")
def runs(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, tiny_llama, method=name) for name in ("mops", "lora")}


@pytest.fixture(scope="module")
def answerers(runs):
    return {name: Answerer(Trained.read(run)) for name, run in runs.items()}


class Slow:
    """An answerer that waits before every token once it is told to, and can fail."""

    def __init__(self, answerer):
        self._answerer, self.pause, self.fault = answerer, 0.0, ""

    def __getattr__(self, name):
        return getattr(self._answerer, name)

    def answer(self, ids, sampling, streamer):
        if self.fault:
            raise RuntimeError(self.fault)
        put = streamer.put

        def later(value):
            time.sleep(self.pause)
            put(value)

        streamer.put = later
        return self._answerer.answer(ids, sampling, streamer)


@contextmanager
def served(answerer):
    """A server in this process; its address."""
    desk = Desk(answerer)
    app = chat_app(desk, "tiny", answerer.trained.experts)
    with listening("127.0.0.1", 0) as held:
        server = uvicorn.Server(configuration(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
        thread.start()
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
        desk.close()
        server.should_exit = True
        thread.join()


@contextmanager
def client_of(url):
    made = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    with closing(made) as client:
        yield client


@pytest.fixture(scope="module")
def slow(answerers):
    return Slow(answerers["mops"])


@pytest.fixture(scope="module")
def url(slow):
    with served(slow) as address:
        yield address


@pytest.fixture
def client(url):
    with client_of(url) as found:
        yield found


def ask(client, text, **more):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": [{"role": "user", "content": text}], **more}
    )


def alone(answerer, text, **how):
    return answerer.answer(answerer.ids(Example(text, "", "", "")), Sampling(**how))


def until_idle(url):
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/health").json() != {"status": "ok", "open": 0}:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_is_the_answerer_s(client, answerers):
    answerer, text = answerers["mops"], QUESTIONS[1]
    found = ask(client, text, max_tokens=20)
    (choice,) = found.choices
    assert choice.message.content == alone(answerer, text, max_new_tokens=20)
    assert choice.finish_reason in ("stop", "length")
    ids = answerer.ids(Example(text, "", "", ""))
    assert found.usage.prompt_tokens == len(ids)
    assert found.usage.completion_tokens <= 20
    names = answerer.trained.experts
    assert found.mops["experts"] == dict(zip(names, answerer.gate(ids), strict=True))


def test_a_stream_tells_the_same(client, answerers):
    more = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, QUESTIONS[1], max_tokens=20, **more))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone(answerers["mops"], QUESTIONS[1], max_new_tokens=20)
    assert sum(chunks[0].mops["experts"].values()) == pytest.approx(1)
    whole = ask(client, QUESTIONS[1], max_tokens=20)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    short = ask(client, QUESTIONS[1], max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_is_asked_as_training_asked(client, answerers):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
    ]
    found = ask(client, "", messages=turns, max_tokens=8).choices[0].message.content
    question = "Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: 2 + 2?"
    assert found == alone(answerers["mops"], question, max_new_tokens=8)


def test_two_at_once_get_what_each_gets_alone(client, answerers):
    how = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(ask, client, text, max_tokens=15, **how) for text in QUESTIONS * 2]
    found = [each.result().choices[0].message.content for each in made]
    wanted = [alone(answerers["mops"], text, max_new_tokens=15, **how) for text in QUESTIONS]
    assert found == wanted * 2
    other = ask(client, QUESTIONS[0], max_tokens=15, **{**how, "seed": 6})
    assert other.choices[0].message.content != wanted[0]


def test_an_answer_ends_before_a_stop(client, answerers):
    text = alone(answerers["mops"], QUESTIONS[0], max_new_tokens=30)
    stop = text[10:13]
    for stream in (False, True):
        found = ask(client, QUESTIONS[0], max_tokens=30, stop=["never", stop], stream=stream)
        if stream:
            chunks = list(found)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            said, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (said, reason) == (text[: text.index(stop)], "stop")


def test_an_answer_that_nobody_reads_ends(client, url, slow, answerers, monkeypatch):
    monkeypatch.setattr(slow, "pause", 0.2)
    stream = ask(client, QUESTIONS[0], max_tokens=400, stream=True)
    next(iter(stream))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, QUESTIONS[0], max_tokens=3)
        with pytest.raises(openai.APITimeoutError):
            ask(client, QUESTIONS[0], max_tokens=400, timeout=0.5)
        assert httpx.get(f"{url}/health").json()["open"] >= 2
        stream.close()
        text = alone(answerers["mops"], QUESTIONS[0], max_new_tokens=3)
        assert waiting.result().choices[0].message.content == text
    until_idle(url)
    with pytest.raises(openai.APITimeoutError):
        ask(client, QUESTIONS[0], max_tokens=400, timeout=0.5)
    until_idle(url)


def test_a_failure_is_one_answer_s(client, slow, monkeypatch):
    monkeypatch.setattr(slow, "fault", 'out of "memory"\n')
    with pytest.raises(openai.InternalServerError, match="could not be made: out of"):
        ask(client, QUESTIONS[0])
    with pytest.raises(openai.APIError, match='out of "memory"'):
        list(ask(client, QUESTIONS[0], stream=True))
    monkeypatch.undo()
    assert ask(client, QUESTIONS[0], max_tokens=2).usage.completion_tokens == 2


def test_answers_keep_to_the_room(client, answerers):
    answerer = answerers["mops"]
    room = answerer.context
    overhead = len(answerer.ids(Example("", "", "", "")))
    found = ask(client, "x" * (room - overhead - 3), max_completion_tokens=100)
    assert found.usage.completion_tokens <= 3
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "x" * (room - overhead))
    assert refused.value.code == "context_length_exceeded"
    assert f"has {room} tokens" in refused.value.message
    assert f"room for {room - 1} " in refused.value.message


BAD = [
    ({"temperature": -1}, "temperature='-1'"),
    ({"max_tokens": 0}, "max_tokens='0'"),
    ({"stop": [""]}, "stop"),
    ({"n": 2}, "n is not supported"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
    ({"extra_body": {"top_k": 3}}, "top_k is no field"),
    ({"messages": []}, "messages: chat has nothing"),
    ({"messages": [{"content": "x"}]}, "a turn without a role"),
    ({"messages": [{"role": "user", "content": 3}]}, "turn of a chat is not text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "a part of type 'image_url'",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_what_cannot_be_done_is_refused(client, wrong, message):
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as refused:
        ask(client, "x", **wrong)
    assert refused.value.type == "invalid_request_error"


def test_what_asks_for_nothing_is_taken(client):
    idle = {"n": 1, "frequency_penalty": 0, "user": "me", "logprobs": False}
    found = ask(client, "x", max_tokens=1, response_format={"type": "text"}, **idle)
    assert found.usage.completion_tokens == 1


def test_there_is_one_model(client, url):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mops-fl"
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "x", model="gpt")
    assert refused.value.code == "model_not_found"
    assert "'tiny'" in refused.value.message
    errors = [
        httpx.post(f"{url}/v1/chat/completions", data={"model": "tiny"}),
        httpx.post(f"{url}/v1/chat/completions", content=b"{", headers=JSON),
        httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny"}),
        httpx.get(f"{url}/v1/chat/completions"),
        httpx.get(f"{url}/nothing"),
    ]
    assert [error.status_code for error in errors] == [400, 400, 400, 405, 404]
    said = [error.json()["error"]["message"] for error in errors]
    assert "Content-Type: application/json" in said[0]
    assert "malformed JSON" in said[1]
    assert said[2] == "messages is missing: give it"


def test_adapters_answer_too(answerers):
    answerer = answerers["lora"]
    with served(answerer) as url, client_of(url) as client:
        found = ask(client, QUESTIONS[0], max_tokens=10)
        assert found.mops == {"experts": None}
        assert found.choices[0].message.content == alone(answerer, QUESTIONS[0], max_new_tokens=10)
    base = Answerer(answerer.trained.base())
    ids = base.ids(Example(QUESTIONS[0], "", "", ""))
    assert base.answer(ids, Sampling(10)) != found.choices[0].message.content


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_ends_when_it_is_told(runs, number):
    program = "from mops_fl.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", program, "serve", str(runs["mops"]), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"model (\S+) at (\S+)/v1;", process.stdout.readline())
            assert found is not None
            with client_of(found[2]) as client:
                assert found[1] == "mops"
                stream = ask(client, QUESTIONS[0], model="mops", max_tokens=400, stream=True)
                next(iter(stream))
                process.send_signal(number)
                with pytest.raises(openai.APIError, match="the server ends"):
                    list(stream)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed, errors) == (0, "", "")


def test_a_port_in_use_is_told_before_anything_is_read(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = CliRunner().invoke(commands, ["serve", str(tmp_path / "none"), "--port", str(port)])
    assert isinstance(done.exception, ConfigError)
    assert f"--port {port}: Address already in use" in str(done.exception)


def test_the_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(commands, ["serve", str(tmp_path / "none")])
    assert "needs uvicorn: pip install 'mops-fl[serve]'" in str(done.exception)


def test_other_hosts_are_warned_of(tmp_path):
    done = CliRunner().invoke(commands, ["serve", str(tmp_path / "no"), "--host", "0.0.0.0"])
    assert "--host 0.0.0.0: there is no authentication" in done.output
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost")] == [True] * 3
    assert not is_loopback("example.org")


@pytest.mark.parametrize("stops", [(), ("€", "never"), ("no €",)])
def test_a_text_grows_to_the_whole_text(stops):
    tokenizer = byte_tokenizer()
    for text in (b"sch\xc3\xb6n \xe2\x82\xac 5", b"\xff\xc3 \xe2\x82", b"one\xe2\x82\xac", b"no "):
        ids = tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte] for byte in text])
        growing = GrowingText(tokenizer, stops)
        said = ""
        for token in ids:
            said += growing.add(token)
            if growing.stopped:
                break
        said += growing.rest()
        whole = text.decode(errors="replace")
        ends = [whole.index(stop) for stop in stops if stop in whole]
        assert said == whole[: min(ends, default=None)]
        assert growing.stopped == bool(ends)
