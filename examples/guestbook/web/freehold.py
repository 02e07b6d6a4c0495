"""What a Python app may ask of the node it runs on: stores, SQL databases, blobs, configuration, outbound HTTP, the log.

The same file serves twice. In the sandbox it speaks to the node through the WASI interfaces the app was granted in
freehold.toml. Under a plain Python, as when the app's own tests run, it keeps stores in memory, reads configuration
from `config.values` or the environment, and calls out with the standard library. An app may import nothing but this.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any, Iterable, Iterator, Mapping

try:
    import wit_world  # noqa: F401 - the generated bindings exist only in the sandbox

    IN_SANDBOX = True
except ImportError:
    IN_SANDBOX = False

__all__ = ["IN_SANDBOX", "FreeholdError", "Message", "Request", "Response", "blobs", "config", "fetch", "log", "messaging", "sockets",
           "sql", "store"]  # fmt: skip


class FreeholdError(Exception):
    """The node refused, or a service failed; the message says which and what to change."""


def _binding(name: str) -> Any:
    """Return the generated module of one imported interface, or None if the app was not granted it."""
    try:
        return __import__(f"wit_world.imports.{name}", fromlist=["*"])
    except ImportError:
        return None


if IN_SANDBOX:
    _keyvalue, _atomics = _binding("keyvalue_store"), _binding("atomics")
    _config, _logging, _outgoing = _binding("config_store"), _binding("logging"), _binding("outgoing_handler")
    _consumer, _message_types = _binding("message_consumer"), _binding("message_types")
    _blobstore, _blob_types = _binding("blobstore"), _binding("blob_types")
    from componentize_py_types import Err


class Store:
    """One key-value store; keys are strings, values bytes (or text and JSON through the named methods)."""

    def get(self, key: str) -> bytes | None:
        raise NotImplementedError

    def set(self, key: str, value: bytes | str) -> None:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def exists(self, key: str) -> bool:
        raise NotImplementedError

    def keys(self) -> Iterator[str]:
        raise NotImplementedError

    def increment(self, key: str, delta: int = 1) -> int:
        """Add to a counter, atomically, and return its new value; absent counts as 0."""
        raise NotImplementedError

    def get_json(self, key: str, default: Any = None) -> Any:
        value = self.get(key)
        return default if value is None else json.loads(value)

    def set_json(self, key: str, value: Any) -> None:
        self.set(key, json.dumps(value, separators=(",", ":"), sort_keys=True))


class _MemoryStore(Store):
    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def set(self, key: str, value: bytes | str) -> None:
        self._values[key] = value.encode() if isinstance(value, str) else bytes(value)

    def delete(self, key: str) -> None:
        self._values.pop(key, None)

    def exists(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def increment(self, key: str, delta: int = 1) -> int:
        value = int(self._values.get(key, b"0")) + delta
        self._values[key] = str(value).encode()
        return value


class _SandboxStore(Store):
    def __init__(self, bucket: Any) -> None:
        self._bucket = bucket

    def get(self, key: str) -> bytes | None:
        return _asked(lambda: self._bucket.get(key))

    def set(self, key: str, value: bytes | str) -> None:
        _asked(lambda: self._bucket.set(key, value.encode() if isinstance(value, str) else bytes(value)))

    def delete(self, key: str) -> None:
        _asked(lambda: self._bucket.delete(key))

    def exists(self, key: str) -> bool:
        return _asked(lambda: self._bucket.exists(key))

    def keys(self) -> Iterator[str]:
        cursor = None
        while True:
            page = _asked(lambda: self._bucket.list_keys(cursor))
            yield from page.keys
            if page.cursor is None:
                return
            cursor = page.cursor

    def increment(self, key: str, delta: int = 1) -> int:
        return _asked(lambda: _atomics.increment(self._bucket, key, delta))


def _asked(call: Any) -> Any:
    try:
        return call()
    except Err as error:
        raise FreeholdError(f"key-value store: {type(error.value).__name__.removeprefix('Error_')}: {error.value}") from None


class _Stores:
    """`freehold.store("visitors")`, or `freehold.store.open("visitors")`."""

    def __init__(self) -> None:
        self._memory: dict[str, Store] = {}

    def open(self, name: str) -> Store:
        if not IN_SANDBOX:
            return self._memory.setdefault(name, _MemoryStore())
        if _keyvalue is None:
            raise FreeholdError(f'this app may open no store; add keyvalue = ["{name}"] to its table in freehold.toml')
        try:
            return _SandboxStore(_keyvalue.open(name))
        except Err as error:
            raise FreeholdError(f'store "{name}" is not granted; name it in keyvalue in freehold.toml ({error.value})') from None

    __call__ = open

    def reset(self) -> None:
        """Forget every in-memory store (tests)."""
        self._memory.clear()


class _Config:
    """Configuration and secrets of this app. Outside the sandbox: `values`, then the process's environment."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str, default: str | None = None) -> str | None:
        if not IN_SANDBOX:
            import os

            return self.values.get(key, os.environ.get(key, default))
        import freehold_environ

        freehold_environ.note(key)
        if _config is None or freehold_environ.building:
            return default
        try:
            value = _config.get(key)
        except Err as error:
            raise FreeholdError(f"configuration {key}: {error.value}") from None
        return default if value is None else value

    def __getitem__(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise FreeholdError(f"configuration {key} is not set; add it to config or secrets in freehold.toml")
        return value


class _Databases:
    """`freehold.sql("main")`: a connection of Python's own `sqlite3`, to a database that freehold.toml grants in `sql`.

    Outside the sandbox it is in memory, one for each name.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def open(self, name: str) -> Any:
        import sqlite3

        if IN_SANDBOX:
            return sqlite3.connect(name)
        shared = f"file:freehold-{id(self)}-{name}?mode=memory&cache=shared"
        self._memory.setdefault(name, sqlite3.connect(shared, uri=True, check_same_thread=False))  # keeps it alive
        return sqlite3.connect(shared, uri=True, check_same_thread=False)

    __call__ = open

    def reset(self) -> None:
        """Forget every database (tests)."""
        for connection in self._memory.values():
            connection.close()
        self._memory.clear()


PIECE_BYTES = 256 * 1024
END = 2**64 - 1


class Blob:
    """An object that is read piece by piece: `read`, or a loop over it. `size` is in bytes."""

    def __init__(self, size: int, stream: Any, value: Any = None) -> None:
        self.size = size
        self._stream = stream
        self._value = value

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, or, if it is negative, all that are left; fewer only at the end."""
        found = bytearray()
        while size < 0 or len(found) < size:
            piece = self._piece(PIECE_BYTES if size < 0 else min(size - len(found), PIECE_BYTES))
            if not piece:
                break
            found += piece
        return bytes(found)

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._piece(PIECE_BYTES):
            yield piece

    def _piece(self, size: int) -> bytes:
        if not IN_SANDBOX:
            return self._stream.read(size)
        if size == 0 or self._stream is None:
            return b""
        try:
            return self._stream.blocking_read(size)
        except Err as error:
            if type(error.value).__name__ == "StreamError_Closed":
                return b""
            raise FreeholdError(f"blob: {error.value}") from None

    def close(self) -> None:
        """Let go of it; also at the end of the call."""
        if IN_SANDBOX and self._stream is not None:
            self._stream.__exit__(None, None, None)
        self._stream = None

    def __enter__(self) -> Blob:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


@dataclass(frozen=True)
class BlobInfo:
    """An object's size in bytes and when it was written (seconds since 1970)."""

    name: str
    size: int
    created_s: int


def _pieces(data: Any) -> Iterator[bytes]:
    if isinstance(data, str):
        data = data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), PIECE_BYTES):
            yield bytes(whole[start : start + PIECE_BYTES])
    elif hasattr(data, "read"):
        while piece := data.read(PIECE_BYTES):
            yield piece
    else:
        for piece in data:
            yield from _pieces(piece)


