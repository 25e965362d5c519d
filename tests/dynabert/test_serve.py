"""Answers over HTTP: they are the engine's, what is wrong is said, and whoever hangs up waits no longer."""

from __future__ import annotations

import copy
import gc
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from dynabert import Cascade, InferenceEngine
from dynabert.cli import main
from dynabert.cli.serve import ladder_subnets
from dynabert.engine import ElasticServer, ServerOverloaded
from dynabert.engine.http import http_app
from tests.dynabert.test_engine_server import LADDER, SOON, Held
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer

LARGEST = 10_000


@contextmanager
def served(app: Any) -> Iterator[int]:
    """The port at which an application answers."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    own = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: own.started)
        yield listener.getsockname()[1]
    finally:
        own.should_exit = True
        thread.join(60)
        listener.close()


def until(true: Any) -> None:
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.005)


def asked(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
    """Status, the answer's JSON (or text) and its headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, given)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        text = answer.read().decode()
    finally:
        connection.close()
    return answer.status, json.loads(text) if headers["content-type"] == "application/json" else text, headers


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def port(engine: InferenceEngine) -> Iterator[int]:
    server = ElasticServer(engine, LADDER, promise_ms=SOON, max_waiting=50)
    with served(http_app(server, model_name="tiny", max_body_bytes=LARGEST)) as found:
        yield found
    assert not server.running  # the application has closed it


def held_server(monkeypatch: pytest.MonkeyPatch) -> tuple[ElasticServer, Held]:
    """A server, and the hold of what its engine is asked from now on."""
    own = InferenceEngine(tiny_model(), tiny_tokenizer())
    return ElasticServer(own, LADDER, promise_ms=SOON, max_waiting=8), Held(own, monkeypatch)


@pytest.mark.parametrize(
    ("body", "texts", "subnet"),
    [
        ({"text": "the good film"}, ["the good film"], "w1-d1"),
        ({"text": ["the film", "it is good"], "subnet": "auto"}, [("the film", "it is good")], "w1-d1"),
        ({"texts": some_texts(30, seed=4), "subnet": "w0.5"}, some_texts(30, seed=4), "w0.5-d1"),
        ({"text": None, "texts": ["good"], "within_ms": None, "truncate": None}, ["good"], "w1-d1"),
        ({"texts": [["a", "b"], ["c", "d"]], "within_ms": SOON}, [("a", "b"), ("c", "d")], "w1-d1"),
        ({"texts": some_texts(9), "subnet": "w0.25-d0.5@0.5/w1"}, some_texts(9), Cascade(["w0.25-d0.5", "w1"], 0.5)),
        ({"text": "good " * 600, "truncate": True, "subnet": None}, ["good " * 600], "w1-d1"),
    ],
)
def test_answers_are_the_engines(engine: InferenceEngine, port: int, body: Any, texts: Any, subnet: Any) -> None:
    status, found, _ = asked(port, "POST", "/predict", body)
    assert status == 200
    wanted = engine.predict(texts, subnet=subnet, truncate=True)
    assert [one["subnet"] for one in found["predictions"]] == [one.subnet for one in wanted]
    for own, other in zip(found["predictions"], wanted, strict=True):
        assert own.keys() == other.to_dict().keys()
        assert own["label"] == other.label
        assert own["logits"] == pytest.approx(other.logits, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nothing", "the body is no JSON in UTF-8"),
        (b"\xff", "the body is no JSON in UTF-8"),
        (b"[" * 5000, "the body is n"),
        ([1], "the body is a list of 1; allowed: an object"),
        ({}, 'give "text", or "texts"'),
        ({"text": "a", "texts": ["a"]}, 'give "text", or "texts"'),
        ({"text": "a", "width": 1}, 'unknown field "width"; allowed: text, texts, subnet, within_ms, truncate'),
        ({"texts": "a"}, '"texts" is "a"; allowed: a list of one or more texts'),
        ({"texts": []}, '"texts" is a list of 0'),
        ({"texts": ["a", None]}, "text 1 is null; allowed: a string, or a pair"),
        ({"texts": ["a", ["b", "c", "d"]]}, "text 1 is a list of 3"),
        ({"texts": ["a", ["b", "c"]]}, "text 1 is a pair, text 0 is not"),
        ({"texts": ["a", " "]}, "text 1"),
        ({"texts": ["a", "\ud800"]}, "text 1 is no valid Unicode"),
        ({"texts": ["a", "good " * 600]}, "too long"),
        ({"text": "a", "subnet": "w9"}, "width_mult is 9.0; allowed: above 0, up to 1"),
        ({"text": "a", "subnet": "w" * 5000}, '"subnet" has 5000 characters; allowed: up to 1000'),
        (b'{"text": "a", "text": "b"}', 'the body has "text" twice; give it once'),
        ({"text": None, "texts": None}, 'give "text", or "texts"'),
        ({"x" * 5000: 1}, f'unknown field "{"x" * 59}…; allowed: text'),
        ({"text": "a", "subnet": 0.5}, '"subnet" is 0.5; allowed: text such as "w0.5-d0.75", or "auto"'),
        (
            {"text": "a", "subnet": "w0.75"},
            'sub-network "w0.75-d1" is not served here; allowed: auto, w1-d1, w0.5-d1, w0.25-d0.5, or a cascade such '
            "as w0.25-d0.5@0.9/w1-d1; dynabert serve takes more with --subnets, and any with --any_subnet",
        ),
        ({"text": "a", "subnet": "w0.5@0.9/w0.75@0.9/w1"}, 'sub-network "w0.75-d1" is not served here'),
        ({"text": "a", "subnet": "h64-n64"}, 'sub-network "h64-n64" is not served here'),
        ({"text": "a", "within_ms": 0}, '"within_ms" is 0; allowed: a number above 0'),
        ({"text": "a", "within_ms": "5"}, '"within_ms" is "5"'),
        ({"text": "a", "within_ms": True}, '"within_ms" is true'),
        (b'{"text": "a", "within_ms": 1e400}', '"within_ms" is Infinity'),
        (b'{"text": "a", "within_ms": 1' + b"0" * 400 + b"}", '"within_ms" is 1000'),
        ({"text": "a", "truncate": 1}, '"truncate" is 1; allowed: true or false'),
    ],
)
def test_what_is_wrong_with_a_request(port: int, body: Any, message: str) -> None:
    status, found, _ = asked(port, "POST", "/predict", body)
    assert status == 400
    assert message in found["error"]


