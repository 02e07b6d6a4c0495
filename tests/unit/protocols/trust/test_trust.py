"""Genesis, certificates, invites, revocations and the store that weighs them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, digest, encode, sign
from protocols.keys import peer_id
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit, certify, issuers
from protocols.trust.certificates import (
    CERTIFICATE_DOMAIN,
    LIFETIME_MS,
    RENEW_AFTER_MS,
    Certificate,
    open_certificate,
)
from protocols.trust.genesis import Genesis, decode_genesis, mesh_id
from protocols.trust.invites import (
    Address,
    Bundle,
    Invite,
    JoinRequest,
    make_invite,
    open_bundle,
    open_invite,
    read_line,
    write_line,
)
from protocols.trust.revocations import KEPT_MAX, REVOCATION_DOMAIN, Revocation, RevocationStatement, open_revocation
from protocols.trust.store import CERTIFICATES_PER_NODE_MAX, UNPROVEN_MAX, Credentials, Cutoff, Standing, TrustStore
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, World, node_id, now, signer

WORLD = World()
FOUNDER = node_id("founder")


def rule(answer: object) -> str:
    assert isinstance(answer, Refusal), answer
    assert answer.detail
    return answer.rule


def admitted(trust: TrustStore, papers: JoinPapers, wall_ms: int = WALL_MS, by: str = "founder") -> Bundle:
    bundle = ask(trust, papers, wall_ms, by)
    assert isinstance(bundle, Bundle), bundle
    return bundle


def ask(trust: TrustStore, papers: JoinPapers, wall_ms: int = WALL_MS, by: str = "founder") -> Bundle | Refusal:
    """Ask to be admitted as what the papers say, with the key they name."""
    try:
        kind, key = decode(papers.invite.payload, Invite).kind, decode(papers.join.payload, JoinRequest).key
    except DecodeError:
        kind, key = "node", b""
    return admit(trust, signer(by), VERIFIER, papers, now(wall_ms=wall_ms), kind=kind, key=key)


# --- genesis ----------------------------------------------------------------------------------------------------------


def test_a_mesh_is_named_after_the_digest_of_its_genesis() -> None:
    assert decode_genesis(WORLD.genesis_bytes, WORLD.mesh).name == "home"
    assert mesh_id(WORLD.genesis_bytes) == WORLD.mesh
    with pytest.raises(DecodeError, match="another mesh"):
        decode_genesis(WORLD.genesis_bytes, b"x" * 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "name"),
        ({"nonce": b"n"}, "nonce"),
        ({"admins": ()}, "admin keys"),
        ({"admins": (b"short",)}, "admin key"),
        ({"admins": (b"b" * 32, b"a" * 32)}, "ascending"),
        ({"threshold": 2}, "threshold"),
        ({"voter_store": b"s"}, "store id"),
        ({"policy": b"p" * 9000}, "policy"),
        ({"voter_node": "12D3KooNot"}, "first voter"),
    ],
)
def test_a_genesis_that_breaks_a_rule_names_it(change: dict[str, object], words: str) -> None:
    genesis = msgspec.structs.replace(decode(WORLD.genesis_bytes, Genesis), **change)
    with pytest.raises(DecodeError, match=words):
        decode_genesis(encode(genesis))


# --- certificates -----------------------------------------------------------------------------------------------------


def test_an_admins_certificate_makes_a_joined_node_and_the_chain_makes_it_a_member() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
    trust.chain_decided(trust.admins, 1, [node_id("a")])
    assert trust.standing(node_id("a"), WALL_MS) is Standing.MEMBER
    assert trust.standing(node_id("nobody"), WALL_MS) is Standing.STRANGER
    assert trust.nodes() == tuple(sorted((node_id("a"), FOUNDER)))
    assert trust.has_role(node_id("a"), "worker", WALL_MS)
    assert not trust.has_role(node_id("a"), "voter", WALL_MS)
    assert issuers(trust, WALL_MS) == [FOUNDER]


def test_a_certificate_expires_and_is_warned_of_two_weeks_ahead() -> None:
    trust = WORLD.trust(WORLD.certificate("a", wall_ms=WALL_MS - DAY_MS))
    end_ms = WALL_MS - DAY_MS + LIFETIME_MS
    assert trust.expiring(end_ms - 15 * DAY_MS) == ()
    assert [warning.node for warning in trust.expiring(end_ms - 14 * DAY_MS)] == [node_id("a")]
    assert trust.standing(node_id("a"), end_ms - 1) is Standing.JOINED
    assert trust.standing(node_id("a"), end_ms) is Standing.EXPIRED
    assert trust.expiring(end_ms)[0].expired


def test_the_newest_certificate_counts_whatever_the_order_of_arrival() -> None:
    old = WORLD.certificate("a")
    new = WORLD.certificate("a", ("voter",), wall_ms=WALL_MS + RENEW_AFTER_MS)
    for order in ([old, new], [new, old]):
        trust = WORLD.trust()
        for signed in order:
            trust.learn_certificate(signed, WALL_MS + RENEW_AFTER_MS)
        certificate = trust.certificate(node_id("a"))
        assert certificate is not None
        assert certificate.roles == ("voter",)


def test_a_certificate_of_the_future_is_not_believed_yet() -> None:
    trust = WORLD.trust()
    signed = WORLD.certificate("a", wall_ms=WALL_MS + 120_001)
    assert rule(trust.learn_certificate(signed, WALL_MS)) == "certificate.from-the-future"
    assert isinstance(trust.learn_certificate(signed, WALL_MS + 1), Certificate)


def test_an_issuer_renews_what_an_admin_certified_and_nothing_more() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    later = WALL_MS + RENEW_AFTER_MS
    renewed = WORLD.certificate("a", by=signer("founder"), wall_ms=later)
    assert isinstance(trust.learn_certificate(renewed, later), Certificate)
    voter = WORLD.certificate("a", ("worker", "voter"), by=signer("founder"), wall_ms=later)
    assert rule(trust.learn_certificate(voter, later)) == "certificate.roles"
    stranger = WORLD.certificate("x", by=signer("founder"))
    assert rule(trust.learn_certificate(stranger, WALL_MS)) == "certificate.not-invited"
    by_worker = WORLD.certificate("a", by=signer("a"), wall_ms=later)
    assert rule(trust.learn_certificate(by_worker, later)) == "certificate.not-an-issuer"


def test_an_expired_issuer_may_renew_itself_and_then_others() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    late = WALL_MS + LIFETIME_MS + DAY_MS
    other = WORLD.certificate("a", by=signer("founder"), wall_ms=late)
    assert rule(trust.learn_certificate(other, late)) == "certificate.not-an-issuer"
    roles = ("issuer", "voter", "worker")
    itself = WORLD.certificate("founder", roles, by=signer("founder"), wall_ms=late)  # type: ignore[arg-type]
    assert isinstance(trust.learn_certificate(itself, late), Certificate)
    assert trust.standing(node_id("a"), late) is Standing.JOINED, "the waiting certificate is believed now"


def test_a_certificate_waits_until_its_issuer_is_known() -> None:
    trust = WORLD.trust()
    issuer = WORLD.certificate("i", ("issuer", "worker"))
    first, renewed = WORLD.certificate("a"), WORLD.certificate("a", by=signer("i"), wall_ms=WALL_MS + 1)
    assert rule(trust.learn_certificate(renewed, WALL_MS)) == "certificate.not-an-issuer"
    trust.learn_certificate(issuer, WALL_MS)
    assert trust.standing(node_id("a"), WALL_MS) is Standing.STRANGER
    trust.learn_certificate(first, WALL_MS)
    certificate = trust.certificate(node_id("a"))
    assert certificate is not None
    assert certificate.issued_ms == WALL_MS + 1


def test_what_waits_for_its_issuer_is_bounded() -> None:
    trust = WORLD.trust()
    for serial in range(UNPROVEN_MAX + 10):
        trust.learn_certificate(WORLD.certificate("a", by=signer("nobody"), serial=serial), WALL_MS)
    assert len(trust._unproven) == UNPROVEN_MAX


def test_old_certificates_are_dropped_but_never_the_first_or_an_admins() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    upgrade = WORLD.certificate("a", ("voter", "worker"), wall_ms=WALL_MS + 5)
    trust.learn_certificate(upgrade, WALL_MS)
    for step in range(CERTIFICATES_PER_NODE_MAX + 5):
        signed = WORLD.certificate("a", ("voter",), by=signer("founder"), serial=step, wall_ms=WALL_MS + 10 + step)
        assert isinstance(trust.learn_certificate(signed, WALL_MS), Certificate)
    assert len(trust._held[node_id("a")]) == CERTIFICATES_PER_NODE_MAX
    assert any(item.signed == upgrade for item in trust._held[node_id("a")])


@pytest.mark.parametrize(
    "change",
    [
        {"expires_ms": WALL_MS},
        {"expires_ms": WALL_MS + LIFETIME_MS + 1},
        {"labels": (("b", "1"), ("a", "1"))},
        {"labels": (("", "1"),)},
        {"node": "nobody"},
    ],
)
def test_a_malformed_certificate_is_refused(change: dict[str, object]) -> None:
    good = decode(WORLD.certificate("a").payload, Certificate)
    bad = sign(WORLD.admin, CERTIFICATE_DOMAIN, WORLD.mesh, msgspec.structs.replace(good, **change))
    assert rule(open_certificate(VERIFIER, WORLD.mesh, bad)).startswith("certificate.")
    assert rule(WORLD.trust().learn_certificate(bad, WALL_MS)).startswith("certificate.")


def test_a_removed_admins_certificates_count_only_for_confirmed_nodes() -> None:
    trust = WORLD.trust(WORLD.certificate("a"), WORLD.certificate("b"))
    trust.chain_decided((signer("new admin").public_key,), 1, [node_id("a")])
    assert trust.standing(node_id("a"), WALL_MS) is Standing.MEMBER
    assert trust.standing(node_id("b"), WALL_MS) is Standing.STRANGER
    assert trust.standing(FOUNDER, WALL_MS) is Standing.MEMBER


# --- credentials ------------------------------------------------------------------------------------------------------


def test_credentials_prove_a_node_to_somebody_who_knows_only_the_genesis() -> None:
    trust = WORLD.trust(WORLD.certificate("i", ("issuer", "worker")), WORLD.certificate("a"))
    trust.learn_certificate(
        WORLD.certificate("i", ("issuer", "worker"), by=signer("i"), wall_ms=WALL_MS + 100 * DAY_MS),
        WALL_MS + 100 * DAY_MS,
    )
    late = WALL_MS + 110 * DAY_MS
    trust.learn_certificate(WORLD.certificate("a", by=signer("i"), wall_ms=late), late)
    credentials = trust.credentials(node_id("a"))
    newcomer = TrustStore(VERIFIER, WORLD.genesis_bytes)
    newcomer.learn_credentials(credentials, late)
    assert newcomer.standing(node_id("a"), late) is Standing.JOINED
    assert trust.credentials(node_id("x")) == Credentials()


def test_the_credentials_of_an_invited_node_carry_its_admission() -> None:
    trust = WORLD.trust()
    admitted(trust, WORLD.papers("a", WORLD.invite()))
    certify(trust, signer("founder"), node_id("a"), now())
    credentials = trust.credentials(node_id("a"))
    assert len(credentials.bundles) == 1
    newcomer = TrustStore(VERIFIER, WORLD.genesis_bytes)
    assert newcomer.learn_credentials(credentials, WALL_MS) is None
    assert newcomer.standing(node_id("a"), WALL_MS) is Standing.JOINED


def test_a_strangers_credentials_do_not_push_out_what_waits() -> None:
    trust = WORLD.trust()
    waiting = WORLD.certificate("a", by=signer("i"))
    trust.learn_certificate(waiting, WALL_MS)
    flood = tuple(WORLD.certificate("x", by=signer("x"), serial=serial) for serial in range(UNPROVEN_MAX + 1))
    assert rule(trust.learn_credentials(Credentials(flood), WALL_MS)) == "certificate.not-an-issuer"
    assert list(trust._unproven.values()) == [waiting]


def test_credentials_with_a_bad_bundle_say_so() -> None:
    bundle = admitted(WORLD.trust(), WORLD.papers("a", WORLD.invite()))
    bad = Bundle(bundle.invite, bundle.join, Signed(b"", b"", b""))
    assert rule(WORLD.trust().learn_credentials(Credentials((), (bad,)), WALL_MS)) == "invite.malformed"


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
        for at, signed in enumerate(papers):
            if at == position:
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
        made = WORLD.revocation("node", signer("a").public_key, by="ops", chain=chain)
        assert rule(trust.void_revocation(made)) == "revocation.by-revoked"
        assert rule(trust.learn_revocation(made)) == "revocation.by-revoked"
        assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
        above = WORLD.revocation("node", signer("a").public_key)
        assert trust.void_revocation(above) is None
        assert isinstance(trust.learn_revocation(above), Revocation)
        assert trust.standing(node_id("a"), WALL_MS) is Standing.REVOKED


def test_what_rests_on_a_revoked_principal_further_up_is_void_as_well() -> None:
    parent = WORLD.grant("ops", roles=("admin",))
    chain = (parent, WORLD.grant("ann", by="ops", roles=("admin",), parent=parent))
    trust = WORLD.trust(WORLD.certificate("a"))
    made = WORLD.revocation("node", signer("a").public_key, by="ann", chain=chain)
    assert isinstance(trust.learn_revocation(made), Revocation)
    trust.learn_revocation(WORLD.revocation("principal", signer("ops").public_key))
    assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
    assert rule(trust.learn_revocation(made)) == "revocation.by-revoked"


def test_whatever_the_order_a_revoked_principals_revocations_end_alike_and_kept_ones_stand() -> None:
    by = entitled("ops")
    before = WORLD.revocation("principal", signer("eve").public_key, by="ops", chain=by["ops"])
    after = WORLD.revocation("node", signer("a").public_key, by="ops", chain=by["ops"])
    ends = WORLD.revocation("principal", signer("ops").public_key, kept=(before,))
    found = {believed_of(order) for order in itertools.permutations((before, after, ends))}
    assert found == {(Standing.JOINED, None, True, False, True, False)}


def test_a_revocation_that_is_void_voids_nothing() -> None:
    by = entitled("ops", "ann")
    statements = (
        WORLD.revocation("principal", signer("ops").public_key),
        WORLD.revocation("principal", signer("ann").public_key, by="ops", chain=by["ops"]),
        WORLD.revocation("node", signer("a").public_key, last_seq=5, by="ann", chain=by["ann"]),
    )
    found = {believed_of(order) for order in itertools.permutations(statements)}
    assert found == {(Standing.REVOKED, Cutoff(5, 0), True, False, False, False)}


def test_principals_that_revoke_each_other_are_both_revoked() -> None:
    by = entitled("ops", "ann")
    statements = (
        WORLD.revocation("principal", signer("ops").public_key, by="ann", chain=by["ann"]),
        WORLD.revocation("principal", signer("ann").public_key, by="ops", chain=by["ops"]),
        WORLD.revocation("principal", signer("dev").public_key, by="ops", chain=by["ops"]),
    )
    found = {believed_of(order) for order in itertools.permutations(statements)}
    assert found == {(Standing.JOINED, None, True, True, False, True)}


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
    made = WORLD.revocation("principal", signer("ann").public_key, by="eve", chain=chain)
    assert rule(WORLD.trust().learn_revocation(made)) == "grant.not-admitted"


def test_a_malformed_revocation_is_refused() -> None:
    good = WORLD.revocation("node", b"x" * 31)
    assert rule(open_revocation(VERIFIER, WORLD.mesh, good)) == "revocation.malformed"
    nonsense = RevocationStatement(sign(WORLD.admin, REVOCATION_DOMAIN, WORLD.mesh, 5))
    assert rule(open_revocation(VERIFIER, WORLD.mesh, nonsense)) == "revocation.malformed"
    assert rule(WORLD.trust().learn_revocation(RevocationStatement(WORLD.certificate("a")))) == "revocation.signature"


# --- invites ----------------------------------------------------------------------------------------------------------


def test_an_invite_is_one_line_that_survives_pasting() -> None:
    line = write_line(b"k" * 32, WORLD.invite(), (Address("/ip4/10.0.0.1/tcp/4100", FOUNDER),))
    assert line.startswith("fh1.")
    assert "\n" not in line
    parsed = read_line(f"  {line[:50]}\n{line[50:]} ")
    assert parsed.invite.mesh == WORLD.mesh
    assert parsed.seed == b"k" * 32
    assert parsed.addresses[0].pin == FOUNDER


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda line: line[4:], "starts with fh1"),
        (lambda line: line[:-6], "incomplete or mistyped"),
        (lambda line: line + "A" * 9000, "too long"),
        (lambda line: line[:-3] + "!!!", "letter"),
        (lambda line: write_line(b"short", WORLD.invite(), ()), "malformed"),
    ],
)
def test_a_spoilt_line_says_what_to_do(spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DecodeError, match=words):
        read_line(spoil(write_line(b"k" * 32, WORLD.invite(), ())))


@given(st.text(alphabet="abcXYZ019-_ .", max_size=200))
def test_random_lines_are_refused(text: str) -> None:
    for line in (text, "fh1." + text):
        with pytest.raises(DecodeError):
            read_line(line)


def test_an_invited_node_is_limited_to_joined_until_confirmed_and_gets_the_invites_roles() -> None:
    trust = WORLD.trust()
    bundle = admitted(trust, WORLD.papers("a", WORLD.invite(roles=("voter", "worker"))))
    assert isinstance(certify(trust, signer("founder"), node_id("a"), now()), Signed)
    assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
    certificate = trust.certificate(node_id("a"))
    assert certificate is not None
    assert certificate.roles == ("voter", "worker")
    assert trust.bundle_for(signer("a").public_key) == bundle


def test_a_spent_use_is_refused_and_asking_again_gets_the_same_answer() -> None:
    trust = WORLD.trust()
    invite = WORLD.invite(uses=2)
    first = admitted(trust, WORLD.papers("a", invite))
    assert admitted(trust, WORLD.papers("a", invite)) == first
    admitted(trust, WORLD.papers("b", invite))
    spent = ask(trust, WORLD.papers("c", invite))
    assert rule(spent) == "invite.spent"
    other = WORLD.papers("a", WORLD.invite(key="second"), key="second")
    assert rule(ask(trust, other)) == "invite.other"


def test_an_invite_is_refused_after_a_day_by_a_non_issuer_and_for_a_revoked_key() -> None:
    trust = WORLD.trust(WORLD.certificate("w"))
    papers = WORLD.papers("a", WORLD.invite())
    late = ask(trust, papers, WALL_MS + DAY_MS)
    assert rule(late) == "invite.expired"
    not_issuer = ask(trust, papers, by="w")
    assert rule(not_issuer) == "invite.not-an-issuer"
    assert FOUNDER in not_issuer.detail  # type: ignore[union-attr]
    trust.learn_revocation(WORLD.revocation("node", signer("a").public_key))
    assert rule(ask(trust, papers)) == "invite.key-revoked"


@pytest.mark.parametrize(
    ("papers", "expected"),
    [
        (WORLD.papers("a", WORLD.invite(by=signer("eve"))), "invite.not-by-admin"),
        (WORLD.papers("a", WORLD.invite(), key="stolen"), "invite.join-key"),
        (WORLD.papers("a", WORLD.invite(uses=33)), "invite.malformed"),
        (WORLD.papers("a", WORLD.invite(), grant=WORLD.grant("a")), "invite.kind"),
        (JoinPapers(WORLD.invite(), WORLD.certificate("a", by=signer("invite"))), "invite.malformed"),
        (JoinPapers(WORLD.certificate("a"), WORLD.certificate("a")), "invite.malformed"),
        (WORLD.papers("n" * 65, WORLD.invite()), "invite.malformed"),
    ],
)
def test_unsound_papers_are_refused(papers: JoinPapers, expected: str) -> None:
    assert rule(ask(WORLD.trust(), papers)) == expected


def test_papers_of_another_kind_or_for_another_key_spend_no_use() -> None:
    trust = WORLD.trust()
    invite = WORLD.invite()
    papers, key = WORLD.papers("a", invite), signer("a").public_key
    founder = signer("founder")
    wrong_kind = admit(trust, founder, VERIFIER, papers, now(), kind="principal", key=key)
    assert rule(wrong_kind) == "invite.kind"
    wrong_key = admit(trust, founder, VERIFIER, papers, now(), kind="node", key=signer("b").public_key)
    assert rule(wrong_key) == "invite.join-key"
    assert trust.free_use(digest(invite.payload), 1) == 0


def test_two_keys_for_one_use_are_both_limited_until_an_admin_revokes_one() -> None:
    issuer = WORLD.certificate("i", ("issuer", "worker"))
    here, there = WORLD.trust(issuer), WORLD.trust(issuer)
    there.chain_decided(there.admins, 1, [node_id("i")])
    invite = WORLD.invite()
    a = admitted(here, WORLD.papers("a", invite))
    b = admitted(there, WORLD.papers("b", invite), by="i")
    cert_a = certify(here, signer("founder"), node_id("a"), now())
    cert_b = certify(there, signer("i"), node_id("b"), now())
    assert isinstance(cert_a, Signed)
    assert isinstance(cert_b, Signed)
    for trust in (here, there):
        trust.learn_credentials(Credentials((cert_a, cert_b), (a, b)), WALL_MS)
        assert trust.standing(node_id("a"), WALL_MS) is Standing.LIMITED
        assert trust.standing(node_id("b"), WALL_MS) is Standing.LIMITED
        assert rule(certify(trust, signer("founder"), node_id("a"), now())) == "certificate.not-renewable"
        trust.learn_revocation(WORLD.revocation("node", signer("b").public_key))
        assert trust.standing(node_id("a"), WALL_MS) is Standing.JOINED
        assert trust.standing(node_id("b"), WALL_MS) is Standing.REVOKED


def test_an_admission_by_a_stranger_waits_and_a_forged_one_is_refused() -> None:
    trust = WORLD.trust()
    issuing = WORLD.trust(WORLD.certificate("i", ("issuer", "worker")))
    issuing.chain_decided(issuing.admins, 1, [node_id("i")])
    bundle = admitted(issuing, WORLD.papers("a", WORLD.invite()), by="i")
    assert rule(trust.learn_bundle(bundle)) == "invite.not-by-member"
    trust.learn_certificate(WORLD.certificate("i", ("issuer", "worker")), WALL_MS)
    assert trust.bundle_for(signer("a").public_key) == bundle
    other = admitted(WORLD.trust(), WORLD.papers("b", WORLD.invite(uses=3)))
    mixed = Bundle(other.invite, bundle.join, other.admission)
    assert rule(trust.learn_bundle(mixed)) == "invite.other-admission"
    assert rule(trust.learn_bundle(Bundle(bundle.join, bundle.join, bundle.admission))) == "invite.not-by-admin"
    assert rule(trust.learn_bundle(Bundle(bundle.invite, bundle.invite, bundle.admission))) == "invite.join-key"


def test_an_admission_beyond_the_uses_or_after_the_end_is_refused() -> None:
    from protocols.trust.invites import ADMISSION_DOMAIN, Admission

    good = admitted(WORLD.trust(), WORLD.papers("a", WORLD.invite()))
    admission: Admission = decode(good.admission.payload, Admission)
    for change, expected in (({"use_index": 1}, "invite.use-index"), ({"at_ms": WALL_MS + DAY_MS}, "invite.expired")):
        forged = sign(signer("founder"), ADMISSION_DOMAIN, WORLD.mesh, msgspec.structs.replace(admission, **change))
        bundle = Bundle(good.invite, good.join, forged)
        assert rule(open_bundle(VERIFIER, WORLD.mesh, (WORLD.admin.public_key,), bundle)) == expected


def test_an_invite_for_another_mesh_is_refused() -> None:
    body = decode(WORLD.invite().payload, Invite)
    foreign = make_invite(WORLD.admin, msgspec.structs.replace(body, mesh=b"m" * 32))
    assert rule(open_invite(VERIFIER, WORLD.mesh, (WORLD.admin.public_key,), foreign)) == "invite.malformed"


def principal_papers(name: str, invite: Signed, **changes: object) -> JoinPapers:
    given_grant = decode(invite.payload, Invite).grant
    assert given_grant is not None
    arguments: dict[str, object] = {
        "by": "invite", "roles": ("proposer",), "parent": given_grant, "expires_ms": WALL_MS + 30 * DAY_MS,
    } | changes  # fmt: skip
    return WORLD.papers(name, invite, grant=WORLD.grant(name, **arguments))  # type: ignore[arg-type]


def test_a_principal_has_rights_only_after_a_member_admitted_it() -> None:
    trust = WORLD.trust()
    invite = WORLD.invite(kind="principal")
    papers = principal_papers("ann", invite)
    join_grant = decode(papers.join.payload, dict)["grant"]
    chain = (decode(invite.payload, Invite).grant, Signed(*join_grant))
    key = signer("ann").public_key
    assert rule(trust.rights(key, chain, WALL_MS)) == "grant.not-admitted"  # type: ignore[arg-type]
    admitted(trust, papers)
    rights = trust.rights(key, chain, WALL_MS)  # type: ignore[arg-type]
    assert not isinstance(rights, Refusal)
    assert rights.principal == key
    assert rights.verbs == ("view", "attest", "propose")
    assert rule(certify(trust, signer("founder"), peer_id(key), now())) == "certificate.not-invited"


def test_two_principals_for_one_use_both_lose_their_rights_until_an_admin_chooses() -> None:
    issuer = WORLD.certificate("i", ("issuer", "worker"))
    here, there = WORLD.trust(issuer), WORLD.trust(issuer)
    there.chain_decided(there.admins, 1, [node_id("i")])
    invite = WORLD.invite(kind="principal")
    papers = principal_papers("ann", invite)
    admitted(here, papers)
    here.learn_bundle(admitted(there, principal_papers("bob", invite), by="i"))
    chain = (decode(invite.payload, Invite).grant, Signed(*decode(papers.join.payload, dict)["grant"]))
    key = signer("ann").public_key
    assert rule(here.rights(key, chain, WALL_MS)) == "grant.contested"  # type: ignore[arg-type]
    here.learn_revocation(WORLD.revocation("principal", signer("bob").public_key))
    assert not isinstance(here.rights(key, chain, WALL_MS), Refusal)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"roles": ("deployer",)}, "grant.broader-than-parent"),
        ({"by": "eve"}, "invite.malformed"),
        ({"parent": None}, "invite.grant"),
    ],
)
def test_a_principals_grant_must_lead_from_the_invite_to_its_key(changes: dict[str, object], expected: str) -> None:
    papers = principal_papers("ann", WORLD.invite(kind="principal"), **changes)
    if expected == "invite.malformed":
        papers = JoinPapers(papers.invite, papers.join)
        grant = decode(papers.join.payload, dict)["grant"]
        spoilt = Signed(grant[0] + b"x", grant[1], grant[2])
        papers = WORLD.papers("ann", papers.invite, grant=spoilt)
    assert rule(ask(WORLD.trust(), papers)) == expected


def test_an_issuer_may_not_certify_others_once_it_has_expired_itself() -> None:
    trust = WORLD.trust(WORLD.certificate("a"))
    late = now(wall_ms=WALL_MS + LIFETIME_MS)
    assert rule(certify(trust, signer("founder"), node_id("a"), late)) == "certificate.not-an-issuer"
    assert isinstance(certify(trust, signer("founder"), FOUNDER, late), Signed)
    assert isinstance(certify(trust, signer("founder"), node_id("a"), late), Signed)


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
