"""The compatibility suite: shapes of what people write, each right in the sandbox or refused at build by its sentence.

A shape is a folder with `shape.toml` and a project beside it, or snippets from which the project is made. `[[call]]` is a
request with what must come back, `[[snippet]]` a function with what it must return, `[[refusal]]` files laid over the project
with what the refusal must say. `[[imitation]]` is an answer of what the app calls, by its configuration UPSTREAM. What answers
is asked twice on one instance and once on a fresh one. Not here: who runs it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from aiohttp import web

from cli.errors import CommandError
from cli.project.wheels import found, recipes
from tests.support.runtime.projects import built, serving_project
from tests.support.runtime.served import Served, request

SHAPES: Final = Path(__file__).parent / "shapes"
KINDS: Final = {"shape": "Shapes of apps", "framework": "Frameworks", "pypi": "PyPI packages", "npm": "npm packages"}
Verdict = Literal["right", "refused", "wrong"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One folder. `core` belongs to every test run; the others to the long one."""

    name: str
    about: str
    core: bool
    calls: tuple[dict[str, Any], ...]
    refusals: tuple[dict[str, Any], ...]
    folder: Path
    told: dict[str, Any]

    @property
    def subjects(self) -> list[tuple[str, str, str]]:
        """Kind, name and expected verdict of each subject, with what a refusal says."""
        right = {(call["kind"], call["subject"]): "right" for call in self.calls}
        return [
            *((kind, subject, verdict) for (kind, subject), verdict in right.items()),
            *((refusal["kind"], refusal["subject"], f"refused: {refusal['says']}") for refusal in self.refusals),
        ]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one subject, and why if it is wrong."""

    kind: str
    subject: str
    verdict: Verdict
    said: str


def shapes() -> list[Shape]:
    """Return every shape, by name."""
    return [_read(path.parent) for path in sorted(SHAPES.glob("*/shape.toml"))]


def _read(folder: Path) -> Shape:
    told = tomllib.loads((folder / "shape.toml").read_text())
    kind = told.get("kind", "shape")
    calls = [{"kind": kind, **call} for call in told.get("call", ())]
    for number, snippet in enumerate(told.get("snippet", ())):
        calls.append({"kind": kind, "subject": snippet["subject"], "path": f"/{number}", "equals": snippet["gives"]})
    refusals = [{"kind": kind, **entry} for entry in told.get("refusal", ())]
    return Shape(folder.name, told["about"], told.get("core", False), tuple(calls), tuple(refusals), folder, told)


def write_project(shape: Shape, folder: Path) -> Path:
    """Write the shape's project into `folder`."""
    shutil.copytree(
        shape.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("shape.toml", "__pycache__")
    )
    snippets = shape.told.get("snippet", ())
    if snippets:
        (folder / "web").mkdir(exist_ok=True)
        document = _in_python(snippets) if shape.told["language"] == "python" else _in_javascript(snippets)
        for name, text in document.items():
            (folder / "web" / name).write_text(text)
    if not (folder / "freehold.toml").exists():
        language = shape.told["language"]
        (folder / "freehold.toml").write_text(
            f'[project]\nname = "shape"\n[app.web]\nlanguage = "{language}"\nsource = "web"\nroutes = ["/"]\n'
            'timeout = "60s"\nmemory_max = "1GiB"\n'
        )
    return folder


def _in_python(snippets: Sequence[dict[str, Any]]) -> dict[str, str]:
    functions = []
    for number, snippet in enumerate(snippets):
        lines = snippet["code"].strip().splitlines()
        functions.append("\n".join([f"def snippet_{number}():", *(f"    {line}" for line in lines)]))
    called = "def handle(request):\n    return str(globals()[f'snippet_{request.path[1:]}']())\n"
    packages = [name for snippet in snippets for name in snippet.get("packages", [snippet["subject"]])]
    return {"app.py": "\n\n\n".join([*functions, called]), "requirements.txt": "\n".join([*packages, ""])}


def _in_javascript(snippets: Sequence[dict[str, Any]]) -> dict[str, str]:
    imports = [snippet["import"] for snippet in snippets]
    functions = [
        f"async function snippet{number}() {{\n{snippet['code'].strip()}\n}}" for number, snippet in enumerate(snippets)
    ]
    table = ", ".join(f"snippet{number}" for number in range(len(snippets)))
    called = (
        f"const all = [{table}];\nexport default {{\n  async fetch(request) {{\n"
        "    return new Response(String(await all[new URL(request.url).pathname.slice(1)]()));\n  },\n};\n"
    )
    packages = {}
    for snippet in snippets:
        packages.update(snippet.get("packages", {snippet["subject"]: "*"}))
    return {"app.js": "\n".join([*imports, *functions, called]), "package.json": json.dumps({"dependencies": packages})}


def lacking(shape: Shape) -> str:
    """Return what of this machine the shape needs and has not, as a person would be told; empty if nothing."""
    missing = [name for name in shape.told.get("needs", ()) if found(recipes()[name]) is None]
    if missing:
        return f"freehold wheels build {' '.join(missing)}"
    needs_node = shape.told.get("language") in ("javascript", "typescript")
    return "Node.js and npm" if needs_node and shutil.which("npm") is None else ""