class Blobs:
    """A container of objects; names are strings, objects bytes of any length."""

    def put(self, name: str, data: Any) -> None:
        """Write an object, whole or not at all: bytes, text, a file open for reading, or an iterable of bytes."""
        raise NotImplementedError

    def open(self, name: str, start: int = 0, end: int | None = None) -> Blob:
        """Read an object piece by piece, or its bytes from `start` to `end`, both included."""
        raise NotImplementedError

    def info(self, name: str) -> BlobInfo | None:
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError

    def names(self) -> Iterator[str]:
        raise NotImplementedError

    def get(self, name: str) -> bytes | None:
        """Return an object whole, or None."""
        if self.info(name) is None:
            return None
        with self.open(name) as blob:
            return blob.read()

    def exists(self, name: str) -> bool:
        return self.info(name) is not None


class _MemoryBlobs(Blobs):
    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, int]] = {}

    def put(self, name: str, data: Any) -> None:
        import time

        self._objects[name] = b"".join(_pieces(data)), int(time.time())

    def open(self, name: str, start: int = 0, end: int | None = None) -> Blob:
        import io

        if name not in self._objects:
            raise FreeholdError(f"blob: there is no object {name!r}")
        part = self._objects[name][0][start : None if end is None else end + 1]
        return Blob(len(part), io.BytesIO(part))

    def info(self, name: str) -> BlobInfo | None:
        found = self._objects.get(name)
        return None if found is None else BlobInfo(name, len(found[0]), found[1])

    def delete(self, name: str) -> None:
        self._objects.pop(name, None)

    def names(self) -> Iterator[str]:
        return iter(sorted(self._objects))


