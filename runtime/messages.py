"""What the daemon and its workers say to each other over a Unix socket, and how the bytes are framed.

A worker listens on `worker-SLOT.sock` in a folder of mode 0700 and speaks first: one `Greeting`, with the descriptors
of its listening sockets attached (SCM_RIGHTS, unix(7)), so that a new daemon can adopt a worker that outlived the old
one. After that the daemon asks, each request carrying a number, and the worker answers with the same number in any
order; `LogBatch` alone comes unasked. Not here: who acts on the messages (`worker.py`, `pool.py`).

Frame: 4 bytes big-endian length, then one MessagePack map tagged with its type. A length above the cap, a truncated
frame or an unknown message ends the connection: the two ends are of the same build, so it can only be damage.
"""

from __future__ import annotations

import array
import asyncio
import socket
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from runtime.spec import AppSpec

PROTOCOL_VERSION: Final = 6
"""Raised with every change of a message; a daemon drains and replaces workers that speak another version."""

FRAME_MAX_BYTES: Final = 8 * 1024 * 1024
"""A release with a thousand configuration values, or one job's whole captured output, fits with room to spare."""

GREETING_MAX_BYTES: Final = 30 * 1024
"""The greeting arrives in one `recvmsg`, with its descriptors; Linux splits stream messages only above 32 KiB."""

RELEASES_MAX: Final = 128
"""Releases loaded at once in a worker; their keys, of at most `KEY_MAX_CHARS`, fit the greeting."""

KEY_MAX_CHARS: Final = 160
"""Two hex SHA-256 digests and a separator, with room."""

LISTENERS_MAX: Final = 16
"""Listening sockets of one pool; far below the 253 descriptors one message may carry (unix(7))."""


FORWARD_SOCKET: Final = "forward.sock"
"""Where, in the runtime folder, the daemon takes requests for apps that run on other nodes."""


class ControlError(Exception):
    """The control conversation broke: a bad frame, a closed connection, a refused request."""


class AppLimits(msgspec.Struct, frozen=True):
    """What the ingress grants one app, per worker: guests at once, requests waiting, and the largest request body."""

    concurrency: int = 8
    queue_max: int = 64
    request_body_max_bytes: int = 128 * 1024 * 1024


class AppLoad(msgspec.Struct, frozen=True):
    """One app to host: what the sandbox needs, and its limits at the ingress."""

    spec: AppSpec
    limits: AppLimits = AppLimits()


class ReleaseLoad(msgspec.Struct, frozen=True):
    """One release made ready to run.

    `key` names it among loaded releases: the caller lets it cover the release's digest and the effective configuration,
    so that the same code with new configuration is another key. `digest` is what the `freehold-release` field shows,
    `environment` where it runs, for log lines.
    """

    key: str
    digest: str
    project: str
    apps: tuple[AppLoad, ...]
    environment: str = ""


class WorkerRoute(msgspec.Struct, frozen=True):
    """Requests for `host` (None: any host) under `prefix` go to `app` of the loaded release `key`.

    With `forward` ("PROJECT ENVIRONMENT ROLE") they go to another node instead; `key` and `app` are then empty.
    """

    host: str | None
    prefix: str
    key: str
    app: str
    forward: str = ""


class Greeting(msgspec.Struct, frozen=True, tag="Greeting"):
    """The worker's first words. `build` must equal the daemon's own for the worker to be adopted."""

    version: int
    build: str
    slot: int
    pid: int
    listeners: tuple[str, ...]
    keys: tuple[str, ...]
    draining: bool


class Load(msgspec.Struct, frozen=True, tag="Load"):
    """Make a release ready beside those already loaded; loading a key again does nothing."""

    number: int
    release: ReleaseLoad


class Activate(msgspec.Struct, frozen=True, tag="Activate"):
    """Replace the whole routing table at once; requests under way finish where they began."""

    number: int
    routes: tuple[WorkerRoute, ...]


