"""How the relay of requests ends: it takes no more, and what is under way may end first, for a while."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.mesh.request_relay import Candidates, Forwarding
from runtime.ingress.forwarding import HERE
from runtime.messages import FORWARD_SOCKET


class Serving:
    """Whether this node serves the lane itself, which ends a request that looks for another."""

    here = False

    def serves(self, _lane: Any, _role: str) -> bool:
        return self.here


async def test_what_is_under_way_ends_first_and_nothing_new_is_taken(tmp_path: Path) -> None:
    serving = Serving()
    transport = cast("Any", SimpleNamespace(serve=lambda _protocol, _handler: None))
    relay = Forwarding(
        transport, cast("Any", serving), lambda _lane, role: Candidates((), role, True), lambda _peer: True,
        folder=tmp_path, ingress=tmp_path / "ingress",
    )  # fmt: skip
    running = asyncio.ensure_future(relay.run())
    path = tmp_path / FORWARD_SOCKET
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"shop production base\n")
        while relay._out == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        began_s = time.monotonic()
        await relay.drain(0.2)  # nobody serves it: the limit ends the wait, and not the request
        assert time.monotonic() - began_s >= 0.2
        assert not reader.at_eof()
        with pytest.raises(OSError, match="No such file"):
            await asyncio.open_unix_connection(str(path))

        ended = asyncio.ensure_future(relay.drain(10))
        serving.here = True
        assert await reader.readexactly(len(HERE)) == HERE
        await ended
        assert relay._out == 0
        writer.close()
        running.cancel()
        await asyncio.wait([running])
