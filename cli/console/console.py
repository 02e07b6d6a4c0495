"""The console's server on localhost: its page, the requests that the page's key signs, and what is composed for it to sign.

Requests for the node (GET /v1/...) are carried as they are: the node verifies the signature. Those for this server are
verified here. Not here: the page itself (assets/), what a node answers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.login import NEVER_EVERYDAY
from cli.access.passkeys import unpadded
from cli.access.principals import principal_of
from cli.console.acts import Acts, LaneAct, SignedDrawn
from cli.console.approving import Approving, TouchGiven
from cli.console.callers import PageCallers
from cli.console.serving import FIELDS, Handler, origin_of
from cli.errors import CommandError
from cli.text.foreign import plain
from protocols.api_models import OutcomeView
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role, Verb

ENROL_WITHIN_S = 60.0
BROWSER_KEY_MS = 30 * 86_400_000
GATHER_S = 0.25
"""Events that come together are given to the page together: it is woken once for a decision and all that follows from it."""
CARRIED = ("Signature", "Signature-Input", "Content-Digest", "Freehold-Node", "Last-Event-ID", "Accept")
"""Header fields of the page's requests that go on to the node; nothing else does."""

KINDS_CARRIED = ("application/json", "application/problem+json", "text/event-stream")
"""Of the node's answers; any other goes to the page as bytes. What is of this origin as a page or a script is ours alone."""

CARRIED_MAX_BYTES = 16 * 1024 * 1024
"""Of one answer that ends; a stream has no end."""

B = TypeVar("B")