class Unload(msgspec.Struct, frozen=True, tag="Unload"):
    """Let a release go once its last request has ended; refused while a route names it."""

    number: int
    key: str


class Ping(msgspec.Struct, frozen=True, tag="Ping"):
    """Are you alive?"""

    number: int


class AskStatus(msgspec.Struct, frozen=True, tag="AskStatus"):
    """Ask for the counters."""

    number: int


class RunJob(msgspec.Struct, frozen=True, tag="RunJob"):
    """Run a command app of a loaded release to its end."""

    number: int
    key: str
    app: str
    arguments: tuple[str, ...]
    request_id: str = ""


class Deliver(msgspec.Struct, frozen=True, tag="Deliver"):
    """Have an app of a loaded release handle one message of a queue; `attempt` counts from 1."""

    number: int
    key: str
    app: str
    subject: str
    id: int
    attempt: int
    published_ms: int
    body: bytes


class Migrate(msgspec.Struct, frozen=True, tag="Migrate"):
    """Have an app of a loaded release migrate its data."""

    number: int
    key: str
    app: str


class Drain(msgspec.Struct, frozen=True, tag="Drain"):
    """Accept nothing more, finish what is under way for at most `grace_ms`, then exit 0."""

    number: int
    grace_ms: int


class AwaitDaemon(msgspec.Struct, frozen=True, tag="AwaitDaemon"):
    """The daemon stops and another may follow: serve on without one for at most `limit_ms`, then drain for `grace_ms`.

    Forgotten as soon as a daemon connects.
    """

    number: int
    limit_ms: int
    grace_ms: int


class Done(msgspec.Struct, frozen=True, tag="Done"):
    """The numbered request was carried out."""

    number: int


class RequestRefused(msgspec.Struct, frozen=True, tag="Refused"):
    """The numbered request was not carried out, and changed nothing."""

    number: int
    reason: str


class Pong(msgspec.Struct, frozen=True, tag="Pong"):
    """Alive. `stuck` counts guest threads that ignore their deadline: the daemon replaces such a worker."""

    number: int
    stuck: int


class AppStatus(msgspec.Struct, frozen=True):
    """Counters of one app since its release was loaded in this worker.

    `latency_buckets[i]` counts answers for which a guest was asked, if that took less than 2**i * 64 us (and not less
    than half of it); the last one has no upper bound. `outcomes` is by kind, plus `refused` (queue full) and `expired`
    (deadline passed in the queue). `statuses` counts answers by class ("2xx"), the node's own for this app included, in
    the same moment as latencies; `log_lines_dropped` counts what the app's log allowance did not let through. `engine` is
    "native" where the native engine serves its plain requests, `engine_reason` why it does not in a worker that has it.
    """

    key: str
    app: str
    requests: int
    in_flight: int
    queued: int
    outcomes: dict[str, int]
    statuses: dict[str, int]
    latency_buckets: tuple[int, ...]
    latency_sum_us: int
    log_lines_dropped: int
    engine: str = "python"
    engine_reason: str = ""


class Status(msgspec.Struct, frozen=True, tag="Status"):
    """One worker's counters; `refused` counts requests that reached no app, by the problem's name.

    `engine` is what serves in it, `engine_reason` why not the native one.
    """

    number: int
    pid: int
    slot: int
    resident_bytes: int
    cpu_ms: int
    uptime_ms: int
    connections: int
    logs_dropped: int
    refused: dict[str, int]
    apps: tuple[AppStatus, ...]
    engine: str = "python"
    engine_reason: str = ""


class JobDone(msgspec.Struct, frozen=True, tag="JobDone"):
    """How a job ended. `exit_code` is None unless `outcome` is "exited"; output is cut at the caps, and says so."""

    number: int
    outcome: str
    exit_code: int | None
    reason: str
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    duration_ms: int


DeliveryFate = Literal["done", "failed", "refused"]
"""`refused`: the app had no room, and nothing of it ran."""


class Delivered(msgspec.Struct, frozen=True, tag="Delivered"):
    """What became of a message; `status` is that of the app's answer."""

    number: int
    fate: DeliveryFate
    status: int


