"""A guest on a real node whose database lies in a PostgreSQL server, from its smoke check to a rotated credential."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.services.postgres_tenants import THROWN_AWAY, place_of
from tests.support.mesh.nodes import Machine, until
from tests.support.mesh.python_app import PythonApp, node_alone
from tests.support.runtime.postgres_server import PostgresServer, needs_postgres, running_postgres

APP = """
import json
import sqlite3
import freehold

TABLE = '''CREATE TABLE IF NOT EXISTS visits (id bigserial PRIMARY KEY, who text UNIQUE NOT NULL, seen jsonb,
                                              at timestamptz DEFAULT now())'''

def handle(request):
    db = freehold.sql("main")
    db.execute(TABLE)
    if request.path.startswith("/add/"):
        (number,) = db.execute("INSERT INTO visits (who, seen) VALUES (?, ?::jsonb) RETURNING id",
                               (request.path[5:], json.dumps({"path": request.path}))).fetchone()
        db.commit()
        return str(number)
    if request.path == "/refused":
        try:
            with db:
                db.execute("INSERT INTO visits (who) VALUES ('lost')")
                db.execute("INSERT INTO visits (who) VALUES (NULL)")
        except sqlite3.IntegrityError as error:
            return f"{error.sqlite_errorname} {[who for (who,) in db.execute('SELECT who FROM visits ORDER BY id')]}"
    found = db.execute("SELECT who, seen->>'path', at <= now() FROM visits WHERE who LIKE :who ORDER BY id", {"who": "%"})
    return json.dumps({"rows": [list(row) for row in found], "key": freehold.store("own").increment("n")})
"""
SETTINGS = """
sql = ["main"]
keyvalue = ["own"]
providers = { main = "pg" }
"""
PROVIDER = '[provider.pg]\nkind = "{kind}"\nurl = "{url}"\npassword_file = "{file}"\n'
pytestmark = needs_postgres


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with node_alone(tmp_path_factory.mktemp("postgres"), "shop", "other") as machine:
        yield machine


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as postgres:
        yield postgres


def app_of(folder: Path, name: str) -> PythonApp:
    app = PythonApp(folder, name, rest=SETTINGS)
    app.write({"app.py": APP})
    return app


def configured(node: Machine, server: PostgresServer, credential: Path, kind: str, url: str) -> None:
    path = node.data / "node.toml"
    plain = path.read_text().partition("[provider.pg]")[0]
    path.write_text(plain + PROVIDER.format(kind=kind, url=url, file=credential))
    assert node.stop() == 0
    node.start()


@pytest.mark.timeout(280)
def test_a_guests_database_lies_in_the_operators_postgres_through_its_absence_and_a_new_credential(
    node: Machine, server: PostgresServer, tmp_path: Path
) -> None:
    credential = tmp_path / "pg.password"
    credential.write_text("first")
    credential.chmod(0o600)
    shop, other = app_of(tmp_path, "shop"), app_of(tmp_path, "other")
    configured(node, server, credential, "redis", "redis://127.0.0.1:1")
    refused = shop.deploy(node)
    assert refused.code != 0
    assert "is of kind redis; it needs one of kind postgres" in refused.stdout + refused.stderr, refused
    configured(node, server, credential, "postgres", server.url)
    until(lambda: shop.get(node)[0] == 200, 90, "what was refused to start, now that its provider is of its kind")
    listed = "SELECT datname FROM pg_database WHERE datname LIKE 'freehold%'"
    place = place_of("shop/production", "main")
    until(lambda: server.say(listed) == place, 10, f"the databases of smoke checks to be gone ({THROWN_AWAY}...)")

    assert shop.get(node, "/add/Ada%20%3F")[1].isdecimal()
    assert shop.get(node, "/add/Ada%20%3F")[0] == 500, "a name that is there"
    answer = json.loads(shop.get(node)[1])
    assert [answer["rows"][0][0], answer["rows"][0][2]] == ["Ada%20%3F", 1], answer
    assert shop.get(node, "/refused")[1] == "SQLITE_CONSTRAINT_NOTNULL ['Ada%20%3F']", "half a transaction stayed"
    assert server.say("SELECT count(*) FROM visits", place) == "1"
    other.deployed(node)
    assert json.loads(other.get(node)[1])["rows"] == [], "one database of two projects"
    assert place_of("other/production", "main") in server.say(listed)

    server.kill()
    shop.refused_for_a_while(node)
    server.start()
    until(lambda: shop.get(node)[0] == 200, 30, "the provider to be used again")

    server.say("ALTER ROLE apps PASSWORD 'second'")
    credential.write_text("second")
    server.say("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'freehold%'")
    until(lambda: shop.get(node, "/add/after")[0] == 200, 30, "the new credential to be used")
    assert json.loads(shop.get(node)[1])["rows"][-1][0] == "after"
