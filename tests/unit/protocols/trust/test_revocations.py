"""Revocations: whom they end, from when, and whatever the order of arrival."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.envelope import Signed, digest, sign
from protocols.refusal import Refusal
from protocols.trust.certificates import (
    LIFETIME_MS,
)
from protocols.trust.invites import (
    Bundle,
)
from protocols.trust.revocations import KEPT_MAX, REVOCATION_DOMAIN, Revocation, RevocationStatement, open_revocation
from protocols.trust.store import Cutoff, Standing, TrustStore
from tests.support.protocols.trust_papers import FOUNDER, WORLD, rule
from tests.support.protocols.trust_world import VERIFIER, WALL_MS, node_id, signer

# --- revocations ------------------------------------------------------------------------------------------------------


def test_a_revoked_node_stays_revoked_whatever_is_signed_for_it_later() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    subject = signer("a").public_key
    assert isinstance(trust.learn_revocation(WORLD.revocation("node", subject, last_seq=7)), Revocation)
    trust.learn_certificate(WORLD.certificate("a", wall_ms=WALL_MS + 1), WALL_MS)
    assert trust.standing(node_id("a"), WALL_MS) is Standing.REVOKED
    assert trust.revoked_nodes() == (node_id("a"),)
    assert node_id("a") not in trust.nodes()
    assert trust.expiring(WALL_MS + LIFETIME_MS)[0].node == FOUNDER


def test_the_lowest_cutoff_of_several_revocations_counts() -> None:
    subject = signer("a").public_key
    statements = [
        WORLD.revocation("node", subject, last_seq=9, last_serial=1),
        WORLD.revocation("node", subject, last_seq=3, last_serial=5),
    ]
    for order in itertools.permutations(statements):
        trust = WORLD.trust()
        for statement in order:
            trust.learn_revocation(statement)
        cutoff = trust.cutoff(node_id("a"))
        assert cutoff is not None
        assert (cutoff.last_seq, cutoff.last_serial) == (3, 1)
    assert WORLD.trust().cutoff(node_id("a")) is None


def test_a_revoked_issuer_takes_along_what_it_signed_after_the_cutoff_and_what_rested_on_it() -> None:
    later = WALL_MS + 1
    papers = [
        WORLD.certificate("i", ("issuer", "worker")),
        WORLD.certificate("j", ("issuer", "worker")),
        WORLD.certificate("a"),
        WORLD.certificate("a", by=signer("i"), serial=4, wall_ms=later),
        WORLD.certificate("j", ("issuer", "worker"), by=signer("i"), serial=6, wall_ms=later),
    ]
    revocation = WORLD.revocation("node", signer("i").public_key, last_serial=5)
    seen = set()
    for position in range(len(papers) + 1):
        trust = WORLD.trust()
        for index, signed in enumerate(papers):
            if index == position:
                trust.learn_revocation(revocation)
            trust.learn_certificate(signed, WALL_MS)
        trust.learn_revocation(revocation)
        a, j = trust.certificate(node_id("a")), trust.certificate(node_id("j"))
        assert a is not None
        assert j is not None
        seen.add((a.serial, a.issued_ms, j.serial, j.issued_ms))
    assert seen == {(4, later, 1, WALL_MS)}, "serial 4 stands, serial 6 is void, in every order"


def test_only_admins_the_node_itself_and_entitled_principals_revoke() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    subject = signer("a").public_key
    assert rule(trust.learn_revocation(WORLD.revocation("node", subject, by="eve"))) == "revocation.not-entitled"
    weak = WORLD.grant("dev", roles=("deployer",))
    refused = trust.learn_revocation(WORLD.revocation("node", subject, by="dev", chain=(weak,)))
    assert rule(refused) == "revocation.not-entitled"
    stolen = trust.learn_revocation(WORLD.revocation("node", subject, by="eve", chain=(WORLD.grant("ops"),)))
    assert rule(stolen) == "revocation.not-entitled"
    expired = WORLD.grant("ops", expires_ms=WALL_MS)
    assert (
        rule(trust.learn_revocation(WORLD.revocation("node", subject, by="ops", chain=(expired,)))) == "grant.expired"
    )
    strong = WORLD.grant("ops")
    assert isinstance(trust.learn_revocation(WORLD.revocation("node", subject, by="ops", chain=(strong,))), Revocation)
    stranger = WORLD.revocation("node", signer("eve").public_key, by="eve")
    assert rule(trust.learn_revocation(stranger)) == "revocation.not-entitled", "only who is here can leave"
    leaving = WORLD.revocation("node", signer("founder").public_key, by="founder")
    assert isinstance(trust.learn_revocation(leaving), Revocation)


def test_a_holder_may_revoke_the_grants_below_its_own_but_not_above() -> None:
    trust = WORLD.trust()
    parent = WORLD.grant("ann", roles=("deployer",))
    child = WORLD.grant("bot", by="ann", kind="agent", roles=("deployer",), parent=parent)
    up = WORLD.revocation("grant", digest(parent.payload), by="bot", chain=(parent, child))
    assert rule(trust.learn_revocation(up)) == "revocation.not-entitled"
    down = WORLD.revocation("grant", digest(child.payload), by="ann", chain=(parent, child))
    assert isinstance(trust.learn_revocation(down), Revocation)
    assert rule(trust.rights(signer("bot").public_key, (parent, child), WALL_MS)) == "grant.revoked"
    assert not isinstance(trust.rights(signer("ann").public_key, (parent,), WALL_MS), Refusal)


def test_revoking_a_principal_ends_its_grants_and_those_below() -> None:
    trust = WORLD.trust()
    parent = WORLD.grant("ann", roles=("deployer",))
    child = WORLD.grant("bot", by="ann", kind="agent", roles=("deployer",), parent=parent)
    trust.learn_revocation(WORLD.revocation("principal", signer("ann").public_key))
    assert rule(trust.rights(signer("bot").public_key, (parent, child), WALL_MS)) == "grant.revoked"
    assert rule(trust.rights(signer("x").public_key, (), WALL_MS)) == "grant.none"


def test_an_admin_key_is_removed_by_decision_not_by_revocation_and_its_revocations_outlive_it() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    own = WORLD.revocation("principal", WORLD.admin.public_key)
    assert rule(trust.learn_revocation(own)) == "revocation.admin-key"
    trust.chain_decided((signer("new admin").public_key,), 1, [node_id("a")])
    statement = WORLD.revocation("node", signer("a").public_key)
    assert isinstance(trust.learn_revocation(statement), Revocation)


def entitled(*names: str) -> dict[str, tuple[Signed, ...]]:
    """A grant to administer for each."""
    return {name: (WORLD.grant(name, roles=("admin",)),) for name in names}


def believed_of(statements: Iterable[RevocationStatement]) -> tuple[Any, ...]:
    """What a node that hears these in this order believes at the end."""
    trust = WORLD.trust(WORLD.certificate("a"))
    for statement in statements:
        trust.learn_revocation(statement)
    keys = [signer(name).public_key for name in ("ops", "ann", "eve", "dev")]
    return (trust.standing(node_id("a"), WALL_MS), trust.cutoff(node_id("a")), *map(trust.key_revoked, keys))


def test_what_a_revoked_principal_revokes_is_refused_by_its_own_rule() -> None:
    chain = entitled("ops")["ops"]
    for subject in (signer("ops").public_key, digest(chain[0].payload)):
        trust = WORLD.trust(WORLD.certificate("a"))
        kind = "principal" if subject == signer("ops").public_key else "grant"
        trust.learn_revocation(WORLD.revocation(kind, subject))
        revocation_statement = WORLD.revocation("node", signer("a").public_key, by="ops", chain=chain)
        assert rule(trust.void_revocation(revocation_statement)) == "revocation.by-revoked"
        assert rule(trust.learn_revocation(revocation_statement)) == "revocation.by-revoked"
        assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
        above = WORLD.revocation("node", signer("a").public_key)
        assert trust.void_revocation(above) is None
        assert isinstance(trust.learn_revocation(above), Revocation)
        assert trust.standing(node_id("a"), WALL_MS) is Standing.REVOKED


def test_what_rests_on_a_revoked_principal_further_up_is_void_as_well() -> None:
    parent = WORLD.grant("ops", roles=("admin",))
    chain = (parent, WORLD.grant("ann", by="ops", roles=("admin",), parent=parent))
    trust = WORLD.trust(WORLD.certificate("a"))
    revocation_statement = WORLD.revocation("node", signer("a").public_key, by="ann", chain=chain)
    assert isinstance(trust.learn_revocation(revocation_statement), Revocation)
    trust.learn_revocation(WORLD.revocation("principal", signer("ops").public_key))
    assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
    assert rule(trust.learn_revocation(revocation_statement)) == "revocation.by-revoked"


def test_whatever_the_order_a_revoked_principals_revocations_end_alike_and_kept_ones_stand() -> None:
    by = entitled("ops")
    before = WORLD.revocation("principal", signer("eve").public_key, by="ops", chain=by["ops"])
    after = WORLD.revocation("node", signer("a").public_key, by="ops", chain=by["ops"])
    ends = WORLD.revocation("principal", signer("ops").public_key, kept=(before,))
    pairs = {believed_of(order) for order in itertools.permutations((before, after, ends))}
    assert pairs == {(Standing.JOINED, None, True, False, True, False)}


def test_a_revocation_that_is_void_voids_nothing() -> None:
    by = entitled("ops", "ann")
    statements = (
        WORLD.revocation("principal", signer("ops").public_key),
        WORLD.revocation("principal", signer("ann").public_key, by="ops", chain=by["ops"]),
        WORLD.revocation("node", signer("a").public_key, last_seq=5, by="ann", chain=by["ann"]),
    )
    pairs = {believed_of(order) for order in itertools.permutations(statements)}
    assert pairs == {(Standing.REVOKED, Cutoff(5, 0), True, False, False, False)}


def test_principals_that_revoke_each_other_are_both_revoked() -> None:
    by = entitled("ops", "ann")
    statements = (
        WORLD.revocation("principal", signer("ops").public_key, by="ann", chain=by["ann"]),
        WORLD.revocation("principal", signer("ann").public_key, by="ops", chain=by["ops"]),
        WORLD.revocation("principal", signer("dev").public_key, by="ops", chain=by["ops"]),
    )
    pairs = {believed_of(order) for order in itertools.permutations(statements)}
    assert pairs == {(Standing.JOINED, None, True, True, False, True)}


def test_a_revocation_does_not_void_itself_and_keeps_few_others() -> None:
    chain = entitled("ops")["ops"]
    trust = WORLD.trust()
    leaving = WORLD.revocation("grant", digest(chain[0].payload), by="ops", chain=chain)
    assert isinstance(trust.learn_revocation(leaving), Revocation)
    assert rule(trust.rights(signer("ops").public_key, chain, WALL_MS)) == "grant.revoked"
    greedy = WORLD.revocation("principal", signer("ann").public_key, kept=(leaving,) * (KEPT_MAX + 1))
    assert rule(trust.learn_revocation(greedy)) == "revocation.malformed"


def test_who_holds_an_invites_line_and_was_not_admitted_revokes_nobody() -> None:
    line = WORLD.grant("line", roles=("admin",), invite_uses=1)
    chain = (line, WORLD.grant("eve", by="line", roles=("admin",), parent=line))
    revocation_statement = WORLD.revocation("principal", signer("ann").public_key, by="eve", chain=chain)
    assert rule(WORLD.trust().learn_revocation(revocation_statement)) == "grant.not-admitted"


def test_a_malformed_revocation_is_refused() -> None:
    good = WORLD.revocation("node", b"x" * 31)
    assert rule(open_revocation(VERIFIER, WORLD.mesh, good)) == "revocation.malformed"
    nonsense = RevocationStatement(sign(WORLD.admin, REVOCATION_DOMAIN, WORLD.mesh, 5))
    assert rule(open_revocation(VERIFIER, WORLD.mesh, nonsense)) == "revocation.malformed"
    assert rule(WORLD.trust().learn_revocation(RevocationStatement(WORLD.certificate("a")))) == "revocation.signature"


# --- any order gives one belief ---------------------------------------------------------------------------------------

LATER = WALL_MS + 1

PAPERS: list[Signed | RevocationStatement] = [
    WORLD.certificate("founder", ("issuer", "voter", "worker")),
    WORLD.certificate("i", ("issuer", "worker")),
    WORLD.certificate("a"),
    WORLD.certificate("a", by=signer("i"), serial=2, wall_ms=LATER),
    WORLD.certificate("b", by=signer("i"), serial=3, wall_ms=LATER),
    WORLD.certificate("i", ("issuer",), by=signer("founder"), serial=2, wall_ms=LATER),
    WORLD.revocation("node", signer("i").public_key, last_serial=2),
    WORLD.revocation("node", signer("b").public_key),
]


@settings(max_examples=60)
@given(st.permutations(PAPERS), st.lists(st.sampled_from(PAPERS), max_size=3))
def test_the_order_of_arrival_and_repetition_do_not_change_what_is_believed(order, again) -> None:  # type: ignore[no-untyped-def]
    def believed(papers: list[Signed | RevocationStatement]) -> list[object]:
        trust = TrustStore(VERIFIER, WORLD.genesis_bytes)
        for paper in papers:
            if isinstance(paper, RevocationStatement):
                trust.learn_revocation(paper)
            else:
                trust.learn_certificate(paper, WALL_MS)
        names = ("founder", "i", "a", "b")
        return [(trust.standing(node_id(name), WALL_MS), trust.certificate(node_id(name))) for name in names]

    assert believed([*order, *again]) == believed(PAPERS)


@given(st.binary(max_size=200), st.binary(max_size=70))
def test_random_bytes_teach_nothing(data: bytes, signature: bytes) -> None:
    trust = WORLD.trust()
    version = trust.version
    junk = Signed(data, WORLD.admin.public_key, signature.ljust(64, b"\0")[:64])
    assert isinstance(trust.learn_certificate(junk, WALL_MS), Refusal)
    assert isinstance(trust.learn_bundle(Bundle(junk, junk, junk)), Refusal)
    assert isinstance(trust.learn_revocation(RevocationStatement(junk)), Refusal)
    assert trust.version == version
