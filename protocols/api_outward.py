"""The API's own types of what leads outside a mesh: webhooks, and trust in a CI platform's tokens.

As in api_models.py: lower-case hex, wall milliseconds, base64.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

WEBHOOK_NAME = "^[a-z0-9][a-z0-9-]{0,62}$"
HOOK_FILTERS_MAX = 32
WebhookKind = Literal[
    "approval.needed",
    "rollout.started", "rollout.paused", "rollout.resumed", "rollout.aborted", "rollout.succeeded", "rollout.rolled-back",
    "node.down", "node.up",
    "grant.ending", "certificate.ending",
    "test",
]  # fmt: skip
"""What a webhook is told of; `test` only when somebody asks for it."""
WEBHOOK_KINDS: tuple[WebhookKind, ...] = get_args(WebhookKind)[:-1]
WebhookFormat = Literal["json", "slack", "ntfy"]
WEBHOOK_FORMATS: tuple[WebhookFormat, ...] = get_args(WebhookFormat)
_HookName = Annotated[str, msgspec.Meta(pattern=WEBHOOK_NAME)]
_HookUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]+$", max_length=500)]
_HookNames = Annotated[tuple[_HookName, ...], msgspec.Meta(max_length=HOOK_FILTERS_MAX)]


class WebhookBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new webhook. Empty lists mean all; `private` takes http and addresses of this network, from this machine alone."""

    name: _HookName
    url: _HookUrl
    format: WebhookFormat = "json"
    events: Annotated[tuple[WebhookKind, ...], msgspec.Meta(max_length=HOOK_FILTERS_MAX)] = ()
    projects: _HookNames = ()
    environments: _HookNames = ()
    private: bool = False


class WebhookSecretView(msgspec.Struct, frozen=True):
    """The secret that a webhook's messages are signed with, as Standard Webhooks writes one; shown once."""

    name: str
    secret: str


class DeliveryView(msgspec.Struct, frozen=True):
    """A message that waits (`ended` false) or has ended; `at_ms` is when it is tried next, or ended."""

    id: str
    kind: str
    ended: bool
    delivered: bool
    attempts: int
    at_ms: int
    result: str


class WebhookView(msgspec.Struct, frozen=True):
    """A webhook of this node and its newest messages; `off` says why it delivers no more."""

    name: str
    url: str
    format: str
    events: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    private: bool
    author: str
    added_ms: int
    off: str
    waiting: int
    given_up: int
    deliveries: tuple[DeliveryView, ...]


class WebhookTestView(msgspec.Struct, frozen=True):
    """How the one attempt of a test ended."""

    delivered: bool
    result: str


_Claim = Annotated[str, msgspec.Meta(pattern="^[!-~][ -~]{0,199}$")]
_ClaimName = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]


class TrustBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new trust: whose tokens, and what they must say. `subject` may hold `*` for characters of one part.

    `jwks` pins the issuer's keys (a JWK Set); without it they are read from the issuer. `private` takes an issuer at http
    or in this network, from this machine alone.
    """

    name: _HookName
    issuer: _HookUrl
    subject: Annotated[str, msgspec.Meta(max_length=200)] = ""
    claims: Annotated[dict[_ClaimName, _Claim], msgspec.Meta(max_length=16)] = {}
    jwks: Annotated[str, msgspec.Meta(max_length=64 * 1024)] = ""
    private: bool = False


class TrustView(msgspec.Struct, frozen=True):
    """A trust of this node. `key` is what a person grants something to; `problem` says why it gives nothing now."""

    name: str
    issuer: str
    subject: str
    claims: dict[str, str]
    pinned: tuple[str, ...]
    private: bool
    author: str
    added_ms: int
    key: str
    roles: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    problem: str


class ExchangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job's ID token, whose audience is "freehold:MESH:SHA256-OF-THE-KEY" of the key that signs this request."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=8 * 1024)]


class ExchangeView(msgspec.Struct, frozen=True):
    """What the key that signed the request may do now, and until when."""

    trust: str
    name: str
    roles: tuple[str, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
