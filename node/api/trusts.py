"""Operations on trusted issuers: an operator names them, and a CI job exchanges its platform's token for a grant.

Not here: what a token must say and what it gets (node/oidc).
"""

from __future__ import annotations

from node.api.hooks import owned, require_here
from node.api.operations import Call, Operation, Parameter
from node.control import Control
from node.oidc.tokens import Conditions
from node.oidc.trusts import Trust
from protocols.api_outward import WEBHOOK_NAME, ExchangeBody, ExchangeView, TrustBody, TrustView
from protocols.refusal import Refusal
from protocols.trust.grants import Rights

_TRUST = (Parameter("trust", {"type": "string", "pattern": WEBHOOK_NAME}, "the trust's name", "path"),)


async def trusts(call: Call) -> tuple[TrustView, ...]:
    """List this node's trusts, and what each gives now."""
    control = owned(call)
    return tuple(_view(control, trust) for _, trust in sorted(control.trusts.held.items()))


async def add_trust(call: Call) -> TrustView:
    """Trust an issuer's tokens. The answer names a key: what a person grants to it is what jobs get."""
    control = owned(call)
    body: TrustBody = call.body
    require_here(call, private=body.private)
    conditions = Conditions(body.issuer, body.subject, dict(body.claims))
    wanted = Trust(body.name, conditions, b"", private=body.private, author=call.principal)
    return _view(control, await control.trusts.add(wanted, body.jwks.encode()))


async def remove_trust(call: Call) -> None:
    """Trust an issuer no more. What jobs hold ends within the hour."""
    await owned(call).trusts.remove(call.path["trust"])


async def exchange_token(call: Call) -> ExchangeView:
    """Give the key that signed this request a grant, for a token that a trusted issuer made for that key."""
    control: Control = call.node
    body: ExchangeBody = call.body
    key = bytes.fromhex(call.principal)
    got = await control.trusts.exchange(body.token, key)
    rights = control.core.dossiers.rights(key, control.clock().wall_ms)
    assert isinstance(rights, Rights), "it was looked at when the grant was filed"
    return ExchangeView(got.trust, got.name, rights.roles, rights.projects, rights.environments, got.expires_ms)


def _view(control: Control, one: Trust) -> TrustView:
    key = one.signer.public_key
    rights = control.core.dossiers.rights(key, control.clock().wall_ms)
    return TrustView(
        name=one.name, issuer=one.conditions.issuer, subject=one.conditions.subject, claims=one.conditions.claims,
        pinned=tuple(held.kid for held in one.pinned), private=one.private, author=one.author, added_ms=one.added_ms,
        key=key.hex(),
        roles=() if isinstance(rights, Refusal) else rights.roles,
        projects=() if isinstance(rights, Refusal) else rights.projects,
        environments=() if isinstance(rights, Refusal) else rights.environments,
        expires_ms=0 if isinstance(rights, Refusal) else rights.expires_ms,
        problem=rights.detail if isinstance(rights, Refusal) else "",
    )  # fmt: skip


TRUST_OPERATIONS: tuple[Operation, ...] = (
    Operation("trusts", "GET", "/v1/trusts", "Issuers whose tokens this node takes", trusts, answer=tuple[TrustView, ...]),
    Operation(
        "add_trust", "POST", "/v1/trusts", "Trust an issuer's tokens", add_trust, "write", TrustBody,
        body_max_bytes=128 * 1024, answer=TrustView,
    ),
    Operation(
        "remove_trust", "DELETE", "/v1/trusts/{trust}", "Trust an issuer no more", remove_trust, "write", status=204,
        parameters=_TRUST,
    ),
    Operation(
        "exchange_token", "POST", "/v1/token-exchange", "A CI job's token for a grant", exchange_token, "signed",
        ExchangeBody, body_max_bytes=64 * 1024, answer=ExchangeView,
    ),
)  # fmt: skip