class _SandboxBlobs(Blobs):
    def __init__(self, container: Any) -> None:
        self._container = container

    def put(self, name: str, data: Any) -> None:
        value = _blob_types.OutgoingValue.new_outgoing_value()
        try:
            self._container.write_data(name, value)
            with value.outgoing_value_write_body() as stream:
                for piece in _pieces(data):
                    while piece:
                        room = stream.check_write()
                        stream.write(piece[:room])
                        piece = piece[room:]
        except Err as error:
            failed = error.value
            said = failed.value.to_debug_string() if hasattr(failed, "value") else failed
            value.__exit__(None, None, None)
            raise FreeholdError(f"blob {name!r}: {said}") from None
        except BaseException:
            value.__exit__(None, None, None)
            raise
        _blob(lambda: _blob_types.OutgoingValue.finish(value))

    def open(self, name: str, start: int = 0, end: int | None = None) -> Blob:
        value = _blob(lambda: self._container.get_data(name, start, END if end is None else end))
        size = value.size()
        return Blob(size, _blob(lambda: _blob_types.IncomingValue.incoming_value_consume_async(value)))

    def info(self, name: str) -> BlobInfo | None:
        if not _blob(lambda: self._container.has_object(name)):
            return None
        found = _blob(lambda: self._container.object_info(name))
        return BlobInfo(name, found.size, found.created_at)

    def delete(self, name: str) -> None:
        _blob(lambda: self._container.delete_object(name))

    def names(self) -> Iterator[str]:
        with _blob(lambda: self._container.list_objects()) as walk:
            ended = False
            while not ended:
                page, ended = _blob(lambda: walk.read_stream_object_names(500))
                yield from page


def _blob(call: Any) -> Any:
    try:
        return call()
    except Err as error:
        raise FreeholdError(f"blob: {error.value}") from None


class _Containers:
    """`freehold.blobs("uploads")`: a container of objects that freehold.toml grants in `blobs`."""

    def __init__(self) -> None:
        self._memory: dict[str, Blobs] = {}

    def open(self, name: str) -> Blobs:
        if not IN_SANDBOX:
            return self._memory.setdefault(name, _MemoryBlobs())
        if _blobstore is None:
            raise FreeholdError(f'this app may open no container; add blobs = ["{name}"] to its table in freehold.toml')
        return _SandboxBlobs(_blob(lambda: _blobstore.get_container(name)))

    __call__ = open

    def reset(self) -> None:
        """Forget every in-memory container (tests)."""
        self._memory.clear()


