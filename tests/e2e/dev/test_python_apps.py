"""Python apps of every kind answer as their own servers would, from source and as a release. Not here: WSGI's details."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import DevProcess, run_freehold, serving

PLAIN = """
import json
import freehold


ASKED = []


def handle(request):
    match request.path:
        case "/once":
            ASKED.append(1)
            return freehold.Response("", 200 if len(ASKED) < 2 else 500)
        case "/text":
            return "é"
        case "/pairs":
            return freehold.Response("x", headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")])
        case "/pieces":
            return freehold.Response(["a", b"b"])
        case "/dict":
            return {"a": 1}
        case "/none":
            return None
        case "/tuple":
            return "x", 404
        case "/number":
            return 7
        case "/no-body":
            return freehold.Response(None)
        case "/odd-piece":
            return freehold.Response([1])
        case "/odd-status":
            return freehold.Response("x", "200")
        case "/odd-header":
            return freehold.Response("x", headers={"a": None})
        case "/deep":
            try:
                return str(json.loads("[" * int(request.query)))
            except RecursionError:
                return freehold.Response("too deep", 400)
            except ValueError:
                return freehold.Response("not JSON", 400)
        case "/modules":
            import asyncio, concurrent.futures, multiprocessing, optparse, smtplib, sqlite3, ssl, statistics, subprocess
            import tarfile, unittest.mock

            async def three():
                await asyncio.sleep(0.01)
                return 3

            return f"{statistics.mean([1, 3])} {sqlite3.connect(':memory:').execute('select 2').fetchone()[0]}"
        case "/temporary":
            import os
            import tempfile

            with tempfile.NamedTemporaryFile(suffix=".txt") as file:
                file.write(b"kept")
                file.flush()
                seen = [open(file.name).read(), os.path.getsize(file.name)]
            seen.append(os.path.exists(file.name))
            with tempfile.TemporaryDirectory() as folder:
                with open(folder + "/a", "w") as file:
                    file.write("é")
                seen.append(os.listdir(folder))
            seen.append(os.path.exists(folder))
            try:
                open("/etc/x", "w")
            except OSError:
                seen.append("refused")
            return freehold.Response.json(seen)
"""

ASGI = """
import asyncio

EVENTS = []
TASKS = set()


async def forty_steps():
    for _ in range(40):
        await asyncio.sleep(0.02)
    EVENTS.append("forty")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        EVENTS.append("started")
        await send({"type": "lifespan.startup.complete"})
        await receive()
    path = scope["path"]

    async def answer(body, status=200, more=False, headers=()):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    if path == "/events":
        await answer(" ".join(EVENTS).encode())
    elif path == "/echo":
        body = b""
        while (message := await receive())["more_body"]:
            body += message["body"]
        await answer(str(len(body)).encode() + scope["query_string"])
    elif path == "/stream":
        await answer(b"a", more=True)
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"b", "more_body": False})
    elif path == "/together":
        await asyncio.gather(*(asyncio.sleep(0.2) for _ in range(50)))
        await answer(b"done")
    elif path == "/behind":
        await answer(b"first", headers=[(b"content-length", b"5")], more=True)
        await asyncio.sleep(0.4)
        EVENTS.append("behind")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    elif path == "/fire":
        TASKS.add(asyncio.create_task(forty_steps()))
        await answer(b"fired")
    elif path == "/thousand":
        TASKS.update(asyncio.create_task(asyncio.sleep(0.01)) for _ in range(1000))
        await answer(b"begun")
    elif path == "/unawaited":
        asyncio.sleep(0)
        await answer(b"well")
    elif path == "/drip":
        await answer(b"a", more=True)
        try:
            for _ in range(20):
                await asyncio.sleep(0.1)
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
        except OSError:
            EVENTS.append("left")
    elif path == "/text":
        await answer("text")
    elif path == "/dict":
        await answer({"a": 1})
    elif path == "/twice":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.start", "status": 200, "headers": []})
    elif path == "/silent":
        return
    elif path == "/never":
        await asyncio.get_running_loop().create_future()
    else:
        raise ValueError("boom")
