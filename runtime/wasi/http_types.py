"""wasi:http/types: requests, responses, their options and the response-outparam; the host side of incoming-handler.

Scheme and authority of an incoming request are always given: guests rely on it. Fields of the connection are kept from
guests and refused from them. Source: wasi:http 0.2 WIT, with wasmtime's reading of it where the text is open.
Not here: bodies (`http_body.py`), fields (`http_fields.py`), sending outward (`http_outgoing.py`).
"""

from __future__ import annotations

import re
from typing import Any, Final

from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import Guest, GuestTrap, Resource
from runtime.engine.interface import Interface
from runtime.exchange import ErrorCode, Exchange, Headers, RequestBody, ResponseHead
from runtime.wasi import http_body, http_fields
from runtime.wasi.http_body import IncomingBody, OutgoingBody
from runtime.wasi.http_fields import Fields, content_length, incoming
from runtime.wasi.poll import IoError

_METHODS: Final = {
    name: (name.lower(), None)
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
}
_SCHEMES: Final = {"http": ("HTTP", None), "https": ("HTTPS", None)}
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+\-.]*")
_PATH: Final = re.compile(r"[!\"$-~]*")
_AUTHORITY: Final = re.compile(
    r"(?:[^\s@/?#\\]+@)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]+)(?::([0-9]{1,5}))?"
)

Variant = tuple[str, Any]


class IncomingRequest(Resource, wit="incoming-request"):
    """The request being answered."""

    __slots__ = ("consumed", "exchange")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.consumed = False


FAILED: Final = 500
UNAVAILABLE: Final = 503
"""What an app's failure becomes if a service that it needed was away: a visitor and a proxy know then to try again."""


class ResponseOutparam(Resource, wit="response-outparam"):
    """The one way to answer."""

    __slots__ = ("exchange",)

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange


class OutgoingResponse(Resource, wit="outgoing-response"):
    """A response being made."""

    __slots__ = ("body", "fields", "status")

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.status = 200
        self.fields = fields
        self.body: OutgoingBody | None = None


class OutgoingRequest(Resource, wit="outgoing-request"):
    """A request being made."""

    __slots__ = ("authority", "body", "fields", "method", "path_with_query", "scheme")

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.method: Variant = ("get", None)
        self.scheme: Variant | None = None
        self.authority: str | None = None
        self.path_with_query: str | None = None
        self.fields = fields
        self.body: OutgoingBody | None = None


class RequestOptions(Resource, wit="request-options"):
    """Timeouts of one outgoing request, in nanoseconds."""

    __slots__ = ("between_bytes_ns", "connect_ns", "first_byte_ns")

    def __init__(self) -> None:
        super().__init__()
        self.connect_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.between_bytes_ns: int | None = None


