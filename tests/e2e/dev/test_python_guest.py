"""A Python app in the sandbox: its environment, its files, its modules and its calls out. Not here: shapes of answers."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.dev_process import serving
from tests.support.runtime.projects import serving_project
from tests.support.runtime.served import Response, Served, request

PROJECT = """
[project]
name = "guest"
[app.whole]
language = "python"
source = "whole"
routes = ["/"]
config = { GREETING = "built" }
allow_hosts = ["up.example:1"]
[app.late]
language = "wsgi"
source = "late"
routes = ["/late"]
config = { GREETING = "built" }
secrets = ["TOKEN"]
"""

WHOLE = """
import concurrent.futures, email.utils, errno, glob, hashlib, importlib.resources, json, os, pathlib, pkgutil, shutil
import statistics, tempfile, threading
import freehold


def files():
    seen = {"cwd": os.getcwd(), "text": open("data/a.txt").read(), "bytes": open(b"./data/a.txt", "rb").read().decode()}
    seen["glob"] = glob.glob("data/*") + [str(path) for path in pathlib.Path().glob("**/*.txt")]
    for wrong in ("open('data/new', 'w')", "os.remove('data/a.txt')", "os.mkdir('x')"):
        try:
            exec(wrong)
        except OSError as error:
            seen[wrong] = errno.errorcode[error.errno]
    os.chdir("data")
    seen["moved"] = os.listdir()
    os.chdir("/1")
    seen["copied"] = sorted(os.listdir(shutil.copytree("data", tempfile.mkdtemp() + "/copy")))
    return seen


def modules():
    import space.inner.deep
    return {
        "space": space.inner.deep.NAME,
        "resource": importlib.resources.files("pack").joinpath("note.txt").read_text(),
        "listed": [found.name for found in pkgutil.walk_packages(["/1"]) if "." not in found.name],
        "own": statistics.OWN,
    }


def fetch(port):
    try:
        answer = freehold.fetch(f"http://localhost:{port}/", "POST", body=b"x" * 5_000_000, timeout_s=2)
    except freehold.FreeholdError as error:
        return str(error)
    return answer.status


def handle(request):
    match request.path:
        case "/environ":
            return freehold.Response.json([os.environ.get("GREETING"), os.getenv("NONE"), freehold.config["GREETING"]])
        case "/files":
            return freehold.Response.json(files())
        case "/modules":
            return freehold.Response.json(modules())
        case "/threads":
            seen = []
            worker = threading.Thread(target=seen.append, args=(1,))
            worker.start()
            worker.join()
            with concurrent.futures.ThreadPoolExecutor() as pool:
                seen += pool.map(len, ["a", "bc"])
            try:
                threading.Thread(target=print, daemon=True).start()
            except RuntimeError as error:
                seen.append(str(error)[:26])
            return freehold.Response.json(seen)
        case "/hash":
            if request.query == "huge":
                try:
                    return hashlib.scrypt(b"a", salt=b"b", n=1 << 20, r=8, p=1, maxmem=2 << 30).hex()
                except MemoryError:
                    return "MemoryError"
            if request.query == "scrypt":
                key = hashlib.scrypt(b"a", salt=b"b", n=32768, r=8, p=1, maxmem=132 * 32768 * 8)
            else:
                key = hashlib.pbkdf2_hmac(request.query, b"a", b"b", 200_000)
            return key.hex()
        case "/dated":
            when = os.stat("data/a.txt").st_mtime if request.query == "file" else 1_700_000_000
            return freehold.Response("", 200, {"Last-Modified": email.utils.formatdate(when, usegmt=True)})
        case _:
            return freehold.Response.json(fetch(int(request.query)))
"""

LATE = """
import os

GREETING = os.environ["GREETING"]
TOKEN = os.getenv("TOKEN", "none")
IMPORTS = []


def app(environ, start_response):
    IMPORTS.append(1)
    start_response("200 OK", [("content-type", "text/plain")])
    return [f"{GREETING} {TOKEN} {len(IMPORTS)}".encode()]
