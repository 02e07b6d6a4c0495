"""The gate of a start: approvals, evidence, freeze windows, break-glass; one refusal per rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.changes.approvals import APPROVAL, Approval, read_approval, sign_approval
from protocols.changes.change import CHANGE_DOMAIN, Change, Component, Release
from protocols.changes.demands import (
    SOLO,
    TEAM,
    Demands,
    EvidenceDemand,
    FreezeWindow,
    Policy,
    demands_problem,
    policy_problem,
)
from protocols.changes.evidence import PROVENANCE, STATEMENT_TYPE, open_envelope, read_evidence, seal, statement_json
from protocols.envelope import Signed, digest, encode, sign
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.commands import WithdrawApproval
from protocols.state.model import MeshState
from tests.support.protocols.mesh_world import COMPONENT, MeshWorld, node_id, refused, signer
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS

MESH = Digest(b"m" * 32)


class Team:
    """A team mesh in which dev proposes and starts, and ann may approve."""

    def __init__(self, policy: Policy = TEAM, **world: Any) -> None:
        self.w = MeshWorld(policy, **world).furnish()
        self.release = self.w.release(1, author="dev")
        self.chains = [self.w.grant("dev", "deployer"), self.w.grant("ann", "approver")]

    def change(self, **fields: Any) -> Change:
        return self.w.change(self.release, **{"author": "dev", **fields})

    def start(self, change: Change | None = None, by: str = "dev", **shown: Any) -> MeshState | Refusal:
        change = change or self.change()
        flags = {name: shown.pop(name) for name in ("break_glass", "supersede") if name in shown}
        shown.setdefault("approvals", (self.w.approval("ann", change),))
        author = shown.pop("author", "dev")
        new_shown = self.w.case_for(
            change, shown.pop("release", self.release), author=author, grants=self.chains, **shown
        )
        return self.w.start(change, signer(by), shown=new_shown, **flags)


def test_a_change_with_its_approval_starts_and_remembers_the_approver() -> None:
    team = Team()
    assert isinstance(team.start(), MeshState)
    candidate = team.w.rollout.candidate
    assert candidate.required == 1
    assert candidate.approvers == (signer("ann").public_key,)
    assert candidate.author == signer("dev").public_key


def test_without_approval_the_refusal_says_what_is_missing_and_who_gives_it() -> None:
    team = Team()
    answer = team.start(approvals=())
    assert refused(answer) == "approval.missing"
    assert isinstance(answer, Refusal)
    assert "0 of 1" in answer.detail
    assert "approver or admin" in answer.detail
    assert "freehold approve" in answer.detail


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"environment": "staging"}, "approval.other-environment"),
        ({"project": "blog"}, "approval.other-environment"),
        ({"expires_ms": WALL_MS}, "approval.expired"),
        ({"expires_ms": WALL_MS + 30 * DAY_MS}, "approval.too-long"),
        ({"approved_ms": WALL_MS + 365 * DAY_MS, "expires_ms": WALL_MS + 366 * DAY_MS}, "approval.in-future"),
        ({"mesh": b"o" * 32}, "approval.other-mesh"),
        ({"comment": "x" * 3000}, "approval.malformed"),
    ],
)
def test_an_approval_that_does_not_fit_refuses_with_its_own_rule(fields: dict[str, Any], rule: str) -> None:
    team = Team()
    change = team.change()
    assert refused(team.start(change, approvals=(team.w.approval("ann", change, **fields),))) == rule


def test_any_alteration_of_the_change_voids_the_approval() -> None:
    team = Team()
    approved = team.change()
    approvals = (team.w.approval("ann", approved),)
    for altered in ({"configuration": digest(b"other")}, {"request": "other"}, {"replicas": 3}):
        assert refused(team.start(team.change(**altered), approvals=approvals)) == "approval.other-change"
    assert isinstance(team.start(approved, approvals=approvals), MeshState)


def test_the_author_and_the_authors_agents_do_not_count() -> None:
    team = Team()
    dev = team.w.grant("dev", "deployer", "approver")
    laptop = team.w.grant("laptop", "approver", by=signer("dev"), parent=dev)
    team.chains = [dev, laptop]
    change = team.change()
    for by in ("dev", "laptop"):
        assert refused(team.start(change, approvals=(team.w.approval(by, change),))) == "approval.by-author"


def test_the_person_behind_an_agent_does_not_approve_what_the_agent_wrote() -> None:
    team = Team()
    dev = team.w.grant("dev", "proposer", "deployer", "approver")
    bot = team.w.grant("bot", "proposer", by=signer("dev"), kind="agent", parent=dev)
    team.chains = [dev, bot, team.chains[1]]
    team.release = team.w.release(1, author="bot")
    change = team.w.change(team.release, author="bot")
    by_dev = (team.w.approval("dev", change),)
    assert refused(team.start(change, author="bot", approvals=by_dev)) == "approval.by-author"
    assert isinstance(team.start(change, author="bot"), MeshState)


def _authored(team: Team, author: str, approver: str) -> MeshState | Refusal:
    release = team.w.release(1, author=author)
    change = team.w.change(release, author=author)
    approvals = (team.w.approval(approver, change),)
    return team.start(change, by="dev", author=author, release=release, approvals=approvals)


def test_the_founders_two_keys_and_the_agents_under_either_are_one_person() -> None:
    team = Team()
    me = team.w.grant("me", "proposer", "deployer", same_person=True)
    team.chains += [
        me, team.w.grant("bot", "proposer", by=signer("me"), kind="agent", parent=me),
        team.w.grant("robot", "proposer", kind="agent"),
    ]  # fmt: skip
    for author in ("me", "bot", "robot", "admin"):
        assert refused(_authored(team, author, "admin")) == "approval.by-author"
    assert isinstance(_authored(team, "me", "ann"), MeshState)
    assert isinstance(_authored(Team(), "dev", "admin"), MeshState), "another person's change is the admin's to approve"


def test_the_two_keys_of_a_person_who_logged_in_are_one_and_two_guests_of_one_invite_are_two() -> None:
    team = Team()
    invite = team.w.grant("invite", "deployer", "approver", invite_uses=2)
    for name in ("eve", "bob"):
        sealed = team.w.grant(name, "deployer", "approver", by=signer("invite"), parent=invite)
        team.chains += [sealed, team.w.grant(f"{name}-me", "deployer", by=signer(name), parent=sealed)]
    for author, approver in (("eve-me", "eve"), ("eve", "eve"), ("bob-me", "bob")):
        assert refused(_authored(team, author, approver)) == "approval.by-author"
    assert isinstance(_authored(team, "eve-me", "bob"), MeshState)


def test_whose_a_key_is_does_not_expire_with_its_grant() -> None:
    team = Team()
    ann = team.w.grant("ann", "approver", "proposer")
    bot = team.w.grant("bot", "proposer", by=signer("ann"), kind="agent", parent=ann, expires_ms=WALL_MS)
    team.chains = [team.chains[0], ann, bot]
    team.release = team.w.release(1, author="bot")
    assert refused(team.start()) == "approval.by-author", "the agent's grant has ended, what it built is ann's doing"


def test_who_built_the_release_does_not_approve_anothers_change_of_it() -> None:
    team = Team()
    team.release = team.w.release(1, author="ann")
    assert refused(team.start()) == "approval.by-author"


def test_an_agent_never_counts_and_neither_does_a_person_without_the_role() -> None:
    team = Team()
    change = team.change()
    team.chains = [team.chains[0], team.w.grant("bot", "proposer", kind="agent")]
    assert refused(team.start(change, approvals=(team.w.approval("bot", change),))) == "approval.no-rights"
    team.chains = [team.chains[0], team.w.grant("viv", "viewer")]
    assert refused(team.start(change, approvals=(team.w.approval("viv", change),))) == "approval.no-rights"
    assert refused(team.start(change, approvals=(team.w.approval("stranger", change),))) == "approval.no-rights"


def test_an_approver_elsewhere_or_with_an_expired_grant_does_not_count() -> None:
    team = Team()
    dev = team.chains[0]
    for chain in (
        team.w.grant("ann", "approver", environments=("staging",)),
        team.w.grant("ann", "approver", expires_ms=WALL_MS),
    ):
        team.chains = [dev, chain]
        assert refused(team.start()) == "approval.no-rights"


def test_two_approvals_of_one_person_are_one() -> None:
    team = Team(Policy("team", Demands(2, ("approver",))))
    ann = team.w.grant("ann", "approver")
    phone = team.w.grant("phone", "approver", by=signer("ann"), parent=ann)
    team.chains = [team.chains[0], ann, phone, team.w.grant("bob", "approver")]
    change = team.change()
    twice = (team.w.approval("ann", change), team.w.approval("phone", change))
    assert refused(team.start(change, approvals=twice)) == "approval.missing"
    both = (team.w.approval("ann", change), team.w.approval("bob", change))
    assert isinstance(team.start(change, approvals=both), MeshState)


def test_two_grants_of_one_approver_both_count_whichever_is_shown_last() -> None:
    for roles, more in (
        (("viewer",), {}),
        (("approver",), {"environments": ("staging",)}),
        (("approver",), {"expires_ms": WALL_MS}),
    ):
        for swapped in (False, True):
            team = Team()
            dev, ann = team.chains
            other = team.w.grant("ann", *roles, **more)  # type: ignore[arg-type]
            team.chains = [dev, other, ann] if swapped else [dev, ann, other]
            assert isinstance(team.start(), MeshState)


def test_a_role_of_one_grant_does_not_count_where_another_grant_approves() -> None:
    """ann is an admin in staging and an approver everywhere: in production that makes no admin's approval."""
    team = Team(Policy("team", Demands(1, ("admin",))))
    team.chains = [*team.chains, team.w.grant("ann", "admin", environments=("staging",))]
    assert refused(team.start()) == "approval.missing"
    team.chains = [*team.chains, team.w.grant("ann", "admin")]
    assert isinstance(team.start(), MeshState)