async def judge(shape: Shape, work: Path) -> AsyncIterator[Judged]:
    """Judge every subject of a shape, in the empty folder `work`."""
    if shape.calls:
        folder = write_project(shape, work / "project")
        try:
            async for judged in _served(shape, folder, work):
                yield judged
        except CommandError as error:
            for kind, subject, _ in shape.subjects[: -len(shape.refusals) or None]:
                yield Judged(kind, subject, "wrong", f"the project was refused: {error}")
    for number, refusal in enumerate(shape.refusals):
        yield _refused(shape, refusal, work / f"refusal-{number}")


@asynccontextmanager
async def _imitated(shape: Shape) -> AsyncIterator[str]:
    """Answer on loopback as the shape's `[[imitation]]`s say; yield the address that its app finds as UPSTREAM."""
    known = {(entry["method"], entry["path"]): entry for entry in shape.told.get("imitation", ())}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        entry = known.get((request.method, request.path))
        if entry is None:
            return web.Response(status=501, text=f"{request.method} {request.path} is not imitated")
        return web.Response(
            status=entry.get("status", 200), body=entry.get("body", "").encode(), headers=entry.get("headers")
        )

    runner = web.AppRunner(_application(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _application(answer: Callable[[web.Request], Awaitable[web.Response]]) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def _served(shape: Shape, folder: Path, work: Path) -> AsyncIterator[Judged]:
    wrong: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory(prefix="shape", dir="/tmp") as short:
        async with (
            _imitated(shape) as upstream,
            serving_project(
                folder, Path(short), config={"UPSTREAM": f"http://{upstream}"}, allow_hosts=(upstream,)
            ) as served,
        ):
            for call in shape.calls:
                said = await _asked(served, call)
                wrong.setdefault((call["kind"], call["subject"]), said)
                wrong[call["kind"], call["subject"]] = wrong[call["kind"], call["subject"]] or said
    for (kind, subject), said in wrong.items():
        yield Judged(kind, subject, "wrong" if said else "right", said)


async def _asked(served: Served, call: dict[str, Any]) -> str:
    """Return what was wrong with the answers, empty if nothing was."""
    app = call.get("app", "web")
    for host, which in ((app, "the first"), (app, "the second"), (f"{app}-fresh", "a fresh instance's")):
        fields = [f"{name}: {value}" for name, value in call.get("headers", {}).items()]
        body = call.get("body", "").encode()
        answer = await served.fetch(request(call.get("method", "GET"), call["path"], *fields, body=body, host=host))
        text = answer.body.decode("utf-8", "replace")
        if answer.status != call.get("status", 200):
            await asyncio.sleep(0.5)  # what the app wrote arrives behind its answer
            logged = [entry.get("message", "") for entry in served.logs if entry.get("stream") == "guest"][-12:]
            return f"{which} answer is {answer.status}: {text[:200]} {' | '.join(map(str, logged))[-900:]}"
        if "equals" in call and text != call["equals"]:
            return f"{which} answer is {text[:300]!r}, not {call['equals']!r}"
        if call.get("contains", "") not in text:
            return f"{which} answer lacks {call['contains']!r}: {text[:300]!r}"
        for name, value in call.get("gives", {}).items():
            if value not in (answer.header(name) or ""):
                return f"{which} answer has {name}: {answer.header(name)!r}, not {value!r}"
    return ""


def _refused(shape: Shape, refusal: dict[str, Any], folder: Path) -> Judged:
    project = folder
    shutil.copytree(shape.folder, project, ignore=shutil.ignore_patterns("shape.toml", "__pycache__"))
    for name, text in refusal["files"].items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    try:
        built(project)
    except CommandError as error:
        said = f"{error} {error.next_step}"
        verdict: Verdict = "refused" if refusal["says"] in said else "wrong"
        return Judged(refusal["kind"], refusal["subject"], verdict, said)
    return Judged(refusal["kind"], refusal["subject"], "wrong", "it was built")


def table() -> str:
    """Return the page of the documentation: what runs and what is refused, as the suite holds it."""
    every = [row for shape in shapes() for row in shape.subjects]
    lines = [
        "# What runs",
        "",
        "The compatibility suite (`python -m tests.compatibility`) builds each of these as a release and asks it three times,",
        "twice one instance and once a fresh one. Each is right, or refused when it is built, with the words shown here.",
        "This page is made from the suite: `python -m tests.compatibility --table`.",
    ]
    for kind, title in KINDS.items():
        rows = sorted(
            {(subject, verdict) for text, subject, verdict in every if text == kind}, key=lambda row: row[0].lower()
        )
        if rows:
            lines += [
                "",
                f"## {title}",
                "",
                "| | |",
                "|---|---|",
                *(f"| {subject} | {verdict} |" for subject, verdict in rows),
            ]
    return "\n".join([*lines, ""])
