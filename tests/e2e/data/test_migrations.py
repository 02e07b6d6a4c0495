"""An app's migration on a real node: once for each release, before visitors come, all of it or nothing, whoever is killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.mesh.durable import call
from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.mesh.python_app import ENVIRONMENT, PythonApp, solo
from tests.support.runtime.projects import own_cache

APP = """
import json
import os
import sqlite3
import time

def migrate():
    also, db = os.environ["ALSO"], sqlite3.connect("main")
    db.execute("CREATE TABLE IF NOT EXISTS runs (version INTEGER)")
    db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
    db.execute("INSERT INTO runs VALUES (?)", (int(os.environ["VERSION"]),))
    db.commit()
    if also == "columns":
        db.execute("ALTER TABLE notes ADD COLUMN author TEXT")
    count, = db.execute("SELECT count(*) FROM notes").fetchone()
    if also == "slow" and count:
        time.sleep(4)
    if also == "fails" or also == "fails late" and count:
        raise ValueError("half way")

def handle(request):
    db = sqlite3.connect("main")
    if request.path == "/add":
        db.execute("INSERT INTO notes (text) VALUES ('n')")
        db.commit()
    runs = [version for version, in db.execute("SELECT version FROM runs ORDER BY rowid")]
    columns = [row[1] for row in db.execute("PRAGMA table_info(notes)")]
    count, = db.execute("SELECT count(*) FROM notes").fetchone()
    return json.dumps(dict(version=int(os.environ["VERSION"]), runs=runs, columns=columns, notes=count))
"""
SETTINGS = 'sql = ["main"]\nmigrate = true\nconfig = {{ VERSION = "{version}", ALSO = "{also}" }}\n'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    fleet = Fleet(tmp_path_factory.mktemp("migrations"))
    try:
        with own_cache():
            yield solo(fleet, "notes")
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def app(node: Machine, tmp_path_factory: pytest.TempPathFactory) -> PythonApp:
    python_app = PythonApp(tmp_path_factory.mktemp("m"), "notes")
    python_app.write({"app.py": APP})
    release(python_app, 1)
    python_app.deployed(node)
    return python_app


def release(app: PythonApp, version: int, also: str = "") -> None:
    """Another release of one build: the project file belongs to it."""
    app.configure("python", SETTINGS.format(version=version, also=also))


def said(app: PythonApp, node: Machine, path: str = "/") -> dict[str, Any]:
    status, body = app.get(node, path)
    assert status == 200, (status, body)
    document: dict[str, Any] = json.loads(body)
    return document


@pytest.mark.timeout(280)
def test_each_release_migrates_once_and_a_rollback_leaves_the_data_migrated(app: PythonApp, node: Machine) -> None:
    first = said(app, node)
    assert (first["version"], first["runs"]) == (1, [1]), "it began with nothing"
    assert said(app, node, "/add")["notes"] == 1
    release(app, 2, "columns")
    shown = node.run("diff", "--folder", str(app.folder))
    assert "beware    app web migrates its data before visitors come" in shown.stdout, shown
    app.deployed(node)
    second = said(app, node)
    assert (second["version"], second["runs"], second["notes"]) == (2, [1, 2], 1)
    assert second["columns"] == ["id", "text", "author"]

    back = node.run("rollback", "-m", "to try it", "--project", "notes")
    assert back.code == 0, back
    assert "the data of app web stays as the release that is left migrated it" in back.stdout + back.stderr
    until(lambda: said(app, node)["version"] == 1, 60, "the release before")
    assert said(app, node, "/add")["notes"] == 2
    app.deployed(node)
    again = said(app, node)
    assert (again["version"], again["runs"], again["notes"]) == (2, [1, 2], 2), "a release migrates once"
    node.kill()
    node.kill_workers()
    node.start()
    until(lambda: app.get(node)[0] == 200, 60, "the app to be served again")
    assert said(app, node)["runs"] == [1, 2]


@pytest.mark.timeout(280)
def test_a_migration_that_fails_changes_nothing_and_says_why(app: PythonApp, node: Machine) -> None:
    before = said(app, node, "/add")
    release(app, 3, "fails late")
    failed = app.deploy(node)
    assert failed.code != 0
    assert "ValueError: half way" in failed.stdout + failed.stderr + node.run("status").stdout, failed
    after = said(app, node)
    assert after == before, "half of it stayed"
    assert said(app, node, "/add")["notes"] == before["notes"] + 1, "the data stayed frozen"
    assert not list((node.data / "migrating").glob("*/*/*"))

    release(app, 3, "fails")
    refused = app.deploy(node)
    assert refused.code != 0
    assert "ValueError: half way" in refused.stdout + refused.stderr + node.run("status").stdout, refused
    assert said(app, node)["runs"] == before["runs"]


@pytest.mark.timeout(280)
def test_a_node_killed_in_a_migration_loses_no_write_and_migrates_once(app: PythonApp, node: Machine) -> None:
    release(app, 4, "slow")
    before = said(app, node, "/add")
    stop, written, ingress = threading.Event(), [0, 0], node.ingress

    def visit() -> None:
        while not stop.is_set():
            status, _, _ = call(ingress, app.host, "/add", 25.0)
            written[0] += status == 200
            written[1] += status not in {200, 503}
            time.sleep(0.02)

    outcome: list[Any] = []
    deploying = threading.Thread(target=lambda: outcome.append(app.deploy(node)))
    visitor = threading.Thread(target=visit)
    visitor.start()
    deploying.start()
    try:
        mark = node.data / "data" / "notes" / ENVIRONMENT / "frozen"
        until(mark.exists, 120, "the migration")
        time.sleep(1.5)
        assert mark.exists(), "the migration is over"
        node.kill()
        node.kill_workers()
        node.start()
        until(lambda: app.get(node)[0] == 200 and said(app, node)["version"] == 4, 120, "the migrated release", 0.5)
    finally:
        stop.set()
        visitor.join()
        deploying.join()
    after = said(app, node)
    assert after["runs"] == [*before["runs"], 4]
    acknowledged = before["notes"] + written[0]
    assert acknowledged <= after["notes"] <= acknowledged + written[1], (before, written, after)
