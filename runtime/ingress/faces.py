"""What the parts of the ingress see of each other: a connection of its front, and an answer of its connection.

The parts are one mechanism in several files; these faces keep the files from importing in a circle. Not here: any of
what they do (front.py, connection.py, answer.py, forwarding.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from runtime.exchange import BodyTaker
from runtime.ingress.dispatch import Dispatcher, HostedApp
from runtime.ingress.incoming import Incoming
from runtime.ingress.proofs import FrontFolder
from runtime.ingress.request_head import Client, GuestRequest, Identifiers, Network
from runtime.ingress.response_head import IngressProblem
from runtime.ingress.routing import Elsewhere, RouteTable
from runtime.ingress.settings import IngressSettings
from runtime.ingress.topics import Topics
from runtime.outcome import Outcome


class Front(Protocol):
    """The worker's front door, as its connections see it."""

    settings: IngressSettings
    dispatcher: Dispatcher
    proxies: tuple[Network, ...]
    identifiers: Identifiers
    tasks: asyncio.TaskGroup
    loop: asyncio.AbstractEventLoop
    routes: RouteTable[HostedApp | Elsewhere]
    runtime_folder: Path
    proofs: FrontFolder
    topics: Topics
    sockets: int
    """How many WebSockets there are."""
    draining: bool

    def own_fields(self, request_id: str, release: str | None) -> bytes:
        """Return the fields this node adds to every response, with their line ends."""
        ...

    def count_refused(self, problem: IngressProblem) -> None:
        """Count a request that was refused before it could be understood."""
        ...

    def access(
        self,
        incoming: Incoming,
        request: GuestRequest,
        app: HostedApp | None,
        path: str,
        *,
        status: int,
        bytes_out: int,
        outcome: Outcome | None,
        closed_s: float | None = None,
        forwarded: str = "",
    ) -> None:
        """Count and log one answered request; `closed_s` is when its guest was done, None where none was asked."""
        ...

    def log_defect(self, where: str) -> None:
        """Log the exception being handled."""
        ...


class Carried(Protocol):
    """A request that another node answers."""

    def cancel(self) -> None:
        """Give it up."""
        ...


class Socket(Protocol):
    """What a connection has become."""

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        ...

    def lost(self) -> None:
        """The client is gone."""
        ...

    def tick(self, now_s: float) -> None:
        """Hold it to its time limits."""
        ...

    def restart(self) -> None:
        """The node stops."""
        ...


class Line(Protocol):
    """A client's connection, as what answers one of its requests sees it."""

    transport: asyncio.Transport
    drained: asyncio.Future[None] | None
    """Ends when the socket takes more; None if it does."""
    closing: bool
    client: Client
    forwarded: Carried | None
    socket: Socket | None

    @property
    def quiet(self) -> bool:
        """Whether nothing came behind the request that is answered."""
        ...

    def read_more(self) -> None:
        """Read the client again."""
        ...

    def read_no_more(self) -> None:
        """Leave what the client sends to its own buffers."""
        ...

    @property
    def ingress(self) -> Front:
        """The front door it came through."""
        ...

    def tell_continue(self, incoming: Incoming) -> None:
        """Have a client that asked first send its body."""
        ...

    async def feed(self, incoming: Incoming, body: BodyTaker, max_bytes: int) -> None:
        """Carry the body to whoever answers, as it comes."""
        ...

    def send_problem(
        self,
        problem: IngressProblem,
        request_id: str,
        *,
        keep_alive: bool,
        method: str,
        http_1_0: bool,
        release: str | None = None,
    ) -> int:
        """Write one of the node's own answers; return its body's size."""
        ...
