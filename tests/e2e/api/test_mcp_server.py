"""The MCP server when things go wrong or take long: it starts whatever is broken, tells progress, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from node.api import rollout_page
from tests.e2e.api.test_mcp import Team
from tests.support.mesh.nodes import until

CODE = "from cli.main import main; main()"
MARK = "freehold-mcp-test-mark"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Team]:
    new_team = Team(tmp_path_factory.mktemp("mcp"), component("hello"))
    try:
        yield new_team
    finally:
        new_team.fleet.close()


def client_in(folder: Path, environment: dict[str, str], *arguments: str) -> Client:
    return Client(
        StdioServerParameters(command=sys.executable, args=["-c", CODE, "mcp", *arguments], env=environment, cwd=folder)
    )


async def told(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer
    error: dict[str, Any] = json.loads(answer.content[0].text)["error"]  # type: ignore[union-attr]
    return error


async def test_a_server_without_a_mesh_or_with_a_broken_project_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    environment = {**os.environ, "FREEHOLD_HOME": str(tmp_path / "home")}
    (tmp_path / "freehold.toml").write_text("[project\nname =")
    async with client_in(tmp_path, environment) as client:
        assert len((await client.list_tools()).tools) > 10
        error = await told(client, "status")
        assert "freehold.toml" in error["message"]
        assert error["next_step"]
        (tmp_path / "freehold.toml").unlink()
        error = await told(client, "status")
        assert "no mesh is known" in error["message"], "the folder was mended, and the server did not look again"
        assert (await client.read_resource("freehold://schema/freehold.toml")).contents
        (page,) = (await client.read_resource(rollout_page.URI)).contents
        assert (page.mime_type, page.text) == (rollout_page.KIND, rollout_page.page())
        assert len((await client.list_prompts()).prompts) == 2


async def test_a_node_that_is_down_is_told_and_one_that_is_back_is_used(team: Team) -> None:
    team.dev.stop()
    async with client_in(team.project, team.dev.environment, "--context", "home-bot") as client:
        error = await told(client, "status")
        assert error["kind"] == "no-node"
        assert "node run" in error["next_step"]
        await asyncio.to_thread(team.dev.start)
        assert not (await client.call_tool("status", {})).is_error


def living() -> list[str]:
    """Process ids of what the test command started."""
    stdout = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in stdout.splitlines()]
    return [line[0] for line in lines if len(line) == 3 and MARK in line[2] and not line[1].startswith("Z")]


def servers() -> set[int]:
    """Process ids of MCP servers of the agent."""
    completed = subprocess.run(["pgrep", "-f", "mcp --context home-bot"], capture_output=True, text=True, check=False)
    return {int(word) for word in completed.stdout.split()}


def slow_test(team: Team) -> None:
    text = (team.project / "freehold.toml").read_text()
    start = text.index("command = ")
    line = f"command = 'sh -c \"sleep 75; : {MARK}\" & sleep 76; : {MARK}'"
    (team.project / "freehold.toml").write_text(text.replace(text[start : text.index("\n", start)], line))


@pytest.mark.parametrize("how", ["cancel", "close", "kill"])
async def test_a_long_test_tells_progress_and_no_process_of_it_outlives_its_call(team: Team, how: str) -> None:
    slow_test(team)
    heard: list[str] = []

    async def hear(_progress: float, _total: float | None, message: str | None) -> None:
        heard.append(message or "")

    before = servers()
    async with client_in(team.project, team.dev.environment, "--context", "home-bot") as client:
        await client.list_tools()
        calling = asyncio.ensure_future(client.call_tool("test", {}, progress_callback=hear))
        await asyncio.to_thread(until, living, 60, "the test command to run")
        await asyncio.to_thread(until, lambda: any("sleep" in text for text in heard), 10, "progress")
        if how == "kill":
            (server,) = servers() - before
            os.kill(server, signal.SIGKILL)
        if how != "close":
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            await asyncio.to_thread(until, lambda: not living(), 10, "the test command to end")
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await asyncio.to_thread(until, lambda: not living(), 10, "the test command to end")


def many_keys(team: Team) -> None:
    """Give the project's app 40 keys of configuration, each of 900 characters."""
    text = (team.project / "freehold.toml").read_text()
    values = "\n".join(f'KEY_{number} = "{str(number) * 450}"' for number in range(10, 50))
    start = text.index("config = ")
    text = text.replace(text[start : text.index("\n", start)], "")
    (team.project / "freehold.toml").write_text(f"{text}\n[app.web.config]\n{values}\n")


async def test_an_answer_of_any_length_is_read_to_its_end(team: Team) -> None:
    many_keys(team)
    async with client_in(team.project, team.dev.environment, "--context", "home-bot") as client:
        parts, cursor = [], ""
        while True:
            answer = await client.call_tool("diff", {"cursor": cursor} if cursor else {})
            assert not answer.is_error, answer.content
            page: dict[str, Any] = answer.structured_content  # type: ignore[assignment]
            parts.append(page["untrusted_part"])
            cursor = page["cursor"]
            if not cursor:
                break
        assert page["page"] == page["pages"] == len(parts) > 2
        whole = json.loads("".join(parts))
        named = {entry["name"] for entry in whole["review"]["differences"] if entry["section"] == "configuration"}
        assert {f"KEY_{number}" for number in range(10, 50)} <= named
        assert (await told(client, "diff", cursor=f"page-{'0' * 24}-1"))["kind"] == "cursor"