"""


def project(folder: Path) -> Path:
    for name, text in {
        "freehold.toml": PROJECT, "whole/app.py": WHOLE, "whole/data/a.txt": "as it stands",
        "whole/space/inner/deep.py": "NAME = 5",
        "whole/pack/__init__.py": "", "whole/pack/note.txt": "note", "whole/statistics.py": "OWN = True",
        "late/app.py": LATE,
    }.items():  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A port that nobody listens at, and one that takes connections and neither reads nor says anything."""
    with socket.create_server(("127.0.0.1", 0)) as refused:
        closed = refused.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0), backlog=8) as deaf:
        yield {"refused": closed, "deaf": deaf.getsockname()[1]}


@pytest.fixture
async def served(folder: Path, tmp_path: Path, ports: dict[str, int]) -> AsyncIterator[Served]:
    config = {"GREETING": "here", "TOKEN": "t"}
    hosts = tuple(f"localhost:{port}" for port in ports.values())
    async with serving_project(folder, tmp_path, config=config, allow_hosts=hosts) as running:
        yield running


async def ask(served: Served, path: str, host: str = "whole") -> Response:
    return await served.fetch(request("GET", path, host=host))


async def said(served: Served, path: str, host: str = "whole") -> Any:
    answer = await ask(served, path, host)
    assert answer.status == 200, answer
    return json.loads(answer.body)


async def test_the_environment_is_the_configuration_of_where_it_runs(served: Served) -> None:
    for host in ("whole", "whole-fresh"):
        assert await said(served, "/environ", host) == ["here", None, "here"]


async def test_an_app_that_reads_it_at_import_gets_that_of_its_instance(served: Served) -> None:
    answers = [(await ask(served, "/", host)).body for host in ("late", "late", "late-fresh", "late-fresh")]
    assert answers == [b"here t 1", b"here t 2", b"here t 1", b"here t 1"]


async def test_own_files_are_there_by_relative_path_and_are_read_only(served: Served) -> None:
    seen = await said(served, "/files")
    assert (seen["cwd"], seen["text"], seen["bytes"]) == ("/1", "as it stands", "as it stands")
    assert seen["glob"] == ["data/a.txt", "data/a.txt", "pack/note.txt"]
    assert {text for key, text in seen.items() if "(" in key} == {"EROFS"}
    assert seen["moved"] == seen["copied"] == ["a.txt"]


async def test_a_file_has_no_time_that_a_visitor_may_compare(served: Served) -> None:
    assert (await ask(served, "/dated?file")).header("last-modified") is None
    assert (await ask(served, "/dated?own")).header("last-modified") == "Tue, 14 Nov 2023 22:13:20 GMT"


async def test_work_for_threads_is_done_in_place(served: Served) -> None:
    assert await said(served, "/threads") == [1, 1, 2, "the sandbox has no threads"]


async def test_passwords_are_hashed_by_compiled_code(served: Served) -> None:
    expected = {
        "scrypt": hashlib.scrypt(b"a", salt=b"b", n=32768, r=8, p=1, maxmem=132 * 32768 * 8),
        **{name: hashlib.pbkdf2_hmac(name, b"a", b"b", 200_000) for name in ("sha256", "sha512")},
    }
    for host in ("whole", "whole", "whole-fresh"):
        for name, key in expected.items():
            assert (await ask(served, f"/hash?{name}", host)).body.decode() == key.hex(), (host, name)


async def test_a_hash_that_needs_more_memory_than_the_app_has_fails_in_the_app(served: Served) -> None:
    assert (await ask(served, "/hash?huge")).body == b"MemoryError"
    assert (await said(served, "/environ"))[0] == "here"


async def test_modules_are_found_as_in_a_folder(served: Served) -> None:
    assert await said(served, "/modules") == {
        "space": 5, "resource": "note", "listed": ["app", "pack", "statistics"], "own": True,
    }  # fmt: skip


@pytest.mark.parametrize(("port", "why"), [("refused", "ConnectionRefused"), ("deaf", "timed out")])
async def test_a_call_that_cannot_be_sent_ends_in_time(
    served: Served, ports: dict[str, int], port: str, why: str
) -> None:
    begun = time.monotonic()
    text = await said(served, f"/fetch?{ports[port]}")
    assert time.monotonic() - begun < 8
    assert why in text or (port == "deaf" and "Timeout" in text)


def test_from_source_it_is_the_same(folder: Path) -> None:
    with serving(folder) as process:
        assert json.loads(process.call("/environ").body) == ["built", None, "built"]
        assert json.loads(process.call("/files").body)["text"] == "as it stands"
        assert json.loads(process.call("/modules").body)["space"] == 5
        assert process.call("/late").text == "built none 1"
