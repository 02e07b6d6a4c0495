"""Our node beside py-, js- and go-libp2p: each dials the other; Noise, yamux, identify, ping, 10 MB both ways.

And a whole daemon, which shows strangers out at hello: politely, and counted.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from protocols.libp2p import connection, multiaddr, ping
from protocols.machine import PeerId
from tests.support.mesh.libp2p_peers import BUILDERS, ECHO, LOOPBACK, MissingToolError, dial_with, listening, running
from tests.support.mesh.nodes import Fleet

ECHO_BYTES = 10_000_000
STRANGER_MS = 1500


@pytest.fixture(scope="module", params=list(BUILDERS))
def command(request: pytest.FixtureRequest) -> list[str]:
    try:
        return BUILDERS[request.param]()
    except MissingToolError as missing:
        pytest.skip(str(missing))


@pytest.mark.timeout(600)
async def test_it_dials_us_and_all_works(command: list[str]) -> None:
    async with running(LOOPBACK) as node:
        seen = await dial_with(command, node.address)
        assert seen["peer"] == node.peer
        assert seen["agent"] == "freehold/test"
        assert ping.PROTOCOL in seen["protocols"]
        assert seen["pingMs"] > 0
        assert seen["echo"] == {"bytes": ECHO_BYTES, "same": True}
        await node.until(lambda: len(node.downs) == 1)


@pytest.mark.timeout(600)
async def test_we_dial_it_and_all_works(command: list[str]) -> None:
    async with listening(command) as address, running() as node:
        link = await node.transport.dial([address])
        await node.until(lambda: node.transport.link_to(address.peer() or node.peer) == link)
        who = await node.transport.identify(link)
        assert ECHO in who.protocols
        assert who.observed is not None
        assert await node.transport.is_alive(link, 5)
        peer = node.ups[0].peer
        assert peer == address.peer()
        async with await node.transport.open_stream(peer, ping.PROTOCOL) as stream:
            payload = secrets.token_bytes(32)
            await stream.write(payload)
            assert await stream.read_exactly(32) == payload
            stream.finish()
        sent = secrets.token_bytes(ECHO_BYTES)
        async with await node.transport.open_stream(peer, ECHO) as stream, asyncio.TaskGroup() as group:
            group.create_task(stream.write(sent))
            assert await stream.read_exactly(ECHO_BYTES) == sent
            stream.finish()
            assert await stream.read() == b""


@pytest.mark.timeout(600)
async def test_as_a_stranger_it_may_identify_and_ping_and_is_then_shown_out(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROBATION_MS", STRANGER_MS)
    async with running(LOOPBACK, admits=lambda peer: False) as node:
        seen = await dial_with(command, node.address)
        assert seen["agent"] == "freehold/test"
        assert seen["pingMs"] > 0
        assert ECHO not in seen["protocols"]
        assert "echo" not in seen
        assert seen["refused"]
        assert seen["status"].lower() in ("closed", "notconnected")
        await node.until(lambda: bool(node.downs))
        assert node.downs[0].reason == "connection.probation-timeout"


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_daemon_identifies_itself_answers_pings_and_shows_a_stranger_out_at_hello(
    command: list[str], tmp_path: Path
) -> None:
    fleet = Fleet(tmp_path)
    try:
        machine = await asyncio.to_thread(fleet.found)
        address = multiaddr.parse(machine.status()["mesh_addresses"][0]).with_peer(PeerId(machine.status()["node"]))
        seen = await dial_with(command, address)
        assert seen["peer"] == machine.status()["node"]
        assert seen["agent"].startswith("freehold")
        assert seen["pingMs"] > 0
        assert seen["refused"]
        assert seen["status"].lower() in ("closed", "notconnected")
        metrics = machine.get("/metrics").decode()
        assert "freehold_links 0.0" in metrics
        assert machine.ok("doctor", "--data", str(machine.data))["faults"] == 0
        print([line for line in metrics.splitlines() if line.startswith("freehold_rejected_messages_total{")])
    finally:
        await asyncio.to_thread(fleet.close)
