"""Foreign libp2p peers as processes, and our own transport as a node that admits everybody. Not a test.

Each foreign peer is a small program under tests/fixtures/{py,js,go}-libp2p with the same two modes, `listen` and
`dial`. It is built once into .cache/, under the digest of its files.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.transport import FramesReceived, LinkDown, LinkReady, LinkUp, Stream, Transport, TransportSettings
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p import multiaddr
from protocols.libp2p.multiaddr import Multiaddr
from protocols.machine import PeerId

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "interop"
ECHO = "/freehold/test/echo/1"
SINK = "/freehold/test/sink/1"
LOOPBACK = multiaddr.parse("/ip4/127.0.0.1/tcp/0")


class SystemEntropy:
    """Entropy of the operating system."""

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)
    stream.finish()


async def sink(stream: Stream) -> None:
    count = 0
    while data := await stream.read():
        count += len(data)
    await stream.write(count.to_bytes(8, "big"))
    stream.finish()


@dataclass
class TestNode:
    """A running transport; `admits` says which peers it lets in. Everything it hears is kept."""

    __test__ = False

    transport: Transport
    admits: Callable[[PeerId], bool] = lambda peer: True
    ups: list[LinkUp] = field(default_factory=list)
    downs: list[LinkDown] = field(default_factory=list)
    ready: list[LinkReady] = field(default_factory=list)
    frames: list[FramesReceived] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def peer(self) -> PeerId:
        return self.transport.peer

    @property
    def address(self) -> Multiaddr:
        return self.transport.listening[0].with_peer(self.peer)

    async def watch(self) -> None:
        async for event in self.transport.events():
            async with self.changed:
                if isinstance(event, LinkUp):
                    self.ups.append(event)
                    if self.admits(event.peer):
                        self.transport.admit(event.link)
                elif isinstance(event, LinkDown):
                    self.downs.append(event)
                elif isinstance(event, LinkReady):
                    self.ready.append(event)
                else:
                    self.frames.append(event)
                self.changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)


def make_transport(*listen: Multiaddr, seed: bytes | None = None) -> Transport:
    transport = Transport(
        TransportSettings(listen=listen, agent_version="freehold/test"),
        signer=Ed25519Signer(seed or secrets.token_bytes(32)),
        verifier=Ed25519Verifier(),
        entropy=SystemEntropy(),
    )
    transport.serve(ECHO, echo)
    transport.serve(SINK, sink)
    return transport


@contextlib.asynccontextmanager
async def running(
    *listen: Multiaddr, admits: Callable[[PeerId], bool] = lambda peer: True, seed: bytes | None = None
) -> AsyncIterator[TestNode]:
    """Run a node for the duration of the block."""
    node = TestNode(make_transport(*listen, seed=seed), admits)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.transport.run()), group.create_task(node.watch())]
        await node.transport.started.wait()
        try:
            yield node
        finally:
            for task in tasks:
                task.cancel()


# --- foreign peers ----------------------------------------------------------------------------------------------------


class MissingToolError(Exception):
    """A tool this machine lacks; the text says which and how to get it."""


def _digest(folder: Path, *names: str) -> str:
    content = b"".join((folder / name).read_bytes() for name in names)
    return hashlib.sha256(content + sys.version.encode()).hexdigest()[:16]


def _need(tool: str, hint: str) -> str:
    text = shutil.which(tool)
    if text is None:
        raise MissingToolError(f"{tool} is missing; {hint}")
    return text


def _build(target: Path, *commands: list[str], cwd: Path) -> None:
    """Run the commands unless `target` is complete; a marker file says it is."""
    marker = target / ".complete"
    if marker.exists():
        return
    for command in commands:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    marker.touch()


def python_peer() -> list[str]:
    gcc = _need("gcc", "on Debian: apt-get install gcc libgmp-dev")
    probe = subprocess.run([gcc, "-E", "-"], input=b"#include <gmp.h>\n", capture_output=True, check=False)
    if probe.returncode:
        raise MissingToolError("gmp.h is missing; on Debian: apt-get install libgmp-dev")
    folder = ROOT / "tests" / "fixtures" / "py-libp2p"
    target = CACHE / f"py-{_digest(folder, 'requirements.txt')}"
    python = str(target / "bin" / "python")
    _build(
        target,
        [sys.executable, "-m", "venv", str(target)],
        [python, "-m", "pip", "install", "--quiet", "-r", str(folder / "requirements.txt")],
        cwd=folder,
    )
    return [python, str(folder / "peer.py")]


def javascript_peer() -> list[str]:
    node = _need("node", "on Debian: apt-get install nodejs npm")
    npm = _need("npm", "on Debian: apt-get install npm")
    folder = ROOT / "tests" / "fixtures" / "js-libp2p"
    names = ("package.json", "package-lock.json", "peer.mjs", "polyfill.mjs")
    target = CACHE / f"js-{_digest(folder, *names)}"
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        # Packages are found from where the importing file lies, so the program lies beside them.
        shutil.copyfile(folder / name, target / name)
    _build(target, [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=target)
    return [node, "--import", str(target / "polyfill.mjs"), str(target / "peer.mjs")]


def go_peer() -> list[str]:
    go = _need("go", "install Go 1.26 or newer")
    folder = ROOT / "tests" / "fixtures" / "go-libp2p"
    target = CACHE / f"go-{_digest(folder, 'go.mod', 'go.sum', 'main.go')}"
    target.mkdir(parents=True, exist_ok=True)
    _build(target, [go, "build", "-o", str(target / "peer"), "."], cwd=folder)
    return [str(target / "peer")]


BUILDERS: dict[str, Callable[[], list[str]]] = {"py": python_peer, "js": javascript_peer, "go": go_peer}


async def dial_with(command: list[str], address: Multiaddr) -> dict[str, Any]:
    """Run a foreign peer that dials `address`; return what it saw."""
    process = await asyncio.create_subprocess_exec(
        *command, "dial", str(address), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-3000:]
    result: dict[str, Any] = json.loads(out)
    return result


@contextlib.asynccontextmanager
async def listening(command: list[str]) -> AsyncIterator[Multiaddr]:
    """Run a foreign peer that listens; yield its address."""
    process = await asyncio.create_subprocess_exec(
        *command,
        "listen",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        yield multiaddr.parse(json.loads(line)["address"])
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
