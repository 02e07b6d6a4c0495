"""A coding agent through the official SDK's client: it proposes, tests, diffs, asks and watches; it cannot approve.

Real processes: a mesh of one with a team policy, an approver who logs in from a laptop, an agent that runs as the
developer's own user with the socket and the key files at hand.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import mcp_types
import pytest
from jsonschema import Draft202012Validator
from mcp import Client, StdioServerParameters

from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Contexts, StoredKey
from cli.change.propose import put_together
from cli.project.find import open_project
from cli.text.output import Output
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until

import msgspec  # isort: skip

LOOKING = {"status", "list_projects", "get_config", "rollout_status", "logs", "why", "watch"}
CHANGING = {"build", "test", "diff", "propose", "request_approval", "rollback", "request_rollback"}
PROJECT = """\
[project]
name = "hello"
owners = ["web-team"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["/hello"]
config = {{ GREETING = "hi" }}

[test]
command = '{python} -c "import os, urllib.request as u; print(u.urlopen(os.environ[\\"FREEHOLD_URL\\"]).status)"'
[[test.smoke]]
app = "web"
path = "/hello"

[rollout]
stages = ["100%"]
min_healthy_time = "1s"
"""


class Team:
    """A developer's machine with a node, the project's folder, an agent's and a watcher's keys; an approver's laptop."""

    def __init__(self, folder: Path, component: Path) -> None:
        self.fleet = Fleet(folder)
        self.dev = self.fleet.found("dev", "--api", "127.0.0.1:0", "--policy", "team")
        self.dev.typed_ok("env", "create", "production", "-y")
        self.dev.typed_ok("project", "create", "hello", "--owner", "web-team")
        self.project = folder / "hello"
        self.project.mkdir()
        shutil.copy(component, self.project / "web.wasm")
        (self.project / "freehold.toml").write_text(PROJECT.format(python=sys.executable))
        self.dev.ok("token", "create", "bot", "--role", "proposer", "--role", "deployer", "--project", "hello")
        self.dev.ok("token", "create", "watcher", "--role", "viewer")
        line = self.fleet.invite(self.dev, "--kind", "principal", "--role", "approver", "--for", "ann")
        self.ann = Machine(folder / "laptop")
        answer = self.ann.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE))
        assert answer.code == 0, answer

    def client(self, context: str) -> Client:
        code = "from cli.main import main; main()"
        return Client(
            StdioServerParameters(
                command=sys.executable, args=["-c", code, "mcp", "--context", context], env=self.dev.environment,
                cwd=self.project,
            )
        )  # fmt: skip

    def as_agent(self, *arguments: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the agent's process: the developer's user, files and socket; no terminal."""
        command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
        return subprocess.run(
            command, env={**self.dev.environment, **environment}, input=said, capture_output=True, text=True, timeout=60,
            cwd=self.project, start_new_session=True, check=False,
        )  # fmt: skip

    def signer(self, context: str) -> tuple[Any, Ed25519Signer]:
        home = self.dev.folder / "home"
        known = msgspec.json.decode((home / "contexts.json").read_bytes(), type=Contexts)
        stored = msgspec.json.decode((home / "keys" / f"{context}.json").read_bytes(), type=StoredKey)
        return known.contexts[context], Ed25519Signer(stored.seed)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Team]:
    new_team = Team(tmp_path_factory.mktemp("m"), component("hello"))
    try:
        yield new_team
    finally:
        new_team.fleet.close()


class Agent:
    """Calls tools and holds every answer to its schema and its cap."""

    def __init__(self, client: Client, tools: list[mcp_types.Tool]) -> None:
        self.client = client
        self.tools = {tool.name: tool for tool in tools}
        self.called: set[str] = set()

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.client.call_tool(name, arguments)
        assert not answer.is_error, answer.content
        self.called.add(name)
        schema = self.tools[name].output_schema
        assert schema is not None
        Draft202012Validator(schema).validate(answer.structured_content)
        assert len(json.dumps(answer.structured_content)) < 40_000
        structured_content: dict[str, Any] = answer.structured_content
        assert structured_content["next_step"]
        return structured_content

    async def refused(self, name: str, **arguments: Any) -> dict[str, str]:
        answer = await self.client.call_tool(name, arguments)
        assert answer.is_error, answer
        content = answer.content[0]
        assert isinstance(content, mcp_types.TextContent)
        told: dict[str, str] = json.loads(content.text)["error"]
        assert told["next_step"]
        return told


async def with_agent(client: Client, conversation: Callable[[Agent], Awaitable[None]]) -> None:
    async with client:
        await conversation(Agent(client, (await client.list_tools()).tools))


async def test_an_agent_takes_a_change_to_production_through_a_persons_approval(team: Team) -> None:
    change = release = ""

    async def propose(agent: Agent) -> None:
        nonlocal change, release
        assert set(agent.tools) == LOOKING | CHANGING
        assert len(agent.tools) <= 14
        for tool in agent.tools.values():
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint == (tool.name in LOOKING)
            assert tool.annotations.destructive_hint == (tool.name == "rollback")
            assert tool.input_schema["additionalProperties"] is False
        assert (await agent.call("status"))["me"] == "bot"
        assert (await agent.call("list_projects"))["projects"] == ["hello"]
        assert (await agent.refused("status", read_only=True))["kind"] == "arguments"
        assert (await agent.refused("approve", change="0000"))["kind"] == "no-such-tool"
        built = await agent.call("build")
        assert built["apps"]["web"]["size_bytes"] > 0
        tested = await agent.call("test")
        assert (tested["passed"], tested["self_attested"]) == (True, True)
        assert (await agent.refused("test", environment="nope"))["kind"] == "no-environment"
        shown = await agent.call("diff")
        release = built["release"]
        assert release == tested["release"] == shown["review"]["release"], "one word has one meaning"
        assert built["build"] == tested["build"] != release
        assert any(entry["section"] == "capabilities" for entry in shown["review"]["differences"])
        proposed = await agent.call("propose", request="say hello")
        assert proposed["evidence"] == 3
        assert [entry["rule"] for entry in proposed["missing"]] == ["approval.missing"]
        change = proposed["change"]
        asked = await agent.call("request_approval", change=change)
        assert asked["start"].startswith("waiting")
        assert (await agent.call("rollout_status", change=change))["state"] == "proposed"

    await with_agent(team.client("home-bot"), propose)
    cannot_approve(team, change)
    await cannot_widen(team)
    answer = await asyncio.to_thread(team.ann.typed, "approve", change, "--json")
    assert answer.code == 0, answer

    async def watch(agent: Agent) -> None:
        deadline_s = time.monotonic() + 60
        while (state := await agent.call("rollout_status", change=change))["state"] != "base":
            assert time.monotonic() < deadline_s, state["start"]
            await asyncio.sleep(0.5)
        config = await agent.call("get_config")
        assert config["apps"][0]["config"] == {"GREETING": "hi"}
        assert config["release"] == release
        assert len((await agent.call("why"))["untrusted_answers"]) == 8
        assert (await agent.call("logs", max_bytes=1_000))["notice"]
        assert (await agent.refused("rollback", reason="no reason"))["kind"] == "no-release"

    await with_agent(team.client("home-bot"), watch)
    entries = team.dev.ok("audit", "--limit", "200")["entries"]
    assert {"publish change", "start", "publish approval"} <= {entry["verb"] for entry in entries}
    starts = [entry for entry in entries if entry["verb"] == "start"]
    assert all(start["names"] == ["bot"] and len(start["lineage"]) == 3 for start in starts)
    assert team.dev.ok("audit", "--verify")["faults"] == []


def cannot_approve(team: Team, change: str) -> None:
    """The developer's socket, key files, --yes, a piped passphrase and variables are all at hand, and do not help."""
    assert team.as_agent("approve", change, "--yes").returncode == 2
    variables = {"FREEHOLD_PASSPHRASE": PASSPHRASE, "SSH_ASKPASS": "/bin/true", "FREEHOLD_YES": "1"}
    for context in ("home", "home-bot"):
        answer = team.as_agent("approve", change, "--context", context, said=f"{PASSPHRASE}\n" * 3, **variables)
        assert answer.returncode == 3, answer
        assert any(word in answer.stderr for word in ("needs a person", "sealed key", "do not count")), answer
    # The developer's own sealed key, with its passphrase at a terminal, is no other person's: the agent is theirs.
    own = team.dev.typed("approve", change, "--json")
    assert (own.code, json.loads(own.stdout)["error"]["kind"]) == (3, "approval.by-author"), own
    for command in (("policy", "set", "--mode", "solo", "-y"), ("reject", change, "-m", "no")):
        assert team.as_agent(*command, said=f"{PASSPHRASE}\n").returncode == 3
    papers = team.dev.ok("evidence", "show", change)
    assert papers["approvals"] == []
    assert [paper["rule"] for paper in papers["missing"]] == ["approval.missing"]


async def cannot_widen(team: Team) -> None:
    """A grant that the agent signs for itself is no wider than its own, whatever it says."""
    context, signer = team.signer("home-bot")
    assert team.as_agent("token", "create", "wide", "--context", "home-bot", "--role", "approver").returncode == 2
    async with NodeClient(context, signer) as client:
        (held,) = await client.chains(signer.public_key)
        chain = decode(held, tuple[Signed, ...])
        other = Ed25519Signer(secrets.token_bytes(32))
        for kind, roles, projects in (
            ("agent", ("proposer",), (ANY,)), ("person", ("proposer",), ("hello",)), ("agent", ("approver",), ("hello",)),
        ):  # fmt: skip
            wide = Grant(other.public_key, kind, "wide", roles, projects, (ANY,), time.time_ns() // 1_000_000 + 1_000,
                         secrets.token_bytes(16), digest(chain[-1].payload))  # fmt: skip
            link = sign(signer, GRANT_DOMAIN, await client.mesh(), wide)
            with pytest.raises(RefusedError) as error:
                await client.publish("grant", other.public_key.hex(), encode((*chain, link)))
            assert error.value.rule.startswith("grant.")


def test_a_refusal_ends_a_command_with_its_rule_what_is_missing_and_code_three(team: Team) -> None:
    asked: dict[str, tuple[tuple[str, ...], int, str, str]] = {
        "staging": (("--mode", "team"), 5, "awaiting-approval", "0 of 1 approvals; a person with the role approver"),
        "tested": (("--mode", "solo", "--evidence", "test:1h"), 3, "evidence.missing", "freehold test makes it"),
        "frozen": (("--mode", "solo", "--window", "deny 2020-01-01T00:00Z 999999h audit"), 3, "window.frozen", "audit"),
    }
    folder = Path(shutil.copytree(team.project, team.project.with_name("elsewhere")))
    text = (folder / "freehold.toml").read_text()
    for environment, (policy, code, kind, words) in asked.items():
        (folder / "freehold.toml").write_text(text.replace('"/hello"', f'"/{environment}"'))
        team.dev.typed_ok("env", "create", environment, "-y")
        team.dev.typed_ok("policy", "set", "--env", environment, *policy, "-y")
        answer = team.dev.run(
            "deploy", "--folder", str(folder), "--env", environment, "--wait", "1s", "--json", timeout_s=90
        )
        told = answer.json["error"]
        assert (answer.code, told["kind"]) == (code, kind), (environment, answer)
        assert words in told["message"], told
        assert told["next_step"].startswith("freehold "), told
    # The founder approves nothing of their own, whichever key wrote it; with a reason, and as an admin, it starts.
    waiting = next(entry for entry in team.dev.ok("changes")["changes"] if entry["environment"] == "frozen")["id"]
    glass = ("deploy", "--change", waiting, "--break-glass", "the site is down")
    assert team.as_agent(*glass).returncode == 3
    assert team.dev.typed_ok(*glass)["outcome"] == "succeeded"
    lane = next(entry for entry in team.dev.ok("status")["lanes"] if entry["environment"] == "frozen")
    assert lane["base"]["break_glass"] == "the site is down"
    assert "breaking glass: the site is down" in team.dev.run("why", "hello", "--env", "frozen").stdout


async def test_a_looking_agent_sees_no_tool_that_changes_and_the_api_refuses_its_key(team: Team) -> None:
    async def look(agent: Agent) -> None:
        assert set(agent.tools) == LOOKING
        await agent.call("status")
        for name in CHANGING:
            assert (await agent.refused(name))["kind"] == "no-such-tool"

    await with_agent(team.client("home-watcher"), look)
    context, signer = team.signer("home-watcher")
    async with NodeClient(context, signer) as client:
        await client.get("/v1/lanes")
        with pytest.raises(RefusedError) as error:
            await client.put_artifact(b"anything", digest(b"anything"))
        assert error.value.rule == "caller.not-allowed"
    # On the socket without a signature, as any local user: what it brings is still signed by the watcher's key.
    project = open_project(team.project)
    async with NodeClient(context) as client:
        proposal, _ = await put_together(client, Output(as_json=True), project, "production", "x", signer)
        with pytest.raises(RefusedError) as error:
            await client.publish("change", project.project.name, encode(proposal.signed))
        assert error.value.rule == "change.author"


def test_a_key_that_may_not_is_told_before_anything_is_built_and_who_gives_the_right(team: Team) -> None:
    team.dev.ok("token", "create", "writer", "--role", "proposer", "--project", "hello")
    me = next(
        entry["name"]
        for entry in team.dev.ok("token", "list")["principals"]
        if "start" in entry["verbs"] and entry["kind"] == "person"
    )
    for context, words, rule, role in (
        ("home-watcher", ("propose", "-m", "x"), "change.author", "proposer"),
        ("home-watcher", ("deploy",), "change.author", "proposer"),
        ("home-writer", ("deploy",), "command.not-allowed", "deployer"),
    ):
        answer = team.as_agent(*words, "--context", context, "--json")
        told = json.loads(answer.stdout)["error"]
        assert (answer.returncode, told["kind"]) == (3, rule), answer
        step = f"ask {me}: freehold token create NAME --role {role} --project hello --env production"
        assert told["next_step"] == step
        assert "building" not in answer.stderr


def test_a_key_that_has_no_rights_any_more_is_still_called_what_its_grant_called_it(team: Team) -> None:
    def listed(name: str) -> dict[str, Any]:
        return next(entry for entry in team.dev.ok("token", "list")["principals"] if entry["name"] == name)

    team.dev.ok("token", "create", "brief", "--expires", "2s")
    team.dev.ok("token", "create", "taken")
    written = team.as_agent("propose", "-m", "y", "--context", "home-taken")
    assert written.returncode == 0, written
    team.dev.ok("token", "revoke", "taken")
    until(lambda: listed("brief")["problem"] != "", 10, "the token to expire")
    for name, rule in (("brief", "grant.expired"), ("taken", "grant.revoked")):
        document = listed(name)
        assert document["problem"].startswith(rule)
        assert (document["kind"], document["roles"], document["verbs"]) == ("agent", [], [])
    entries = team.dev.ok("audit", "--limit", "50")["entries"]
    assert any(entry["names"] == ["taken"] and entry["verb"] == "publish change" for entry in entries)


def test_evidence_is_signed_only_for_environments_that_there_are(team: Team) -> None:
    answer = team.as_agent("test", "--env", "production", "--env", "nope", "--context", "home-bot", "--json")
    told = json.loads(answer.stdout)["error"]
    assert (answer.returncode, told["kind"]) == (2, "no-environment"), answer
    assert "there are: " in told["message"]
    assert "production" in told["message"]
    assert list(team.project.rglob("*-production.json"))
    assert not list(team.project.rglob("*-nope.json"))
