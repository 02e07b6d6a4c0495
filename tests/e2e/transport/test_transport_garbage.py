"""Garbage on the port: strangers and hostile members cost their own connections, bounded memory, and nobody's service.

The bound: with everything below done to it, one after the other, the node's peak memory stays within RSS_GROWTH_MAX of
what it had after its first member was served. A member keeps its link throughout, and its echo, asked for ten times a
second all the while, never takes longer than ECHO_MAX_S; the attackers share its processor and even its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.transport import CONTROL_PROTOCOL
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p import multiaddr, multistream, varint
from protocols.libp2p.multiaddr import Multiaddr
from protocols.libp2p.noise_channel import NoiseChannel
from protocols.libp2p.noise_payload import make_identity
from protocols.libp2p.upgrade import MUXERS, Upgrade
from protocols.libp2p.yamux_frames import DATA, HEADER, INITIAL_WINDOW_BYTES, PING, SYN
from tests.support.mesh import garbage_node
from tests.support.mesh.garbage_node import STUCK
from tests.support.mesh.libp2p_peers import ECHO, SystemEntropy, TestNode, running

RSS_GROWTH_MAX = 64 * 1024 * 1024
ECHO_MAX_S = 3.0
ECHO_EVERY_S = 0.1
ELSEWHERE = "127.0.0.2"
HELLO = multistream.frame(b"/multistream/1.0.0")


class Victim:
    """The node's process, and a member of it in this one."""

    def __init__(self, process: asyncio.subprocess.Process, address: Multiaddr, member: TestNode) -> None:
        self.address = address
        self.member = member
        self._process = process
        self.echoes: list[float] = []
        self.growth_peak = 0
        self.base_rss = self.memory("VmRSS")

    def memory(self, name: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    async def next_reason(self) -> str:
        """Return why the next of its authenticated links ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(5):
            return (await self._process.stdout.readline()).decode().strip()

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def serves_members(self) -> float:
        """Echo over the member's link; return the seconds it took."""
        started = time.perf_counter()
        peer = self.address.peer()
        assert peer is not None
        async with asyncio.timeout(5), await self.member.transport.open_stream(peer, ECHO) as stream:
            await stream.write(b"still there?")
            assert await stream.read_exactly(12) == b"still there?"
            stream.finish()
        return time.perf_counter() - started

    async def is_asked_all_the_while(self) -> None:
        while True:
            await asyncio.sleep(ECHO_EVERY_S)
            self.echoes.append(await self.serves_members())

    async def serves_newcomers(self) -> None:
        """Connect with a fresh identity from the attackers' own address; be admitted and echoed."""
        async with asyncio.timeout(8), running() as newcomer:
            newcomer.transport.set_members({self.address.peer() or newcomer.peer: (self.address,)})
            await newcomer.until(lambda: bool(newcomer.ready))

    async def is_well(self) -> None:
        assert self.running
        await self.serves_members()
        assert not self.member.downs, "the member lost its link"
        assert max(self.echoes, default=0.0) < ECHO_MAX_S, f"an echo took {max(self.echoes):.2f} s"
        self.growth_peak = growth = self.memory("VmHWM") - self.base_rss
        assert growth < RSS_GROWTH_MAX, f"{growth / 2**20:.0f} MiB"


@pytest.fixture
async def victim() -> AsyncIterator[Victim]:
    program = Path(garbage_node.__file__)
    environment = {**os.environ, "PYTHONPATH": str(program.parents[3])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = multiaddr.parse((await process.stdout.readline()).decode().strip())
        async with running() as member:
            member.transport.set_members({address.peer() or member.peer: (address,)})
            await member.until(lambda: bool(member.ready))
            new_victim = Victim(process, address, member)
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(new_victim.is_asked_all_the_while())
                yield new_victim
                asking.cancel()
            assert new_victim.echoes, "the member was never served"
            print(
                f"{len(new_victim.echoes)} echoes meanwhile, median {statistics.median(new_victim.echoes) * 1000:.1f} ms, "
                f"slowest {max(new_victim.echoes) * 1000:.0f} ms; memory +{new_victim.growth_peak >> 20} MiB at its peak"
            )
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
    assert process.returncode == 0


class Attacker:
    """A TCP connection that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.channel: NoiseChannel | None = None

    async def say(self, data: bytes) -> bool:
        """Write; return whether the victim still listens."""
        try:
            self._writer.write(data)
            async with asyncio.timeout(5):
                await self._writer.drain()
        except OSError:
            return False
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def seal(self, frame: bytes) -> bool:
        assert self.channel is not None
        return await self.say(
            b"".join(self.channel.seal(frame[start : start + 65519]) for start in range(0, len(frame), 65519))
        )

    async def authenticate(self) -> None:
        entropy = SystemEntropy()
        identity = make_identity(Ed25519Signer(secrets.token_bytes(32)), entropy, MUXERS)
        upgrade = Upgrade(initiator=True, identity=identity, entropy=entropy, verifier=Ed25519Verifier())
        while upgrade.result is None:
            await self.say(upgrade.data_to_send())
            upgrade.receive_data(await self._reader.read(65536))
        await self.say(upgrade.data_to_send())
        self.channel = upgrade.result.channel

    async def is_cut_off(self) -> bool:
        """Return whether the victim closes the connection within 8 s."""
        try:
            async with asyncio.timeout(8):
                while await self._reader.read(1 << 20):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def attackers(victim: Victim, count: int, source: str = ELSEWHERE) -> AsyncIterator[list[Attacker]]:
    host, port = victim.address.tcp() or ("", 0)
    opened: list[Attacker] = []
    try:
        while len(opened) < count:
            opened.append(Attacker(*await asyncio.open_connection(host, port, local_addr=(source, 0))))
        yield opened
    finally:
        for attacker in opened:
            attacker.close()
        await asyncio.sleep(0)


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length)


def opening(stream_id: int, protocol: str, body: bytes = b"") -> bytes:
    talk = HELLO + multistream.frame(protocol.encode()) + body
    return frame(DATA, SYN, stream_id, len(talk)) + talk


async def test_strangers_who_send_garbage_cost_themselves_alone(victim: Victim) -> None:
    for _ in range(10):
        async with attackers(victim, 50) as crowd:
            for attacker in crowd:
                await attacker.say(secrets.token_bytes(300))
    prefixes = [
        varint.encode(2**31),
        b"\xff" * 20,
        HELLO + varint.encode(1 << 20),
        HELLO + multistream.frame(b"/noise") + b"\xff\xff",
        HELLO + multistream.frame(b"/noise") + b"\x00\x20" + bytes(32),
        HELLO + multistream.frame(b"\xff\xfe") * 3,
        HELLO + multistream.frame(b"/plaintext/2.0.0") * 40,
    ]
    async with attackers(victim, len(prefixes) * 5) as crowd:
        for number, attacker in enumerate(crowd):
            alive = await attacker.say(prefixes[number % len(prefixes)])
            for _ in range(20):
                alive = alive and await attacker.say(bytes(100_000))
        assert all([await attacker.is_cut_off() for attacker in crowd])
    await victim.is_well()


@pytest.mark.parametrize("source", [ELSEWHERE, "127.0.0.1"], ids=["elsewhere", "the members' address"])
async def test_a_thousand_slow_strangers_keep_no_member_out(victim: Victim, source: str) -> None:
    async with attackers(victim, 1000, source) as crowd:
        for attacker in crowd:
            await attacker.say(HELLO[:1])
        await victim.serves_newcomers()
        # One byte after the other, as slowly as may be: being slow keeps no place.
        for place in range(1, 5):
            for attacker in crowd:
                await attacker.say(HELLO[place : place + 1])
            await asyncio.sleep(0.5)
        await victim.serves_newcomers()
        await victim.is_well()


async def test_a_member_that_breaks_the_rules_of_the_muxer_is_cut_off(victim: Victim) -> None:
    junk = bytes(65519)
    async with attackers(victim, 5) as crowd:
        overrun, pings, syns, resets, control = crowd
        for attacker in crowd:
            await attacker.authenticate()
        await asyncio.sleep(0.2)
        await overrun.seal(opening(1, STUCK))
        for _ in range(300 * 16):
            if not await overrun.seal(frame(DATA, 0, 1, len(junk)) + junk):
                break
        for _ in range(200):
            if not await pings.seal(frame(PING, SYN, 0, 7) * 1000):
                break
        for number in range(20):
            burst = b"".join(frame(DATA, SYN, 2 * (1000 * number + i) + 1, 0) for i in range(1000))
            if not await syns.seal(burst):
                break
        for number in range(20):
            ids = [2 * (1000 * number + i) + 1 for i in range(1000)]
            if not await resets.seal(b"".join(frame(DATA, SYN, i, 0) + frame(DATA, 8, i, 0) for i in ids)):
                break
        await control.seal(opening(1, CONTROL_PROTOCOL, (1 << 31).to_bytes(4, "big")))
        assert all([await attacker.is_cut_off() for attacker in crowd])
    assert sorted([await victim.next_reason() for _ in crowd]) == [
        "transport.frame-length",
        "yamux.idle-frames",
        "yamux.idle-frames",
        "yamux.idle-frames",
        "yamux.window-overrun",
    ]
    await victim.is_well()


async def test_a_stream_with_nonsense_inside_loses_the_stream_and_the_link_lives(victim: Victim) -> None:
    async with attackers(victim, 1) as (attacker,):
        await attacker.authenticate()
        await asyncio.sleep(0.2)
        for number, talk in enumerate(
            [b"\xff" * 30, HELLO + multistream.frame(b"\xff") * 30, HELLO + b"\x00", b"\x01x"]
        ):
            assert await attacker.seal(frame(DATA, SYN, 2 * number + 1, len(talk)) + talk)
        for number in range(400):
            assert await attacker.seal(opening(2 * number + 1001, CONTROL_PROTOCOL)), "a second control stream is reset"
        assert await attacker.seal(opening(101, ECHO, b"hello"))
        await asyncio.sleep(0.2)
        assert await attacker.seal(frame(PING, SYN, 0, 1))
    await victim.is_well()


async def test_a_member_that_fills_every_window_it_has_fills_no_more_than_the_cap(victim: Victim) -> None:
    body = bytes(INITIAL_WINDOW_BYTES - 200)
    async with attackers(victim, 1) as (attacker,):
        await attacker.authenticate()
        await asyncio.sleep(0.2)
        for number in range(250):
            assert await attacker.seal(opening(2 * number + 1, STUCK, body))
        await victim.is_well()
        assert await attacker.seal(frame(PING, SYN, 0, 1)), "filling windows is allowed; only streams over the cap go"
    await victim.is_well()
