"""Who acts from here: the keys of a context, the grants behind them, and which of them may say yes.

Approving, rejecting and administering need a sealed key, opened at the terminal; the everyday key proposes and deploys.
Not here: how a key is kept (contexts.py) or asked for (prompts.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cli.access import contexts
from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Context
from cli.access.prompts import NeedsPersonError, unlock
from cli.errors import CommandError
from cli.text.foreign import plain
from protocols.api_models import PrincipalView, RightsView
from protocols.envelope import Signed, decode, digest
from protocols.keys import Ed25519Signer
from protocols.records.credentials import revocation_record
from protocols.trust.grants import Verb, covers, holders_of
from protocols.trust.revocations import NOTHING_VALID, Revocation, sign_revocation

T = TypeVar("T")


class Principal(PrincipalView, frozen=True):
    """One key as the node shows it, and what its grants allow between them."""

    @property
    def each(self) -> tuple[RightsView, ...]:
        """What each grant allows, one by one."""
        first = RightsView(self.roles, self.verbs, self.projects, self.environments, self.expires_ms, self.grants)
        return (first, *self.beside)

    @property
    def every_verb(self) -> tuple[str, ...]:
        """Every verb that some grant allows somewhere."""
        return tuple(dict.fromkeys(verb for held in self.each for verb in held.verbs))

    def chain_of(self, held: RightsView) -> tuple[Signed, ...]:
        """Return the chain that one of the grants ends. Raises LookupError if the node did not show it."""
        for data in self.chains:
            chain: tuple[Signed, ...] = decode(data, tuple[Signed, ...])
            if digest(chain[-1].payload).hex() == held.grants[-1]:
                return chain
        raise LookupError(f"no chain of {self.name} was shown")


def talk_as(context: Context, signer: Ed25519Signer, conversation: Callable[[NodeClient], Awaitable[T]]) -> T:
    """Run one conversation with a node whose requests another key than the everyday one signs."""

    async def run() -> T:
        async with NodeClient(context, signer) as client:
            return await conversation(client)

    return asyncio.run(run())


async def principal_of(client: NodeClient, key: bytes) -> Principal:
    """Return what a key may do now. Raises CommandError for an answer about another key: rights are signed by it."""
    principal = await client.read(Principal, f"/v1/principals/{key.hex()}")
    if plain(principal.key) != key.hex():
        raise CommandError(
            f"the node was asked about the key {key.hex()[:12]} and answered about another one",
            next_step="ask another node: --context NAME", kind="node.answer",
        )  # fmt: skip
    return principal


async def principals_of(client: NodeClient) -> tuple[Principal, ...]:
    """Return every key with a grant."""
    return await client.read_all(Principal, "/v1/principals")


async def require_right(client: NodeClient, key: bytes, verb: Verb, project: str, environment: str) -> None:
    """Raise RefusedError, naming who can give the right, for a key that may not do `verb` there.

    The mesh refuses it too, but only what is built and uploaded.
    """
    principal = await principal_of(client, key)
    if _allows(principal, verb, project, environment):
        return
    rule, _, detail = principal.problem.partition(": ")
    if not rule:
        rule = "change.author" if verb == "propose" else "command.not-allowed"
        detail = f"{principal.name} may not {verb} {project} in {environment}; who may has the role {holders_of(verb)}"
    raise RefusedError(rule, detail, await _how_to_get(client, principal, verb, project, environment))


def _allows(one: Principal, verb: Verb, project: str, environment: str) -> bool:
    return not one.problem and any(
        verb in held.verbs and covers(held.projects, project) and covers(held.environments, environment)
        for held in one.each
    )


async def _how_to_get(client: NodeClient, one: Principal, verb: Verb, project: str, environment: str) -> str:
    """Say who gives a key the right: for an agent the person behind it, where that one has it; else an admin."""
    role = holders_of(verb).partition(" or ")[0]
    givers = [await principal_of(client, bytes.fromhex(key)) for key in one.lineage if key != one.key]
    giver = next((giver for giver in reversed(givers) if _allows(giver, verb, project, environment)), None)
    if one.kind == "agent" and giver is not None:
        return f"ask {giver.name}: freehold token create NAME --role {role} --project {project} --env {environment}"
    return f"ask an admin: freehold mesh invite --kind principal --role {role}, then freehold login LINE"


async def revoke_grants(client: NodeClient, signer: Ed25519Signer, principal: Principal, reason: str) -> str:
    """Revoke every grant of the key that comes from the signer; return the key of the last revocation's record."""
    mesh, filed = await client.mesh(), ""
    for data in principal.chains:
        chain: tuple[Signed, ...] = decode(data, tuple[Signed, ...])
        if signer.public_key not in [link.key for link in chain]:
            continue  # somebody else gave it, and takes it away
        subject = bytes(digest(chain[-1].payload))
        revocation = Revocation("grant", subject, NOTHING_VALID, NOTHING_VALID, reason, time.time_ns() // 1_000_000)
        statement = sign_revocation(signer, mesh, revocation, chain)
        filed, body = revocation_record(revocation, statement)
        await client.publish("revocation", subject.hex(), body)
    return filed


def everyday_key(context: Context) -> Ed25519Signer:
    """Open the everyday key of a context. Raises CommandError where there is none."""
    if not context.key:
        raise CommandError(
            "there is no key of yours in this context",
            next_step="freehold context list, or ask an operator for a login: freehold mesh invite --kind principal",
            kind="no-key",
        )
    return contexts.open_plain(context.key)


def approver_key_name(context: Context) -> str:
    """Return the name of the sealed key that approves from here. Raises NeedsPersonError where there is none."""
    if context.admin:
        return context.admin
    if context.key and contexts.is_sealed(context.key):
        return context.key
    raise NeedsPersonError(
        "an approval needs a person's sealed key, and there is none in this context",
        next_step="run it where the approver's key is; an agent asks a person to",
        kind="needs-person",
    )


def unlock_approver(context: Context, purpose: str) -> Ed25519Signer:
    """Open the approver's sealed key at the terminal."""
    return unlock(approver_key_name(context), purpose)


def require_admin(context: Context, purpose: str) -> None:
    """Find the admin key of a context, before anybody is asked anything. Raises NeedsPersonError where there is none."""
    if not context.admin:
        raise NeedsPersonError(
            f"there is no admin key of this mesh here, to {purpose}",
            next_step="run the same command where the mesh was created",
            kind="no-admin-key",
        )
    contexts.public_key(context.admin)  # raises UsageError if its file is gone


def unlock_admin(context: Context, purpose: str) -> Ed25519Signer:
    """Open the admin key of a context at the terminal. Raises NeedsPersonError where there is none."""
    require_admin(context, purpose)
    return unlock(context.admin, purpose)
