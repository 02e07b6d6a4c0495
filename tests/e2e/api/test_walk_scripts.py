"""The two programs of examples/api: a change by HTTP alone, by a signing runner and by a token that cannot sign.

Each knows the node's document, a token and the node's certificate authority; under the policy `team` a person approves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until
from tests.support.npm import installed

EXAMPLES = Path(__file__).parents[3] / "examples" / "api"
CLIENTS = Path(__file__).parent / "clients"
LINES_MAX = 150
WALK_TIMEOUT_S = 60


@dataclass
class World:
    """A mesh under the policy `team` that asks for tests, and the tokens of it."""

    node: Machine
    approver: Machine
    tokens: dict[str, str]
    url: str
    ca: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    fleet = Fleet(folder)
    try:
        node = fleet.found("d", "--api", "127.0.0.1:0", "--policy", "team")
        node.typed_ok("env", "create", "production", "-y")
        node.typed_ok("policy", "set", "--env", "production", "--mode", "team", "--evidence", "test:24h", "-y")
        for name in ("python", "typescript", "failing"):
            node.typed_ok("project", "create", name, "--owner", "web-team")
        grace = Machine(folder / "g")
        line = fleet.invite(node, "--kind", "principal", "--role", "approver", "--for", "grace")
        answer = grace.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE))
        assert answer.code == 0, answer
        tokens = {
            "deployer": node.ok("token", "create", "ci", "--role", "deployer", "--runner")["token"],
            "bearer": node.ok("token", "create", "bot", "--role", "proposer", "--bearer")["token"],
        }
        ca = folder / "ca.pem"
        ca.write_text(node.run("context", "ca").stdout)
        yield World(node, grace, tokens, f"https://{node.status()['api']}", ca)
    finally:
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, world: World) -> list[str]:
    """The TypeScript program as its first lines say, compiled strictly against types made of the node's document."""
    tools, folder = installed(CLIENTS), tmp_path_factory.mktemp("typescript")
    (folder / "node_modules").symlink_to(tools / "node_modules")
    (folder / "openapi.json").write_bytes(world.node.get("/v1/openapi.json"))
    shutil.copy(EXAMPLES / "change.ts", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    options = {"module": "nodenext", "target": "es2022", "strict": True, "noUncheckedIndexedAccess": True,
               "noUnusedLocals": True, "types": ["node"], "skipLibCheck": True}  # fmt: skip
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["change.ts"]}))
    for command in (["openapi-typescript", "openapi.json", "-o", "schema.ts", "--default-non-nullable=false"], ["tsc"]):
        path = folder / "node_modules" / ".bin" / command[0]
        done = subprocess.run(
            [path, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return ["node", str(folder / "change.js")]


PYTHON = [sys.executable, str(EXAMPLES / "change.py")]


def begun(command: list[str], world: World, token: str, *arguments: str) -> subprocess.Popen[str]:
    """The program, running in an environment that holds a token, an address and what vouches for it."""
    table = {"FREEHOLD_TOKEN": world.tokens[token], "FREEHOLD_URL": world.url, "FREEHOLD_CA": str(world.ca)}
    settings = {**table, "NODE_EXTRA_CA_CERTS": str(world.ca), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.Popen(
        [*command, *arguments], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def walked(command: list[str], world: World, component: Path, project: str) -> None:
    pair = (project, "production", str(component), f"{project}.test", "greet visitors", "--", "true")
    process = begun(command, world, "deployer", *pair)
    try:
        rows: list[dict[str, Any]] = []

        def waits() -> bool:
            rows[:] = [
                load for load in json.loads(world.node.get(f"/v1/changes?project={project}"))
                if load["start"] and load["start"]["rule"] == "approval.missing"
            ]  # fmt: skip
            assert process.poll() is None, process.communicate()
            return bool(rows)

        until(waits, WALK_TIMEOUT_S, "the start to wait for an approval")
        papers = json.loads(world.node.get(f"/v1/changes/{rows[0]['id']}/papers"))
        assert [(paper["kind"], paper["passed"]) for paper in papers["evidence"] if paper["by"] != "node"] == [
            ("test", True)
        ]
        world.approver.typed_ok("approve", rows[0]["id"])
        out, _ = process.communicate(timeout=WALK_TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert f"proposed {rows[0]['id']}" in out, out
    assert "approval.missing" in out, out
    assert out.splitlines()[-1].startswith("runs: release"), out
    head, _, body = visited(world, f"{project}.test")
    assert b" 200 " in head.splitlines()[0], head
    assert body


def visited(world: World, host: str) -> tuple[bytes, bytes, bytes]:
    import socket

    address, _, port = world.node.ingress.rpartition(":")
    with socket.create_connection((address, int(port)), timeout=20) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.partition(b"\r\n\r\n")


def test_the_programs_are_short() -> None:
    for path in (EXAMPLES / "change.py", EXAMPLES / "change.ts"):
        assert len(path.read_text().splitlines()) <= LINES_MAX, path


def test_a_change_goes_to_production_by_python_alone(world: World, component: Callable[[str], Path]) -> None:
    walked(PYTHON, world, component("hello"), "python")


def test_a_change_goes_to_production_by_typescript_alone(
    world: World, component: Callable[[str], Path], compiled: list[str]
) -> None:
    walked(compiled, world, component("hello"), "typescript")


def test_a_token_ends_at_the_proposal(world: World, component: Callable[[str], Path], compiled: list[str]) -> None:
    pair = ("failing", "production", str(component("hello")), "failing.test", "greet", "--", "false")
    for command in (PYTHON, compiled):
        process = begun(command, world, "bearer", *pair)
        out, _ = process.communicate(timeout=WALK_TIMEOUT_S)
        assert process.returncode == 0, out
        assert "proposed " in out, out
        assert "runs:" not in out, out
    changes = json.loads(world.node.get("/v1/changes?project=failing"))
    assert changes
    assert {change["state"] for change in changes} == {"proposed"}
    assert all(change["start"] is None for change in changes)


def test_a_failing_test_ends_it_before_the_proposal(world: World, component: Callable[[str], Path]) -> None:
    before = len(json.loads(world.node.get("/v1/changes?project=failing")))
    pair = ("failing", "production", str(component("hello")), "failing.test", "greet", "--", "false")
    process = begun(PYTHON, world, "deployer", *pair)
    out, _ = process.communicate(timeout=WALK_TIMEOUT_S)
    assert process.returncode == 1, out
    assert "the tests failed" in out, out
    assert len(json.loads(world.node.get("/v1/changes?project=failing"))) == before


GENERATOR = "openapi-python-client==0.29.1"
SMOKE = """
import os, ssl, sys
from client import AuthenticatedClient
from client.api.mesh import members
from client.api.node import node
from client.api.projects import lanes
client = AuthenticatedClient(
    base_url=os.environ["FREEHOLD_URL"], token=os.environ["FREEHOLD_TOKEN"], raise_on_unexpected_status=True,
    verify_ssl=ssl.create_default_context(cafile=os.environ["FREEHOLD_CA"]),
)
assert node.sync(client=client).version
assert [one.name for one in members.sync(client=client)] == ["d"]
assert all(one.environment == "production" for one in lanes.sync(client=client))
trusted = ssl.create_default_context(cafile=os.environ["FREEHOLD_CA"])
stranger = AuthenticatedClient(base_url=os.environ["FREEHOLD_URL"], token="fht1.wrong", verify_ssl=trusted)
refused = node.sync(client=stranger)
assert refused.rule == "caller.unsigned", refused
print("smoke passed")
"""


@pytest.mark.long
def test_a_client_that_a_generator_makes_in_python_speaks_to_the_node(world: World, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    subprocess.run([python, "-m", "pip", "install", "--quiet", GENERATOR], check=True, timeout=400)
    (tmp_path / "openapi.json").write_bytes(world.node.get("/v1/openapi.json"))
    command = [python, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none",
               "--output-path", "client", "--fail-on-warning"]  # fmt: skip
    document = {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"}  # it formats with the ruff that came with it
    done = subprocess.run(command, cwd=tmp_path, env=document, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "smoke.py").write_text(SMOKE)
    table = {"FREEHOLD_TOKEN": world.tokens["bearer"], "FREEHOLD_URL": world.url, "FREEHOLD_CA": str(world.ca)}
    settings = {**table, **document}
    smoked = subprocess.run(
        [python, "smoke.py"], cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert smoked.stdout == "smoke passed\n", smoked.stdout + smoked.stderr
