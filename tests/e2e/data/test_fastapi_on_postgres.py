"""FastAPI on PostgreSQL on three real nodes: deployed, changed and rolled back, over one database."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from cli.project.wheels import found, recipes
from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.mesh.python_app import PythonApp, solo
from tests.support.runtime.postgres_server import PostgresServer, needs_postgres

PROVIDER = '[provider.pg]\nkind = "postgres"\nurl = "{url}"\npassword_file = "{file}"\n'


def provided(node: Machine, server: PostgresServer, credential: Path) -> None:
    with (node.data / "node.toml").open("a") as file:
        file.write(PROVIDER.format(url=server.url, file=credential))
    assert node.stop() == 0
    node.start()


FASTAPI = """
from fastapi import FastAPI
from pydantic import BaseModel

import freehold

app = FastAPI()
VERSION = "one"
TABLE = "CREATE TABLE IF NOT EXISTS visits (id bigserial PRIMARY KEY, who text NOT NULL, extra jsonb)"


class Visit(BaseModel):
    id: int
    who: str


class Page(BaseModel):
    version: str
    visits: list[Visit]


@app.get("/")
async def index() -> Page:
    db = freehold.sql("main")
    db.execute(TABLE)
    rows = db.execute("SELECT id, who FROM visits ORDER BY id").fetchall()
    return Page(version=VERSION, visits=[Visit(id=number, who=who) for number, who in rows])


@app.post("/visits/{who}")
async def add(who: str) -> Visit:
    with freehold.sql("main") as db:
        db.execute(TABLE)
        asked = "INSERT INTO visits (who, extra) VALUES (?, ?::jsonb) RETURNING id, who"
        number, name = db.execute(asked, (who, '{"by": "fastapi"}')).fetchone()
    return Visit(id=number, who=name)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_postgres
@pytest.mark.skipif(
    found(recipes()["pydantic-core"]) is None, reason="freehold wheels build pydantic-core was not run here"
)
def test_fastapi_on_postgres_is_deployed_and_rolled_back_on_three_nodes(tmp_path: Path) -> None:
    server, fleet = PostgresServer(), Fleet(tmp_path / "nodes")
    credential = tmp_path / "pg.password"
    credential.write_text(server.password)
    credential.chmod(0o600)
    try:
        machine = solo(fleet, "shop")
        nodes = fleet.grow(3, "--role", "voter", "--role", "worker")
        for node in nodes:
            provided(node, server, credential)
        app = PythonApp(tmp_path, "shop", language="asgi", rest='sql = ["main"]\nproviders = { main = "pg" }\n')
        app.write({"app.py": FASTAPI, "requirements.txt": "fastapi==0.165.0\n"})
        app.deployed(machine)
        for number, node in enumerate(nodes):
            until(lambda node=node: app.get(node)[0] == 200, 120, "each node to serve it")
            asked = urllib.request.Request(
                f"http://{node.ingress}/visits/v{number}", method="POST", headers={"Host": app.host}
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert json.load(answer)["who"] == f"v{number}"
        wanted = ["v0", "v1", "v2"]
        for node in nodes:
            assert [visit["who"] for visit in json.loads(app.get(node)[1])["visits"]] == wanted
        app.write({"app.py": FASTAPI.replace('"one"', '"two"')})
        app.deployed(machine)
        until(lambda: all('"two"' in app.get(node)[1] for node in nodes), 120, "the next version everywhere")
        assert machine.run("rollback", "-m", "to see it", "--project", "shop").code == 0
        until(lambda: all('"one"' in app.get(node)[1] for node in nodes), 120, "the version before everywhere")
        for node in nodes:
            assert [visit["who"] for visit in json.loads(app.get(node)[1])["visits"]] == wanted
    finally:
        fleet.close()
        server.close()
