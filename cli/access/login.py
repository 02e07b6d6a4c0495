"""Logging in: from an invite line to keys that a mesh knows, over HTTPS with a pinned certificate.

The line's ephemeral key signs the new key and passes its grant on to it; the request itself is signed with the new key,
so nothing secret leaves this machine. A person who may approve gets two keys: a sealed one, which was admitted, and an
everyday one with what is left of the grant. Not here: asking the person, and where keys are kept (contexts.py).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.errors import CommandError
from protocols.api_models import AdmissionBody, AdmissionView
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.admission import JoinPapers
from protocols.trust.genesis import mesh_id
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.invites import InviteLine, JoinRequest, make_join

NONCE_BYTES = 16
NEVER_EVERYDAY: frozenset[Role] = frozenset({"approver", "admin"})
"""Roles that need a passphrase each time they are used."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an invite line offers a person, and where to take it."""

    line: InviteLine
    grant: Grant
    addresses: tuple[tuple[str, str], ...]

    @property
    def needs_sealed_key(self) -> bool:
        """Whether it lets its holder approve or administer."""
        return not NEVER_EVERYDAY.isdisjoint(self.grant.roles)


def offer_of(line: InviteLine) -> Offer:
    """Read a principal's invite. Raises CommandError if it is for a machine or leads nowhere."""
    signed = line.invite.grant
    if line.invite.kind != "principal" or signed is None:
        raise CommandError(
            "this invite is for a machine, not a person", next_step="freehold mesh join LINE", kind="invite"
        )
    addresses = tuple(
        (address.address, address.pin) for address in line.addresses if address.address.startswith("https://")
    )
    if not addresses:
        raise CommandError("the invite names no HTTPS address", next_step="ask for a new one", kind="invite")
    return Offer(line, decode(signed.payload, Grant), addresses)


def papers_for(offer: Offer, key: bytes) -> tuple[JoinPapers, tuple[Signed, ...]]:
    """Return the papers that have `key` admitted, and the chain of grants it then holds."""
    invite, signer = offer.line.invite, Ed25519Signer(offer.line.seed)
    assert invite.grant is not None
    taken = msgspec.structs.replace(
        offer.grant, key=key, parent=bytes(digest(invite.grant.payload)), invite_uses=0,
        nonce=secrets.token_bytes(NONCE_BYTES),
    )  # fmt: skip
    grant = sign(signer, GRANT_DOMAIN, invite.mesh, taken)
    join = JoinRequest(key, offer.grant.name, secrets.token_bytes(NONCE_BYTES), grant)
    return JoinPapers(offer.line.signed, make_join(signer, invite.mesh, join)), (invite.grant, grant)


async def enrol(offer: Offer, signer: Ed25519Signer) -> tuple[str, str]:
    """Have the key admitted by the first node that answers; return its url and pin. Raises CommandError."""
    papers, _ = papers_for(offer, signer.public_key)
    mesh = offer.line.invite.mesh
    silent: list[str] = []
    for url, pin in offer.addresses:
        async with NodeClient(Context(mesh.hex(), "", "", url=url, pin=pin), signer) as client:
            try:
                answer = await client.send(AdmissionView, "/v1/admissions", AdmissionBody(encode(papers)))
            except CommandError as error:
                if error.kind != "no-node":
                    raise
                silent.append(url)
                continue
        if mesh_id(answer.genesis) != mesh:
            raise CommandError("the node answers for another mesh", next_step="ask for a new invite", kind="wrong-mesh")
        return url, pin
    raise CommandError(
        f"none of the mesh's nodes answers: {', '.join(silent)}",
        next_step="check that this machine reaches one of them",
        kind="no-node",
    )


async def share_with_everyday_key(context: Context, offer: Offer, person: Ed25519Signer, everyday: bytes) -> None:
    """Give the everyday key what it may have of the person's grant, and file that."""
    async with NodeClient(context, person) as client:
        (chain, *_) = await client.chains(person.public_key)
        links: tuple[Signed, ...] = decode(chain, tuple[Signed, ...])
        roles = tuple(role for role in offer.grant.roles if role not in NEVER_EVERYDAY)
        left = msgspec.structs.replace(
            offer.grant, key=everyday, parent=bytes(digest(links[-1].payload)), invite_uses=0,
            nonce=secrets.token_bytes(NONCE_BYTES), roles=roles or offer.grant.roles, verbs=() if roles else ("view",),
        )  # fmt: skip
        link = sign(person, GRANT_DOMAIN, offer.line.invite.mesh, left)
        await client.publish("grant", everyday.hex(), encode((*links, link)))