def test_an_author_cannot_void_an_approval_by_lending_the_approver_a_right() -> None:
    team = Team()
    dev = team.w.grant("dev", "deployer", "approver")
    lent = team.w.grant("ann", "approver", by=signer("dev"), parent=dev)
    team.chains = [dev, lent]
    assert refused(team.start()) == "approval.by-author"
    team.chains = [dev, lent, team.w.grant("ann", "approver")]
    assert isinstance(team.start(), MeshState)


def test_a_sub_key_that_an_admin_also_granted_directly_is_a_person_of_its_own() -> None:
    team = Team(Policy("team", Demands(2, ("approver",))))
    ann = team.w.grant("ann", "approver")
    bob = team.w.grant("bob", "approver", by=signer("ann"), parent=ann)
    change = team.change()
    both = (team.w.approval("ann", change), team.w.approval("bob", change))
    team.chains = [team.chains[0], ann, bob]
    assert refused(team.start(change, approvals=both)) == "approval.missing"
    team.chains = [*team.chains, team.w.grant("bob", "approver")]
    assert isinstance(team.start(change, approvals=both), MeshState)


def test_a_policy_that_names_a_role_takes_no_other() -> None:
    team = Team(Policy("team", Demands(1, ("admin",))))
    assert refused(team.start()) == "approval.missing"
    change = team.change()
    assert isinstance(team.start(change, approvals=(team.w.approval("admin", change),)), MeshState)


