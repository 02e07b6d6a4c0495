"""SQL as apps use it: Python's own sqlite3 module, and a prepared-statement API in JavaScript, over the node's databases.

From source and as a release. Not here: what bounds a statement (tests/unit/runtime/services/test_sql.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import DevProcess, serving

PYTHON = '''
import datetime
import sqlite3

import freehold

SCHEMA = """
DROP TABLE IF EXISTS post;
DROP TABLE IF EXISTS user;
CREATE TABLE user (id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT UNIQUE NOT NULL, password TEXT NOT NULL);
CREATE TABLE post (id INTEGER PRIMARY KEY AUTOINCREMENT, author_id INTEGER NOT NULL,
  created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, title TEXT NOT NULL, body TEXT NOT NULL,
  FOREIGN KEY (author_id) REFERENCES user (id));
"""
sqlite3.register_converter("timestamp", lambda v: datetime.datetime.fromisoformat(v.decode()))


def connect():
    db = sqlite3.connect("instance/main.sqlite", detect_types=sqlite3.PARSE_DECLTYPES)
    db.row_factory = sqlite3.Row
    return db


def blog():
    """What Flask's tutorial does."""
    db = connect()
    db.executescript(SCHEMA)
    db.execute("INSERT INTO user (username, password) VALUES (?, ?)", ("a", "b"))
    db.commit()
    try:
        db.execute("INSERT INTO user (username, password) VALUES (?, ?)", ("a", "b"))
    except db.IntegrityError as error:
        refused = (type(error).__name__, error.sqlite_errorname, str(error))
    db.rollback()
    db.execute("INSERT INTO post (title, body, author_id) VALUES (?, ?, ?)", ("t", "b", 1))
    db.commit()
    row = db.execute("SELECT p.id, title, created, username FROM post p JOIN user u ON p.author_id = u.id").fetchone()
    gone = db.execute("SELECT * FROM user WHERE username = ?", ("x",)).fetchone()
    return [refused, dict(row)["username"], row["TITLE"], row["created"].year > 2000, gone]


def rules():
    db = sqlite3.connect("main", autocommit=True)
    db.execute("CREATE TABLE IF NOT EXISTS r (x, y)")
    db.execute("DELETE FROM r")
    db = sqlite3.connect("main")
    with db:
        db.executemany("INSERT INTO r VALUES (?, ?)", [(n, b"\\0\\xff") for n in range(3)])
    try:
        with db:
            db.execute("INSERT INTO r VALUES (:x, :y)", {"x": 9, "y": None})
            raise ValueError
    except ValueError:
        pass
    cursor = db.execute("SELECT count(*), max(y), 2.5, 'é' FROM r")
    names = [entry[0] for entry in cursor.description]
    found = list(cursor.fetchone())
    found[1] = found[1].hex()
    second = db.execute("INSERT INTO r VALUES (1, 2)")
    state = [db.in_transaction, second.rowcount, second.lastrowid, db.total_changes]
    db.rollback()
    errors = []
    wrong = (("SELECT * FROM none", ()), ("SELECT ?", ()), ("SELECT 1; SELECT 2", ()), ("SELECT ?", ({},)))
    for statement, parameters in wrong:
        try:
            db.execute(statement, parameters)
        except sqlite3.Error as error:
            errors.append(type(error).__name__)
    memory = sqlite3.connect(":memory:")
    memory.create_function("twice", 1, lambda x: x * 2)
    return [found, names, state, errors, memory.execute("SELECT twice(21)").fetchone()[0]]


def other():
    try:
        sqlite3.connect("other").execute("SELECT 1")
    except sqlite3.OperationalError as error:
        return str(error)


def left_open():
    db = sqlite3.connect("main")
    db.execute("CREATE TABLE IF NOT EXISTS held (x)")
    db.execute("INSERT INTO held VALUES (1)")
    kept.append(db)
    return "open"


kept = []


def handle(request):
    match request.path:
        case "/blog":
            return freehold.Response.json(blog())
        case "/rules":
            return freehold.Response.json(rules())
        case "/other":
            return freehold.Response(other())
        case "/left-open":
            return left_open()
        case "/held":
            db = freehold.sql("main")
            db.execute("INSERT INTO held VALUES (2)")
            db.commit()
            return str([row[0] for row in db.execute("SELECT x FROM held")])
        case "/endless":
            endless = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
            freehold.sql("main").execute(endless)
