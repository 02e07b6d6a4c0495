"""Well-known frameworks in the sandbox, and the same files under the servers that people run them with.

One small app for each: Flask, Starlette, FastAPI (where pydantic-core was built for the sandbox), Express and Hono. Processor
time a request is that of every process of the server, from /proc, over one connection: an instance for each request, and one
for many. The peers are gunicorn, uvicorn and Node with one process, outside any sandbox. The first visit is the first answer
of a worker that has the app loaded and no instance made. Memory is what a worker holds more for each instance that answers
at the same time. Building is the processor time of `freehold build` with the packages at hand, compiling left out. Not here:
rates and latencies (`serving`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.alternatives import node_packages, python_commands
from benchmarks.idling import children
from benchmarks.load import load
from benchmarks.processes import cpu_s, proportional_mib
from benchmarks.rows import Row, beside
from cli.project.wheels import found, recipes
from tests.conformance.ours import serve_ours
from tests.support.runtime.projects import built, own_cache

ROUNDS: Final = 3
ROUND_S: Final = 1.5
INSTANCES: Final = 4
STARTED_TIMEOUT_S: Final = 60.0
REUSED_AIM_US: Final = {"FastAPI": 1_500.0}

FLASK: Final = """
from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/items/<int:item>")
def read(item):
    return jsonify(item=item, name="a thing")
"""
STARLETTE: Final = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def read(request):
    return JSONResponse({"item": request.path_params["item"], "name": "a thing"})


app = Starlette(routes=[Route("/items/{item:int}", read)])
"""
FASTAPI: Final = """
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    item: int
    name: str


@app.get("/items/{item}")
async def read(item: int) -> Item:
    return Item(item=item, name="a thing")
"""
EXPRESS: Final = """
import express from "express";
const app = express();
app.get("/items/:item", (request, response) => response.json({ item: Number(request.params.item), name: "a thing" }));
app.listen(process.env.PORT ?? 3000, "127.0.0.1");
"""
HONO: Final = """
import { serve } from "@hono/node-server";
import { Hono } from "hono";
const app = new Hono();
app.get("/items/:item", (c) => c.json({ item: Number(c.req.param("item")), name: "a thing" }));
serve({ fetch: app.fetch, port: Number(process.env.PORT ?? 3000), hostname: "127.0.0.1" });
"""


class Framework(NamedTuple):
    """One framework's app, what it needs, and how its peer is started; {port} and {bin} are filled in."""

    name: str
    language: str
    text: str
    packages: str
    peer: str
    command: Sequence[str]


GUNICORN: Final = ("{bin}/gunicorn", "--workers=1", "--threads=8", "--bind=127.0.0.1:{port}", "app:app")
UVICORN: Final = ("{bin}/uvicorn", "--no-access-log", "--port={port}", "app:app")
NODE: Final = ("node", "app.js")
FRAMEWORKS: Final = (
    Framework("Flask", "wsgi", FLASK, "flask\n", "gunicorn", GUNICORN),
    Framework("Starlette", "asgi", STARLETTE, "starlette\n", "uvicorn", UVICORN),
    Framework("FastAPI", "asgi", FASTAPI, "fastapi\n", "uvicorn", UVICORN),
    Framework("Express", "javascript", EXPRESS, '{"type": "module", "dependencies": {"express": "^5"}}', "node", NODE),
    Framework("Hono", "javascript", HONO, '{"type": "module", "dependencies": {"hono": "^4", "@hono/node-server": "^2"}}',
              "node", NODE),
)  # fmt: skip
PATH: Final = "/items/7"


def run(quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="freehold-bench-") as folder:
        bins = python_commands()
        for framework in FRAMEWORKS:
            with own_cache():
                missing = framework.name == "FastAPI" and found(recipes()["pydantic-core"]) is None
            if missing or (framework.language == "javascript" and shutil.which("npm") is None):
                continue
            yield from _measure(framework, Path(folder) / framework.name, bins, quick)