def test_a_withdrawn_approval_does_not_start_anything() -> None:
    team = Team()
    change = team.change()
    shown = team.w.case_for(change, team.release, author="dev", grants=team.chains)
    del shown.fields["statements"], shown.fields["change"], shown.fields["release"]
    shown.material = {named: shown.material[named] for named in shown.fields["grants"]}
    done = team.w.on_lane(WithdrawApproval(digest(encode(change))), signer("ann"), shown=shown)
    assert isinstance(done, MeshState)
    assert refused(team.start(change)) == "approval.withdrawn"


def test_the_change_must_be_the_authors_own_for_this_lane_and_moment() -> None:
    team = Team()
    w = team.w
    assert refused(team.start(team.change(author="ann"))) == "change.signature"
    assert refused(team.start(team.change(environment="staging"))) == "change.other-environment"
    assert refused(team.start(team.change(base=b"b" * 32))) == "change.base-moved"
    assert refused(team.start(team.change(policy=b"p" * 32))) == "change.policy-moved"
    assert refused(team.start(team.change(created_ms=WALL_MS + 200_000))) == "change.age"
    assert refused(team.start(team.change(created_ms=WALL_MS - 31 * DAY_MS))) == "change.age"
    assert refused(team.start(team.change(request="x" * 5000))) == "change.malformed"
    assert refused(team.start(msgspec.structs.replace(team.change(), release=b"r" * 32))) == "release.other"
    team.chains = [w.grant("dev", "deployer", expires_ms=WALL_MS - 1)]
    assert refused(team.start()) == "grant.expired"
    team.chains = [w.grant("dev", "viewer")]
    assert refused(team.start(by="admin")) == "change.author"
    team.chains = []
    assert refused(team.start(by="admin")) == "change.author"


