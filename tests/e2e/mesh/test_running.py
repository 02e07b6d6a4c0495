"""What a node runs comes back when files, caches and workers that it needs were away for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from cli.change.propose import StartSigner, start_change
from cli.text.output import Output
from cli.views.overview import look
from node.config import read_config
from node.daemon import Daemon
from node.journal.logs import LogFilter
from tests.support.mesh.in_process import House, a_house, until

Component = Callable[[str], Path]


@pytest.fixture
async def house(component: Component) -> AsyncIterator[House]:
    async with a_house(1) as new_house:
        await new_house.prepare_lane()
        await new_house.deploy(component("probe"))
        await until(lambda: new_house.runs(0))
        yield new_house


async def visited(house: House) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{house.ingress(0)}/", headers={"Host": "site.test"}) as answer,
    ):
        return answer.status


async def test_a_base_whose_bytes_are_away_when_the_node_starts_is_served_once_they_are_back(house: House) -> None:
    folder = house.folder / "n0"
    await house.stop(0)
    component = max((folder / "artifacts").iterdir(), key=lambda path: path.stat().st_size)
    component.rename(folder / "aside")
    shutil.rmtree(folder / "compiled")
    await house.start(0)
    await until(lambda: bool(house.control(0).workloads.failures), 60)
    assert not house.runs(0)
    assert any(
        "is not ready here" in warning and "tries again" in warning for warning in house.control(0).concerns.warnings()
    )
    (folder / "aside").rename(component)
    await until(lambda: house.runs(0), 60)
    assert await visited(house) == 200
    await until(lambda: house.control(0).concerns.warnings() == [], 60)


def compilers() -> list[int]:
    """The compiler processes of the daemons in this process."""
    numbers = []
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text().split():
            with contextlib.suppress(OSError):
                if b"runtime.sandbox.compiler" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    numbers.append(int(pid))
    return numbers


async def test_a_change_whose_compiler_was_killed_is_prepared_again_and_starts(
    house: House, component: Component
) -> None:
    shutil.rmtree(house.folder / "n0" / "compiled")
    proposal, _ = await house.propose(component("probe"), app='config = { AGAIN = "1" }')
    await until(lambda: bool(compilers()), 30)
    for pid in compilers():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: proposal.id in house.control(0).workloads.failures, 30)
    async with house.client() as client:
        view = await client.get(f"/v1/changes/{proposal.id.hex()}")
    assert "is not compiled" in view["failure"]
    assert "tries again" in view["failure"]
    assert view["tries_again"]
    await until(lambda: house.based(proposal.id), 60)
    assert house.control(0).workloads.failures == {}


async def test_a_change_is_prepared_once_the_disk_of_compiled_code_is_back(house: House, component: Component) -> None:
    folder = house.folder / "n0" / "compiled"
    shutil.rmtree(folder)
    folder.write_text("a disk that is away")
    proposal, _ = await house.propose(component("probe"), app='config = { AGAIN = "2" }')
    await until(lambda: proposal.id in house.control(0).workloads.failures, 30)
    assert not house.based(proposal.id)
    folder.unlink()
    await until(lambda: house.based(proposal.id), 60)


async def test_a_worker_comes_back_though_the_compiled_code_was_deleted_meanwhile(house: House) -> None:
    shutil.rmtree(house.folder / "n0" / "compiled")
    pool = house.control(0).workloads._pool
    (slot,) = pool.slots()
    assert slot.pid is not None
    os.kill(slot.pid, signal.SIGKILL)
    await until(lambda: pool.slots()[0].pid not in (None, slot.pid), 60)
    assert await visited(house) == 200


async def test_a_start_whose_api_address_is_taken_leaves_no_worker_behind(house: House) -> None:
    folder = house.folder / "n0"
    await house.stop(0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        daemon = Daemon(folder, replace(read_config(folder), api=taken))
        with pytest.raises(OSError, match=taken):
            await daemon.run()
    assert list(daemon.runtime.glob("workers/worker-*.sock")) == []
    await house.start(0)
    await until(lambda: house.runs(0))


async def test_that_compiled_code_was_changed_on_disk_is_in_the_nodes_log(house: House) -> None:
    await house.stop(0)
    for path in (house.folder / "n0" / "compiled").glob("*.cwasm"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    await house.start(0)
    await until(lambda: house.runs(0), 60)
    assert await visited(house) == 200
    assert await house.control(0).logs.recent(LogFilter(contains="compiled artifact removed"), 10)


async def test_a_start_that_voters_refuse_on_what_they_see_takes_few_slots_while_it_waits(component: Component) -> None:
    async with a_house(2) as house:
        await house.prepare_lane()
        control = house.control(0)
        await until(lambda: len(control.core.state.nodes) == 2, 60)
        proposal, _ = await house.propose(component("probe"), down=(house.control(1).core.node,))
        waiting = control.starter.starts[proposal.id]
        await until(lambda: waiting.refused > 0, 60)
        assert waiting.refusal.rule == "fresh.nodes-missed"
        began_s, slot = time.monotonic(), control.core.chain.position.slot
        await until(lambda: waiting.refused >= 3)
        assert time.monotonic() - began_s > 2.5  # after one second, then after two
        assert control.core.chain.position.slot - slot <= 4
        assert waiting.outcome == "waiting"
        async with house.client() as client:
            lane, *_ = (await look(client, "", "")).lanes
            assert f"freehold deploy --change {proposal.id.hex()[:12]}," in lane.waiting[0].words
            await start_change(
                client, Output(as_json=True), proposal.id, signer=house.admin, starter=StartSigner(house.admin)
            )
        await until(lambda: house.based(proposal.id), 60)
