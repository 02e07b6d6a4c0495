"""Invites and admissions: what one line gives, and to whom."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.envelope import DecodeError, Signed, decode, digest, sign
from protocols.keys import peer_id
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit, certify
from protocols.trust.certificates import (
    LIFETIME_MS,
)
from protocols.trust.invites import (
    Address,
    Bundle,
    Invite,
    make_invite,
    open_bundle,
    open_invite,
    read_line,
    write_line,
)
from protocols.trust.store import Credentials, Standing
from tests.support.protocols.trust_papers import FOUNDER, WORLD, admitted, ask, rule
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, node_id, now, signer


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
