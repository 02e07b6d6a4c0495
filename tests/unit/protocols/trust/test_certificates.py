"""Genesis, certificates and credentials, and the store that weighs them."""

from __future__ import annotations

import msgspec
import pytest

from protocols.envelope import DecodeError, Signed, decode, encode, sign
from protocols.trust.admission import certify, issuers
from protocols.trust.certificates import (
    CERTIFICATE_DOMAIN,
    LIFETIME_MS,
    RENEW_AFTER_MS,
    Certificate,
    open_certificate,
)
from protocols.trust.genesis import Genesis, decode_genesis, mesh_id
from protocols.trust.invites import (
    Bundle,
)
from protocols.trust.store import CERTIFICATES_PER_NODE_MAX, UNPROVEN_MAX, Credentials, Standing, TrustStore
from tests.support.protocols.trust_papers import FOUNDER, WORLD, admitted, rule
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, node_id, now, signer

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
