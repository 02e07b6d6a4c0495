"""Servers written for Node run in the sandbox unmodified; what it has nothing for is refused by the name the app wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import run_freehold, serving

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")

PROJECT = '[project]\nname = "js"\n[app.web]\nlanguage = "javascript"\nsource = "web"\nroutes = ["/"]\n{more}'


def project(folder: Path, text: str, packages: Mapping[str, str], more: str = "") -> Path:
    (folder / "web").mkdir()
    (folder / "web" / "app.js").write_text(text)
    (folder / "web" / "package.json").write_text(json.dumps({"dependencies": dict(packages)}))
    (folder / "freehold.toml").write_text(PROJECT.format(more=more))
    return folder


EXPRESS = """
import express from "express";
const app = express();
app.use(express.json());
app.use(express.urlencoded({ extended: true }));
app.get("/", (req, res) => res.send("Hello"));
app.get("/json/:id", (req, res) => res.json({ id: req.params.id, q: req.query, host: req.hostname }));
app.post("/echo", (req, res) => res.status(201).json({ got: req.body }));
app.get("/stream", async (req, res) => {
  for (let i = 0; i < 3; i++) { res.write(`part ${i}\\n`); await new Promise((r) => setTimeout(r, 5)); }
  res.end();
});
app.get("/boom", () => { throw new Error("boom"); });
app.get("/redirect", (req, res) => res.redirect("/"));
app.get("/cookie", (req, res) => res.cookie("a", "b", { httpOnly: true }).send("ok"));
app.get("/greeting", (req, res) => res.send(process.env.GREETING));
app.listen(process.env.PORT ?? 3000);
"""


@pytest.mark.parametrize(
    ("version", "flags", "instances"),
    [("5", ("--exact",), "reuse"), ("4", (), "fresh")],
    ids=["5 reused", "4 fresh"],
)
def test_an_express_app_runs(version: str, flags: tuple[str, ...], instances: str, tmp_path: Path) -> None:
    more = f'instances = "{instances}"\nconfig = {{ GREETING = "good day" }}\n'
    with serving(project(tmp_path, EXPRESS, {"express": f"^{version}"}, more), *flags) as process:
        for _ in range(3):
            assert process.call("/").text == "Hello"
            seen = process.call("/json/7?q=1").text
            assert json.loads(seen) == {"id": "7", "q": {"q": "1"}, "host": "127.0.0.1"}
            typed = {"content-type": "application/json"}
            answer = process.call("/echo", "POST", b'{"a": [1]}', typed)
            assert (answer.status, json.loads(answer.text)) == (201, {"got": {"a": [1]}})
            answer = process.call("/echo", "POST", b"{", typed)
            assert answer.status == 400
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert json.loads(process.call("/echo", "POST", b"a=1&b[c]=2", form).text) == {
            "got": {"a": "1", "b": {"c": "2"}}
        }
        assert process.call("/stream").text == "part 0\npart 1\npart 2\n"
        answer = process.call("/boom")
        assert answer.status == 500
        assert "boom" not in answer.text, "production hides the error"
        assert process.call("/redirect").headers["location"] == "/"
        assert process.call("/cookie").headers["set-cookie"] == "a=b; Path=/; HttpOnly"
        assert process.call("/greeting").text == "good day"
        assert process.call("/nothing").status == 404


KOA = """
import Koa from "koa";
const app = new Koa();
app.use(async (ctx) => {
  if (ctx.path === "/json") ctx.body = { q: ctx.query };
  else ctx.body = "Hello Koa";
});
app.listen(3000);
"""
FASTIFY = """
import Fastify from "fastify";
const app = Fastify();
app.get("/", async () => "Hello Fastify");
app.get("/json", async (request) => ({ q: request.query }));
await app.listen({ port: 3000 });
"""
PLAIN = """
import http from "node:http";
import { createHash, createHmac, createCipheriv, createDecipheriv } from "node:crypto";
import { pbkdf2Sync, scryptSync, randomBytes } from "node:crypto";
import { gzipSync, gunzipSync } from "node:zlib";
import { Readable, pipeline } from "node:stream";
import { promisify } from "node:util";
import path from "path";
const facts = async () => {
  const key = Buffer.alloc(32, 1), iv = Buffer.alloc(12, 2);
  const cipher = createCipheriv("aes-256-gcm", key, iv);
  const sealed = Buffer.concat([cipher.update("hello"), cipher.final()]);
  const open = createDecipheriv("aes-256-gcm", key, iv).setAuthTag(cipher.getAuthTag());
  const parts = [];
  for await (const part of Readable.from(["a", "b"])) parts.push(part);
  const web = Readable.toWeb(Readable.from([Buffer.alloc(70000, 120), Buffer.from("c")], { objectMode: false }));
  const back = [];
  for await (const part of Readable.fromWeb(new Response("xyz").body)) back.push(part.toString());
  return {
    sha256: createHash("sha256").update("a").digest("hex"),
    hmac: createHmac("sha1", "key").update("m").digest("base64"),
    sealed: sealed.toString("hex") + cipher.getAuthTag().toString("hex"),
    opened: open.update(sealed).toString() + open.final().toString(),
    pbkdf2: pbkdf2Sync("p", "s", 10, 16, "sha512").toString("hex"),
    scrypt: scryptSync("p", "s", 16, { N: 16, r: 1, p: 1 }).toString("hex"),
    zip: gunzipSync(gzipSync("x".repeat(100))).length,
    web: (await new Response(web).text()).length, back: back.join(""),
    parts, later: await promisify((done) => setImmediate(done, null, 7))(),
    path: path.join("/a", "../b", "c"), size: randomBytes(4).length,
    buffer: Buffer.from("é").toString("latin1"),
  };
};
http.createServer(async (req, res) => {
  if (req.url === "/") return res.end("Hello Node");
  const url = new URL(req.url, "http://here");
  const q = Object.fromEntries(url.searchParams);
  if (url.pathname === "/json") return res.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ q }));
  res.end(JSON.stringify(await facts()));
}).listen(3000);
"""


@pytest.mark.parametrize(
    ("text", "packages", "hello"),
    [
        pytest.param(KOA, {"koa": "^3"}, "Hello Koa", id="koa"),
        pytest.param(FASTIFY, {"fastify": "^5"}, "Hello Fastify", id="fastify"),
        pytest.param(PLAIN, {}, "Hello Node", id="plain"),
    ],
)
def test_a_server_of_node_runs(text: str, packages: Mapping[str, str], hello: str, tmp_path: Path) -> None:
    with serving(project(tmp_path, text, packages, 'instances = "reuse"\n')) as process:
        for _ in range(2):
            assert process.call("/").text == hello
            assert json.loads(process.call("/json?a=1").text) == {"q": {"a": "1"}}
        if text is PLAIN:
            entry = json.loads(process.call("/facts").text)
            assert entry == in_node()


HONO = """
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { stream } from "hono/streaming";
const app = new Hono();
app.get("/", (c) => c.text("Hello Hono"));
app.get("/json", (c) => c.json({ q: c.req.query() }));
app.post("/echo", async (c) => c.json(await c.req.json(), 201));
app.post("/pipe", (c) => new Response(c.req.raw.body));
app.post("/form", async (c) => {
  const { file, a } = await c.req.parseBody();
  return c.json({ name: file.name, bytes: [...new Uint8Array(await file.arrayBuffer())], a });
});
app.get("/stream", (c) => stream(c, async (s) => {
  for (let i = 0; i < 3; i++) { await s.write(`part ${i}\\n`); await s.sleep(5); }
}));
app.get("/boom", () => { throw new Error("boom"); });
app.get("/late", (c) => new Promise((answer) => setTimeout(() => answer(c.text("late")), 20)));
serve({ fetch: app.fetch, port: 3000 });
"""
PART = (
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name="file"; '
    b'filename="f.bin"\r\nContent-Type: application/octet-stream\r\n\r\n\x00\x01\xc8\xff\r\n--b--\r\n'
)


@pytest.mark.parametrize(("version", "flags"), [("^2", ()), ("^1", ("--exact",))], ids=["2", "1 as a release"])
def test_hono_on_its_node_server_runs(version: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    packages = {"hono": "^4", "@hono/node-server": version}
    with serving(project(tmp_path, HONO, packages, 'instances = "reuse"\n'), *flags) as process:
        for _ in range(2):
            assert process.call("/").text == "Hello Hono"
            assert json.loads(process.call("/json?a=1").text) == {"q": {"a": "1"}}
            answer = process.call("/echo", "POST", b'{"a": [1]}', {"content-type": "application/json"})
            assert (answer.status, json.loads(answer.text)) == (201, {"a": [1]})
            assert process.call("/pipe", "POST", b"x" * 100_000).body == b"x" * 100_000
            answer = process.call("/form", "POST", PART, {"content-type": "multipart/form-data; boundary=b"})
            assert json.loads(answer.text) == {"name": "f.bin", "bytes": [0, 1, 200, 255], "a": "1"}
            assert process.call("/stream").text == "part 0\npart 1\npart 2\n"
            assert process.call("/late").text == "late"
            assert process.call("/boom").status == 500
            assert process.call("/nothing").status == 404


def in_node() -> dict[str, object]:
    """What Node itself says of the facts in PLAIN."""
    script = PLAIN.partition("http.createServer")[0] + "console.log(JSON.stringify(await facts()));"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True, timeout=60
    )
    table: dict[str, object] = json.loads(done.stdout)
    return table


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('import fs from "node:fs";', "node:fs is not available in the sandbox"),
        ('const net = require("net");', "net is not available in the sandbox"),
        ('import { Worker } from "worker_threads";', "worker_threads is not available in the sandbox"),
    ],
)
def test_a_module_the_sandbox_has_nothing_for_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    text = f"// first\n{line}\nexport default {{ fetch: () => new Response() }};\n"
    code, answer, _ = run_freehold("build", "--folder", str(project(tmp_path, text, {})))
    assert code == 1
    assert "app.js:2:" in answer["error"]["message"]
    assert said in answer["error"]["message"]


def test_configuration_read_at_the_top_level_is_refused_with_its_line(tmp_path: Path) -> None:
    text = "const greeting = process.env.GREETING;\nexport default { fetch: () => new Response(greeting) };\n"
    folder = project(tmp_path, text, {}, 'config = { GREETING = "x" }\n')
    code, answer, _ = run_freehold("build", "--folder", str(folder))
    assert code == 1
    assert "process.env.GREETING was read at the top level" in answer["error"]["message"]
    assert "app.js:1" in answer["error"]["message"]
