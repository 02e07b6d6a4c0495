"""Approval by passkey: what every voter checks, one near miss per rule, and what the gate and withdrawals make of it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from protocols.changes.approvals import Approval, approval_statement, read_approval
from protocols.changes.change import Change
from protocols.changes.demands import TEAM, Demands, Policy, demands_problem
from protocols.changes.evidence import EvidenceRun, attest, read_evidence
from protocols.changes.passkeys import describe, read_passkey
from protocols.envelope import DecodeError, Signed, digest, encode, sign
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.apply import genesis_state
from protocols.state.commands import SetPolicy, SetRules, WithdrawApproval
from protocols.state.model import MeshState
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from simulation.world.authenticator import PRESENT, VERIFIED, Authenticator
from tests.support.protocols.mesh_world import MeshWorld, Shown, refused, signer
from tests.support.protocols.passkeys import authenticator, curve_key, point_of
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS

MESH = Digest(b"m" * 32)
CHANGE = digest(b"change")
PHONE = authenticator("ann")
PASSKEY_TEAM = Policy("team", Demands(1, ("approver", "admin", "passkey")))


def statement(**fields: Any) -> bytes:
    said = {"change": CHANGE, "project": "shop", "environment": "prod", "approved_ms": WALL_MS}
    mesh = fields.pop("mesh", MESH)
    return approval_statement(mesh, Approval(**{"key": b"", **said, "expires_ms": WALL_MS + DAY_MS, **fields}))


def read(envelope: bytes) -> Approval | Refusal:
    return read_approval(VERIFIER, MESH, envelope)


def test_a_touch_is_an_approval_by_the_passkey_that_names_its_person() -> None:
    answer = read(PHONE.touch(statement(comment="read the diff")))
    assert isinstance(answer, Approval)
    assert (answer.key, answer.person) == (PHONE.id, signer("ann").public_key)
    assert (answer.change, answer.environment, answer.comment) == (CHANGE, "prod", "read the diff")
    assert answer.by_passkey


@pytest.mark.parametrize(
    "other",
    [
        {"counter": 0},
        {"counter": 77},
        {"crossOrigin": None},
        {"flags": PRESENT | VERIFIED | 0x18},
        {"flags": PRESENT | VERIFIED | 0x80, "tail": b"\xa0"},
        {"other_keys_can_be_added_here": "do not compare clientDataJSON against a template"},
    ],
    ids=str,
)
def test_what_honest_authenticators_differ_in_is_taken(other: dict[str, Any]) -> None:
    assert isinstance(read(PHONE.touch(statement(), **other)), Approval)


OTHER_POINT = point_of(curve_key("ann tablet"))
MISSES: dict[str, tuple[dict[str, Any], str]] = {
    "registration": ({"type": "webauthn.create"}, "passkey.type"),
    "type in capitals": ({"type": "WEBAUTHN.GET"}, "passkey.type"),
    "other environment": ({"asked": statement(environment="staging")}, "passkey.challenge"),
    "other change": ({"asked": statement(change=digest(b"other"))}, "passkey.challenge"),
    "longer": ({"asked": statement(expires_ms=WALL_MS + 2 * DAY_MS)}, "passkey.challenge"),
    "other comment": ({"asked": statement(comment="x")}, "passkey.challenge"),
    "padded": ({"challenge": base64.urlsafe_b64encode(hashlib.sha256(statement()).digest()).decode()}, "passkey.challenge"),
    "digest in hex": ({"challenge": hashlib.sha256(statement()).hexdigest()}, "passkey.challenge"),
    "no challenge": ({"challenge": ""}, "passkey.challenge"),
    "other port": ({"origin": "http://localhost:4189"}, "passkey.origin"),
    "no port": ({"origin": "http://localhost"}, "passkey.origin"),
    "other scheme": ({"origin": "https://localhost:4188"}, "passkey.origin"),
    "other host": ({"origin": "http://127.0.0.1:4188"}, "passkey.origin"),
    "host below": ({"origin": "http://a.localhost:4188"}, "passkey.origin"),
    "slash": ({"origin": "http://localhost:4188/"}, "passkey.origin"),
    "beginning only": ({"origin": "http://localhost:41888"}, "passkey.origin"),
    "framed": ({"crossOrigin": True}, "passkey.framed"),
    "framed by one of ours": ({"topOrigin": "http://localhost:4188"}, "passkey.framed"),
    "framed by nobody": ({"topOrigin": ""}, "passkey.framed"),
    "other relying party": ({"rp_id": "localhost.example"}, "passkey.rp"),
    "person not verified": ({"flags": PRESENT}, "passkey.person"),
    "person not present": ({"flags": VERIFIED}, "passkey.person"),
    "nobody": ({"flags": 0}, "passkey.person"),
    "a credential inside": ({"flags": PRESENT | VERIFIED | 0x40, "tail": b"x" * 20}, "passkey.malformed"),
    "bytes behind": ({"tail": b"x"}, "passkey.malformed"),
    "challenge is no text": ({"challenge": 7}, "passkey.malformed"),
    "crossOrigin is a word": ({"crossOrigin": "no"}, "passkey.malformed"),
    "long client data": ({"padding": "x" * 3000}, "passkey.malformed"),
    "long authenticator data": ({"flags": PRESENT | VERIFIED | 0x80, "tail": b"x" * 1000}, "passkey.malformed"),
    "other description": ({"description": replace(PHONE, origins=("http://localhost:1",)).description}, "passkey.other"),
    "other person": ({"description": replace(PHONE, person=signer("bob").public_key).description}, "passkey.other"),
    "other passkey's name": ({"key": authenticator("ann", "tablet").id}, "passkey.other"),
    "no signature": ({"signature": b""}, "passkey.signature"),
    "long signature": ({"signature": bytes(80)}, "passkey.malformed"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSES)
def test_each_near_miss_is_refused_by_its_own_rule(name: str) -> None:
    other, rule = MISSES[name]
    assert refused(read(PHONE.touch(statement(), **other))) == rule


def test_an_assertion_made_for_one_approval_is_none_of_another() -> None:
    """A replay: the same touch under a statement for staging, for later, or for another mesh."""
    envelope = msgspec.json.decode(PHONE.touch(statement()))
    for other in (statement(environment="staging"), statement(approved_ms=WALL_MS + 1), statement(mesh=b"o" * 32)):
        envelope["payload"] = base64.b64encode(other).decode()
        assert refused(read(msgspec.json.encode(envelope))) == "passkey.challenge"


def test_an_approval_of_another_mesh_is_refused_though_its_touch_is_whole() -> None:
    assert refused(read(PHONE.touch(statement(mesh=b"o" * 32)))) == "approval.other-mesh"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"rp_id": "example.org", "origins": ("https://freehold.example.org",)}, ""),
        ({"rp_id": "example.org", "origins": ("https://example.org:8443",)}, ""),
        ({"rp_id": "localhost", "origins": ("https://localhost:4188",)}, ""),
        ({"rp_id": "example.org", "origins": ("http://example.org",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("https://example.org.evil.net",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("https://evilexample.org",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("https://example.org/path",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("https://user@example.org",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("android:apk-key-hash:abc",)}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ()}, "passkey.origin"),
        ({"rp_id": "example.org", "origins": ("https://example.org",) * 5}, "passkey.origin"),
        ({"rp_id": "localhost", "origins": ("http://localhost:4188", "https://evil.example")}, "passkey.origin"),
        ({"rp_id": "org", "origins": ("https://org",)}, "passkey.rp"),
        ({"rp_id": "127.0.0.1:80", "origins": ("http://127.0.0.1:80",)}, "passkey.rp"),
        ({"rp_id": "Example.org", "origins": ("https://Example.org",)}, "passkey.rp"),
        ({"rp_id": "", "origins": ("https://example.org",)}, "passkey.rp"),
    ],
    ids=str,
)
def test_a_passkey_is_granted_for_pages_of_its_own_relying_party_only(fields: dict[str, Any], rule: str) -> None:
    outcome = authenticator("ann", **fields)
    answer = read(outcome.touch(statement()))
    assert (refused(answer) if rule else isinstance(answer, Approval)) == (rule or True)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()], ids=lambda curve: curve.name)
def test_only_p256_is_a_passkey(curve: ec.EllipticCurve) -> None:
    answer = read(authenticator("ann", curve=curve).touch(statement()))
    assert refused(answer) == ("passkey.curve" if curve.key_size == 384 else "passkey.signature")


def test_a_description_that_is_none_is_refused_and_never_raises() -> None:
    person, point = signer("ann").public_key, PHONE.point
    assert refused(read_passkey(describe(person, b"\x02" + point[1:33], "localhost", PHONE.origins))) == "passkey.curve"
    assert refused(read_passkey(describe(person, b"\x02" + point[1:], "localhost", PHONE.origins))) == "passkey.curve"
    assert refused(read_passkey(describe(b"p", point, "localhost", PHONE.origins))) == "passkey.malformed"
    assert refused(read_passkey(b" " * 2000)) == "passkey.malformed"
    for data in (b"", b"{}", b"[" * 500, b'{"person":"zz","point":"?","rp_id":"a","origins":[]}', b"\xff"):
        assert refused(read_passkey(data)) == "passkey.malformed"


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_of_an_envelope_is_another_approval(at: int, bit: int) -> None:
    data = PHONE.touch(statement())
    at %= len(data)
    flipped = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
    answer = read(flipped)
    assert isinstance(answer, Refusal) or answer == read(data), "text of base64 has spare bits; its meaning has none"


def test_a_passkey_signs_approvals_and_no_evidence() -> None:
    content = attest(
        signer("ann"), EvidenceRun(MESH.hex(), "test", "host", WALL_MS), passed=True, components=(("web", CHANGE),),
        configuration=CHANGE,
    )  # fmt: skip
    payload = base64.b64decode(msgspec.json.decode(content)["payload"])
    assert refused(read_evidence(VERIFIER, MESH, PHONE.touch(payload))) == "evidence.passkey"


# --- the gate ---------------------------------------------------------------------------------------------------------


class Team:
    """A team mesh under rules 3 in which dev proposes and starts, and ann approves with a key or a passkey."""

    def __init__(self, policy: Policy = TEAM, rules: int = 3) -> None:
        self.w = MeshWorld(TEAM).furnish()
        if rules > 1:
            assert isinstance(self.w.govern(SetRules(rules), self.w.admin), MeshState)
        if policy is not TEAM:
            assert isinstance(self.w.govern(SetPolicy(policy), self.w.admin), MeshState)
        self.release = self.w.release(1, author="dev")
        self.change = self.w.change(self.release, author="dev")
        self.ann = self.w.grant("ann", "approver")
        self.chains = [self.w.grant("dev", "deployer"), self.ann, self.passkey(PHONE, "ann", self.ann)]

    def passkey(
        self, one: Authenticator, by: str, parent: tuple[Signed, ...] = (), roles: tuple[Role, ...] = ("approver",),
        **fields: Any,
    ) -> tuple[Signed, ...]:  # fmt: skip
        grant = Grant(
            one.id, "person", f"{by}'s phone", roles, ("*",), ("*",), WALL_MS + 20 * DAY_MS, b"p" * 16,
            parent=digest(parent[-1].payload) if parent else b"", verbs=("approve",), **fields,
        )  # fmt: skip
        return (*parent, sign(signer(by), GRANT_DOMAIN, self.w.mesh, grant))

    def said(self, change: Change | None = None, **fields: Any) -> bytes:
        named = digest(encode(change or self.change))
        return statement(**{"change": named, "mesh": self.w.mesh, **fields})

    def start(self, *approvals: bytes) -> MeshState | Refusal:
        shown = self.w.case_for(self.change, self.release, author="dev", grants=self.chains, approvals=approvals)
        return self.w.start(self.change, signer("dev"), shown=shown)

    def withdraw(self, by: str, *approvals: bytes) -> MeshState | Refusal:
        shown = Shown().add("grants", *(encode(chain) for chain in self.chains if by == "ann" and chain is self.ann))
        shown.add("grants", *(encode(chain) for chain in self.chains if by == "dev" and chain is self.chains[0]))
        action = WithdrawApproval(digest(encode(self.change)), "no")
        return self.w.on_lane(action, signer(by), shown=shown.add("approvals", *approvals))


def test_a_passkey_starts_a_change_and_is_remembered_as_the_approver() -> None:
    for policy in (TEAM, PASSKEY_TEAM):
        team = Team(policy)
        assert isinstance(team.start(PHONE.touch(team.said())), MeshState)
        assert team.w.rollout.candidate.approvers == (PHONE.id,)


def test_policy_that_asks_for_a_passkey_takes_no_key_file() -> None:
    team = Team(PASSKEY_TEAM)
    answer = team.start(team.w.approval("ann", team.change))
    assert refused(answer) == "approval.passkey"
    assert isinstance(answer, Refusal)
    assert f"freehold approve {digest(encode(team.change)).hex()[:12]} --passkey" in answer.detail
    assert refused(team.start()) == "approval.missing"
    assert isinstance(team.start(team.w.approval("ann", team.change), PHONE.touch(team.said())), MeshState)


def test_key_and_passkey_of_one_person_are_one_approval_of_two() -> None:
    team = Team(Policy("team", Demands(2, ("approver",))))
    assert refused(team.start(team.w.approval("ann", team.change), PHONE.touch(team.said()))) == "approval.missing"


def test_two_passkeys_of_one_person_are_one_and_of_two_people_two() -> None:
    team = Team(Policy("team", Demands(2, ("approver", "passkey"))))
    tablet, bobs = authenticator("ann", "tablet"), authenticator("bob")
    bob = team.w.grant("bob", "approver")
    team.chains += [team.passkey(tablet, "ann", team.ann), bob, team.passkey(bobs, "bob", bob)]
    said = team.said()
    assert refused(team.start(PHONE.touch(said), tablet.touch(said))) == "approval.missing"
    assert isinstance(team.start(PHONE.touch(said), bobs.touch(said)), MeshState)


def test_the_authors_own_passkey_does_not_count() -> None:
    team = Team()
    dev = team.w.grant("dev", "deployer", "approver")
    own = authenticator("dev")
    team.chains = [dev, team.passkey(own, "dev", dev)]
    assert refused(team.start(own.touch(team.said()))) == "approval.by-author"
    mine = authenticator("admin")
    team.chains.append(team.passkey(mine, "admin", roles=("admin",), same_person=True))
    assert isinstance(team.start(mine.touch(team.said())), MeshState)


def test_a_passkey_counts_by_its_own_persons_grant_only() -> None:
    """Bob, an approver, grants ann's passkey: that makes it neither bob's nor good without ann's own grant."""
    team = Team()
    bob = team.w.grant("bob", "approver")
    team.chains = [team.chains[0], bob, team.passkey(PHONE, "bob", bob)]
    assert refused(team.start(PHONE.touch(team.said()))) == "approval.no-rights"
    team.chains = [team.chains[0], team.w.grant("ann", "approver")]
    assert refused(team.start(PHONE.touch(team.said()))) == "approval.no-rights", "nobody granted it"


