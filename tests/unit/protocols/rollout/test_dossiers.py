"""Dossiers: what is held about a change, in whatever order the records come."""

from __future__ import annotations

import pytest

from protocols.changes.change import CHANGE_DOMAIN, Change
from protocols.envelope import digest, encode, sign
from protocols.machine import Signer
from protocols.records.key_table import make_key
from protocols.records.record import Entry, Record, read_record, sign_record
from protocols.refusal import Refusal
from protocols.rollout.dossiers import WAITING_MAX, Dossiers
from protocols.trust.certificates import issue
from protocols.trust.grants import GrantChain, Rights
from protocols.trust.invites import Invite, JoinRequest, countersign, make_invite, make_join
from protocols.trust.store import TrustStore
from tests.support.protocols.mesh_world import COMPONENT, MeshWorld, node_id, signer
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS

WORLD = MeshWorld().furnish()
TRUST = TrustStore(VERIFIER, encode(WORLD.genesis))


def dossiers() -> Dossiers:
    return Dossiers(VERIFIER, WORLD.mesh, TRUST.rights)


def record(prefix: str, scope: str, body: bytes, *, tombstone: bool = False, name: bytes | None = None) -> Entry:
    key = make_key(prefix, scope, (name or digest(body)).hex())
    new_record = Record(key, "immutable", 1, 1, body=b"ended" if tombstone else body, tombstone=tombstone)
    entry = read_record(sign_record(signer("n1"), WORLD.mesh, new_record))
    assert isinstance(entry, Entry), entry
    return entry


def change_by(author: str, number: int = 1, by: Signer | None = None) -> tuple[Change, Entry]:
    change = WORLD.change(WORLD.release(number, author), author)
    body = encode(sign(by or signer(author), CHANGE_DOMAIN, WORLD.mesh, change))
    return change, record("change", "shop", body)


def grant_to(name: str, *roles: str) -> Entry:
    chain = WORLD.grant(name, *roles)  # type: ignore[arg-type]
    return record("grant", signer(name).public_key.hex(), encode(chain))


def test_an_admins_change_is_proposed_at_once_and_once() -> None:
    held = dossiers()
    change, entry = change_by("admin")
    (proposed,) = held.merged([entry])
    assert (proposed.change, proposed.id) == (change, digest(encode(change)))
    assert held.merged([entry]) == []


def test_a_change_that_arrives_before_its_authors_grant_waits_for_it() -> None:
    held = dossiers()
    change, entry = change_by("bob")
    assert held.merged([entry]) == []
    assert held.merged([grant_to("ann", "proposer")]) == [], "somebody else's grant"
    (proposed,) = held.merged([grant_to("bob", "proposer")])
    assert proposed.change == change
    assert held.merged([grant_to("bob", "deployer")]) == [], "it is known already"


def test_a_change_that_arrives_before_its_authors_admission_waits_for_it_too() -> None:
    mesh, host = WORLD.mesh, signer("n1")
    trust = TrustStore(VERIFIER, encode(WORLD.genesis))
    roles = ("issuer", "voter", "worker")
    trust.learn_certificate(
        issue(WORLD.admin, mesh, node_id("n1"), roles=roles, labels=(), serial=1, wall_ms=WALL_MS), WALL_MS
    )
    guest = signer("invite")
    chain = WORLD.grant("bob", "proposer", by=guest, parent=WORLD.grant("invite", "proposer", invite_uses=1))
    invite = make_invite(
        WORLD.admin,
        Invite(mesh, guest.public_key, "principal", (), (), 1, WALL_MS, WALL_MS + DAY_MS, chain[0]),
    )
    key = signer("bob").public_key
    join = make_join(guest, mesh, JoinRequest(key, "bob", b"n" * 16, chain[1]))
    bundle = countersign(host, mesh, invite, join, key=key, use_index=0, serial=2, wall_ms=WALL_MS)
    held = Dossiers(VERIFIER, mesh, trust.rights)
    change, entry = change_by("bob")
    assert held.merged([record("grant", key.hex(), encode(chain)), entry]) == []
    assert not isinstance(trust.learn_bundle(bundle), Refusal)
    (proposed,) = held.merged([record("admission", digest(invite.payload).hex(), encode(bundle))])
    assert proposed.change == change


def test_a_grant_that_does_not_let_propose_helps_nothing() -> None:
    held = dossiers()
    _, entry = change_by("eve")
    assert held.merged([grant_to("eve", "viewer"), entry]) == []
    assert held.changes == {}


def test_a_change_signed_by_another_or_damaged_or_out_of_bounds_is_dropped() -> None:
    held = dossiers()
    _, stolen = change_by("admin", by=signer("eve"))
    damaged = record("change", "shop", b"not a change")
    release = WORLD.release()
    wrong = WORLD.change(release, secrets=(), routes=(), replicas=99)
    beyond = record("change", "shop", encode(sign(WORLD.admin, CHANGE_DOMAIN, WORLD.mesh, wrong)))
    assert held.merged([stolen, damaged, beyond, grant_to("eve", "proposer")]) == []
    assert held._waiting == {}