'''

JAVASCRIPT = """
import { sql, SqlError } from "freehold";

function all() {
  const db = sql("main");
  db.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB)");
  const insert = db.prepare("INSERT INTO t (name, data) VALUES (?, ?)");
  const first = insert.run("a", new Uint8Array([0, 255]));
  let refused;
  try {
    insert.run("a", null);
  } catch (error) {
    refused = [error instanceof SqlError, error.code, error.message];
  }
  const two = db.transaction((names) => names.forEach((name) => insert.run(name, null)));
  two(["b", "c"]);
  let undone;
  try {
    two(["d", "a"]);
  } catch (error) {
    undone = error.code;
  }
  const named = db.prepare("SELECT name FROM t WHERE id = :id").get({ id: 1 });
  return {
    first, refused, undone, named, open: db.inTransaction,
    rows: db.prepare("SELECT id, name FROM t ORDER BY id").all(),
    raw: db.prepare("SELECT id, name FROM t").raw().get(),
    count: db.prepare("SELECT count(*) FROM t").pluck().get(),
    bytes: [...db.prepare("SELECT data FROM t").pluck().get()],
    large: String(db.prepare("SELECT ?").pluck().get(2n ** 62n)),
    missing: db.prepare("SELECT name FROM t WHERE id = 9").get() ?? "nothing",
  };
}

export default {
  fetch(request) {
    const path = new URL(request.url).pathname;
    if (path === "/all") return Response.json(all());
    try {
      sql("other").prepare("SELECT 1").get();
    } catch (error) {
      return new Response(`${error.code} ${error.message}`);
    }
  },
};
"""


def project(folder: Path, language: str, name: str, source: str) -> Path:
    (folder / "web").mkdir(parents=True)
    (folder / "web" / name).write_text(source)
    (folder / "freehold.toml").write_text(
        f'[project]\nname = "rows"\n[app.web]\nlanguage = "{language}"\n'
        'source = "web"\nroutes = ["/"]\ninstances = "reuse"\nsql = ["main"]\n'
    )
    return folder


@pytest.fixture(scope="module", params=[(), ("--exact",)], ids=["from source", "as a release"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    with serving(project(tmp_path_factory.mktemp("sql"), "python", "app.py", PYTHON), *request.param) as process:
        yield process


def test_the_queries_of_a_blog_run_unmodified(python: DevProcess) -> None:
    refused = ["IntegrityError", "SQLITE_CONSTRAINT_UNIQUE", "UNIQUE constraint failed: user.username"]
    answer = python.call("/blog")
    assert answer.status == 200, answer.text
    assert json.loads(answer.text) == [refused, "a", "t", True, None]


def test_transactions_parameters_and_errors_are_pythons_own(python: DevProcess) -> None:
    answer = python.call("/rules")
    assert answer.status == 200, answer.text
    entry, names, state, errors, twice = json.loads(answer.text)
    assert entry == [3, "00ff", 2.5, "é"]
    assert names == ["count(*)", "max(y)", "2.5", "'é'"]
    assert state[:2] == [True, 1]
    assert errors == ["OperationalError", "ProgrammingError", "ProgrammingError", "ProgrammingError"]
    assert twice == 42, "what is in memory stays in the instance, with its functions"


def test_a_database_that_was_not_granted_is_refused_by_name(python: DevProcess) -> None:
    assert "may not open the database 'other'" in python.call("/other").text


def test_a_transaction_left_open_holds_up_nobody(python: DevProcess) -> None:
    assert python.call("/left-open").status == 200
    assert python.call("/held").text == "[2]"


def test_an_endless_statement_ends_with_an_error(python: DevProcess) -> None:
    assert python.call("/endless").status == 500
    assert "a statement may take 5 s" in json.dumps(python.log_with("a statement may take"))


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")
@pytest.mark.parametrize("flags", [(), ("--exact",)], ids=["from source", "as a release"])
def test_statements_of_javascript(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with serving(project(tmp_path / "js", "javascript", "app.js", JAVASCRIPT), *flags) as process:
        answer = process.call("/all")
        assert answer.status == 200, (answer.text, process.logs)
        assert json.loads(answer.text) == {
            "first": {"changes": 1, "lastInsertRowid": 1},
            "refused": [True, "SQLITE_CONSTRAINT_UNIQUE", "UNIQUE constraint failed: t.name"],
            "undone": "SQLITE_CONSTRAINT_UNIQUE",
            "named": {"name": "a"},
            "open": False,
            "rows": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}],
            "raw": [1, "a"],
            "count": 3,
            "bytes": [0, 255],
            "large": "4611686018427387904",
            "missing": "nothing",
        }
        assert "SQLITE_AUTH" in process.call("/other").text
