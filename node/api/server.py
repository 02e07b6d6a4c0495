"""The HTTP server of the API: checks every request against its operation before a handler sees it.

In this order: the Host header (a browser that was lured to a name that resolves here is refused), Origin, the
operation, who calls, parameters, what the caller may do, the body's type, size and shape, the idempotency key. Not here: the
operations themselves, and TLS (the daemon's listeners).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import ETag, web
from aiohttp.web_protocol import RequestHandler

from node.api.callers.callers import Callers
from node.api.callers.connections import Connections
from node.api.callers.scope import EVERYTHING, NOTHING, Scope
from node.api.callers.shares import ADMISSIONS, BODIES, CALLS, FOLLOWERS, LOCAL, Share, Shares
from node.api.callers.strangers import expect, unknown
from node.api.operations import (
    PERFORMER,
    WELL_KNOWN,
    Call,
    Operation,
    Page,
    Parameter,
    Upload,
    document,
    parameters_of,
    value_of,
)
from node.api.problems import (
    NOT_ALLOWED,
    PROBLEM_TYPE_PREFIX,
    Problem,
    ProblemError,
    invalid,
    problem_of,
    response,
    token_refused,
)
from node.api.reference_page import POLICY, page_of
from node.errors import NotDoneError
from node.journal.caused_lines import STRANGERS
from node.loop_time import STRANGERS_SHARE, LoopTime, Metered
from node.transport.half_open import source_of
from protocols.api_models import OutcomeView, StartView
from protocols.keys import Ed25519Signer
from protocols.refusal import Refusal

VERSION = version("freehold")
"""One source: `pyproject.toml`, as the installation recorded it."""

HEADER_MAX_BYTES = 16 * 1024
BODY_TIMEOUT_S = 30.0
"""A body has this long, and for each byte that came what UPLOAD_MIN_BYTES_PER_S adds."""

UPLOAD_MIN_BYTES_PER_S = 64 * 1024
"""A component of 20 MB over a slow line takes five minutes; a slower caller holds a call for nothing."""

WRITES_REMEMBERED_MAX = 4_096
"""Answers kept for retries; what a write does is idempotent by its content too, so an older retry is harmless."""

CALLER_LEFT = "caller.left"
FAILED = "node.failed"
BEGUN = "begun"
"""How a write ended in the audit log when its caller did not wait for the answer, when there was none to give, and when
what is written behind it could not count."""

ETAG_CHARS = 32
SEE_DOCUMENT = "see /v1/openapi.json"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
_KEY = re.compile("[A-Za-z0-9_-]{8,64}")
_log = logging.getLogger("freehold.api")

REQUEST_ID = web.RequestKey("request_id", str)
METER = web.RequestKey("meter", Metered)

_Middleware = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """Makes the aiohttp application of one node."""

    def __init__(
        self,
        operations: Sequence[Operation],
        node: Any,
        callers: Callers,
        hosts: Callable[[], Sequence[str]],
        audit: Callable[[Call, str, str, bool], None],
        settled: Callable[[], Awaitable[bool]],
        authorize: Callable[[str, Operation, Mapping[str, Any], bool], Scope],
        muted: Callable[[], str],
        quota: Callable[[str], Refusal | None],
        performed: Callable[[], Awaitable[None]],
        loop_time: LoopTime,
    ) -> None:
        """Take what the answers need.

        `operations` is the table, `node` the control surface. `audit` notes a write, and `settled` waits until the notes are
        durable. `authorize` raises ProblemError unless a key may do an operation with these parameters; it is told whether
        a token stands for the key. `muted` says why nobody can write now, `quota` why a caller cannot. `performed` waits
        until all that the node believes is durable. `loop_time` is what principals share with members.
        """
        self._node = node
        self._callers = callers
        self._hosts = hosts
        self._audit = audit
        self._settled = settled
        self._authorize = authorize
        self._muted = muted
        self._quota = quota
        self._performed = performed
        self._loop_time, self._strangers_time = loop_time, LoopTime(STRANGERS_SHARE)
        self._connections = Connections()
        self._done: OrderedDict[tuple[str, str], tuple[bytes, int, bytes]] = OrderedDict()
        self._writing: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._shares = Shares()
        self.strangers: dict[RequestHandler, Callable[[], None]] = {}
        """Connections over TCP on which no known key has signed anything yet, oldest first, and what closes each."""
        operations = (*operations, *self._describing())
        self.document = document(operations, VERSION)
        self._page = page_of(self.document)
        self._operations = operations

    def application(self) -> web.Application:
        """Return a new application with every operation routed; serve it on as many sockets as needed."""
        application = web.Application(client_max_size=1 << 31, middlewares=[self._guard])
        application[PERFORMER] = self
        for operation in self._operations:
            endpoint = self._endpoint(operation)
            application.router.add_route(operation.method, operation.path, endpoint, expect_handler=expect)
            if operation.method == "GET" and operation.stream != "always":
                application.router.add_route("HEAD", operation.path, endpoint, expect_handler=expect)
        application.router.add_route("*", "/{path:.*}", unknown, expect_handler=expect)
        return application

    def operation(self, name: str) -> Operation:
        """Return an operation by its name."""
        return next(operation for operation in self._operations if operation.name == name)

    async def within(self, outer: Call, operation: Operation, values: Mapping[str, Any], body: Any) -> bytes:
        """Make a call within another, for the same caller: its grants are held against it as if it came by itself."""
        if outer.bearer is not None and not operation.takes_tokens:
            raise token_refused(f"a token reads and proposes; {operation.name} takes a key's signature")
        path = {
            parameter.name: values[parameter.name]
            for parameter in operation.parameters
            if parameter.place == "path" and parameter.name in values
        }
        query = dict(values)
        scope = outer.scope
        if self._callers.local(outer.request) is None or self._callers.shows_key(outer.request):
            scope = self._authorize(outer.principal, operation, query, outer.bearer is not None)
        call = Call(operation, outer.request, outer.principal, path, query, body, self._node, scope, outer.bearer)
        if operation.access == "write":
            self._require_room(outer.principal)
            answer: web.StreamResponse = await self._perform(operation, call)
        else:
            answer = _render(operation, await _handled(operation, call), outer.request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes | None)
        return answer.body or b"null"

    def _describing(self) -> tuple[Operation, ...]:
        async def describe(_call: Call) -> web.Response:
            """Describe every operation, as OpenAPI 3.1: bodies and answers by type, with an example."""
            return web.Response(body=msgspec.json.encode(self.document), content_type="application/json")

        async def show(_call: Call) -> web.Response:
            """Show the same to people, as one page that loads nothing."""
            return web.Response(
                body=self._page, content_type="text/html", charset="utf-8",
                headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"},
            )  # fmt: skip

        return (
            Operation("openapi", "GET", "/v1/openapi.json", "This document", describe, "open", answer=dict[str, Any]),
            Operation("docs", "GET", "/docs", "This document as a page", show, "open", media="text/html"),
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Middleware) -> web.StreamResponse:
        meter = request[METER] = Metered()
        return await meter.run(self._guarded(request, handler))

    async def _guarded(self, request: web.Request, handler: _Middleware) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = hashlib.blake2b(
            f"{id(request)}{asyncio.get_running_loop().time()}".encode(), digest_size=8
        ).hexdigest()
        try:
            self._check_browser(request)
            answer = await handler(request)
        except ProblemError as error:
            answer = response(error.problem, error.fields)
        except web.HTTPException as error:
            problem = Problem(f"{PROBLEM_TYPE_PREFIX}http", error.reason, error.status, error.reason, SEE_DOCUMENT)
            answer = response(problem, {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a handler failed", extra={"event": "api.error", "request_id": request_id})
            answer = response(
                Problem("urn:freehold:problem:internal", "this node failed", 500, f"request {request_id}; see its log")
            )
        if not answer.prepared:
            answer.headers["Freehold-Request-Id"] = request_id
            if answer.status == 401:
                host = request.host if _HOST.fullmatch(request.host) else "localhost"  # by the socket it is any text
                metadata = f"https://{host}{WELL_KNOWN}"
                answer.headers["WWW-Authenticate"] = (
                    f'Bearer realm="freehold", resource_metadata="{metadata}{"/mcp" * (request.path == "/mcp")}", '
                    'Signature realm="freehold"'
                )
            _validate(request, answer)
            answer.headers.setdefault("Cache-Control", "no-store")
            answer.headers["Server"] = "freehold"
            answer.headers["X-Content-Type-Options"] = "nosniff"
        await self._have_strangers_pay(request)
        return answer

    async def _have_strangers_pay(self, request: web.Request) -> None:
        """Charge what no principal stands for to its address: while that has nothing left, the answer waits."""
        meter = request[METER]
        if not meter.payer and self._callers.local(request) is None:
            meter.pays(source_of(request.remote or ""), self._strangers_time)
            await asyncio.sleep(0)

    def _check_browser(self, request: web.Request) -> None:
        if self._callers.local(request) is None:
            host = _host_of(request.host)
            if host not in self._hosts() and not _is_address(host):
                raise ProblemError(421, "request.host", "wrong host", "the Host header names no address of this node")
        if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site") not in (None, "none", "same-origin"):
            raise ProblemError(403, "request.origin", "no browsers", "the API does not answer pages of other origins")

    def _endpoint(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def endpoint(request: web.Request) -> web.StreamResponse:
            return await self._answer(operation, request)

        return endpoint

    async def _answer(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        # A key that signs is judged as that key on the socket, too: an agent's grant holds there like anywhere.
        must_sign = operation.access == "signed" or self._callers.shows_key(request)
        local = None if must_sign or operation.access == "open" else self._callers.local(request)
        proof = None if local or operation.access == "open" else self._callers.proven(request)
        principal = local or (proof.key if proof is not None else "anybody")
        bearer = proof.bearer if proof is not None else None
        if bearer is not None and not operation.takes_tokens:
            raise token_refused(f"a token reads and proposes; {operation.name} takes a key's signature")
        path = dict(request.match_info)
        query = _query(parameters_of(operation), request, path)
        scope = EVERYTHING if local else NOTHING
        if local is None and operation.access in {"read", "write"}:
            try:
                scope = self._authorize(principal, operation, query, bearer is not None)
            except ProblemError as error:
                if operation.access == "write":
                    await self._note_denied(Call(operation, request, principal, path, query, None, self._node), error)
                raise
            self.strangers.pop(request.protocol, None)
        signed = proof is not None and bearer is None
        payer = _payer(operation, request, scope.payer or principal)
        if scope.payer:
            self._connections.use(scope.payer, request.protocol)
            request[METER].pays(scope.payer, self._loop_time)
            await asyncio.sleep(0)  # it has its turn before its body is read
        with self._shares.hold(_share_of(operation, query), payer):
            caller = _Caller(principal, scope, bearer, payer)
            return await self._called(operation, request, path, query, caller, signed=signed)

    async def _called(
        self,
        operation: Operation,
        request: web.Request,
        path: dict[str, str],
        query: dict[str, Any],
        caller: _Caller,
        *,
        signed: bool,
    ) -> web.StreamResponse:
        """Take the body of a call that may be made, and have it answered."""
        principal, scope, bearer = caller.principal, caller.scope, caller.bearer
        if operation.body is bytes:
            upload = Upload(_pieces(operation, request), bytes.fromhex(path["digest"]))
            if signed:
                self._callers.check_digest(request, upload.digest)
            call = Call(operation, request, principal, path, query, upload, self._node, scope, bearer)
            with self._shares.hold(BODIES, caller.payer):
                return await self._write(operation, call, b"")
        with self._shares.hold(BODIES, caller.payer) if operation.body else nullcontext():
            body = b"".join([piece async for piece in _pieces(operation, request)])
        if signed:
            self._callers.check_digest(request, hashlib.sha256(body).digest())
        call = Call(operation, request, principal, path, query, _decode(operation, body), self._node, scope, bearer)
        if operation.access != "write":
            if operation.access != "open":
                await self._performed()  # nobody is told of a decision that a crash could still undo
            return _render(operation, await _handled(operation, call), request)
        return await self._write(operation, call, body)

    async def _note_denied(self, call: Call, error: ProblemError) -> None:
        """Have a write that its caller's grants do not allow in the audit log; in the node's own log if that is no place.

        Anybody can make a key, so what keys without a grant ask for is never an entry that all nodes must keep.
        """
        if error.problem.rule != NOT_ALLOWED:
            _log.warning(
                "%s %s", call.operation.name, error.problem.rule,
                extra={
                    "event": "api.denied", "principal": call.principal, "payer": STRANGERS,
                    "request_id": call.request[REQUEST_ID],
                },
            )  # fmt: skip
            return
        self._require_room(call.principal)
        await self._note(call, error.problem.rule, refused=True)

    def _require_room(self, principal: str) -> None:
        """Raise ProblemError if this node can take down nothing more, of anybody or of this caller."""
        refusal = self._quota(principal)
        if refusal is not None:
            raise ProblemError(
                429, refusal.rule, "your share is used up", refusal.detail,
                "write through another node: --context; or ask an admin to",
            )  # fmt: skip
        if muted := self._muted():
            raise ProblemError(
                507, "node.muted", "this node can write nothing", muted,
                "free some space there, or ask another node: --context",
            )  # fmt: skip

    async def _write(self, operation: Operation, call: Call, body: bytes) -> web.StreamResponse:
        self._require_room(call.principal)
        key = call.request.headers.get("Idempotency-Key", "")
        if not _KEY.fullmatch(key):
            raise invalid("a write needs an Idempotency-Key of 8 to 64 letters, digits, dashes or underscores")
        request_digest = hashlib.sha256(f"{operation.name} {call.request.raw_path}\n".encode() + body).digest()
        name = (call.principal, key)
        while name in self._writing:  # the first one is still at it: its answer is this one's, too
            await asyncio.shield(self._writing[name])
        known = self._done.get(name)
        if known is not None:
            if known[0] != request_digest:
                raise ProblemError(
                    409, "request.key-reused", "the key was used", "this Idempotency-Key belongs to another request"
                )
            return web.Response(status=known[1], body=known[2], content_type="application/json" if known[2] else None)
        writing = self._writing[name] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._perform(operation, call)
            content = answer.body or b""
            assert isinstance(content, bytes)
            self._done[name] = (request_digest, answer.status, content)
            while len(self._done) > WRITES_REMEMBERED_MAX:
                self._done.popitem(last=False)
        finally:
            del self._writing[name]
            writing.set_result(None)
        return answer

    async def _perform(self, operation: Operation, call: Call) -> web.Response:
        if operation.final:
            await self._note(call, BEGUN)
        try:
            answered = await _handled(operation, call)
        except ProblemError as error:
            await self._note(call, error.problem.rule, refused=True)
            raise
        except BaseException as error:  # what it asked for may happen all the same
            result = CALLER_LEFT if isinstance(error, asyncio.CancelledError) else FAILED
            self._audit(call, result, call.request[REQUEST_ID], False)
            raise
        # A key's bytes are named by the change that uses them, and are taken away again if none does; on the socket, where no
        # key stands for anybody, the entry is all that tells of them.
        named_later = operation.body is bytes and not call.principal.startswith(LOCAL)
        if not operation.final and not named_later:
            refused = isinstance(answered, OutcomeView) and bool(answered.rule)
            await self._note(call, _result(answered), refused=refused)
        answer = _render(operation, answered, call.request)
        assert isinstance(answer, web.Response), "a write answers at once"
        return answer

    async def _note(self, call: Call, result: str, *, refused: bool = False) -> None:
        """Have a write in the audit log before its caller is answered. Raises ProblemError if it is not durable there."""
        self._audit(call, result, call.request[REQUEST_ID], refused)
        if not await self._settled():
            raise ProblemError(
                503, "audit.unsettled", "not in the audit log", f"it ended ({result}), but the log does not hold it yet",
                "freehold doctor; then the same call again, which changes nothing that is done",
            )  # fmt: skip


def _validate(request: web.Request, answer: web.StreamResponse) -> None:
    """Name the content of what was read by its digest, and leave it out for who has it (RFC 9110, sections 8.8 and 13)."""
    if request.method not in {"GET", "HEAD"} or answer.status != 200 or not isinstance(answer, web.Response):
        return
    if not isinstance(answer.body, bytes):
        return
    tag = ETag(hashlib.sha256(answer.body).hexdigest()[:ETAG_CHARS])
    answer.etag = tag
    answer.headers["Cache-Control"] = "private, no-cache"
    known = request.if_none_match or ()
    if any(etag.value in {tag.value, "*"} for etag in known):
        answer.set_status(304)
        answer.body = None


async def _handled(operation: Operation, call: Call) -> Any:
    """Have a handler do its work. Raises ProblemError, also for what another part of the node refused."""
    try:
        return await operation.handler(call)
    except NotDoneError as error:
        raise problem_of(error) from error


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who calls, how far it sees, the signer of its token, if it showed one, and who pays for what it holds."""

    principal: str
    scope: Scope
    bearer: Ed25519Signer | None
    payer: str