def test_the_exhibited_change_and_manifest_must_be_there_and_readable() -> None:
    team = Team()
    change = team.change()
    shown = team.w.case_for(change, team.release, author="dev", grants=team.chains)
    other = team.change(request="other")
    assert refused(team.w.start(other, signer("dev"), shown=shown)) == "change.other"
    missing = team.w.case_for(change, team.release, author="dev", grants=team.chains)
    for name, rule in (("release", "release.absent"), ("change", "change.absent")):
        del missing.material[missing.fields.pop(name)]
        assert refused(team.w.start(change, signer("dev"), shown=missing)) == rule
    bad = team.w.case_for(change, team.release, author="dev", grants=team.chains)
    del bad.material[bad.fields["release"]]
    bad.one("release", b"\xc1")
    assert refused(team.w.start(change, signer("dev"), shown=bad)) == "release.malformed"
    del bad.material[bad.fields["change"]]
    bad.one("change", b"\xc1\xc1")
    assert refused(team.w.start(change, signer("dev"), shown=bad)) == "change.malformed"
    del bad.material[bad.fields["change"]]
    bad.one("change", encode(sign(signer("dev"), CHANGE_DOMAIN, team.w.mesh, "not a change")))
    assert refused(team.w.start(change, signer("dev"), shown=bad)) == "change.malformed"
    bad = team.w.case_for(change, team.release, author="dev", grants=team.chains, prepared=())
    bad.add("approvals", team.w.approval("ann", change)).add("statements", encode(Signed(b"x", b"k" * 32, b"s" * 64)))
    assert refused(team.w.start(change, signer("dev"), shown=bad)) == "statement.signature"
    empty = Release("shop", (), b"", "", signer("dev").public_key)
    assert refused(team.start(release=empty)) == "release.malformed"
    statements = team.w.case_for(change, team.release, author="dev", grants=team.chains, prepared=())
    statements.add("approvals", team.w.approval("ann", change)).add("statements", b"\xc1")
    assert refused(team.w.start(change, signer("dev"), shown=statements)) == "statement.malformed"


# --- evidence ---------------------------------------------------------------------------------------------------------

TESTED = Policy("solo", Demands(evidence=(EvidenceDemand("test", DAY_MS),)))


def _with_evidence(team: Team, *evidence: bytes) -> MeshState | Refusal:
    return team.start(approvals=(), evidence=evidence)


def test_demanded_evidence_on_these_digests_lets_a_change_start() -> None:
    team = Team(TESTED)
    answer = _with_evidence(team)
    assert refused(answer) == "evidence.missing"
    assert isinstance(answer, Refusal)
    assert "freehold test" in answer.detail
    assert isinstance(_with_evidence(team, team.w.evidence("dev")), MeshState)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"passed": False}, "evidence.failed"),
        ({"finished_ms": WALL_MS - 2 * DAY_MS}, "evidence.stale"),
        ({"finished_ms": WALL_MS + DAY_MS}, "evidence.in-future"),
        ({"component": digest(b"other")}, "evidence.other-digests"),
        ({"configuration": digest(b"other")}, "evidence.other-digests"),
        ({"mesh": b"o" * 32}, "evidence.other-mesh"),
        ({"kind": "smoke"}, "evidence.missing"),
        ({"kind": "build"}, "evidence.predicate"),
    ],
)
def test_evidence_that_does_not_fit_refuses_with_its_own_rule(fields: dict[str, Any], rule: str) -> None:
    team = Team(TESTED)
    assert refused(_with_evidence(team, team.w.evidence("dev", **fields))) == rule


def test_evidence_by_a_stranger_is_refused() -> None:
    team = Team(TESTED)
    assert refused(_with_evidence(team, team.w.evidence("stranger"))) == "evidence.stranger"
    team.chains.append(team.w.grant("viv", "viewer"))
    assert refused(_with_evidence(team, team.w.evidence("viv"))) == "evidence.stranger"
    both = (team.w.evidence("stranger"), team.w.evidence("dev"))
    assert isinstance(_with_evidence(team, *both), MeshState), "what nobody needs does no harm"


