"""`freehold dev` is a mesh of one: every save is decided, commands answer for it, and it survives what a laptop does to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.access.client import RefusedError
from cli.change.proposal import built_here, lane_of, make_proposal, pinned_nodes, start_of
from cli.change.propose import claim_missing_routes, upload
from cli.dev.candidate import put_together
from cli.project.find import open_project
from cli.project.scaffold import CHOICES, create
from protocols.envelope import encode
from tests.support.mesh import dev_process
from tests.support.mesh.dev_process import FIRST_BUILD_TIMEOUT_S, DevProcess, run_freehold, serving
from tests.support.mesh.in_process import LANE, Quiet, a_house


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(dev_process.ENVIRONMENT, "FREEHOLD_HOME", str(tmp_path / "home"))
    folder, _ = create("hello", CHOICES["python"], tmp_path)
    return folder


@pytest.fixture
def running(hello: Path) -> Iterator[DevProcess]:
    with serving(hello) as process:
        yield process


def ask(folder: Path, *arguments: str) -> dict[str, Any]:
    code, answer, said = run_freehold(*arguments, "--context", "dev", folder=folder)
    assert code == 0, (arguments, answer, said)
    return answer


def greet(folder: Path, words: str) -> None:
    """Save an app that says these words."""
    app = folder / "web" / "app.py"
    app.write_text(app.read_text().replace("from hello, visit", f"{words}, visit"))


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def actions(folder: Path) -> list[str]:
    return [entry["action"] for entry in ask(folder, "decisions", "--limit", "100")["decisions"]]


def test_before_the_first_version_serves_visitors_are_told_to_try_again(hello: Path) -> None:
    app = hello / "web" / "app.py"
    good = app.read_text()
    app.write_text("def handle(:\n")
    port = free_port()
    process = DevProcess(hello, "--port", port)
    try:
        assert process.event(FIRST_BUILD_TIMEOUT_S)["event"] == "failed"
        process.address = f"127.0.0.1:{port}"
        early = process.call("/")
        assert (early.status, early.headers["retry-after"]) == (503, "2"), early.text
        assert "Try again" in early.text
        app.write_text(good)
        assert process.event(FIRST_BUILD_TIMEOUT_S)["event"] == "serving"
        assert process.call("/").status == 200
    finally:
        process.stop()


def test_two_saves_are_two_decided_starts_and_commands_answer_for_them(running: DevProcess, hello: Path) -> None:
    assert running.call("/").text == "hello from hello, visit 1\n"
    greet(hello, "says hello")
    second = running.event()
    assert second["event"] == "serving", second
    assert running.call("/").text == "hello says hello, visit 2\n"

    assert actions(hello)[:4] == ["promote", "start", "promote", "start"]
    newest = ask(hello, "decisions")["decisions"][1]
    assert newest["subject"] == second["change"]
    assert len(newest["signers"]) == len(newest["voters"]) == 1
    answers = ask(hello, "why", "hello")["answers"]
    assert "the policy is solo, in the mesh of one that freehold dev made (dev)" in " ".join(answers[0]["answer"])
    assert "no evidence was filed" in answers[1]["answer"][0]  # smoke checks passed, on what is no real build
    assert ask(hello, "audit", "--verify")
    assert any(row["release"] == second["release"] for row in ask(hello, "releases")["releases"])
    assert ask(hello, "status")

    ask(hello, "rollback", "-m", "the first one was better")
    limit_s = time.monotonic() + 20  # it is decided, and obeyed a moment later
    while running.call("/api/visits").headers["freehold-release"] == second["release"] and time.monotonic() < limit_s:
        time.sleep(0.05)
    assert running.call("/").text == "hello from hello, visit 3\n"

    keys = sorted((hello / ".freehold" / "dev" / "keys").iterdir())
    assert [(key.name, stat.S_IMODE(key.stat().st_mode)) for key in keys] == [("admin.json", 0o600), ("me.json", 0o600)]
    assert not (hello.parent / "home" / "contexts.json").exists()


def test_a_dev_that_was_killed_is_started_again_at_once_with_its_data_and_its_chain(hello: Path) -> None:
    port = free_port()
    first = DevProcess(hello, "--port", port)
    assert first.event(FIRST_BUILD_TIMEOUT_S)["event"] == "serving"
    assert first.call("/").text == "hello from hello, visit 1\n"
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    before = 0
    with serving(hello, "--port", port) as again:  # the workers it left behind hold the port for a moment
        assert again.call("/").text == "hello from hello, visit 2\n"
        before = len(actions(hello))
        code, answer, _ = run_freehold("dev", "--port", "0", "--folder", str(hello))
        assert (code, answer["error"]["kind"]) == (1, "running")
    first.stop()
    with serving(hello) as third:
        assert third.call("/").text == "hello from hello, visit 3\n"
        assert len(actions(hello)) == before  # what did not change is not decided again
    code, answer, _ = run_freehold("status", "--context", "dev", folder=hello)
    assert (code, answer["error"]["next_step"]) == (1, "freehold dev")


def test_what_a_version_of_another_day_writes_when_it_is_tried_anew_is_not_shown(hello: Path) -> None:
    app = hello / "web" / "app.py"
    good = app.read_text()
    said = "nobody mends this any more"
    with serving(hello) as process:
        app.write_text(good.replace("    visits = store", f"    raise ValueError('{said}')\n    visits = store"))
        assert process.event()["event"] == "failed"
        assert process.log_with(said)
        before = len(ask(hello, "logs", "--contains", said)["lines"])
    app.write_text(good)
    with serving(hello) as process:
        limit_s = time.monotonic() + 60
        while len(ask(hello, "logs", "--contains", said)["lines"]) == before and time.monotonic() < limit_s:
            time.sleep(0.2)
        assert len(ask(hello, "logs", "--contains", said)["lines"]) > before  # the node did try it again
        assert process.call("/").status == 200
        assert process.log_with("GET")["status"] == 200
        assert not [entry for entry in process.logs if said in str(entry)]


def test_a_damaged_vote_is_reset_visibly_and_the_apps_keep_their_data(hello: Path) -> None:
    with serving(hello) as process:
        assert process.call("/").text == "hello from hello, visit 1\n"
    store = hello / ".freehold" / "dev" / "node" / "vote.db"
    for part in store.parent.glob("vote.db*"):
        part.unlink()
    store.write_bytes(b"not a database, but long enough to be looked at" * 200)
    with serving(hello) as process:
        assert process.call("/").text == "hello from hello, visit 2\n"
        assert "reset" in actions(hello)


async def test_a_real_mesh_refuses_what_dev_runs() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    try:
        root, _ = create("site", CHOICES["python"], folder)
        project = open_project(root)
        bundle = put_together(project, folder / "version", Quiet(), exact=False)
        async with a_house(1) as house:
            await house.prepare_lane()
            async with house.client() as client:
                mesh = await client.mesh()
                proposal = make_proposal(
                    await client.state(), mesh, built_here(project, bundle, house.admin.public_key),
                    environment=LANE[1], request="smuggled", signer=house.admin,
                )  # fmt: skip
                lane = lane_of(await client.state(), *LANE)
                await claim_missing_routes(client, lane, proposal.change.routes, house.admin)
                await upload(client, proposal)
                await client.publish("change", LANE[0], encode(proposal.signed))
                lane = lane_of(await client.state(), *LANE)
                nodes = pinned_nodes(await client.state(), lane, proposal.change)
                with pytest.raises(RefusedError) as refused:
                    await client.start(start_of(mesh, lane, proposal.id, nodes, house.admin))
                assert refused.value.rule == "release.unreleasable"
                assert "freehold deploy" in str(refused.value)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