def _share_of(operation: Operation, query: Mapping[str, Any]) -> Share:
    """What a call holds while it is under way."""
    if operation.stream == "always" or (operation.stream == "asked" and query.get("follow", False)):
        return FOLLOWERS
    return ADMISSIONS if operation.access == "signed" else CALLS


def _payer(operation: Operation, request: web.Request, payer: str) -> str:
    """Who pays for a call: the principal behind its caller, or its address where anybody can make a key."""
    return source_of(request.remote or "") if operation.access in {"signed", "open"} else payer


def _host_of(field: str) -> str:
    """The host of a Host field, without its port and the brackets of IPv6."""
    if field.startswith("["):
        return field[1:].partition("]")[0]
    return field.partition(":")[0]


def _is_address(host: str) -> bool:
    """Whether a host is an IP address: no name server can make a lured browser's name out of it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _pieces(operation: Operation, request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, within the operation's type, size and patience."""
    if operation.body is None:
        if request.body_exists:
            raise invalid("this operation takes no body")
        return
    wanted = "application/octet-stream" if operation.body is bytes else "application/json"
    if request.content_type != wanted:
        raise ProblemError(415, "request.type", "wrong content type", f"the body must be {wanted}")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ProblemError(415, "request.encoding", "encoded body", "a body is sent as it is, without Content-Encoding")
    if (request.content_length or 0) > operation.body_max_bytes:
        raise _too_large(operation)
    size, loop = 0, asyncio.get_running_loop()
    began_s = loop.time()
    while True:
        try:
            async with asyncio.timeout_at(began_s + BODY_TIMEOUT_S + size / UPLOAD_MIN_BYTES_PER_S):
                piece = await request.content.readany()
        except TimeoutError:
            raise ProblemError(
                408,
                "request.slow",
                "too slow",
                f"after {BODY_TIMEOUT_S:.0f} s fewer than {UPLOAD_MIN_BYTES_PER_S} bytes a second",
                "try again",
            ) from None
        if not piece:
            return
        size += len(piece)
        if size > operation.body_max_bytes:
            raise _too_large(operation)
        yield piece


