"""A worker whose apps are Python functions, so that the HTTP side can be tried apart from guests.

Run as `python stub_worker.py SETTINGS`; the app's `config["do"]` names the function.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime.call import CallCancelled, DeadlinePassed
from runtime.exchange import Exchange, ResponseHead
from runtime.ingress.dispatch import HostingError
from runtime.ingress.socket_events import MEDIA_TYPE, SocketEvent, read_events, write_events
from runtime.messages import AppLoad, JobDone, RunJob
from runtime.native.plan import NotNative
from runtime.outcome import BodyAborted, Cancelled, Completed, DeadlineExceeded, NoResponse, Outcome
from runtime.services.log_sink import AppLog
from runtime.workers.settings import WorkerSettings
from runtime.workers.worker import main

TEXT = (("content-type", b"text/plain"),)


def read_all(exchange: Exchange) -> bytes:
    parts = []
    while not exchange.body.drained:
        data = exchange.body.read(65536)
        if data:
            parts.append(data)
        elif exchange.body.failure is not None:
            break
        elif not exchange.body.ended:
            exchange.call.sleep()
    return b"".join(parts)


def write(exchange: Exchange, data: bytes) -> None:
    while data:
        room = exchange.response.permit()
        if room:
            exchange.response.write(data[:room])
            data = data[room:]
        else:
            exchange.call.sleep()


def pause(exchange: Exchange, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        exchange.call.sleep(until_s)


def hello(exchange: Exchange) -> Outcome:
    exchange.response.start(ResponseHead(200, (*TEXT, ("content-length", b"5"))))
    exchange.response.write(b"hello")
    exchange.response.finish()
    return Completed()


def echo(exchange: Exchange) -> Outcome:
    exchange.response.start(ResponseHead(200, TEXT))
    body = exchange.body
    while not body.drained:
        data = body.read(65536)
        if data:
            write(exchange, data)
        elif body.failure is not None:
            exchange.response.abort()
            return BodyAborted(body.failure.value)
        elif not body.ended:
            exchange.call.sleep()
    exchange.response.finish(body.trailers)
    return Completed()


def describe(exchange: Exchange) -> Outcome:
    request = exchange.request
    lines = [f"{request.method} {request.scheme} {request.authority} {request.path_with_query}".encode()]
    lines += [name.encode() + b"=" + value for name, value in request.headers]
    body = read_all(exchange)
    exchange.response.start(ResponseHead(200, TEXT))
    write(exchange, b"\n".join([*lines, b"", body]))
    exchange.response.finish()
    return Completed()


def wait(exchange: Exchange) -> Outcome:
    """Answer after the milliseconds in the query."""
    pause(exchange, int(exchange.request.path_with_query.rpartition("?")[2] or 0) / 1000)
    return hello(exchange)


def hang(exchange: Exchange) -> Outcome:
    """Ignore the deadline, as only a defect of the host could."""
    time.sleep(3600)
    return NoResponse()


def large(exchange: Exchange) -> Outcome:
    exchange.response.start(ResponseHead(200, TEXT))
    for _ in range(1024):
        write(exchange, b"x" * 65536)
    exchange.response.finish()
    return Completed()


def unread(exchange: Exchange) -> Outcome:
    return hello(exchange)


def smuggle(exchange: Exchange) -> Outcome:
    exchange.response.start(ResponseHead(200, (("x", b"a\r\nset-cookie: b"),)))
    exchange.response.finish()
    return Completed()


def short(exchange: Exchange) -> Outcome:
    """Declare more than is sent, in two batches."""
    exchange.response.start(ResponseHead(200, (("content-length", b"100"),)))
    exchange.response.write(b"abc")
    pause(exchange, 0.05)
    exchange.response.finish()
    return Completed()


def sockets(exchange: Exchange) -> Outcome:
    """A WebSocket's app: echoes, and does as a text says (join T, leave T, tell T TEXT, close CODE, wait MS, junk, fail)."""
    events = read_events(read_all(exchange).replace(b"DISCONNECT\r\n", b""))
    said: list[SocketEvent] = []
    for event in events:
        word, _, rest = event.data.decode("utf-8", "replace").partition(" ")
        match event.name, word:
            case "OPEN", _ if exchange.request.path_with_query.endswith("?no"):
                exchange.response.start(ResponseHead(403, ()))
                exchange.response.finish()
                return Completed()
            case "OPEN", _:
                said.append(SocketEvent("OPEN"))
            case "TEXT", "join":
                said.append(SocketEvent("SUBSCRIBE", rest.encode()))
            case "TEXT", "leave":
                said.append(SocketEvent("UNSUBSCRIBE", rest.encode()))
            case "TEXT", "tell":
                topic, _, text = rest.partition(" ")
                said.append(SocketEvent("PUBLISH", topic.encode() + b"\0t" + text.encode()))
            case "TEXT", "close":
                said.append(SocketEvent("CLOSE", int(rest).to_bytes(2) + b"as you say"))
            case "TEXT", "wait":
                pause(exchange, int(rest) / 1000)
                said.append(SocketEvent("TEXT", b"waited"))
            case "TEXT", "fail":
                return NoResponse()
            case (("TEXT" | "BINARY"), _):
                said.append(event)
            case _:
                pass
    kind = (("content-type", MEDIA_TYPE.encode()),)
    exchange.response.start(ResponseHead(200, kind))
    write(exchange, b"JUNK\r\n" if any(event.data == b"junk" for event in events) else write_events(*said))
    exchange.response.finish()
    return Completed()


APPS: dict[str, Callable[[Exchange], Outcome]] = {
    function.__name__: function
    for function in (hello, echo, describe, wait, hang, large, unread, smuggle, short, sockets)
}


class StubApp:
    plan = NotNative("a function of Python")

    def __init__(self, function: Callable[[Exchange], Outcome], timeout_ms: int) -> None:
        self._function = function
        self._timeout_ms = timeout_ms

    def handle(self, exchange: Exchange, request_id: str, trace_id: str) -> Outcome:
        outcome: Outcome
        try:
            outcome = self._function(exchange)
        except CallCancelled:
            outcome = Cancelled()
        except DeadlinePassed:
            outcome = DeadlineExceeded(self._timeout_ms)
        exchange.close(outcome)
        return outcome

    def run_job(self, job: RunJob) -> JobDone:
        return JobDone(job.number, "exited", 0, "", " ".join(job.arguments).encode(), b"", False, False, 1)

    def close(self) -> None:
        return None


class StubHost:
    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def prepare(self, load: AppLoad, log: AppLog) -> StubApp:
        name = load.spec.config.get("do", "hello")
        if name not in APPS:
            raise HostingError(f"no app {name}")
        return StubApp(APPS[name], load.spec.timeout_ms)


if __name__ == "__main__":
    main(StubHost)