def test_before_rules_3_no_passkey_approves_and_no_policy_asks_for_one() -> None:
    for rules in (1, 2):
        team = Team(rules=rules)
        assert refused(team.start(PHONE.touch(team.said()))) == "rules.passkey"
        assert refused(team.w.govern(SetPolicy(PASSKEY_TEAM), team.w.admin)) == "rules.passkey"
        asking = team.w.release(1, author="dev", demands=Demands(1, ("passkey",)))
        team.release, team.change = asking, team.w.change(asking, author="dev")
        assert refused(team.start(team.w.approval("ann", team.change))) == "rules.passkey"
    with pytest.raises(DecodeError, match="rules 3"):
        genesis_state(msgspec.structs.replace(MeshWorld().genesis, policy=encode(PASSKEY_TEAM)), MESH)


def test_what_a_policy_asks_of_approvers_is_encoded_as_roles_were() -> None:
    """A mixed mesh hashes the same policies alike: only who asks for a passkey writes anything new."""
    assert encode(Demands(1, ("approver", "admin"))) == b"\x94\x01\x92\xa8approver\xa5admin\x90\x90"
    assert Demands(1, ("admin", "passkey")).approver_roles == ("admin",)
    assert demands_problem(Demands(0, ("passkey",))) is not None


def test_a_release_may_ask_for_a_passkey_beside_the_meshs_policy() -> None:
    team = Team()
    team.release = team.w.release(1, author="dev", demands=Demands(1, ("passkey",)))
    team.change = team.w.change(team.release, author="dev")
    assert refused(team.start(team.w.approval("ann", team.change))) == "approval.passkey"
    assert isinstance(team.start(PHONE.touch(team.said())), MeshState)