class Enrol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public key (hex) that a browser made."""

    key: str


class Console:
    """One console of one context. Mutable: whether its link was used."""

    def __init__(self, name: str, context: Context, client: NodeClient, everyday: Ed25519Signer, port: int) -> None:
        """Take the context and its name, an open connection, the everyday key, and the page's port."""
        self._name, self._context, self._client, self._everyday = name, context, client, everyday
        self._callers = PageCallers(client, everyday.public_key)
        self._acts = Acts(client)
        self._approving = Approving(context, client, origin_of(port))
        self._made_s, self._used = time.monotonic(), False

    @property
    def by_code(self) -> dict[tuple[str, str], Handler]:
        """What the link's code opens: one enrolment, within a minute."""
        return {("POST", "/console/enrol"): self._enrol}

    @property
    def signed(self) -> dict[tuple[str, str], Handler]:
        """All else."""
        return {
            ("GET", "/console/where"): self._where,
            ("GET", "/v1/{path:.*}"): self._carry,
            ("POST", "/console/change"): self._own(str, self._approving_shown),
            ("POST", "/console/approve"): self._own(TouchGiven, lambda _, given: self._approving.take(given)),
            ("POST", "/console/draw"): self._own(LaneAct, self._acts.draw),
            ("POST", "/console/decide"): self._own(SignedDrawn, self._decide),
        }

    async def _where(self, _: web.Request) -> web.Response:
        return _json({"mesh": self._context.mesh, "name": self._name, "node": self._context.pin,
                      "authority": self._client.authority})  # fmt: skip

    # --- enrolment ----------------------------------------------------------------------------------------------------

    async def _enrol(self, request: web.Request) -> web.Response:
        if self._used or time.monotonic() - self._made_s > ENROL_WITHIN_S:
            return _no("this link was used, or is older than a minute: run freehold console again")
        try:
            said = msgspec.json.decode(await request.read(), type=Enrol)
            key = bytes.fromhex(said.key)
        except (msgspec.DecodeError, ValueError):
            return _no("the page sent no key; load it again")
        if len(key) != len(self._everyday.public_key):
            return _no("the page sent no Ed25519 key")
        self._used = True
        try:
            grant = await asyncio.shield(self._grant(key))
        except CommandError as error:
            return _no(str(error))
        return _json({"name": grant.name, "expires_ms": grant.expires_ms})

    async def _grant(self, key: bytes) -> Grant:
        """Give the browser's key what the everyday key has: never the right to approve or to administer."""
        mine = await principal_of(self._client, self._everyday.public_key)
        if mine.problem or not mine.chains:
            raise CommandError(
                f"your key has no grant to share: {mine.problem or 'an admin key gives none away'}",
                next_step="freehold token list", kind="grant.none",
            )  # fmt: skip
        held = next((rights for rights in mine.each if "view" in rights.verbs), mine.each[0])
        chain = mine.chain_of(held)
        verbs: tuple[Verb, ...] = tuple(verb for verb in held.verbs if verb not in {"approve", "admin"})  # type: ignore[misc]
        roles: tuple[Role, ...] = tuple(role for role in held.roles if role not in NEVER_EVERYDAY) or held.roles  # type: ignore[misc, assignment]
        grant = Grant(
            key=key, kind=mine.kind, name=f"{mine.name}'s browser"[:63], roles=roles, projects=held.projects,  # type: ignore[arg-type]
            environments=held.environments, verbs=verbs, nonce=secrets.token_bytes(16),
            expires_ms=min(held.expires_ms, time.time_ns() // 1_000_000 + BROWSER_KEY_MS),
            parent=bytes(digest(chain[-1].payload)),
        )  # fmt: skip
        link = sign(self._everyday, GRANT_DOMAIN, await self._client.mesh(), grant)
        await self._client.publish("grant", key.hex(), encode((*chain, link)))
        return grant

    # --- what the browser's key signed --------------------------------------------------------------------------------

    async def _carry(self, request: web.Request) -> web.StreamResponse:
        """Bring a signed GET to the node and its answer back, piece by piece."""
        fields = {name: request.headers[name] for name in CARRIED if name in request.headers}
        if "Signature" not in fields:
            return web.Response(status=401, text="only signed requests are carried")
        async with self._client.carried(request.raw_path, fields) as client_response:
            kind = (
                client_response.content_type
                if client_response.content_type in KINDS_CARRIED
                else "application/octet-stream"
            )
            streamed, left_bytes = kind == "text/event-stream", CARRIED_MAX_BYTES
            answer = web.StreamResponse(status=client_response.status, headers={**FIELDS, "Content-Type": kind})
            await answer.prepare(request)
            try:
                while piece := await client_response.content.readany():
                    if streamed:
                        await asyncio.sleep(GATHER_S)
                        piece += client_response.content.read_nowait()
                    left_bytes -= 0 if streamed else len(piece)
                    if left_bytes < 0:
                        raise ConnectionError("a node's answer without an end")
                    await answer.write(piece)
            except ConnectionError:
                if request.transport is not None:
                    request.transport.close()  # the page has gone, or is not to take what it has for a whole answer
            return answer

    def _own(self, kind: type[B], act: Callable[[bytes, B], Coroutine[Any, Any, object]]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            body = await request.read()
            key = await self._callers.key_of(request, body)
            if isinstance(key, str):
                return _no(key, status=401)
            try:
                # What was asked for is done to its end, also for a page that has gone meanwhile.
                return _json(await asyncio.shield(act(key, msgspec.json.decode(body, type=kind))))
            except msgspec.DecodeError:
                return _no("the request is not what this page sends; load it again")
            except CommandError as error:
                return _no(str(error))

        return handle

    async def _approving_shown(self, _: bytes, change: str) -> dict[str, object]:
        if len(change) != 64 or not set(change) <= set("0123456789abcdef"):
            raise CommandError("that names no change", next_step="look at the changes", kind="no-change")
        return await self._approving.shown(change)

    async def _decide(self, key: bytes, said: SignedDrawn) -> OutcomeView:
        return await self._acts.decide(key, said, unpadded(said.signature))


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value, enc_hook=plain), content_type="application/json")


def _no(why: str, status: int = 422) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode({"why": why}, enc_hook=plain), content_type="application/json"
    )
