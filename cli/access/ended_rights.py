"""What a key was allowed before its grants ended, so that an admin can give the same again.

A grant ends with its time, or with the admin who signed it: whoever recovers a mesh finds that nobody has everyday rights.
Not here: grants that still count (principals.py), and those of a key that was revoked, which nothing gives back.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from cli.access.principals import Principal
from cli.errors import UsageError
from cli.text.foreign import foreign
from protocols.api_models import RightsView
from protocols.envelope import DecodeError, Signed, decode
from protocols.keys import Ed25519Verifier
from protocols.trust.grants import Rights, verify_grants

ENDED = ("grant.expired", "grant.not-by-admin")
"""Rules by which a grant that was good counts no more."""


def as_it_was(principal: Principal, mesh: bytes, admins: Sequence[bytes], *, own_admin: bytes = b"") -> Principal:
    """Return the key with the rights that it had, if all of them ended; else as it is.

    `admins` are those of now. `own_admin` is the admin key of whoever holds this key too: it takes the place of a removed
    admin who counted as one person with it. Raises UsageError where another's key counted so: only its holder can tell.
    """
    if principal.problem.partition(":")[0] not in ENDED:
        return principal
    ended = _ended(principal, mesh)
    if not ended:
        return principal
    behind: dict[str, None] = {}
    for rights in ended:
        for key in rights.lineage:
            gone = (
                key not in admins
                and key.hex() != principal.key
                and key == rights.lineage[0]
                and len(rights.lineage) > 1
            )
            if gone and not own_admin:
                raise UsageError(
                    f"{rights.name} counts as one person with {key.hex()[:12]}, who is no admin any more",
                    next_step="whoever holds the key runs freehold key renew with an admin key of their own",
                    kind="grant.lineage",
                )
            behind[(own_admin if gone else key).hex()] = None
    first, *others = [_view(rights) for rights in ended]
    return replace(
        principal, name=foreign(ended[0].name), kind=ended[0].kind, roles=first.roles, verbs=first.verbs,
        projects=first.projects, environments=first.environments, expires_ms=first.expires_ms, grants=first.grants,
        lineage=tuple(behind), beside=tuple(others),
    )  # fmt: skip


def givers_of(principal: Principal, mesh: bytes) -> tuple[bytes, ...]:
    """Return who signed first what ended: a node that lies brings chains of its own, and no state says who was an admin."""
    return tuple(dict.fromkeys(chain[0].key for chain, _ in _opened(principal, mesh)))


def name_it_had(principal: Principal, mesh: bytes) -> str:
    """Return the name of a key, also where all its grants ended and the node names it no more."""
    ended = _ended(principal, mesh) if principal.problem.partition(":")[0] in ENDED else []
    return ended[0].name if ended else principal.name


def _ended(principal: Principal, mesh: bytes) -> list[Rights]:
    """What each chain of a person's key gave, by its own signatures, whoever is an admin now and whatever the time."""
    return [rights for _, rights in _opened(principal, mesh)]


def _opened(principal: Principal, mesh: bytes) -> list[tuple[tuple[Signed, ...], Rights]]:
    entries: list[tuple[tuple[Signed, ...], Rights]] = []
    for data in principal.chains:
        try:
            chain: tuple[Signed, ...] = decode(data, tuple[Signed, ...])
        except DecodeError:
            continue
        rights = verify_grants(Ed25519Verifier(), mesh, (chain[0].key,), chain, 0) if chain else None
        if isinstance(rights, Rights) and rights.key.hex() == principal.key and rights.kind == "person":
            entries.append((chain, rights))
    return entries


def _view(rights: Rights) -> RightsView:
    """What was given, as ended: the time that its signer wrote into it says nothing any more."""
    return RightsView(
        rights.roles, rights.verbs, tuple(map(foreign, rights.projects)), tuple(map(foreign, rights.environments)), 0,
        tuple(grant.hex() for grant in rights.grants),
    )  # fmt: skip