def test_a_protected_environment_wants_smoke_run_again_by_a_node() -> None:
    team = Team(SOLO, protected=True)
    assert refused(_with_evidence(team)) == "evidence.missing"
    assert refused(_with_evidence(team, team.w.evidence("dev", "smoke"))) == "evidence.self-attested"
    both = (team.w.evidence("dev", "smoke"), team.w.evidence("n2", "smoke"))
    assert isinstance(_with_evidence(team, *both), MeshState)


def test_a_protected_environment_with_its_own_policy_asks_what_that_says() -> None:
    team = Team(SOLO, protected=True, own_policy=TEAM)
    assert refused(_with_evidence(team)) == "approval.missing"
    assert isinstance(team.start(), MeshState)


def test_provenance_counts_as_build_evidence() -> None:
    team = Team(Policy("solo", Demands(evidence=(EvidenceDemand("build", DAY_MS),))))
    run = {"mesh": team.w.mesh.hex(), "kind": "build", "covers": "sandbox", "finished_ms": WALL_MS}
    body = statement_json((("web", COMPONENT),), PROVENANCE, {"freehold_run": run})
    assert isinstance(_with_evidence(team, seal(signer("dev"), body)), MeshState)


def test_a_project_file_tightens_but_never_loosens() -> None:
    team = Team()
    team.release = team.w.release(1, author="dev", demands=Demands(2, ("approver",)))
    assert refused(team.start()) == "approval.missing"
    team.release = team.w.release(1, author="dev", demands=Demands(0))
    assert refused(team.start(approvals=())) == "approval.missing"
    assert isinstance(team.start(), MeshState)


# --- windows and break-glass ------------------------------------------------------------------------------------------


def test_deny_beats_allow_and_windows_repeat() -> None:
    week = 7 * DAY_MS
    allow = FreezeWindow("allow", WALL_MS - DAY_MS, 2 * DAY_MS, week)
    deny = FreezeWindow("deny", WALL_MS, 1000, week, "release night")
    team = Team(Policy("solo", Demands(windows=(allow, deny))))
    assert refused(team.start(approvals=())) == "window.frozen"
    team.w.at_ms += 1000
    assert isinstance(team.start(approvals=()), MeshState)
    closed = Team(Policy("solo", Demands(windows=(allow,))))
    closed.w.at_ms += DAY_MS
    assert refused(closed.start(approvals=())) == "window.closed"
    closed.w.at_ms = WALL_MS + week
    assert allow.covers(closed.w.at_ms)
    assert not FreezeWindow("deny", WALL_MS, 1000).covers(WALL_MS + week)
    assert not FreezeWindow("deny", WALL_MS, 1000).covers(WALL_MS - 1)


def test_break_glass_is_an_admins_recorded_reason() -> None:
    team = Team()
    assert refused(team.start(approvals=(), break_glass="site is down")) == "command.not-allowed"
    assert refused(team.start(by="admin", approvals=(), break_glass="x" * 501)) == "command.reason"
    assert isinstance(team.start(by="admin", approvals=(), break_glass="site is down"), MeshState)
    assert team.w.rollout.candidate.break_glass == "site is down"
    assert team.w.rollout.candidate.required == 0


def test_starting_needs_the_right_to_start() -> None:
    team = Team()
    team.chains.append(team.w.grant("bot", "proposer", kind="agent"))
    for by, rule in (("bot", "command.not-allowed"), ("stranger", "grant.none"), ("ann", "command.not-allowed")):
        assert refused(team.start(by=by)) == rule


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        Policy("team"),
        Policy("solo", voters_target=2),
        Policy("solo", approval_max_ms=0),
        Policy("solo", Demands(approvals=-1)),
        Policy("solo", Demands(approvals=99)),
        Policy("solo", Demands(evidence=(EvidenceDemand("test", 0),))),
        Policy("solo", Demands(evidence=(EvidenceDemand("test", 1),) * 9)),
        Policy("solo", Demands(windows=(FreezeWindow("deny", 0, 1),) * 17)),
        Policy("solo", Demands(windows=(FreezeWindow("deny", 0, 0),))),
    ],
)
def test_a_policy_out_of_bounds_is_named(policy: Policy) -> None:
    assert policy_problem(policy)


