"""MCP as others speak it: the official TypeScript SDK and the inspector, over HTTP to a node and over standard streams."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.api import rollout_page
from tests.e2e.api.test_mcp import LOOKING, Team
from tests.e2e.api.test_mcp_server import living, many_keys, slow_test
from tests.support.mesh.nodes import until
from tests.support.npm import installed

AGENTS = Path(__file__).parent / "agents"
WAYS = ("http", "stdio")
KEYS = {f"KEY_{number}" for number in range(10, 50)}
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


class Judged(Team):
    """A team's node, how the foreign clients reach it, and a project whose configuration is long."""

    def __init__(self, folder: Path, component: Path) -> None:
        super().__init__(folder, component)
        self.tools = installed(AGENTS)
        self.token = self.dev.ok("token", "create", "far", "--role", "proposer", "--bearer")["token"]
        self.ca = folder / "ca.pem"
        self.ca.write_text(self.dev.run("context", "ca").stdout)
        self.url = f"https://{self.dev.status()['api']}/mcp"
        self.served = [str(Path(sys.executable).with_name("freehold")), "mcp", "--context", "home-bot"]

    def variables(self) -> dict[str, str]:
        return {**self.dev.environment, "NODE_EXTRA_CA_CERTS": str(self.ca)}

    def judge(self, way: str, *steps: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
        """What the SDK's client found on one way to the server."""
        where: dict[str, Any] = (
            {"url": self.url, "fields": {"Authorization": f"Bearer {self.token}"}}
            if way == "http"
            else {
                "command": self.served[0], "args": self.served[1:], "env": self.dev.environment,
                "folder": str(folder or self.project),
            }
        )  # fmt: skip
        program = self.tools / "judge.mjs"
        shutil.copyfile(AGENTS / "judge.mjs", program)
        done = subprocess.run(
            ["node", program, json.dumps({**where, "steps": steps})], env=self.variables(), capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def inspect(self, way: str, *words: str, folder: Path | None = None) -> dict[str, Any]:
        where = (
            [self.url, "--transport", "http", "--header", f"Authorization: Bearer {self.token}"]
            if way == "http"
            else self.served
        )
        program = self.tools / "node_modules" / ".bin" / "mcp-inspector"
        done = subprocess.run(
            [program, "--cli", *where, *words], env=self.variables(), cwd=folder or self.project, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Judged]:
    new_judged = Judged(tmp_path_factory.mktemp("mcp"), component("hello"))
    try:
        yield new_judged
    finally:
        new_judged.fleet.close()


def step(tool: str, **asked: Any) -> dict[str, Any]:
    return {"tool": tool, "asked": asked}


def refusal(answer: dict[str, Any]) -> dict[str, str]:
    assert answer["isError"], answer
    error: dict[str, str] = json.loads(answer["content"][0]["text"])["error"]
    assert error["next_step"]
    return error


def read(found: dict[str, Any]) -> Any:
    """A tool's whole answer, of one part or of several."""
    if "text" in found:
        assert found["pages"] > 1
        return json.loads(found["text"])
    assert not found["answer"].get("isError"), found
    said = found["answer"]["structuredContent"]
    return said.get("untrusted_answer", said)


def configured(view: Any) -> set[str]:
    differences = view.get("review", view)["differences"]
    return {difference["name"] for difference in differences if difference["section"] == "configuration"}


@pytest.mark.parametrize("way", WAYS)
def test_the_sdk_lists_calls_and_is_told_what_is_wrong(judged: Judged, way: str) -> None:
    wrong = step("rollout_status", change="0" * 64)
    document = judged.judge(way, step("list_projects"), wrong, step("status", colour="red"))
    assert LOOKING - {"get_config"} | {"diff", "propose"} <= set(document["tools"])
    projects, unknown, argument = document["steps"]
    assert "hello" in json.dumps(read(projects))
    assert refusal(unknown["answer"])["kind"] in {"change.unknown", "no-such-change"}
    assert refusal(argument["answer"])["kind"] == "arguments"
    assert rollout_page.URI in document["resources"]
    assert (len(document["resources"]) > 1) == bool(document["prompts"]) == (way == "stdio"), (
        "files are beside the project"
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_inspector_lists_calls_and_is_told_what_is_wrong(judged: Judged, way: str) -> None:
    assert "list_projects" in json.dumps(judged.inspect(way, "--method", "tools/list"))
    assert "hello" in json.dumps(judged.inspect(way, "--method", "tools/call", "--tool-name", "list_projects"))
    unknown = ("--tool-name", "rollout_status", "--tool-arg", f"change={'0a' * 32}")
    refusal(judged.inspect(way, "--method", "tools/call", *unknown))


def test_a_broken_project_file_is_told_and_the_connection_stays(judged: Judged, tmp_path: Path) -> None:
    (tmp_path / "freehold.toml").write_text("[project\nname =")
    document = judged.judge("stdio", step("status"), step("build"), folder=tmp_path)
    for entry in document["steps"]:
        assert "freehold.toml" in refusal(entry["answer"])["message"]
    inspected = judged.inspect("stdio", "--method", "tools/call", "--tool-name", "status", folder=tmp_path)
    assert "freehold.toml" in refusal(inspected)["message"]
    far = judged.judge("http", step("build"), step("test"))
    assert {refusal(candidate["answer"])["kind"] for candidate in far["steps"]} == {"needs-files"}


def test_every_answer_of_a_long_project_is_read_to_its_end(judged: Judged) -> None:
    many_keys(judged)
    text = (judged.project / "freehold.toml").read_text()
    (judged.project / "freehold.toml").write_text(text.replace('min_healthy_time = "1s"', 'min_healthy_time = "10s"'))
    proposed = judged.as_agent("deploy", "-m", "forty keys", "--detach", "--context", "home-bot", "--json")
    change = json.loads(proposed.stdout)["change"]
    (built,) = judged.judge("stdio", step("diff"))["steps"]
    assert built["pages"] > 2
    assert configured(read(built)) >= KEYS
    release = json.loads(judged.dev.get(f"/v1/changes/{change}"))["release"]
    near = step("diff", project="hello", environment="production", request="as it is", release=release)
    (far,) = judged.judge("http", near)["steps"]
    assert far["pages"] > 1
    assert configured(read(far)) >= KEYS
    assert judged.ann.typed("approve", change, "--json").code == 0
    (watched,) = judged.judge("http", {**step("watch", change=change), "long": True})["steps"]
    assert read(watched)["state"] == "base", watched
    assert watched["progress"], "a rollout of ten seconds"
    asked = {"rollout_status": {"change": change}, "watch": {"change": change}, "papers": {"change": change}}
    for way, tools in (
        ("stdio", sorted(LOOKING)),
        ("http", ["list_projects", "status", "list_changes", "rollout_status", "papers", "why", "logs", "members",
                  "list_secrets", "watch"]),
    ):  # fmt: skip
        entry = judged.judge(way, *(step(tool, **asked.get(tool, {})) for tool in tools))["steps"]
        answers = dict(zip(tools, map(read, entry), strict=True))
        if way == "stdio":
            assert set(answers["get_config"]["apps"][0]["config"]) == KEYS


def test_a_run_of_75_seconds_tells_progress_and_ends_well(judged: Judged) -> None:
    slow_test(judged)
    (ended,) = judged.judge("stdio", {**step("test"), "long": True})["steps"]
    assert "answer" in ended, ended
    assert read(ended)["passed"] is True
    assert len([entry for entry in ended["progress"] if "sleep" in entry]) >= 15, ended["progress"]
    assert not living()


def test_a_run_that_is_cancelled_leaves_no_process_and_the_server_goes_on(judged: Judged) -> None:
    slow_test(judged)
    cancelled, after = judged.judge("stdio", {**step("test"), "long": True, "cancel": "sleep"}, step("status"))["steps"]
    assert "the judge is satisfied" in cancelled["failed"]
    assert read(after)["me"] == "bot"
    until(lambda: not living(), 10, "the test command to end")
