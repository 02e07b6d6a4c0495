"""WebSockets in guests: a Python, a WSGI and a JavaScript app are the same chat, built as a release and in a real worker.

A Python app differs from a WSGI app in its page alone, and each costs a build: it is a long test.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import aiohttp
import pytest

from tests.support.runtime.projects import serving_project

PYTHON = """
from freehold import Request, Response, sockets


def websocket(socket, event):
    if event.kind == "open":
        if socket.query == "no":
            return False
        if "chat" in socket.headers.get("sec-websocket-protocol", ""):
            socket.protocol = "chat"
        socket.subscribe("room")
        socket.send(f"welcome {socket.path}")
    elif event.kind == "message":
        if event.data == "bye":
            socket.close(4000, "bye")
        elif event.data == "id":
            sockets.send(socket.id, "yours")
        elif isinstance(event.data, bytes):
            socket.send(event.data[::-1])
        else:
            sockets.broadcast("room", f"said: {event.data}")
    elif event.kind == "close":
        sockets.broadcast("room", f"left: {event.code}")
"""
HANDLE = """

def handle(request):
    return "a page"
"""
WSGI = """

def app(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"a page"]
"""
JAVASCRIPT = """
import { sockets } from "freehold";

export function websocket(socket, event) {
  if (event.kind === "open") {
    if (socket.query === "?no") return false;
    if (socket.headers.get("sec-websocket-protocol")?.includes("chat")) socket.protocol = "chat";
    socket.subscribe("room");
    socket.send(`welcome ${socket.path}`);
  } else if (event.kind === "message") {
    if (event.data === "bye") socket.close(4000, "bye");
    else if (event.data === "id") sockets.send(socket.id, "yours");
    else if (typeof event.data !== "string") socket.send(event.data.reverse());
    else sockets.broadcast("room", `said: ${event.data}`);
  } else {
    sockets.broadcast("room", `left: ${event.code}`);
  }
}

export default { fetch: () => new Response("a page") };
"""
APPS = {
    "py": ("python", "app.py", PYTHON + HANDLE), "wsgi": ("wsgi", "app.py", PYTHON + WSGI),
    "js": ("javascript", "app.js", JAVASCRIPT),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")
@pytest.mark.parametrize("name", [pytest.param("py", marks=pytest.mark.long), "wsgi", "js"])
async def test_a_chat_is_the_same_in_every_language(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    tables = ['[project]\nname = "chat"\n']
    language, entry, source = APPS[name]
    (folder / name).mkdir(parents=True)
    (folder / name / entry).write_text(source)
    tables.append(
        f'[app.{name}]\nlanguage = "{language}"\nsource = "{name}"\nroutes = ["/{name}"]\nwebsocket = "/ws"\n'
    )
    (folder / "freehold.toml").write_text("".join(tables))
    async with serving_project(folder, tmp_path / "run") as served, aiohttp.ClientSession() as http:
        for app in (name, f"{name}-fresh"):
            address, headers = f"http://127.0.0.1:{served.port}", {"Host": app}
            page = await served.fetch(f"GET / HTTP/1.1\r\nHost: {app}\r\n\r\n".encode())
            assert (app, page.body) == (app, b"a page")
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await http.ws_connect(f"{address}/ws?no", headers=headers)
            socket_response = await http.ws_connect(f"{address}/ws", headers=headers, protocols=["chat", "other"])
            two = await http.ws_connect(f"{address}/ws", headers=headers)
            assert (socket_response.protocol, two.protocol) == ("chat", None)
            for socket in (socket_response, two):
                assert (app, (await socket.receive(timeout=10)).data) == (app, "welcome /ws")
            await socket_response.send_str("κόσμε")
            for socket in (socket_response, two):
                assert (app, (await socket.receive(timeout=10)).data) == (app, "said: κόσμε")
            await two.send_bytes(b"\x00\x01\xff")
            assert (await two.receive(timeout=10)).data == b"\xff\x01\x00"
            await two.send_str("id")
            assert (await two.receive(timeout=10)).data == "yours"
            await socket_response.send_str("bye")
            ended = await socket_response.receive(timeout=10)
            assert (app, socket_response.close_code, ended.extra) == (app, 4000, "bye")
            assert (app, (await two.receive(timeout=10)).data) == (app, "left: 1000")  # as this client answers a close
            await two.close()