def test_the_two_founding_policies_are_sound() -> None:
    assert policy_problem(SOLO) is None
    assert policy_problem(TEAM) is None
    assert demands_problem(Demands()) is None


# --- envelopes --------------------------------------------------------------------------------------------------------


def _approval() -> bytes:
    said = Approval(b"", Digest(b"c" * 32), "shop", "prod", WALL_MS, WALL_MS + 1)
    return sign_approval(signer("ann"), MESH, said)


def test_any_flipped_byte_of_an_envelope_is_refused_or_changes_nothing() -> None:
    data = _approval()
    good = read_approval(VERIFIER, MESH, data)
    assert isinstance(good, Approval)
    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        answer = read_approval(VERIFIER, MESH, flipped)
        assert isinstance(answer, Refusal) or answer == good


def test_envelopes_of_the_wrong_shape_are_refused() -> None:
    name = (("change", b"c" * 32),)
    ann = signer("ann")
    cases = [
        (b"x" * 100_000, "evidence.too-large"),
        (b"[" * 60_000, "evidence.malformed"),
        (b'{"x":' * 10_000, "evidence.malformed"),
        (b'{"payload":"","payloadType":"text/plain","signatures":[]}', "evidence.malformed"),
        (seal(ann, b"{"), "evidence.malformed"),
        (seal(ann, statement_json((), APPROVAL, {})), "evidence.malformed"),
        (seal(ann, statement_json(name, APPROVAL, {}).replace(STATEMENT_TYPE.encode(), b"x")), "evidence.malformed"),
        (seal(ann, statement_json(name, "https://else", {})), "approval.predicate"),
        (seal(ann, statement_json(name, APPROVAL, {})), "approval.malformed"),
        (seal(ann, statement_json(name * 2, APPROVAL, {})), "approval.malformed"),
        (seal(ann, statement_json((("c", b"short"),), APPROVAL, {})), "approval.malformed"),
        (_approval().replace(b'"keyid":"', b'"keyid":"00'), "evidence.malformed"),
        (_approval().replace(b'"keyid":"', b'"keyid":"zz'), "evidence.malformed"),
        (_approval().replace(b'"payload":"', b'"payload":"!'), "evidence.malformed"),
    ]
    for data, rule in cases:
        assert refused(read_approval(VERIFIER, MESH, data)) == rule, data[:80]
    assert refused(read_evidence(VERIFIER, MESH, _approval())) == "evidence.predicate"
    assert refused(read_evidence(VERIFIER, MESH, b"{")) == "evidence.malformed"
    body = statement_json(name, PROVENANCE, {})
    assert refused(read_evidence(VERIFIER, MESH, seal(ann, body))) == "evidence.malformed"
    run = {"mesh": MESH.hex(), "kind": "build", "covers": "host", "finished_ms": 1, "log": "x" * 20_000}
    body = statement_json(name, PROVENANCE, {"freehold_run": run})
    assert refused(read_evidence(VERIFIER, MESH, seal(ann, body))) == "evidence.too-large"
    stranger = _approval().replace(ann.public_key.hex().encode(), signer("bob").public_key.hex().encode())
    assert refused(open_envelope(VERIFIER, stranger)) == "evidence.signature"


def test_subjects_with_other_or_malformed_digests_are_passed_over() -> None:
    subjects = [{"name": "x", "digest": {"sha1": "00"}}, {"digest": {"sha256": "zz" * 32}}, {"name": "only"}]
    body = msgspec.json.encode(
        {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": APPROVAL, "predicate": {}}
    )
    opened = open_envelope(VERIFIER, seal(signer("ann"), body))
    assert not isinstance(opened, Refusal)
    assert opened.statement.sha256s() == ()


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_never_an_envelope(data: bytes) -> None:
    assert isinstance(open_envelope(VERIFIER, data), Refusal)
    assert isinstance(open_envelope(VERIFIER, seal(signer("ann"), data)), Refusal)


def test_components_are_all_named_by_evidence() -> None:
    team = Team(TESTED)
    parts = (Component("web", COMPONENT, 1), Component("job", digest(b"job"), 1))
    team.release = Release("shop", parts, b"", "", signer("dev").public_key)
    assert refused(_with_evidence(team, team.w.evidence("dev"))) == "evidence.other-digests"
    assert node_id("n1") in {node.node for node in team.w.state.nodes}
