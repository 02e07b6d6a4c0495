"""The response to one request: from the batches the guest's exchange hands over to bytes on the client's socket.

Whatever the guest does, the client gets a whole response, a plain 5xx that says nothing about the inside, or a broken
connection, never a cut response that looks whole. Not here: framing (`response_head.py`), the rest of the connection.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.exchange import Batch, Exchange, ResponseHead
from runtime.ingress.dispatch import HostedApp
from runtime.ingress.faces import Line
from runtime.ingress.incoming import CLIENT_GONE, Incoming
from runtime.ingress.request_head import GuestRequest
from runtime.ingress.response_head import (
    BODY_TOO_LARGE,
    DEADLINE,
    FAILED,
    UNAVAILABLE,
    BadResponseError,
    Framing,
    IngressProblem,
    frame_chunks,
    frame_end,
    frame_head,
)
from runtime.outcome import Completed, DeadlineExceeded, ErrorResponse, HostFailed, Outcome


class GuestAnswer:
    """The response to one request, from the exchange's batches to the socket."""

    __slots__ = (
        "_app",
        "_begun",
        "_connection",
        "_ended",
        "_framing",
        "_incoming",
        "_request",
        "bytes_out",
        "outcome",
        "status",
    )

    def __init__(self, connection: Line, incoming: Incoming, request: GuestRequest, app: HostedApp) -> None:
        self._connection = connection
        self._incoming = incoming
        self._request = request
        self._app = app
        self._framing: Framing | None = None
        self._begun = False
        self._ended = False
        self.status = 0
        self.bytes_out = 0
        self.outcome: Outcome = Completed()

    @property
    def begun(self) -> bool:
        """Whether the client was sent anything of it."""
        return self._begun

    @property
    def whole(self) -> bool:
        """Whether the client has all that it was promised: to the end, or as many bytes as were declared."""
        framing = self._framing
        if framing is None:
            return False
        return self._ended or framing.bodiless or (framing.length is not None and framing.sent >= framing.length)

    async def relay(self, exchange: Exchange) -> bool:
        """Write what the guest sends until its outcome; return whether the connection may go on."""
        whole = False
        while True:
            batch = await exchange.take()
            try:
                whole = self._write(batch) or whole
            except BadResponseError as error:
                exchange.cancel()
                while batch.outcome is None:
                    batch = await exchange.take()
                self.outcome = HostFailed(f"bad response: {error}", "")
                return self._fail(FAILED)
            if batch.outcome is not None:
                self.outcome = batch.outcome
                break
            if self._connection.drained is not None:
                await self._connection.drained
        if whole and self._framing is not None:
            return self._framing.keep_alive
        return self._fail(self._problem(batch.outcome, exchange.retry_after_s))

    def _write(self, batch: Batch) -> bool:
        """Write one batch; return whether the response is whole now. Raises `BadResponseError`."""
        connection = self._connection
        parts = []
        if batch.head is not None:
            parts.append(self._head(batch.head, batch))
        framing = self._framing
        if framing is None:
            return False
        if batch.chunks:
            parts.append(frame_chunks(framing, batch.chunks))
            self.bytes_out = framing.sent
        if batch.complete:
            parts.append(frame_end(framing, batch.trailers if self._request.wants_trailers else ()))
        if parts and not connection.transport.is_closing():
            self._begun = True
            connection.transport.write(b"".join(parts))
        self._ended = self._ended or batch.complete
        return batch.complete

    def _head(self, head: ResponseHead, batch: Batch) -> bytes:
        incoming, connection = self._incoming, self._connection
        data, self._framing = frame_head(
            head,
            connection.ingress.own_fields(self._request.request_id, self._app.digest),
            method=incoming.method,
            http_1_0=incoming.http_1_0,
            keep_alive=incoming.keep_alive and not connection.ingress.draining and not connection.closing,
            whole_bytes=sum(map(len, batch.chunks)) if batch.whole else None,
            trailers=bool(batch.trailers) and self._request.wants_trailers,
        )
        self.status = head.status
        return data

    def _problem(self, outcome: Outcome | None, away_s: int | None) -> IngressProblem:
        if self._incoming.problem is not None:
            return self._incoming.problem
        match outcome:
            case DeadlineExceeded():
                return DEADLINE
            case ErrorResponse(code="HTTP-request-body-size"):
                return BODY_TOO_LARGE
            case _ if away_s is not None:
                return replace(UNAVAILABLE, retry_after_s=away_s)
            case _:
                return FAILED

    def _fail(self, problem: IngressProblem) -> bool:
        """No whole response came: answer in its place, or break off what has begun, visibly."""
        connection = self._connection
        if connection.transport.is_closing():
            self.status = self.status or CLIENT_GONE
            return False
        if self._begun and self._framing is not None:
            connection.closing = True
            if self._framing.chunked or self._framing.length is not None:
                connection.transport.close()
            else:
                connection.transport.abort()  # the end of the connection would be the end of the body
            return False
        keep_alive = self._incoming.keep_alive and self._incoming.complete and not connection.ingress.draining
        self.status = problem.status
        self.bytes_out = connection.send_problem(
            problem,
            self._request.request_id,
            keep_alive=keep_alive,
            method=self._incoming.method,
            http_1_0=self._incoming.http_1_0,
            release=self._app.digest,
        )
        return keep_alive