class IncomingResponse(Resource, wit="incoming-response"):
    """An answer from outside."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: RequestBody) -> None:
        super().__init__()
        self.status = status
        self.headers = headers
        self.body: RequestBody | None = body

    def dropped(self, guest: Guest) -> None:
        """Nobody will read the body."""
        if self.body is not None:
            self.body.close()


types: Final = Interface("wasi:http/types")
http_fields.add_functions(types)
http_body.add_functions(types)


@types.function("http-error-code")
def _http_error_code(guest: Guest, error: IoError) -> ErrorCode | None:
    return error.code


@types.function("[method]incoming-request.method")
def _method(guest: Guest, this: IncomingRequest) -> Variant:
    method = this.exchange.request.method
    return _METHODS.get(method) or ("other", method)


@types.function("[method]incoming-request.path-with-query")
def _path(guest: Guest, this: IncomingRequest) -> str | None:
    return this.exchange.request.path_with_query or None


@types.function("[method]incoming-request.scheme")
def _scheme(guest: Guest, this: IncomingRequest) -> Variant:
    scheme = this.exchange.request.scheme
    return _SCHEMES.get(scheme) or ("other", scheme)


@types.function("[method]incoming-request.authority")
def _authority(guest: Guest, this: IncomingRequest) -> str:
    return this.exchange.request.authority


@types.function("[method]incoming-request.headers")
def _headers(guest: Guest, this: IncomingRequest) -> Fields:
    return incoming(this.exchange.request.headers)


@types.function("[method]incoming-request.consume")
def _consume_request(guest: Guest, this: IncomingRequest) -> IncomingBody | Err:
    if this.consumed:
        return Err()
    this.consumed = True
    return IncomingBody(this.exchange.body)


@types.function("[static]response-outparam.set")
def _set(guest: Guest, param: ResponseOutparam, response: Ok | Err) -> None:
    writer = param.exchange.response
    if writer.started or writer.refusal is not None:
        raise GuestTrap("response-outparam.set twice for one request")
    if isinstance(response, Err):
        writer.refusal = response.value
        return
    answer: OutgoingResponse = response.value
    fields = answer.fields.frozen()
    limits = guest.services.spec
    if len(fields) > limits.response_fields_max or answer.fields.size > limits.response_fields_max_bytes:
        writer.refusal = ("HTTP-response-header-section-size", answer.fields.size)
        return
    status, away_s = answer.status, param.exchange.retry_after_s
    if status == FAILED and away_s is not None:
        status = UNAVAILABLE
        fields = (*(field for field in fields if field[0] != "retry-after"), ("retry-after", b"%d" % away_s))
    writer.start(ResponseHead(status, fields))
    if answer.body is None:
        writer.finish()
    else:
        answer.body.bind(writer)
        guest.finish_answer = answer.body.left


@types.function("[method]response-outparam.send-informational")
def _send_informational(guest: Guest, this: ResponseOutparam, status: int, headers: Fields) -> Err:
    return Err(("internal-error", "informational responses are not supported"))


@types.function("[constructor]outgoing-response")
def _new_response(guest: Guest, headers: Fields) -> OutgoingResponse:
    headers.mutable = False
    return OutgoingResponse(headers)


@types.function("[method]outgoing-response.status-code")
def _status_code(guest: Guest, this: OutgoingResponse) -> int:
    return this.status


@types.function("[method]outgoing-response.set-status-code")
def _set_status_code(guest: Guest, this: OutgoingResponse, status: int) -> Err | None:
    if not 100 <= status <= 999:
        return Err()
    this.status = status
    return None


@types.function("[method]outgoing-response.headers")
@types.function("[method]outgoing-request.headers")
def _outgoing_headers(guest: Guest, this: OutgoingResponse | OutgoingRequest) -> Fields:
    return Fields(this.fields.entries, mutable=False)


@types.function("[method]outgoing-response.body")
def _response_body(guest: Guest, this: OutgoingResponse) -> OutgoingBody | Err:
    return _make_body(this, "response")


@types.function("[method]outgoing-request.body")
def _request_body(guest: Guest, this: OutgoingRequest) -> OutgoingBody | Err:
    return _make_body(this, "request")


def _make_body(message: OutgoingResponse | OutgoingRequest, direction: http_body.Direction) -> OutgoingBody | Err:
    if message.body is not None:
        return Err()
    try:
        expected = content_length(message.fields.entries)
    except ValueError:
        return Err()
    message.body = OutgoingBody(direction, expected)
    return message.body


@types.function("[constructor]outgoing-request")
def _new_request(guest: Guest, headers: Fields) -> OutgoingRequest:
    headers.mutable = False
    return OutgoingRequest(headers)


@types.function("[method]outgoing-request.method")
def _get_method(guest: Guest, this: OutgoingRequest) -> Variant:
    return this.method


@types.function("[method]outgoing-request.set-method")
def _set_method(guest: Guest, this: OutgoingRequest, method: Variant) -> Err | None:
    if method[0] == "other" and not _TOKEN.fullmatch(method[1]):
        return Err()
    this.method = method
    return None


@types.function("[method]outgoing-request.path-with-query")
def _get_path(guest: Guest, this: OutgoingRequest) -> str | None:
    return this.path_with_query


@types.function("[method]outgoing-request.set-path-with-query")
def _set_path(guest: Guest, this: OutgoingRequest, path: str | None) -> Err | None:
    if path is not None and not _PATH.fullmatch(path):
        return Err()
    this.path_with_query = path
    return None


@types.function("[method]outgoing-request.scheme")
def _get_scheme(guest: Guest, this: OutgoingRequest) -> Variant | None:
    return this.scheme


@types.function("[method]outgoing-request.set-scheme")
def _set_scheme(guest: Guest, this: OutgoingRequest, scheme: Variant | None) -> Err | None:
    if scheme is not None and scheme[0] == "other" and not _SCHEME.fullmatch(scheme[1]):
        return Err()
    this.scheme = scheme
    return None


@types.function("[method]outgoing-request.authority")
def _get_authority(guest: Guest, this: OutgoingRequest) -> str | None:
    return this.authority


@types.function("[method]outgoing-request.set-authority")
def _set_authority(guest: Guest, this: OutgoingRequest, authority: str | None) -> Err | None:
    if authority is not None:
        match = _AUTHORITY.fullmatch(authority)
        if match is None or (match[1] is not None and int(match[1]) > 65535):
            return Err()
    this.authority = authority
    return None


@types.function("[constructor]request-options")
def _new_options(guest: Guest) -> RequestOptions:
    return RequestOptions()


def _add_option(name: str, attribute: str) -> None:
    def get(guest: Guest, this: RequestOptions) -> int | None:
        value: int | None = getattr(this, attribute)
        return value

    def put(guest: Guest, this: RequestOptions, duration: int | None) -> None:
        setattr(this, attribute, duration)

    types.functions[f"[method]request-options.{name}"] = get
    types.functions[f"[method]request-options.set-{name}"] = put


_add_option("connect-timeout", "connect_ns")
_add_option("first-byte-timeout", "first_byte_ns")
_add_option("between-bytes-timeout", "between_bytes_ns")


@types.function("[method]incoming-response.status")
def _response_status(guest: Guest, this: IncomingResponse) -> int:
    return this.status


@types.function("[method]incoming-response.headers")
def _response_headers(guest: Guest, this: IncomingResponse) -> Fields:
    return incoming(this.headers)


@types.function("[method]incoming-response.consume")
def _consume_response(guest: Guest, this: IncomingResponse) -> IncomingBody | Err:
    if this.body is None:
        return Err()
    body, this.body = this.body, None
    return IncomingBody(body)