def test_only_so_many_changes_wait_for_a_grant() -> None:
    held = dossiers()
    entries = [change_by("bob", number)[1] for number in range(WAITING_MAX + 1)]
    assert held.merged(entries) == []
    assert len(held._waiting) == WAITING_MAX
    assert len(held.merged([grant_to("bob", "proposer")])) == WAITING_MAX, "the oldest was given up"


def test_a_change_that_is_voided_or_removed_is_forgotten_waiting_or_not() -> None:
    held = dossiers()
    _, mine = change_by("admin")
    _, theirs = change_by("bob")
    held.merged([mine, theirs])
    held.voided([mine])
    body = encode(sign(signer("bob"), CHANGE_DOMAIN, WORLD.mesh, change_by("bob")[0]))
    held.merged([record("change", "shop", b"", tombstone=True, name=digest(body))])
    assert held.changes == {}
    assert held.merged([grant_to("bob", "proposer")]) == []


def test_approvals_and_evidence_are_gathered_by_what_they_are_about_and_can_be_removed() -> None:
    held = dossiers()
    change, entry = change_by("admin")
    held.merged([entry])
    named = digest(encode(change))
    approval = record("approval", named.hex(), WORLD.approval("ann", change))
    test = record("evidence", COMPONENT.hex(), WORLD.evidence("admin"))
    held.merged([approval, test, approval])
    assert held.approvals(named) == (approval.record.body,)
    assert held.evidence(WORLD.release()) == (test.record.body,)
    assert held.approvals(b"other") == ()
    held.voided([approval, test])
    assert held.approvals(named) == ()
    assert held.evidence(WORLD.release()) == ()


def test_rights_names_and_chains_follow_the_grants_held() -> None:
    held = dossiers()
    key = signer("bob").public_key
    assert isinstance(held.rights(key, WORLD.at_ms), Refusal)
    assert held.name_of(key, WORLD.at_ms) == ""
    grant = grant_to("bob", "proposer")
    held.merged([grant])
    rights = held.rights(key, WORLD.at_ms)
    assert isinstance(rights, Rights)
    assert held.name_of(key, WORLD.at_ms) == "bob"
    assert held.principals() == (key,)
    assert len(held.chains(key)) == 1
    held.voided([grant])
    assert held.principals() == ()
    assert held.chains(key) == ()


@pytest.mark.parametrize("rule", ["grant.revoked", "grant.not-admitted", "grant.contested"])
def test_a_chain_that_gives_nothing_is_not_shown_beside_one_that_does(rule: str) -> None:
    bad = grant_to("bob", "deployer")

    def rights_of(key: bytes, chain: GrantChain, at_ms: int) -> Rights | Refusal:
        if chain and encode(chain) == bad.record.body:
            return Refusal(rule, "not this one")
        return TRUST.rights(key, chain, at_ms)

    held = Dossiers(VERIFIER, WORLD.mesh, rights_of)
    held.merged([bad, grant_to("bob", "proposer")])
    assert len(held.chains(signer("bob").public_key)) == 1


def test_all_grants_held_for_a_key_count_until_each_is_taken_back() -> None:
    held = dossiers()
    key = signer("bob").public_key
    looks, proposes = grant_to("bob", "viewer"), grant_to("bob", "proposer")
    held.merged([proposes, looks])
    rights = held.rights(key, WORLD.at_ms)
    assert isinstance(rights, Rights)
    assert sorted(entry.roles for entry in rights.each) == [("proposer",), ("viewer",)]
    assert rights.allows("propose", "shop", "production")
    held.voided([proposes])
    rights = held.rights(key, WORLD.at_ms)
    assert isinstance(rights, Rights)
    assert not rights.allows("propose", "shop", "production")


def test_exhibits_hold_each_paper_once_and_name_it_by_its_digest() -> None:
    held = dossiers()
    change, entry = change_by("bob")
    held.merged([grant_to("bob", "deployer"), entry])
    (proposed,) = held.changes.values()
    release = encode(WORLD.release(1, "bob"))
    approval, evidence = WORLD.approval("ann", change), WORLD.evidence("bob")
    bob = signer("bob").public_key
    exhibits, material = held.exhibits(
        proposed,
        release=release,
        signers=(bob,),
        speakers=(bob,),
        envelopes=((approval,), (evidence, evidence)),
        statements=(),
    )
    assert exhibits.digests() == tuple(sorted(digest(entry) for entry in material))
    assert len(exhibits.grants) == len(exhibits.evidence) == 1
    assert encode(proposed.signed) in material