class Migrated(msgspec.Struct, frozen=True, tag="Migrated"):
    """How an app answered when it was to migrate its data: the status (503: no guest was asked), and the text if it failed."""

    number: int
    status: int
    said: str


class LogBatch(msgspec.Struct, frozen=True, tag="LogBatch"):
    """Log lines, each one JSON object without its newline, and how many were dropped before them for want of room."""

    lines: tuple[bytes, ...]
    dropped: int


Request = Load | Activate | Unload | Ping | AskStatus | RunJob | Deliver | Migrate | Drain | AwaitDaemon
Answer = Done | RequestRefused | Pong | Status | JobDone | Delivered | Migrated
FromWorker = Greeting | Answer | LogBatch


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind.__name__)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_to_worker: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, dec_hook=_decode_path)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker, dec_hook=_decode_path)


def frame(message: Request | FromWorker) -> bytes:
    """Encode one message with its length; raises `ControlError` above the cap."""
    payload = _encoder.encode(message)
    if len(payload) > FRAME_MAX_BYTES:
        raise ControlError(f"{type(message).__name__} has {len(payload)} bytes, more than {FRAME_MAX_BYTES}")
    return len(payload).to_bytes(4, "big") + payload


def check_length(prefix: bytes, limit_bytes: int = FRAME_MAX_BYTES) -> int:
    """Return the length that a 4-byte prefix announces; raises `ControlError` above `limit_bytes`."""
    length = int.from_bytes(prefix, "big")
    if length > limit_bytes:
        raise ControlError(f"a frame of {length} bytes, more than {limit_bytes}")
    return length


async def _read_payload(reader: asyncio.StreamReader) -> bytes:
    try:
        length = check_length(await reader.readexactly(4))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise ControlError("the connection closed") from error


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Worker side: the daemon's next request; raises `ControlError` when there is none or it is damaged."""
    try:
        return _to_worker.decode(await _read_payload(reader))
    except msgspec.MsgspecError as error:
        raise ControlError(f"damaged request: {error}") from error


async def read_answer(reader: asyncio.StreamReader) -> FromWorker:
    """Daemon side: the worker's next message; raises `ControlError` when there is none or it is damaged."""
    try:
        return _from_worker.decode(await _read_payload(reader))
    except msgspec.MsgspecError as error:
        raise ControlError(f"damaged answer: {error}") from error


def send_greeting(connection: socket.socket, greeting: Greeting, listeners: list[socket.socket]) -> None:
    """Send the greeting and the listeners' descriptors in one message on a fresh, empty, non-blocking socket."""
    data = frame(greeting)
    if len(data) > GREETING_MAX_BYTES or len(listeners) > LISTENERS_MAX:
        raise ControlError("the greeting is too long")
    sent = socket.send_fds(connection, [data], [listener.fileno() for listener in listeners])
    if sent != len(data):
        raise ControlError("the greeting did not fit the socket's buffer")


def receive_greeting(connection: socket.socket) -> tuple[Greeting, list[socket.socket]]:
    """Read a greeting from a readable socket; the caller owns the returned sockets. Raises `ControlError`."""
    room = socket.CMSG_SPACE(LISTENERS_MAX * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(GREETING_MAX_BYTES, room)
    listeners = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
            listeners += [socket.socket(fileno=descriptor) for descriptor in descriptors]
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(data) < 4:
            raise ControlError("the greeting was cut")
        if check_length(data[:4], GREETING_MAX_BYTES) != len(data) - 4:
            raise ControlError("the greeting came in pieces")
        greeting = _from_worker.decode(data[4:])
        if not isinstance(greeting, Greeting) or len(greeting.listeners) != len(listeners):
            raise ControlError("the worker did not greet")
    except (ControlError, msgspec.MsgspecError) as error:
        for listener in listeners:
            listener.close()
        raise ControlError(str(error)) from error
    return greeting, listeners
