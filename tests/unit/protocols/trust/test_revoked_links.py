"""Revoking any link of a chain ends what rests on it, and nothing beside it; an invite's end has two sides."""

from __future__ import annotations

import msgspec
import pytest

from protocols.envelope import Signed, decode, digest
from protocols.refusal import Refusal
from protocols.trust.invites import INVITE_LIFETIME_MAX_MS, Invite, make_invite, open_invite
from protocols.trust.store import TrustStore
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, World, signer

WORLD = World()


def chain_of(*names: str) -> tuple[Signed, ...]:
    """Grants from the admin down: each to a key that gives the next."""
    links: list[Signed] = []
    for number, name in enumerate(names):
        roles = ("deployer", "approver") if number < len(names) - 1 else ("deployer",)
        parent = links[-1] if links else None
        by = names[number - 1] if number else "admin"
        kind = "agent" if number == len(names) - 1 and number else "person"
        roles = ("deployer",) if kind == "agent" else roles
        links.append(WORLD.grant(name, by=by, kind=kind, roles=roles, parent=parent))  # type: ignore[arg-type]
    return tuple(links)


def rule(trust: TrustStore, name: str, chain: tuple[Signed, ...]) -> str:
    answer = trust.rights(signer(name).public_key, chain, WALL_MS)
    return answer.rule if isinstance(answer, Refusal) else "good"


@pytest.mark.parametrize("link", [0, 1])
@pytest.mark.parametrize("what", ["grant", "principal"])
def test_a_chain_ends_with_any_of_its_links(link: int, what: str) -> None:
    trust = WORLD.trust()
    chain, beside = chain_of("ann", "bot"), chain_of("eve", "bob")
    assert rule(trust, "bot", chain) == rule(trust, "bob", beside) == "good"
    subject = digest(chain[link].payload) if what == "grant" else signer(("ann", "bot")[link]).public_key
    trust.learn_revocation(WORLD.revocation(what, subject))
    assert rule(trust, "bot", chain) != "good"
    assert (rule(trust, "ann", chain[:1]) == "good") == bool(link), "what is above goes on"
    assert rule(trust, "bob", beside) == "good", "and so does what is beside"


def test_two_grants_to_one_key_end_one_by_one() -> None:
    trust = WORLD.trust()
    first, second = (WORLD.grant("ann", projects=(project,)) for project in ("shop", "blog"))
    trust.learn_revocation(WORLD.revocation("grant", digest(first.payload)))
    assert rule(trust, "ann", (first,)) == "grant.revoked"
    assert rule(trust, "ann", (second,)) == "good"


@pytest.mark.parametrize("ended", ["admin", "time"])
@pytest.mark.parametrize("what", ["grant", "principal"])
def test_what_was_revoked_and_ended_besides_is_still_said_to_be_revoked(what: str, ended: str) -> None:
    """Whoever gives rights anew that merely ended must not give these."""
    trust = WORLD.trust()
    (revoked,), (beside,) = (chain_of(name) for name in ("ann", "bob"))
    subject = digest(revoked.payload) if what == "grant" else signer("ann").public_key
    trust.learn_revocation(WORLD.revocation(what, subject))
    at_ms = WALL_MS
    if ended == "admin":
        trust.chain_decided((signer("next").public_key,), 1, ())
    else:
        at_ms += 10_000 * DAY_MS
    said = [trust.rights(signer(name).public_key, (link,), at_ms) for name, link in (("ann", revoked), ("bob", beside))]
    rules = [rights.rule for rights in said if isinstance(rights, Refusal)]
    assert rules == ["grant.revoked", {"admin": "grant.not-by-admin", "time": "grant.expired"}[ended]]
    assert rule(trust, "eve", ()) == "grant.none"


def opened(life_ms: int) -> str:
    body = decode(WORLD.invite().payload, Invite)
    signed = make_invite(WORLD.admin, msgspec.structs.replace(body, expires_ms=body.issued_ms + life_ms))
    invite = open_invite(VERIFIER, WORLD.mesh, (WORLD.admin.public_key,), signed)
    return invite.rule if isinstance(invite, Refusal) else "good"


def test_an_invite_is_good_for_a_day_and_not_a_millisecond_more() -> None:
    assert INVITE_LIFETIME_MAX_MS == DAY_MS == 24 * 3_600_000
    assert [opened(life_ms) for life_ms in (1, DAY_MS - 1, DAY_MS)] == ["good"] * 3
    assert [opened(life_ms) for life_ms in (0, -1, DAY_MS + 1, 2 * DAY_MS, 365 * DAY_MS)] == ["invite.malformed"] * 5