def test_any_sub_network_where_that_is_wanted(engine: InferenceEngine) -> None:
    server = ElasticServer(engine, ["w1"], promise_ms=SOON)
    with served(http_app(server, any_subnet=True)) as port:
        status, found, _ = asked(port, "POST", "/predict", {"text": "good", "subnet": "w0.75-d0.5"})
        assert (status, found["predictions"][0]["subnet"]) == (200, "w0.75-d0.5")
        status, found, _ = asked(port, "POST", "/predict", {"text": "good", "subnet": "h64-n64"})
        assert status == 400
        assert "subnet has 1 layers, the network 4" in found["error"]


def test_paths_and_methods(port: int) -> None:
    status, found, _ = asked(port, "GET", "/predictions")
    assert (status, found["error"][:22]) == (404, "no path /predictions; ")
    status, found, headers = asked(port, "GET", "/predict")
    assert (status, headers["allow"]) == (405, "POST")
    assert found["error"] == "/predict does not take GET; allowed: POST"
    assert asked(port, "POST", "/stats", {})[0] == 405


def test_what_the_server_says_of_itself(port: int) -> None:
    assert asked(port, "GET", "/health")[:2] == (200, {"status": "ok"})
    info = asked(port, "GET", "/info")[1]
    assert info["model"] == "tiny"
    assert info["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert [own["subnet"] for own in info["subnets"]] == list(LADDER)
    assert all(own["ms_per_token"] > 0.0 for own in info["subnets"])
    before = asked(port, "GET", "/stats")[1]
    assert asked(port, "POST", "/predict", {"texts": ["good", "bad"], "subnet": "w0.5"})[0] == 200
    after = asked(port, "GET", "/stats")[1]
    assert after["answered"] == before["answered"] + 2
    status, text, headers = asked(port, "GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert f"dynabert_answered_total {after['answered']}\n" in text
    assert f'dynabert_answers_by_subnet_total{{subnet="w0.5-d1"}} {after["by_subnet"]["w0.5-d1"]}\n' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) dynabert_\w+ .+|dynabert_\w+(\{\w+="[^"]+"\})? [-+0-9.e]+', line)


def test_a_body_that_is_too_large(port: int) -> None:
    status, found, _ = asked(port, "POST", "/predict", b" " * (LARGEST + 1))
    assert status == 413
    assert found["error"] == "the body is larger than 10000 bytes, which is the most; send fewer texts at once"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)  # one that does not say how long it is
    connection.request("POST", "/predict", iter([b" " * 6000] * 2), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    with pytest.raises(ValueError, match="max_body_bytes is 0; allowed: 1 or more"):
        http_app(None, max_body_bytes=0)  # type: ignore[arg-type]


def test_many_texts_are_taken_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    server, hold = held_server(monkeypatch)
    with server:
        first = server.ask("the film")
        assert hold.entered.wait(60)
        texts = some_texts(5, seed=3)
        asked = server.ask_all(texts, "w0.5")
        with pytest.raises(
            ServerOverloaded, match="5 requests wait already, 4 come at once, and max_waiting allows 8; ask lat"
        ):
            server.ask_all(["bad"] * 4)
        with pytest.raises(ServerOverloaded, match="9 come at once, and max_waiting allows 8; ask for fewer"):
            server.ask_all(["bad"] * 9)
        with pytest.raises(ValueError, match="text 1 is empty"):
            server.ask_all(["bad", ""])
        with pytest.raises(ValueError, match="texts are empty; allowed: one or more"):
            server.ask_all([])
        with pytest.raises(TypeError, match="ask_all: texts are no texts; got str"):
            server.ask_all("bad")
        assert server.stats().waiting == 5
        hold.go.set()
        wanted = server.engine.predict(texts, subnet="w0.5")
        for future, other in zip(asked, wanted, strict=True):
            assert future.result(60).logits == pytest.approx(other.logits, rel=1e-4, abs=1e-5)
        assert server.stats().refused == 13
        assert first.result(60).subnet == "w1-d1"


def raw(port: int, head: str, body: bytes = b"") -> bytes:
    """What comes back for these lines, until the server closes the connection."""
    lines = f"{head}\r\nHost: here\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 60) as one:
        one.sendall(lines.encode() + body)
        return b"".join(iter(lambda: one.recv(65536), b""))


def test_what_would_be_overlooked_is_refused(port: int) -> None:
    found = raw(port, "POST /predict?subnet=w0.5 HTTP/1.1", b'{"text": "a"}')
    assert found.startswith(b"HTTP/1.1 400")
    assert b"/predict takes no query; give subnet, within_ms, truncate in the body, as JSON" in found
    found = raw(port, "POST /predict HTTP/1.1\r\nContent-Encoding: gzip", b"\x1f\x8b")
    assert found.startswith(b"HTTP/1.1 415")
    assert b'Content-Encoding is \\"gzip\\"; allowed: none' in found


def test_a_body_that_does_not_come(engine: InferenceEngine) -> None:
    with served(http_app(ElasticServer(engine, LADDER, promise_ms=SOON), body_seconds=0.2)) as port:
        with socket.create_connection(("127.0.0.1", port), 60) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 500\r\n\r\n{")
            found = b"".join(iter(lambda: one.recv(65536), b""))  # and the connection is closed
        assert found.startswith(b"HTTP/1.1 408")
        assert b"the body did not come in 0.2 s" in found
    with pytest.raises(ValueError, match="body_seconds is 0; allowed: above 0"):
        http_app(None, body_seconds=0)  # type: ignore[arg-type]


def test_a_long_text_holds_up_nobody(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ElasticServer(engine, LADDER, promise_ms=SOON)
    places: list[str] = []
    with served(http_app(server, truncate=True)) as port:
        ask = server.ask_all

        def seen(*args: Any, **options: Any) -> Any:
            places.append(threading.current_thread().name)
            return ask(*args, **options)

        monkeypatch.setattr(server, "ask_all", seen)
        assert asked(port, "POST", "/predict", {"text": "good"})[0] == 200
        assert asked(port, "POST", "/predict", {"text": "good " * 5000})[0] == 200
    assert ["AnyIO" in name for name in places] == [False, True]


def test_mounted_in_another_application(engine: InferenceEngine) -> None:
    with ElasticServer(engine, LADDER, promise_ms=float("inf")) as server:
        with served(Starlette(routes=[Mount("/v1", http_app(server))])) as port:
            assert asked(port, "POST", "/v1/predict", {"text": "good"})[0] == 200
            assert asked(port, "GET", "/v1/info")[1]["promise_ms"] is None
            status, found, headers = asked(port, "GET", "/v1/predict")
            assert (status, headers["allow"]) == (405, "POST")
            assert found["error"] == "/v1/predict does not take GET; allowed: POST"
            assert asked(port, "POST", "/v1/info", {})[2]["allow"] == "GET, HEAD"
            found = asked(port, "GET", "/v1/nothing")[1]["error"]
            assert found.startswith("no path /v1/nothing; allowed: POST /v1/predict; GET /v1/health, /v1/info")
        assert server.running


def test_a_fault_of_the_servers_own_is_an_error_as_others_are(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ElasticServer(engine, LADDER, promise_ms=SOON)
    with served(http_app(server)) as port:
        monkeypatch.setattr(server, "ask_all", lambda *_, **__: 1 // 0)
        status, found, _ = asked(port, "POST", "/predict", {"text": "good"})
    assert (status, found) == (500, {"error": "a fault of the server's own, which has logged it"})


def test_all_texts_of_a_request_are_taken_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server, hold = held_server(monkeypatch)
    with served(http_app(server)) as port:
        first = server.ask("the film")
        assert hold.entered.wait(60)
        waiting = server.ask_all(["good"] * 5)
        status, found, headers = asked(port, "POST", "/predict", {"texts": ["bad"] * 4})
        assert (status, headers["retry-after"]) == (503, "1")
        assert "5 requests wait already, 4 come at once, and max_waiting allows 8; ask later" in found["error"]
        status, found, headers = asked(port, "POST", "/predict", {"texts": ["bad"] * 9})  # it would never be taken
        assert (status, "retry-after" in headers) == (413, False)
        assert found["error"] == '"texts" is a list of 9; allowed: up to 8, as many as may wait; send fewer'
        assert server.stats().waiting == 5
        assert server.stats().refused == 4
        hold.go.set()
        assert all(one.result(60).subnet == "w1-d1" for one in [first, *waiting])


def test_who_hangs_up_waits_no_longer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    server, hold = held_server(monkeypatch)
    with served(http_app(server)) as port:
        first = server.ask("the film")
        assert hold.entered.wait(60)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", json.dumps({"texts": ["good", "bad"]}))
        until(lambda: server.stats().waiting == 2)
        connection.close()
        until(lambda: server.stats().waiting == 0)
        hold.go.set()
        assert first.result(60).subnet == "w1-d1"
    gc.collect()
    assert [len(call) for call in hold.calls] == [1]
    assert "never retrieved" not in caplog.text


def test_a_request_on_which_the_network_fails(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ElasticServer(engine, LADDER, promise_ms=SOON)
    logits = engine.logits

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with served(http_app(server)) as port:
        monkeypatch.setattr(engine, "logits", broken)
        status, found, _ = asked(port, "POST", "/predict", {"texts": ["good", "bad"]})
        assert (status, found["error"]) == (500, "the network failed on this request: out of memory")
        monkeypatch.setattr(engine, "logits", logits)
        assert asked(port, "POST", "/predict", {"text": "good"})[0] == 200
        assert server.stats().failed == 2


def test_a_server_that_has_ended(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server, hold = held_server(monkeypatch)
    found: list[Any] = []
    with served(http_app(server, close=False)) as port:
        first = server.ask("the film")
        assert hold.entered.wait(60)
        caller = threading.Thread(target=lambda: found.append(asked(port, "POST", "/predict", {"text": "good"})))
        caller.start()
        until(lambda: server.stats().waiting == 1)
        closer = threading.Thread(target=lambda: server.close(cancel=True))
        closer.start()
        caller.join(60)
        assert found[0][:2] == (503, {"error": "the server was closed before the answer"})
        hold.go.set()
        closer.join(60)
        assert first.result(60).subnet == "w1-d1"
        assert asked(port, "GET", "/health")[:2] == (503, {"error": "the server has ended"})
        assert asked(port, "POST", "/predict", {"text": "good"})[0] == 503


# The command
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_command_answers_what_is_there_before_it_ends(tmp_path: Path, name: str) -> None:
    folder = tiny_folder(tmp_path / "model")
    argv = ["serve", "--model_name_or_path", str(folder), "--subnets", "w1,w0.5", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynabert.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        ),  # under nohup it would be ignored, as it should
    )
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        port = 0
        for line in process.stderr:
            if found := re.search(r"answering at http://127\.0\.0\.1:(\d+)/predict", line):
                port = int(found[1])
                break
        assert port
        until(lambda: connects(port))
        status, answer, _ = asked(port, "POST", "/predict", {"text": "the good film"})
        assert status == 200
        (wanted,) = InferenceEngine.from_pretrained(folder).predict(["the good film"])
        assert answer["predictions"][0]["label"] == wanted.label
        texts = some_texts(4000, seed=6)
        last: list[Any] = []
        caller = threading.Thread(target=lambda: last.append(asked(port, "POST", "/predict", {"texts": texts})))
        caller.start()
        until(lambda: not caller.is_alive() or asked(port, "GET", "/stats")[1]["waiting"] > 0)
        process.send_signal(number := getattr(signal, name))
        assert process.wait(60) == 128 + number
        caller.join(60)
        assert last[0][0] == 200
        assert len(last[0][1]["predictions"]) == 4000
        assert "w0.5-d1" in process.stdout.read()
        assert process.stderr.read() == f"dynabert serve: ended by {name}\n"
    finally:
        process.kill()
        process.communicate()


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    argv = ["serve", "--model_name_or_path", str(tiny_folder(tmp_path / "model")), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-m", "dynabert.cli", *argv], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r":(\d+)/predict", line)))
        until(lambda: asked(port, "GET", "/health")[0] == 200)
        with socket.create_connection(("127.0.0.1", port), 60) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 500\r\n\r\n{")
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 143  # it would wait 30 s for the body
        assert process.stderr.read() == "dynabert serve: ended by SIGTERM\n"
    finally:
        process.kill()
        process.communicate()


def connects(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--port", "70000"], 2, "--port is 70000; allowed: 0 to 65535"),
        (["--promise_ms", "0"], 2, "--promise_ms is 0; allowed: above 0"),
        (["--max_waiting", "0"], 2, "--max_waiting is 0; allowed: 1 or more"),
        (["--host", "no address"], 1, "--host no address is no address"),
        (["--host", "a" * 70], 1, f"--host {'a' * 70} is no address: encoding with 'idna' codec failed"),
        (["--subnets", "w9", "--port", "0"], 1, "width_mult is 9.0"),
        (["--max_seq_length", "4000", "--port", "0"], 1, "max_length is 4000; allowed: up to the model's"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert main(["serve", "--model_name_or_path", str(tiny_folder(tmp_path / "model")), *options]) == code
    assert message in capsys.readouterr().err


def test_without_uvicorn_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--model_name_or_path", "nowhere", "--port", "0"]) == 1
    assert "uvicorn" in (said := capsys.readouterr().err)
    assert "pip install 'dynabert-kernels[serve]'" in said


def test_a_port_that_another_took_while_this_one_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_folder(tmp_path / "model"))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))  # it listens only once it is loaded, as this one does
        port = other.getsockname()[1]
        monkeypatch.setattr("dynabert.cli.serve._tell", lambda _: other.listen())
        assert main(["serve", "--model_name_or_path", folder, "--port", str(port)]) == 1
    assert f"--host 127.0.0.1 --port {port} cannot be listened on: Address already in use" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--model_name_or_path", "nowhere", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"--host 127.0.0.1 --port {port} cannot be listened on: Address already in use; give another" in said


def test_which_sub_networks_are_served(tmp_path: Path) -> None:
    config = tiny_model().config
    folder = tmp_path / "model"
    folder.mkdir()
    assert [*map(str, ladder_subnets(None, str(folder), config))] == ["w1-d1"]
    assert [*map(str, ladder_subnets("w0.5,w1", str(folder), config))] == ["w0.5-d1", "w1-d1"]
    rows = [{"subnet": name} for name in ("w0.5-d1", "w0.5-d0.5", "w1-d1", "w0.25-d1", "w1-d0.5")]
    (folder / "complete.json").write_text(json.dumps({"rows": rows, "history": [1]}))
    assert [*map(str, ladder_subnets(None, str(folder), config))] == ["w1-d1", "w0.5-d1", "w0.25-d1"]
    uneven = copy.deepcopy(config)  # layers that differ, as a pruned network's may
    uneven.layer_heads = (4, 2, *config.layer_heads[2:])
    rows = [{"subnet": name} for name in ("w0.5-d1", "h4,2,4,0-n8,8,8,0", "w1-d1", "w1-d0.5")]
    (folder / "complete.json").write_text(json.dumps({"rows": rows, "history": [1]}))
    assert [*map(str, ladder_subnets(None, str(folder), uneven))] == ["w1-d1", "w0.5-d1"]
