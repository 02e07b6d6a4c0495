"""A coding agent, scripted: the official MCP SDK's client against `freehold mcp`, and what it tries that it may not.

It acts with a key of its own, made by `freehold token create`, as a process of the developer's own user. A person would
put a model where this script is; the tools, schemas and refusals are the same. Not here: the story (story.py).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Contexts, StoredKey
from protocols.changes.approvals import Approval, sign_approval
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from tests.support.mesh.nodes import PASSPHRASE, Answer, Machine

CALL_TIMEOUT_S = 300.0


class AgentRefused(Exception):
    """A tool said no; `told` is what it said."""

    def __init__(self, told: dict[str, str]) -> None:
        super().__init__(told["message"])
        self.told = told


class Agent:
    """One conversation over stdio; use as a context manager. Calls block, the client runs on a thread of its own."""

    def __init__(self, machine: Machine, context: str, project: Path) -> None:
        self._machine, self._context, self._project = machine, context, project
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self.calls: list[str] = []
        self.tools: list[str] = []

    def __enter__(self) -> Agent:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._converse())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _converse(self) -> None:
        code = "from cli.main import main; main()"
        command = StdioServerParameters(
            command=sys.executable, args=["-c", code, "mcp", "--context", self._context], env=self._machine.environment,
            cwd=self._project,
        )
        with (self._machine.folder / "mcp.log").open("w") as told:
            async with Client(stdio_client(command, errlog=told)) as self._client:
                self.tools = [tool.name for tool in (await self._client.list_tools()).tools]
                self._ready.set()
                await self._stop.wait()

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; return its structured answer. Raises AgentRefused."""
        self.calls.append(tool)
        asked = asyncio.run_coroutine_threadsafe(self._client.call_tool(tool, arguments), self._loop)
        answer = asked.result(CALL_TIMEOUT_S)
        if answer.is_error:
            raise AgentRefused(json.loads(answer.content[0].text)["error"])
        return answer.structured_content

    def watch(self, change: str, timeout_s: float = 120.0) -> list[str]:
        """Ask for the rollout's state until it ends; return each stage as it was seen, and the end."""
        seen: list[str] = []
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            status = self.call("rollout_status", change=change)
            rollout = status["rollout"]
            now = f"stage {rollout['stage'] + 1} of {len(rollout['stages'])}" if rollout else str(status["state"])
            if now not in seen:
                seen.append(now)
            if rollout is None and (status["state"] == "base" or len(seen) > 1 and seen[-2].startswith("stage")):
                return seen
            time.sleep(0.4)
        raise AssertionError(f"the rollout of {change[:12]} did not end in {timeout_s:.0f} s: {seen}")


def key_of(machine: Machine, context: str) -> tuple[Any, Ed25519Signer]:
    """Return a context and its everyday key: the agent runs as this user, so it can read both files."""
    home = machine.folder / "home"
    known = msgspec.json.decode((home / "contexts.json").read_bytes(), type=Contexts)
    stored = msgspec.json.decode((home / "keys" / f"{context}.json").read_bytes(), type=StoredKey)
    return known.contexts[context], Ed25519Signer(stored.seed)


def approves_by_command(machine: Machine, context: str, change: str) -> Answer:
    """Try to approve as a script of the same user, the passphrase piped in."""
    return machine.run("approve", change, "--context", context, stdin=f"{PASSPHRASE}\n" * 3)


def approves_by_api(machine: Machine, context: str, change: str, project: str) -> str:
    """File an approval that the agent signs with its own key; return why it does not count."""

    async def attempt() -> str:
        where, signer = key_of(machine, context)
        async with NodeClient(where, signer) as client:
            now_ms = time.time_ns() // 1_000_000
            named = Digest(bytes.fromhex(change))
            said = Approval(signer.public_key, named, project, "production", now_ms, now_ms + 3_600_000, "me too")
            try:
                await client.publish("approval", change, sign_approval(signer, await client.mesh(), said))
            except RefusedError as error:
                return str(error)
            papers = await client.get(f"/v1/changes/{change}/papers")
            if not papers["missing"]:
                return ""
            return next((one["problem"] for one in papers["approvals"]), papers["missing"][0]["rule"])

    return asyncio.run(attempt())


def widens_its_grant(machine: Machine, context: str) -> list[str]:
    """Sign wider grants for another key with the agent's own; return the rule that refuses each ("" if none does)."""

    async def attempt() -> list[str]:
        where, signer = key_of(machine, context)
        rules = []
        async with NodeClient(where, signer) as client:
            (held,) = await client.chains(signer.public_key)
            chain = decode(held, tuple[Signed, ...])
            other = Ed25519Signer(secrets.token_bytes(32))
            for roles, projects in ((("approver",), chain_projects(chain)), (("proposer",), (ANY,))):
                wide = Grant(
                    other.public_key, "agent", "wide", roles, projects, (ANY,), time.time_ns() // 1_000_000 + 60_000,
                    secrets.token_bytes(16), digest(chain[-1].payload),
                )
                link = sign(signer, GRANT_DOMAIN, await client.mesh(), wide)
                try:
                    await client.publish("grant", other.public_key.hex(), encode((*chain, link)))
                    rules.append("")
                except RefusedError as error:
                    rules.append(error.rule)
        return rules

    return asyncio.run(attempt())


def chain_projects(chain: tuple[Signed, ...]) -> tuple[str, ...]:
    """Return the projects of a chain's last grant."""
    return decode(chain[-1].payload, Grant).projects