def test_whose_passkey_it_is_takes_its_approval_back_before_the_start_and_after() -> None:
    team = Team()
    touched = PHONE.touch(team.said())
    assert isinstance(team.withdraw("ann", touched), MeshState)
    assert refused(team.start(touched)) == "approval.withdrawn"
    team = Team()
    assert isinstance(team.start(touched := PHONE.touch(team.said())), MeshState)
    assert isinstance(team.withdraw("ann", touched), MeshState)
    assert team.w.rollout.paused
    assert team.w.rollout.candidate.approvers == ()


def test_nobody_takes_back_what_anothers_passkey_said() -> None:
    team = Team()
    assert isinstance(team.start(touched := PHONE.touch(team.said())), MeshState)
    assert refused(team.withdraw("dev", touched)) == "approval.withdrawal"
    bobs = authenticator("bob").touch(team.said())
    assert refused(team.withdraw("ann", bobs)) == "approval.withdrawal"
    assert refused(team.withdraw("ann", PHONE.touch(team.said(change=digest(b"other"))))) == "approval.withdrawal"
    assert refused(team.withdraw("ann", PHONE.touch(team.said(), flags=PRESENT))) == "passkey.person"
    assert team.w.rollout.candidate.approvers == (PHONE.id,)
    assert not team.w.rollout.paused


def test_the_envelope_is_json_that_others_can_read() -> None:
    (entry,) = json.loads(PHONE.touch(statement()))["signatures"]
    assert set(entry) == {"sig", "keyid", "passkey"}
    assert hashlib.sha256(base64.b64decode(entry["passkey"]["passkey"])).hexdigest() == entry["keyid"]
