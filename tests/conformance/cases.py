"""The questions of the suite: which fixture, which request, and how strictly two hosts' answers must agree.

Not here: what the right answers are; an independent host says that, live or in `golden/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.conformance.wire import Ask

ALL_TRAILERS: Final = "every trailer the guest set is sent; the peer sends those its `trailer` field names"
NOT_WHOLE: Final = "a response that a trap cut must not look whole"

UPSTREAM: Final = "UPSTREAM"
"""Stands for the loopback server's authority in a path; DEAD for a loopback port nobody listens on."""
DEAD: Final = "DEAD"


@dataclass(frozen=True, slots=True)
class Ours:
    """Where we differ from `wasmtime serve` on purpose: the fields of the answer that do, and why."""

    why: str
    body: str | None = None
    ending: str | None = None
    trailers: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison.

    `host_speaks` means the guest gave no answer, so the host made one up: then only the class of the status and the
    ending must agree. `ours` is how our answer differs on purpose, and why. `sorted_body` compares the body's lines in
    any order. `pieces` also compares how many pieces arrived. `jco` cases are also asked of `jco serve`, which a trap
    ends and which knows no trailers. `lengths` compares `content-length`, which hosts otherwise may choose themselves.
    """

    name: str
    fixture: str
    ask: Ask
    host_speaks: bool = False
    pieces: bool = False
    lengths: bool = False
    sorted_body: bool = False
    ours: Ours | None = None
    jco: bool = True


def _text(*pieces: bytes, path: str = "/echo", **more: object) -> Ask:
    return Ask(path=path, method="POST", pieces=pieces, **more)  # type: ignore[arg-type]


BINARY: Final = bytes(range(256)) * 8
SLOW: Final = (b"first ", b"second ", b"third")

PROBE: Final = (
    Case("root", "probe", Ask()),
    Case("request line", "probe", Ask("/request?a=1&b=%20c")),
    Case("method put", "probe", Ask("/request", method="PUT")),
    Case("method of the guest's own", "probe", Ask("/request", method="PURGE"), jco=False),
    Case("method options", "probe", Ask("/request", method="OPTIONS")),
    Case("path with escapes", "probe", Ask("/request/../x%2Fy//z?q=%C3%A9")),
    Case("absolute target", "probe", Ask("http://example.test/request"), jco=False),
    Case(
        "request fields",
        "probe",
        Ask("/headers", headers=(("X-B", "2"), ("x-a", "1"), ("X-b", "3"))),
        sorted_body=True,
        jco=False,
    ),
    Case("cookies", "probe", Ask("/headers", headers=(("cookie", "a=1"), ("cookie", "b=2"))), jco=False),
    Case("head", "probe", Ask("/", method="HEAD")),
    Case("head with a length", "probe", Ask("/length?declared=5&sent=5", method="HEAD"), lengths=True),
    *(
        Case(f"status {code}", "probe", Ask(f"/status/{code}"))
        for code in (200, 201, 204, 206, 304, 404, 418, 451, 503, 599)
    ),
    Case("echo, one piece", "probe", _text(b"hello")),
    Case("echo, nothing", "probe", Ask("/echo", method="POST", headers=(("content-length", "0"),))),
    Case("echo, no body", "probe", Ask("/echo")),
    Case("echo, binary", "probe", _text(BINARY)),
    Case("echo, chunked", "probe", _text(*SLOW, chunked=True)),
    Case("echo, chunked slowly", "probe", _text(*SLOW, chunked=True, pause_s=0.03)),
    Case("echo, slowly", "probe", _text(*SLOW, pause_s=0.03)),
    Case("echo, a megabyte", "probe", _text(BINARY * 512)),
    Case("echo, spliced", "probe", _text(BINARY * 64, path="/echo?splice=1")),
    Case("count a body", "probe", _text(BINARY * 256, path="/count")),
    Case("unread body", "probe", _text(b"x" * 100_000, path="/unread")),
    Case("streamed in pieces", "probe", Ask("/stream?n=5&ms=80"), pieces=True),
    Case("two megabytes", "probe", Ask("/big?n=2000000")),
    Case(
        "response trailers",
        "probe",
        Ask("/trailers", headers=(("te", "trailers"),)),
        jco=False,
        ours=Ours(ALL_TRAILERS, trailers=(("x-checksum", "abc123"), ("x-second", "yes"))),
    ),
    Case("response trailers nobody asked for", "probe", Ask("/trailers"), jco=False),
    Case(
        "request trailers",
        "probe",
        _text(b"abc", path="/request-trailers", chunked=True, trailers=(("x-sum", "9"),)),
        jco=False,
    ),
    Case("no request trailers", "probe", _text(b"abc", path="/request-trailers", chunked=True), jco=False),
    Case("declared length kept", "probe", Ask("/length?declared=5&sent=5"), lengths=True),
    Case("declared length, body short", "probe", Ask("/length?declared=5&sent=3"), lengths=True, jco=False),
    Case("declared length, body long", "probe", Ask("/length?declared=5&sent=8"), lengths=True, jco=False),
    Case("header rules", "probe", Ask("/header-rules"), jco=False),
    Case("field operations", "probe", Ask("/fields"), jco=False),
    Case("clocks", "probe", Ask("/clocks"), jco=False),
    Case("randomness", "probe", Ask("/random")),
    Case("no response body", "probe", Ask("/no-body"), jco=False),
    Case("error instead of a response", "probe", Ask("/set-error"), host_speaks=True, jco=False),
    Case("trap", "probe", Ask("/trap"), host_speaks=True, jco=False),
    Case("trap in the body", "probe", Ask("/trap-in-body"), jco=False, ours=Ours(NOT_WHOLE, ending="cut")),
    Case("nothing set", "probe", Ask("/nothing"), host_speaks=True, jco=False),
    Case("outparam dropped", "probe", Ask("/drop"), host_speaks=True, jco=False),
    Case("set twice", "probe", Ask("/twice"), jco=False),
    Case("body dropped midway", "probe", Ask("/unfinished"), jco=False),
    Case("status below 100", "probe", Ask("/status/99"), jco=False),
    Case("an informational status", "probe", Ask("/status/103"), host_speaks=True, jco=False),
    Case("proxy", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/plain")),
    Case("proxy, body and method", "probe", _text(b"up and back", path=f"/proxy?authority={UPSTREAM}&path=/echo")),
    Case("proxy, status and fields", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/teapot"), jco=False),
    Case("proxy, streamed", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/slow"), pieces=True),
    Case("proxy, refused", "probe", Ask(f"/proxy?authority={DEAD}"), jco=False),
    Case("proxy, broken off", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/cut"), jco=False),
    Case("proxy, silent", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/silent&first-byte-ms=200"), jco=False),
    Case("proxy, not HTTP", "probe", Ask(f"/proxy?authority={UPSTREAM}&path=/garbage"), jco=False),
    Case("proxy, bad authority", "probe", Ask("/proxy?authority=[x"), jco=False),
)

HELLO: Final = (Case("hello", "hello", Ask()), Case("hello, post", "hello", _text(b"ignored", path="/")))

PYTHON: Final = (
    Case("hello", "python", Ask()),
    Case("fields", "python", Ask("/headers", headers=(("X-Foo", "bar"), ("x-foo", "baz")))),
    Case("status", "python", Ask("/status/418")),
    Case("echo", "python", _text(BINARY * 16)),
    Case("echo, chunked slowly", "python", _text(*SLOW, chunked=True, pause_s=0.03)),
    Case("streamed in pieces", "python", Ask("/stream"), pieces=True),
    Case(
        "trailers",
        "python",
        Ask("/trailers", headers=(("te", "trailers"),)),
        jco=False,
        ours=Ours(ALL_TRAILERS, trailers=(("x-checksum", "abc123"),)),
    ),
    Case("proxy", "python", Ask(f"/proxy?authority={UPSTREAM}&path=/teapot"), jco=False),
    Case("print", "python", Ask("/print")),
    Case("exception", "python", Ask("/raise"), host_speaks=True, jco=False),
    Case("nothing set", "python", Ask("/nothing"), host_speaks=True, jco=False),
    Case("unknown route", "python", Ask("/nowhere")),
)

WSGI: Final = (
    Case("hello", "wsgi", Ask(), lengths=True),
    Case("environ", "wsgi", Ask("/environ?a=b", headers=(("X-Foo", "bar"),))),
    Case("echo", "wsgi", _text(BINARY)),
    Case("unknown page", "wsgi", Ask("/nowhere")),
)

JAVASCRIPT: Final = (
    Case("hello", "javascript", Ask()),
    Case("fields", "javascript", Ask("/headers", headers=(("X-Foo", "bar"),))),
    Case("request", "javascript", Ask("/request?a=b")),
    Case("status", "javascript", Ask("/status/418")),
    Case("echo", "javascript", _text(BINARY * 16)),
    Case("text", "javascript", _text(b"some text", path="/text")),
    Case("json", "javascript", _text(b'{"a": [1, 2]}', path="/json")),
    Case("streamed in pieces", "javascript", Ask("/stream"), pieces=True),
    Case("proxy", "javascript", Ask(f"/proxy?authority={UPSTREAM}&path=/teapot"), jco=False),
    Case("print", "javascript", Ask("/print")),
    Case("exception", "javascript", Ask("/throw"), host_speaks=True, jco=False),
)

BY_FIXTURE: Final = {"probe": PROBE, "hello": HELLO, "python": PYTHON, "wsgi": WSGI, "javascript": JAVASCRIPT}


@dataclass(frozen=True, slots=True)
class CommandCase:
    """One run of a command; a trap's wording is the host's, so `traps` compares only that it failed."""

    name: str
    fixture: str
    arguments: tuple[str, ...]
    traps: bool = False


COMMANDS: Final = tuple(
    CommandCase(f"{fixture}: {name}", fixture, arguments, traps)
    for fixture in ("command", "command-preview1")
    for name, arguments, traps in (
        ("no arguments", (), False),
        ("arguments", ("0", "two words", "caf\u00e9"), False),
        ("exit code", ("3",), False),
        ("trap", ("trap",), True),
    )
)

REUSABLE = ("probe", "python", "wsgi")
"""Fixtures whose instance answers more than once: componentize-js alone makes none such."""