"""


def project(folder: Path, language: str, source: str, instances: str = "reuse", more: str = "") -> Path:
    (folder / "web").mkdir(parents=True)
    (folder / "web" / "app.py").write_text(source)
    (folder / "freehold.toml").write_text(
        f'[project]\nname = "shapes"\n[app.web]\nlanguage = "{language}"\n'
        f'source = "web"\nroutes = ["/"]\ninstances = "{instances}"\n{more}'
    )
    return folder


@pytest.fixture(scope="module", params=[(), ("--exact",)], ids=["from source", "as a release"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    with serving(project(tmp_path_factory.mktemp("plain"), "python", PLAIN), *request.param) as process:
        yield process


@pytest.fixture(scope="module", params=[(), ("--exact",)], ids=["from source", "as a release"])
def asgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    with serving(project(tmp_path_factory.mktemp("asgi"), "asgi", ASGI), *request.param) as process:
        yield process


def test_what_a_handler_may_return_is_sent(plain: DevProcess) -> None:
    assert plain.call("/text").body == "é".encode()
    assert plain.call("/pieces").body == b"ab"
    assert plain.call("/pairs").status == 200


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dict", "handle returned a dict"), ("/none", "handle returned None"), ("/tuple", "handle returned a tuple"),
        ("/number", "handle returned an int"), ("/no-body", "the body is None"),
        ("/odd-piece", "a piece of the body is an int"),
        ("/odd-status", "the status is '200'"), ("/odd-header", "the headers must be"),
    ],
)  # fmt: skip
def test_what_it_may_not_return_is_a_500_that_says_so(plain: DevProcess, path: str, said: str) -> None:
    answer = plain.call(path)
    assert answer.status == 500
    assert said in answer.text
    assert plain.call("/text").status == 200


@pytest.mark.parametrize(
    ("depth", "said"), [(900, "not JSON"), (1001, "too deep"), (3000, "too deep"), (200_000, "too deep")]
)
def test_json_that_nests_deeply_is_an_error_and_not_the_end_of_the_instance(
    plain: DevProcess, depth: int, said: str
) -> None:
    answer = plain.call(f"/deep?{depth}")
    assert (answer.status, answer.text) == (400, said)


def test_the_standard_library_is_there_on_first_use(plain: DevProcess) -> None:
    assert plain.call("/modules").text == "2 2"


def test_temporary_files_live_in_memory(plain: DevProcess) -> None:
    assert json.loads(plain.call("/temporary").text) == ["kept", 4, False, ["a"], False, "refused"]


def test_smoke_asks_instances_that_answer_again_twice_and_a_fresh_one_once(tmp_path: Path) -> None:
    smoke = '[[test.smoke]]\napp = "web"\npath = "/once"\n'
    code, tested, said = run_freehold("test", "--folder", str(project(tmp_path / "a", "python", PLAIN, "reuse", smoke)))
    assert code != 0, (tested, said)
    lines = tested["results"][0]["log"].splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["PASSED", "FAILED", "PASSED"]
    assert "the same instance again" in lines[1]
    assert "a fresh instance" in lines[2]
    assert tested["results"][0]["failed_tests"] == ["web GET /once 200"]
    code, tested, said = run_freehold("test", "--folder", str(project(tmp_path / "b", "python", PLAIN, "fresh", smoke)))
    assert code == 0, (tested, said)
    assert len(tested["results"][0]["log"].splitlines()) == 1


def test_an_asgi_app_streams_both_ways_and_starts_once(asgi: DevProcess) -> None:
    assert asgi.call("/echo?x=1", "POST", b"z" * 300_000).text == "300000x=1"
    assert asgi.call("/stream").body == b"ab"
    assert asgi.call("/events").text.split().count("started") == 1
    assert asgi.call("/events", "HEAD").body == b""


def test_tasks_of_one_request_run_together(asgi: DevProcess) -> None:
    begun = time.monotonic()
    assert asgi.call("/together").text == "done"
    assert time.monotonic() - begun < 8.0, "50 waits of 0.2 s, one after the other, take 10 s"


def test_work_behind_a_whole_answer_survives_a_client_that_leaves(asgi: DevProcess) -> None:
    assert asgi.call("/behind").body == b"first"  # the client closes as soon as it has the five bytes
    deadline = time.monotonic() + 10
    while "behind" not in asgi.call("/events").text:
        assert time.monotonic() < deadline, "the work was cut off"
        time.sleep(0.1)


def test_a_task_that_nobody_awaits_goes_on_behind_the_answer(asgi: DevProcess) -> None:
    assert asgi.call("/fire").text == "fired"
    time.sleep(3)
    seen = [
        asgi.call("/events").text for _ in range(12)
    ]  # of all instances; each lets a task take one of its forty steps
    assert any("forty" in text for text in seen), "it waits for requests"


def test_a_thousand_tasks_and_one_that_is_never_awaited_do_no_harm(asgi: DevProcess) -> None:
    for path, text in (("/thousand", "begun"), ("/thousand", "begun"), ("/unawaited", "well")):
        assert asgi.call(path).text == text
    assert asgi.call("/text").status == 200


def test_an_app_that_sends_on_after_its_client_left_is_told_and_answers_the_next(asgi: DevProcess) -> None:
    with socket.create_connection(("127.0.0.1", int(asgi.address.rpartition(":")[2]))) as leaving:
        leaving.sendall(b"GET /drip HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert leaving.recv(100).startswith(b"HTTP/1.1 200")
    for _ in range(3):
        assert asgi.call("/text").text == "text"


@pytest.mark.parametrize(
    ("path", "said"), [("/dict", "is a dict"), ("/twice", "twice"), ("/silent", "without completing")]
)
def test_an_asgi_app_that_breaks_its_contract_is_told_how(asgi: DevProcess, path: str, said: str) -> None:
    answer = asgi.call(path)
    assert answer.status == 500
    assert said in answer.text


def test_a_text_body_is_encoded_and_an_exception_is_a_plain_500(asgi: DevProcess) -> None:
    assert asgi.call("/text").text == "text"
    assert asgi.call("/boom").text == "Internal Server Error\n"
    assert asgi.call("/never").status == 500
