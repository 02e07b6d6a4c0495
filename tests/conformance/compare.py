"""When two hosts' answers to one request agree, and what each host may add by itself.

Not here: asking. An answer is first made `comparable` (what differs from run to run is taken out), then held against
another one; the result is a list of sentences, empty when they agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.conformance.cases import DEAD, UPSTREAM, Case
from tests.conformance.upstream import DEAD_AUTHORITY
from tests.conformance.wire import Answer, Ask, exchange

OURS_ADDS: Final = frozenset({"date", "x-request-id", "freehold-release"})
WASMTIME_ADDS: Final = frozenset({"date"})
JCO_ADDS: Final = frozenset({"date", "connection", "keep-alive"})
"""Response fields each host adds; all are left out on both sides."""

FRAMING: Final = frozenset({"transfer-encoding", "content-length", "connection", "trailer"})
"""How a host frames a body is its own business, except the length where a case says so: we send a short whole answer
with its length, the peers in chunks; we announce no trailers."""

REQUEST_ADDS: Final = ("traceparent:", "x-forwarded-for:", "x-forwarded-proto:", "x-forwarded-host:", "x-request-id:")
"""Request fields our ingress adds for the guest, left out where a guest shows what it got."""

IGNORED: Final = OURS_ADDS | WASMTIME_ADDS | JCO_ADDS | FRAMING


def ask(port: int, case: Case, upstream: str) -> Answer:
    """Ask one case of the host at `port`; what names this run's ports is replaced in the answer."""
    path = case.ask.path.replace(UPSTREAM, upstream).replace(DEAD, DEAD_AUTHORITY)
    answer = exchange(port, replace(case.ask, path=path))
    return comparable(answer, case, port)


def comparable(answer: Answer, case: Case, port: int) -> Answer:
    """Leave out what may differ between hosts and runs; sort fields by name, the order within a name kept."""
    ignored = IGNORED - {"content-length"} if case.lengths else IGNORED
    headers = sorted(
        ((name.lower(), value) for name, value in answer.headers if name.lower() not in ignored),
        key=lambda pair: pair[0],
    )
    lines = [line for line in answer.body.split("\n") if not line.startswith(REQUEST_ADDS)]
    body = "\n".join(sorted(lines) if case.sorted_body else lines).replace(f"127.0.0.1:{port}", "HOST")
    trailers = tuple((name.lower(), value) for name, value in answer.trailers)
    if case.host_speaks:
        headers, body = [], ""
    return replace(
        answer, headers=tuple(headers), body=body, trailers=trailers, pieces=answer.pieces if case.pieces else 0
    )


def differences(ours: Answer, theirs: Answer, case: Case) -> list[str]:
    """How two comparable answers differ, each as a sentence; `case.ours` is taken into account."""
    if case.ours is not None:
        changes = {"body": case.ours.body, "ending": case.ours.ending, "trailers": case.ours.trailers}
        theirs = replace(theirs, **{name: value for name, value in changes.items() if value is not None})
    texts = []
    same_status = ours.status // 100 == theirs.status // 100 if case.host_speaks else ours.status == theirs.status
    if not same_status:
        texts.append(f"status {ours.status}, the peer says {theirs.status}")
    if not (case.host_speaks and ours.status >= 500) and ours.headers != theirs.headers:
        texts.append(f"fields {ours.headers}, the peer says {theirs.headers}")
    both_cut = ours.ending == theirs.ending == "cut"
    if both_cut:
        if not (ours.body.startswith(theirs.body) or theirs.body.startswith(ours.body)):
            texts.append(f"the cut body {ours.body!r}, the peer's {theirs.body!r}")
    elif ours.body != theirs.body:
        texts.append(f"body {ours.body!r}, the peer says {theirs.body!r}")
    rest = ((name, getattr(ours, name), getattr(theirs, name)) for name in ("ending", "trailers", "pieces"))
    return [*texts, *(f"{name} {mine}, the peer says {other}" for name, mine, other in rest if mine != other)]


__all__ = ["Ask", "ask", "comparable", "differences"]