def _measure(framework: Framework, folder: Path, bins: Path, quick: bool) -> Iterator[Row]:
    component, build_s = _built(framework, folder)
    rounds, seconds = (1, ROUND_S / 3) if quick else (ROUNDS, ROUND_S)
    with _peer(framework, folder / "web", bins) as (port, pids):
        theirs = _cpu_us(port, pids, rounds, seconds)
        theirs_mib = round(proportional_mib(pids[-1]), 1)
    for instances in ("reuse", "fresh"):
        with serve_ours(component, instances=instances, memory_max_bytes=512 << 20, instances_ready=0) as ours:
            before_mib, before_s = proportional_mib(ours.workers[0]), time.perf_counter()
            _ask(ours.port)
            first_s = time.perf_counter() - before_s
            if instances == "reuse":
                yield Row(f"{framework.name}: first visit", round(first_s * 1e3, 1), "ms")
            mine = _cpu_us(ours.port, (ours.pid, *ours.workers), rounds, seconds)
            row = beside(f"{framework.name}: CPU a request, {instances}", mine, "us", framework.peer, theirs)
            aim = REUSED_AIM_US.get(framework.name)
            met = row._replace(aim=f"<= {aim:g}", met=mine <= aim) if aim and instances == "reuse" else row
            yield met
            if instances == "reuse":
                load(ours.port, INSTANCES, seconds, PATH)
                grown_mib = (proportional_mib(ours.workers[0]) - before_mib) / INSTANCES
                yield beside(
                    f"{framework.name}: memory an instance",
                    round(grown_mib, 1),
                    "MiB",
                    f"{framework.peer}, a process",
                    theirs_mib,
                )
    yield Row(f"{framework.name}: component", round(component.stat().st_size / 1e6, 1), "MB")
    yield Row(f"{framework.name}: build", round(build_s, 1), "s of CPU")


def _built(framework: Framework, folder: Path) -> tuple[Path, float]:
    """Build the app anew: a comment in its source makes it another than any before. Return it and the processor time."""
    web = folder / "web"
    web.mkdir(parents=True)
    python = framework.language != "javascript"
    mark = f"{'#' if python else '//'} {time.time_ns()}\n"
    (web / ("app.py" if python else "app.js")).write_text(mark + framework.text)
    (web / ("requirements.txt" if python else "package.json")).write_text(framework.packages)
    entry = 'entry = "app:app"\n' if python else ""
    (folder / "freehold.toml").write_text(
        f'[project]\nname = "bench"\n[app.web]\nlanguage = "{framework.language}"\nsource = "web"\nroutes = ["/"]\n{entry}'
    )
    before_s = _children_s()
    _, [app] = built(folder)
    return app.component, _children_s() - before_s


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _peer(framework: Framework, web: Path, bins: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if framework.language == "javascript" and not (web / "node_modules").exists():
        (web / "node_modules").symlink_to(node_packages() / "node_modules")
    command = [part.format(bin=bins, port=port) for part in framework.command]
    environment = {**os.environ, "PORT": str(port), "NODE_ENV": "production"}
    process = subprocess.Popen(command, cwd=web, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + STARTED_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                _ask(port)
                break
            assert time.monotonic() < deadline, f"{framework.peer} does not answer"
            time.sleep(0.1)
        yield port, (process.pid, *children(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def _ask(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{PATH}", timeout=60) as answer:
        assert b'"a thing"' in answer.read()


def _cpu_us(port: int, pids: Sequence[int], rounds: int, seconds: float) -> float:
    load(port, 1, seconds / 3, PATH)
    samples = []
    for _ in range(rounds):
        before_s = cpu_s(pids)
        seen = load(port, 1, seconds, PATH)
        samples.append((cpu_s(pids) - before_s) * 1e6 / seen.requests)
    return round(median(samples), 1)