def install_sql() -> None:
    """Let Python's `sqlite3` reach the databases the app was granted; called once, before the app is imported."""
    try:
        import sqlite3  # noqa: F401 - a build without it has no databases
    except ImportError:
        return
    import freehold_sqlite3

    freehold_sqlite3.install(_binding("sql_databases"))


def _log(level: str, message: str, context: str = "") -> None:
    if IN_SANDBOX and _logging is not None:
        _logging.log(getattr(_logging.Level, level.upper()), context, message)
    else:
        print(f"{level}: {context + ': ' if context else ''}{message}", file=sys.stderr)


class _Log:
    """One log entry per call: `log.info("signed", context="web")`."""

    def debug(self, message: str, context: str = "") -> None:
        _log("debug", message, context)

    def info(self, message: str, context: str = "") -> None:
        _log("info", message, context)

    def warn(self, message: str, context: str = "") -> None:
        _log("warn", message, context)

    def error(self, message: str, context: str = "") -> None:
        _log("error", message, context)


@dataclass
class Request:
    """What a handler is given. Header names are lower case; `body` is the whole body."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    scheme: str = "http"
    host: str = "localhost"

    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Response:
    """What a handler returns, and what `fetch` returns. An iterable body is sent piece by piece."""

    body: bytes | str | Iterable[bytes] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        return cls(json.dumps(value), status, {"content-type": "application/json"})

    def pieces(self) -> Iterable[bytes]:
        if isinstance(self.body, str):
            return (self.body.encode(),)
        return (self.body,) if isinstance(self.body, bytes) else self.body

    def content(self) -> bytes:
        return b"".join(self.pieces())


@dataclass(frozen=True)
class SocketEvent:
    """What happened to a WebSocket: `kind` is "open", "message" or "close". `data` is a message's text (str) or bytes.

    `code` is why it closed: 1000 and others of RFC 6455, 1006 where the client was lost.
    """

    kind: str
    data: str | bytes = b""
    code: int = 0


class Socket:
    """One WebSocket, for as long as one event is handled. `id` names it to other events; nobody can guess it."""

    def __init__(self, id: str, path: str, query: str, headers: Mapping[str, str]) -> None:
        self.id, self.path, self.query, self.headers = id, path, query, headers
        self.protocol = ""
        """One of those that the client offers (`sec-websocket-protocol`), to be set when it opens."""
        self._said: list[bytes] = []

    def send(self, data: str | bytes) -> None:
        """Send a message to this client: text, or bytes."""
        self._said.append(_event(*_message(data)))

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._said.append(_event("CLOSE", code.to_bytes(2, "big") + reason.encode()))

    def subscribe(self, topic: str) -> None:
        """From now on this client hears what is broadcast to a topic, whichever node that is said on."""
        self._said.append(_event("SUBSCRIBE", topic.encode()))

    def unsubscribe(self, topic: str) -> None:
        self._said.append(_event("UNSUBSCRIBE", topic.encode()))


class _Sockets:
    """`freehold.sockets`: to all who subscribed to a topic, or to one socket by its id. At most once, from an event's handler."""

    def __init__(self) -> None:
        self._now: list[bytes] | None = None

    def broadcast(self, topic: str, data: str | bytes) -> None:
        if self._now is None:
            raise FreeholdError("a topic is told from websocket(socket, event) alone")
        name, content = _message(data)
        self._now.append(_event("PUBLISH", topic.encode() + b"\0" + (b"t" if name == "TEXT" else b"b") + content))

    def send(self, id: str, data: str | bytes) -> None:
        self.broadcast(f"socket:{id}", data)


@dataclass(frozen=True)
class Message:
    """A message of a queue, as an app's `message(message)` gets it; `attempt` counts from 1, `id` is the same each time."""

    subject: str
    data: bytes
    id: str = ""
    attempt: int = 1
    published_ms: int = 0

    def text(self) -> str:
        return self.data.decode()

    def json(self) -> Any:
        return json.loads(self.data)


