"""A start that waits for a person on a node outlives that node's process; without room for it, it is not taken."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.errors import CommandError
from node.decisions.start_queue import FILE_NAME, read_starts
from tests.support.mesh.in_process import LANE, PROJECT, a_house
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until


@pytest.mark.timeout(240)
def test_a_start_that_waits_for_an_approval_is_carried_out_though_its_node_was_killed(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        api = f"127.0.0.1:{free.getsockname()[1]}"
    home = tmp_path_factory.mktemp("k")
    fleet = Fleet(home)
    try:
        machine = fleet.found("one", "--api", api, "--policy", "team")
        machine.typed_ok("env", "create", LANE[1], "-y")
        machine.typed_ok("project", "create", LANE[0])
        line = fleet.invite(machine, "--kind", "principal", "--role", "approver", "--for", "ann")
        ann = Machine(home / "laptop")
        answer = ann.typed("login", line, "--name", "work", "--json", typing=(PASSPHRASE, PASSPHRASE))
        assert answer.code == 0, answer
        folder = home / "site"
        folder.mkdir()
        shutil.copyfile(component("probe"), folder / "web.wasm")
        (folder / "freehold.toml").write_text(PROJECT.format(app="", smoke="/", healthy="0s"))
        asked = machine.run("deploy", "--folder", str(folder), "-m", "greet", "--detach", "--json", timeout_s=120)
        assert asked.code in {0, 5}, asked
        (change,) = [view["id"] for view in machine.ok("changes")["changes"]]

        machine.kill()
        assert len(read_starts(machine.data)) == 1
        waited = (machine.data / FILE_NAME).read_bytes()
        machine.start()
        given_answer = ann.typed("approve", change, "--json")
        assert given_answer.code == 0, given_answer

        def base() -> bool:
            (lane,) = machine.ok("status", "--project", LANE[0])["lanes"]
            return lane["base"] is not None and lane["base"]["change"] == change

        until(base, 60, "the change that was approved is the base")
        until(lambda: not (machine.data / FILE_NAME).exists(), 20, "nothing waits any more")

        machine.kill()
        (machine.data / FILE_NAME).write_bytes(waited)  # as if it was killed between the decision and this file's end
        machine.start()
        until(lambda: not (machine.data / FILE_NAME).exists(), 20, "what was decided waits no more")
        assert json.loads(machine.get(f"/v1/changes/{change}"))["start"]["outcome"] == "started"

        machine.kill()
        (machine.data / FILE_NAME).write_bytes(b"\xff damaged")
        machine.start()
        assert b"the starts that waited here are lost" in machine.log.read_bytes()
    finally:
        fleet.close()


async def test_a_start_that_cannot_be_written_down_is_refused_and_not_held(component: Callable[[str], Path]) -> None:
    async with a_house(1) as house:
        await house.prepare_lane()
        (house.folder / "n0" / (FILE_NAME + ".new")).mkdir()
        with pytest.raises(CommandError) as refused:
            await house.propose(component("probe"))
        assert refused.value.kind == "start.full"
        assert house.control(0).starter.starts == {}
