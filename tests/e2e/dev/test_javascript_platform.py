"""JavaScript in the sandbox answers as Node does, in `freehold dev` and as a release, request after request."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import DevProcess, run_freehold, serving

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")

PLATFORM = Path(__file__).parents[2] / "fixtures" / "javascript" / "platform.mjs"
PROJECT = '[project]\nname = "js"\n[app.web]\nlanguage = "javascript"\nsource = "web"\nroutes = ["/"]\n{more}'
IN_NODE = """
const awake = setInterval(() => {}, 1000);
const { answers } = await import(process.argv[1]);
console.log(JSON.stringify(await answers()));
clearInterval(awake);
"""


def project(folder: Path, files: Mapping[str, str], more: str = "") -> Path:
    (folder / "web").mkdir()
    for name, text in files.items():
        path = folder / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "freehold.toml").write_text(PROJECT.format(more=more))
    return folder


def node_answers() -> dict[str, object]:
    command = ["node", "--no-warnings", "--input-type=module", "-e", IN_NODE, str(PLATFORM)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    table: dict[str, object] = json.loads(done.stdout)
    return table


@pytest.mark.parametrize("flags", [(), ("--exact",)], ids=["from source", "as a release"])
def test_the_platform_answers_as_node_does(flags: tuple[str, ...], tmp_path: Path) -> None:
    folder = project(tmp_path, {"app.js": PLATFORM.read_text()}, 'memory_max = "256MiB"\n')
    expected = node_answers()
    assert len(expected) > 60
    with serving(folder, *flags) as process:
        answer = process.call("/")
        assert answer.status == 200, answer.text
        entry = json.loads(answer.text)
    differing = {name: (entry.get(name), value) for name, value in expected.items() if entry.get(name) != value}
    assert not differing


PARTS = """
const born = Math.random(), clock = performance.now();
let answered = 0;
const kept = async (request) => {
  const body = new Uint8Array(await request.arrayBuffer());
  return Response.json({ answered: ++answered, born, clock, path: new URL(request.url).pathname, method: request.method,
    mark: request.headers.get("mark"), size: body.length, drawn: Math.random() });
};
const upload = async (request) => {
  const form = await request.formData();
  const file = form.get("file");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  const { name, size } = file;
  const sha = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return Response.json({ name, size, other: form.get("other"), sha });
};
export default { fetch(request) {
  const path = new URL(request.url).pathname;
  switch (path) {
    case "/object": return { a: 1 };
    case "/nothing": return undefined;
    case "/string": return "text";
    case "/read": { const r = new Response("x"); return r.text().then(() => r); }
    case "/broken": return new Response(new ReadableStream({ pull() { throw new Error("broke off"); } }));
    case "/strings": return new Response(new ReadableStream({ start(c) { c.enqueue("text"); c.close(); } }));
    case "/upload": return upload(request);
    case "/both-forms": return new Response(typeof require("is-promise"));
    default: return path.startsWith("/kept") ? kept(request) : new Response("right");
  }
} };
"""


@pytest.fixture(scope="module", params=[(), ("--exact",)], ids=["from source", "as a release"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    """One app for several tests: a build costs more than they do."""
    files = {"app.js": PARTS, "package.json": '{"dependencies": {"is-promise": "4.0.0"}}'}
    with serving(project(tmp_path_factory.mktemp("parts"), files, 'instances = "reuse"\n'), *request.param) as process:
        yield process


def test_kept_instances_answer_each_request_for_itself(parts: DevProcess) -> None:
    seen = []
    for number in range(24):
        body = b"x" * number if number % 2 else None
        answer = parts.call(f"/kept{number}", "POST" if number % 2 else "GET", body, {"mark": f"m{number}"})
        assert answer.status == 200, answer.text
        seen.append(json.loads(answer.text))
    for number, entry in enumerate(seen):
        assert entry["path"] == f"/kept{number}"
        assert entry["mark"] == f"m{number}"
        assert entry["size"] == (number if number % 2 else 0)
    assert max(candidate["answered"] for candidate in seen) > 1, "no instance was kept"
    assert {(candidate["born"], candidate["clock"]) for candidate in seen} == {(seen[0]["born"], 0)}
    assert len({candidate["drawn"] for candidate in seen}) == 24


def test_an_uploaded_file_arrives_as_it_was_sent(parts: DevProcess) -> None:
    boundary = "----b0undary"
    for content in (b"hello\x01\xc8", b"", b"\r\n--" + boundary.encode()[:-1], random.Random(1).randbytes(3_000_000)):
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="other"\r\n\r\nvälue\r\n--{boundary}\r\n'
        head += 'Content-Disposition: form-data; name="file"; filename="a b.bin"\r\nContent-Type: application/x\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = parts.call("/upload", "POST", body, {"content-type": f"multipart/form-data; boundary={boundary}"})
        assert answer.status == 200, answer.text
        digest = hashlib.sha256(content).hexdigest()
        assert json.loads(answer.text) == {"name": "a b.bin", "size": len(content), "sha": digest, "other": "välue"}


def test_a_handler_that_returns_something_else_answers_500_and_says_what(parts: DevProcess) -> None:
    for path, said in (
        ("/object", "the handler returned a value of type Object; it must return a Response"),
        ("/nothing", "the handler returned nothing; it must return a Response"),
        ("/string", "the handler returned a value of type String"),
        ("/read", "whose body was read"),
    ):
        assert parts.call(path).status == 500
        parts.log_with(said)
        assert parts.call("/").text == "right"


def test_require_of_a_package_with_both_forms_gets_the_one_for_require(parts: DevProcess) -> None:
    assert parts.call("/both-forms").text == "function"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("const id = crypto.randomUUID();", "crypto.randomUUID() at the top level"),
        ("const key = crypto.getRandomValues(new Uint8Array(8));", "crypto.getRandomValues() at the top level"),
        ('const page = await fetch("http://127.0.0.1:9/");', "fetch() at the top level"),
    ],
)
def test_what_a_snapshot_must_not_hold_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    text = 'import "./part.js";\nexport default { fetch: () => new Response("never") };\n'
    folder = project(tmp_path, {"app.js": text, "part.js": f"// first\n{line}\n"})
    code, answer, _ = run_freehold("build", "--folder", str(folder))
    assert code == 1
    assert said in answer["error"]["message"]
    assert "part.js:2" in answer["error"]["message"], answer["error"]["message"]


def test_dev_refuses_it_too(tmp_path: Path) -> None:
    text = "const id = crypto.randomUUID();\nexport default { fetch: () => new Response(id) };\n"
    process = DevProcess(project(tmp_path, {"app.js": text}))
    try:
        event = process.event(280)
        assert event["event"] == "failed", event
        assert "crypto.randomUUID() at the top level" in event["error"]["message"]
    finally:
        process.stop()
