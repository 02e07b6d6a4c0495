"""Frameworks with their data in the app's SQLite on real nodes: migrated, moved and rolled back, and nothing is lost."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import alembic_app, django_app
from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.mesh.python_app import PythonApp, solo
from tests.support.runtime.projects import CACHE, own_cache

SETTINGS = 'sql = ["main"]\nmigrate = true\ntimeout = "60s"\nmemory_max = "1GiB"\n'


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Machine]]:
    folder = Path(tempfile.mkdtemp(prefix="fh-"))  # sockets have short names
    fleet = Fleet(folder, CACHE / "compiled")  # one compilation for all: Django is large
    try:
        with own_cache():
            solo(fleet, "site", "blog")
            yield fleet.grow(3, "--role", "voter", "--role", "worker")
    finally:
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)


class Browser:
    """A visitor of one node's ingress who keeps cookies."""

    def __init__(self, node: Machine, host: str) -> None:
        self.host, self.port = node.ingress.rsplit(":", 1)
        self.site, self.cookies = host, SimpleCookie()

    def ask(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        sent = "; ".join(f"{name}={cookie.value}" for name, cookie in self.cookies.items())
        fields = {"Host": self.site, "Cookie": sent, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request(method, path, urllib.parse.urlencode(form or {}) if form else None, fields)
        answer = connection.getresponse()
        for field in answer.msg.get_all("set-cookie") or ():
            self.cookies.load(field)
        body = answer.read().decode()
        connection.close()
        return answer.status, body


def said(app: PythonApp, node: Machine) -> dict[str, Any]:
    status, body = app.get(node, "/", 60.0)
    assert status == 200, (status, body, node.log.read_text()[-2_000:])
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def holder(nodes: list[Machine]) -> tuple[Machine, Machine]:
    """The node that holds the data, and another."""
    name = nodes[0].ok("data", "list")["data"][0]["node"]
    here = next(node for node in nodes if node.status()["node"] == name)
    return here, next(node for node in nodes if node is not here)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_django_with_its_admin_and_migrations(nodes: list[Machine], tmp_path: Path) -> None:
    first = nodes[0]
    app = PythonApp(tmp_path, "site", language="wsgi", rest=SETTINGS)
    app.write(django_app.FILES)
    app.deployed(first)
    assert said(app, first)["applied"] == ["0001_initial"]
    assert said(app, first)["all"] > 15, "those of its own apps too"
    for text in ("first", "second"):
        assert app.get(first, f"/add?text={text}", 60.0)[0] == 200

    ada = Browser(nodes[1], app.host)
    status, page = ada.ask("GET", "/admin/login/?next=/admin/")
    assert (status, "Log in" in page) == (200, True)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "username": "ada", "password": "lovelace", "next": "/admin/"}
    assert ada.ask("POST", "/admin/login/?next=/admin/", form)[0] == 302
    status, page = ada.ask("GET", "/admin/notes/note/")
    assert (status, "2 notes" in page) == (200, True), page[-2_000:]

    app.write(django_app.NEXT)
    app.deployed(first)
    after = said(app, first)
    assert (after["applied"], after["notes"]) == (["0001_initial", "0002_author"], 2)
    assert "author" in after["fields"]
    assert ada.ask("GET", "/admin/notes/note/")[0] == 200, "her session is in the data"

    here, there = holder(nodes)
    first.typed_ok("data", "move", "site", "--to", there.name, "-y")
    assert holder(nodes)[0] is not here
    until(lambda: app.get(here, "/", 60.0)[0] == 200, 60, "the app where its data went")
    assert said(app, here)["notes"] == 2
    assert app.get(here, "/add?text=third", 60.0)[0] == 200

    assert first.run("rollback", "-m", "to see it", "--project", "site").code == 0
    until(
        lambda: app.get(first, "/", 60.0)[0] == 200 and "author" not in said(app, first)["fields"], 60, "the rollback"
    )
    assert app.get(first, "/add?text=fourth", 60.0)[0] == 200, "it lives with the data as the next release migrated it"
    assert said(app, first)["notes"] == 4


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_flask_with_sqlalchemy_and_alembic(nodes: list[Machine], tmp_path: Path) -> None:
    first = nodes[0]
    app = PythonApp(tmp_path, "blog", language="wsgi", rest=SETTINGS)
    app.write(alembic_app.FILES)
    app.deployed(first)
    assert said(app, first) == {"titles": [], "columns": ["id", "title"], "knows": ["id", "title"]}
    for title in ("first", "second"):
        assert app.get(first, f"/add?title={title}", 60.0)[0] == 200
    app.write(alembic_app.NEXT)
    app.deployed(first)
    assert said(app, first) == {
        "titles": ["first", "second"], "columns": ["id", "likes", "title"], "knows": ["id", "likes", "title"],
    }  # fmt: skip
    assert app.get(nodes[1], "/add?title=third", 60.0)[0] == 200
    assert first.run("rollback", "-m", "to see it", "--project", "blog").code == 0
    until(lambda: said(app, first)["knows"] == ["id", "title"], 60, "the rollback")
    assert app.get(first, "/add?title=fourth", 60.0)[0] == 200, "it lives with the data as the next release migrated it"
    assert said(app, nodes[2])["titles"] == ["first", "second", "third", "fourth"]
