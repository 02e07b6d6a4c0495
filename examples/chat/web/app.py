"""A chat room that loses no message: each is kept in a database, which numbers it, before it is told.

A topic reaches whoever listens now, at most once. So a client says the number it has when it comes, comes back, or sees
that one is missing, and gets what came after it. It says its own message again until it hears it; `id` tells it apart.
"""

import json
from html import escape
from pathlib import Path

import freehold
from freehold import Response, sockets

AT_ONCE = 100
TEXT_MAX = 2000
PAGE = (Path(__file__).parent / "page.html").read_text()


def handle(request):
    page = PAGE.replace("GREETING", escape(freehold.config.get("GREETING", "")))
    return Response(page, headers={"content-type": "text/html; charset=utf-8"})


def websocket(socket, event):
    if event.kind == "open":
        socket.subscribe("room")
    elif event.kind == "message":
        said = json.loads(event.data)
        if "since" in said:
            for message in after(int(said["since"])):
                socket.send(json.dumps(message))
        else:
            sockets.broadcast("room", json.dumps(kept(str(said["id"])[:64], str(said["text"])[:TEXT_MAX])))


def opened():
    room = freehold.sql("room")
    room.execute("CREATE TABLE IF NOT EXISTS said (number INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT)")
    return room


def kept(name, text):
    """Keep a message under the next number, unless it was kept before; return it as clients see it."""
    room = opened()
    with room:
        room.execute("INSERT INTO said (id, text) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, text))
    number, text = room.execute("SELECT number, text FROM said WHERE id = ?", (name,)).fetchone()
    return {"number": number, "id": name, "text": text}


def after(number):
    """The next messages after one."""
    rows = opened().execute("SELECT number, id, text FROM said WHERE number > ? ORDER BY number LIMIT ?", (number, AT_ONCE))
    return [dict(zip(("number", "id", "text"), row)) for row in rows.fetchall()]