def _too_large(operation: Operation) -> ProblemError:
    return ProblemError(
        413, "request.too-large", "the body is too large", f"at most {operation.body_max_bytes} bytes are allowed here"
    )


def _decode(operation: Operation, body: bytes) -> Any:
    if operation.body is None:
        return None
    try:
        return msgspec.json.decode(body, type=operation.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        allowed = f"; allowed: {_fields_of(operation.body)}" if "unknown field" in str(error) else ""
        raise invalid(f"the body does not fit the schema of {operation.name}: {error}{allowed}", SEE_DOCUMENT) from None


def _fields_of(body: Any) -> str:
    """The fields of a body's type, of each of its kinds where it has several."""
    kinds = getattr(body, "__args__", (body,))
    return ", ".join(dict.fromkeys(name for kind in kinds for name in kind.__struct_fields__))


def _query(parameters: Sequence[Parameter], request: web.Request, path: dict[str, str]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in parameters if parameter.place == "query"}
    unknown = sorted(set(request.query) - set(known))
    if unknown:
        raise invalid(f"unknown parameter {unknown[0][:40]!r}; allowed: {', '.join(known) or 'none'}", SEE_DOCUMENT)
    twice = next((name for name in known if len(request.query.getall(name, ())) > 1), "")
    if twice:
        raise invalid(f"the parameter {twice} stands there twice")
    values: dict[str, Any] = {}
    for parameter in parameters:
        text = path.get(parameter.name) if parameter.place == "path" else request.query.get(parameter.name)
        if text is not None:
            values[parameter.name] = value_of(parameter, text)
    return values


def _result(answered: Any) -> str:
    """How a write ended, for the audit log: a command may be refused in an answer that says so."""
    match answered:
        case OutcomeView(outcome, _, rule, _):
            return "done" if outcome in {"decided", "started"} else rule or outcome
        case StartView(outcome=outcome, rule=rule):
            return f"{outcome} {rule}".strip() if outcome != "started" else "done"
        case _:
            return "done"


def _render(operation: Operation, answer: Any, request: web.Request) -> web.StreamResponse:
    if isinstance(answer, web.StreamResponse):
        return answer
    if operation.answer is bytes:
        return web.Response(status=operation.status, body=answer, content_type="application/octet-stream")
    if answer is None:
        return web.Response(status=operation.status)
    links = {}
    if isinstance(answer, Page):
        if answer.cursor:
            links["Link"] = f'<{request.rel_url.update_query(cursor=answer.cursor)}>; rel="next"'
        answer = answer.items
    return web.Response(
        status=operation.status, body=msgspec.json.encode(answer), content_type="application/json", headers=links
    )