class _Messaging:
    """`freehold.messaging.publish("jobs", data)`: the message is kept, durably, before the call returns.

    Outside the sandbox nothing is delivered: `published` lists what was said.
    """

    def __init__(self) -> None:
        self.published: list[Message] = []

    def publish(self, subject: str, data: Any) -> None:
        """Put bytes or text into a queue, or anything else as JSON. Raises `FreeholdError`."""
        if isinstance(data, str):
            data = data.encode()
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            data = json.dumps(data, separators=(",", ":")).encode()
        if not IN_SANDBOX:
            self.published.append(Message(subject, bytes(data), str(len(self.published) + 1)))
            return
        if _consumer is None:
            raise FreeholdError(f'this app may publish nowhere; add publish = ["{subject}"] to its table in freehold.toml')
        try:
            _consumer.publish(_message_types.BrokerMessage(subject, bytes(data), None))
        except Err as error:
            raise FreeholdError(f"queue {subject}: {error.value}") from None

    def reset(self) -> None:
        """Forget what was published (tests)."""
        self.published.clear()


def _message(data: str | bytes) -> tuple[str, bytes]:
    return ("TEXT", data.encode()) if isinstance(data, str) else ("BINARY", bytes(data))


def _event(name: str, data: bytes) -> bytes:
    return b"%b %x\r\n%b\r\n" % (name.encode(), len(data), data) if data else name.encode() + b"\r\n"


def _read_events(body: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        name, _, size = body[at:end].partition(b" ")
        at = end + 2
        data = b""
        if size:
            data = body[at : at + int(size, 16)]
            at += len(data) + 2
        yield name.decode(), data


def answer_events(
    on_event: Any, headers: Mapping[str, str], path: str, query: str, body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Have an app handle the events of a request's body; return status, fields and body of the answer."""
    socket = Socket(headers.get("connection-id", ""), path, query, headers)
    sockets._now = socket._said
    try:
        for name, data in _read_events(body):
            if name == "OPEN":
                if on_event(socket, SocketEvent("open")) is False:
                    return 403, [], b""
                socket._said.insert(0, b"OPEN\r\n")
            elif name in ("TEXT", "BINARY"):
                on_event(socket, SocketEvent("message", data.decode() if name == "TEXT" else data))
            elif name == "CLOSE":
                on_event(socket, SocketEvent("close", code=int.from_bytes(data[:2], "big")))
            elif name == "DISCONNECT":
                on_event(socket, SocketEvent("close", code=1006))
    finally:
        sockets._now = None
    fields = [("content-type", "application/websocket-events")]
    if socket.protocol:
        fields.append(("sec-websocket-protocol", socket.protocol))
    return 200, fields, b"".join(socket._said)


def fetch(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | str = b"",
    timeout_s: float = 10.0,
) -> Response:
    """Call another host, which freehold.toml must list in `allow_hosts`. Raises `FreeholdError`."""
    raw = body.encode() if isinstance(body, str) else body
    if not IN_SANDBOX:
        return _fetch_outside(url, method, headers or {}, raw, timeout_s)
    if _outgoing is None:
        raise FreeholdError("this app may call no host; add allow_hosts to its table in freehold.toml")
    import freehold_http

    return freehold_http.fetch(_outgoing, url, method, headers or {}, raw, timeout_s)


def _fetch_outside(url: str, method: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Response:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, data=body or None, method=method, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return Response(answer.read(), answer.status, {key.lower(): value for key, value in answer.headers.items()})
    except urllib.error.HTTPError as answer:
        return Response(answer.read(), answer.code, {key.lower(): value for key, value in answer.headers.items()})
    except OSError as error:
        raise FreeholdError(f"{url}: {error}") from None


store = _Stores()
sql = _Databases()
blobs = _Containers()
messaging = _Messaging()
sockets = _Sockets()
config = _Config()
log = _Log()
