"""The client's side of the change path: differences, figures, evidence, policies as typed, tokens; and a node whose gate
was taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.access.principals import Principal
from cli.change.evidence import Ran, held_evidence, keep_evidence, sign_build, sign_run
from cli.commands.change.policy import evidence_of, window_of
from cli.commands.principals.token import _narrowed, shared
from cli.errors import UsageError
from cli.project.bundle import BuildBundle
from cli.views.dora import DAY_MS, delivery_of
from protocols.api_models import DecisionView, RightsView
from protocols.chain.messages import Declined
from protocols.changes.change import Component, Plan, Release, Route, SecretVersion, Stage
from protocols.changes.demands import FreezeWindow
from protocols.changes.differences import Side, differences
from protocols.changes.effective import Effective, EffectiveApp, SmokeCheck
from protocols.changes.evidence import Attested, Opened, open_envelope, read_evidence
from protocols.envelope import Signed, decode, digest, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.records.audit import (
    FAULTS_MAX,
    KEPT_MS,
    AuditEntry,
    ChainedEntry,
    chain_faults,
    entry_digest,
    sign_entry,
)
from protocols.records.key_table import BODY_MAX_BYTES
from simulation.chain.toy_state import Add, CounterCommand, counter
from tests.support.protocols.answers import decision_view
from tests.support.protocols.chain_net import ChainNet

NOW_MS = 1_800_000_000_000
MESH = digest(b"mesh")
ONE, TWO = digest(b"one"), digest(b"two")
SIGNER = Ed25519Signer(digest(b"signer"))


def side(component: bytes = ONE, **app: Any) -> Side:
    plan = app.pop("plan", Plan((Stage("1"), Stage("100%"))))
    secrets = app.pop("secret_versions", ())
    routes = app.pop("routes", ())
    smoke = app.pop("smoke", ())
    effective_app = EffectiveApp("web", component, "http", 1_000, 1 << 20, "fresh", **app)
    release = Release("hello", (Component("web", component, 2048, "componentize-py 0.25"),), b"", "", bytes(32))
    return Side(release, Effective("hello", "production", (effective_app,), smoke), secrets, routes, plan)


def changed(
    before: Side | None, after: Side, imports: dict[bytes, tuple[str, ...]] | None = None
) -> list[tuple[str, ...]]:
    return [
        (difference.section, difference.sign, difference.name)
        for difference in differences(before, after, imports or {})
    ]


def test_the_same_release_has_no_differences() -> None:
    assert changed(side(), side()) == []


def test_a_first_release_is_all_new() -> None:
    found_differences = differences(None, side(routes=(Route("", "/"),)), {ONE: ("wasi:http/types",)})
    assert {difference.sign for difference in found_differences} == {"+"}
    assert {difference.section for difference in found_differences} == {
        "components",
        "capabilities",
        "limits",
        "routes",
        "rollout",
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"component": TWO}, [("components", "~", "component"), ("capabilities", "+", "imports wasi:http/outgoing")]),
        ({}, {"allow_hosts": ("a.example:443",)}, [("capabilities", "+", "reaches a.example:443")]),
        ({"keyvalue": ("old",)}, {}, [("capabilities", "-", "opens store old")]),
        ({"config": (("A", "1"), ("B", ""))}, {"config": (("A", "2"),)},
         [("configuration", "~", "A"), ("configuration", "-", "B")]),
        ({"secrets": ("KEY",), "secret_versions": (SecretVersion("KEY", 1, bytes(32)),)},
         {"secrets": ("KEY",), "secret_versions": (SecretVersion("KEY", 2, bytes(32)),)}, [("secrets", "~", "KEY")]),
        ({}, {"routes": (Route("a.example", "/"),)}, [("routes", "+", "a.example")]),
        ({}, {"smoke": (SmokeCheck("web", "/"),)}, [("smoke", "+", "/")]),
        ({}, {"plan": Plan((Stage("100%"),))}, [("rollout", "~", "min_healthy_time"), ("rollout", "~", "stages")]),
        ({"plan": None}, {"plan": Plan((Stage("100%"),))}, []),
    ],
)  # fmt: skip
def test_each_difference_is_one_row_in_its_section(
    before: dict[str, Any], after: dict[str, Any], expected: list[tuple[str, ...]]
) -> None:
    imports = {TWO: ("wasi:http/outgoing",)}
    assert changed(side(**before), side(**after), imports) == expected


def test_a_secret_is_shown_by_name_and_version_only() -> None:
    found_differences = differences(
        None, side(secrets=("KEY",), secret_versions=(SecretVersion("KEY", 3, bytes(32)),)), {}
    )
    assert [
        (difference.name, difference.after) for difference in found_differences if difference.section == "secrets"
    ] == [("KEY", "version 3")]


# --- figures ----------------------------------------------------------------------------------------------------------


def decisions(*rows: tuple[str, str, int]) -> list[DecisionView]:
    return [decision_view(action, at_ms, subject, slot=slot) for slot, (action, subject, at_ms) in enumerate(rows, 1)]


def test_the_four_figures_come_from_decisions_alone() -> None:
    rows = decisions(
        ("start", "a", 1_000), ("promote", "", 5_000), ("start", "b", DAY_MS), ("abort", "", DAY_MS + 7_000),
        ("start", "c", DAY_MS + 10_000), ("promote", "", DAY_MS + 12_000), ("rollback", "a", 2 * DAY_MS + 1_000),
    )  # fmt: skip
    figures = delivery_of(rows[::-1], {"a": 0, "b": 0, "c": 0})
    assert (figures.deployments, figures.failed, figures.per_day) == (1, 2, 0.5)
    assert figures.lead_time_ms == 5_000
    assert figures.change_fail_rate == pytest.approx(0.667)
    assert figures.recovery_time_ms == (7_000 + DAY_MS - 9_000) // 2


def test_nothing_decided_gives_no_figures() -> None:
    figures = delivery_of([], {})
    assert (figures.deployments, figures.lead_time_ms, figures.change_fail_rate) == (0, None, None)


# --- the audit chain --------------------------------------------------------------------------------------------------


def chain(count: int, signer: Ed25519Signer = SIGNER) -> list[ChainedEntry]:
    links: list[ChainedEntry] = []
    previous = b""
    for number in range(1, count + 1):
        entry = AuditEntry(number, 1, previous, "socket:0", (), (), "start", "hello", bytes(32), "done", "r", 1, NOW_MS)
        signed = sign_entry(signer, MESH, entry)
        previous = bytes(entry_digest(signed))
        links.append(ChainedEntry(peer_id(signer.public_key), number, signed))
    return links


def faults(links: list[ChainedEntry], at_ms: int = NOW_MS) -> list[tuple[int, str]]:
    return [(fault.number, fault.what) for fault in chain_faults(Ed25519Verifier(), MESH, links, at_ms)]


def test_a_whole_chain_has_no_faults_and_only_what_expired_may_be_missing() -> None:
    links = chain(5)
    assert faults(links) == []
    assert faults(links[2:]) == [(1, "removed"), (2, "removed")]
    assert faults(links[2:], NOW_MS + KEPT_MS) == []  # by then the first ones may have expired
    assert faults([*links, *chain(3, Ed25519Signer(digest(b"other")))]) == []


def test_a_removed_entry_is_named() -> None:
    links = chain(5)
    assert faults(links[:2] + links[3:]) == [(3, "removed")]


def test_an_altered_an_exchanged_and_a_foreign_entry_are_named() -> None:
    links = chain(4)
    for place in range(len(links[1].signed.payload)):
        data = bytearray(links[1].signed.payload)
        data[place] ^= 1
        bad = ChainedEntry(links[1].node, 2, Signed(bytes(data), links[1].signed.key, links[1].signed.signature))
        assert (2, "altered") in faults([links[0], bad, *links[2:]])
    assert faults([links[0], ChainedEntry(links[1].node, 2, links[2].signed), *links[2:]]) == [
        (2, "reordered"),
        (3, "altered"),
    ]
    other = chain(2, Ed25519Signer(digest(b"other")))[1]
    assert faults([links[0], ChainedEntry(links[1].node, 2, other.signed), *links[2:]])[0] == (2, "foreign")


def test_a_number_far_off_and_a_key_that_is_none_are_named_without_end_or_crash() -> None:
    (first,) = chain(1)
    far = AuditEntry(10**12 - 1, 1, b"", "", (), (), "", "", b"", "", "", 1, NOW_MS)
    pairs = faults([first, ChainedEntry(first.node, far.number, sign_entry(SIGNER, MESH, far))])
    assert (pairs[0], len(pairs)) == ((2, "removed"), FAULTS_MAX)
    assert faults([ChainedEntry(first.node, 1, Signed(first.signed.payload, b"short", b""))]) == [(1, "foreign")]


def test_an_entry_rewritten_by_its_own_node_breaks_the_next_link() -> None:
    links = chain(4)
    entry = AuditEntry(2, 1, bytes(entry_digest(links[0].signed)), "socket:0", (), (), "nothing", "", b"", "done", "r")
    assert faults([links[0], ChainedEntry(links[1].node, 2, sign_entry(SIGNER, MESH, entry)), *links[2:]]) == [
        (3, "altered")
    ]


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_a_run_is_signed_over_its_digests_and_fits_a_record_however_long_its_log(tmp_path: Path) -> None:
    ran = Ran("test", "host", False, ((), ("pytest",)), "\x1b[31m\u20ac\U0001f600" * 9_000, {"python": "3.11"})
    envelope = sign_run(SIGNER, MESH, ran, subjects=(("web", ONE),), configuration=TWO)
    assert len(envelope) <= BODY_MAX_BYTES
    read = read_evidence(Ed25519Verifier(), MESH, envelope)
    assert isinstance(read, Attested)
    assert (read.key, read.passed, read.components, read.configurations) == (SIGNER.public_key, False, (ONE,), (TWO,))
    assert b"\x1b" not in envelope
    release = Release("site", (Component("web", ONE, 1),), b"", "", SIGNER.public_key)
    keep_evidence(tmp_path, "build", "test-production", envelope)
    assert held_evidence(tmp_path, "build", release, TWO) == (envelope,)
    assert held_evidence(tmp_path, "build", release, ONE) == ()
    assert held_evidence(tmp_path, "another", release, TWO) == ()
    assert held_evidence(tmp_path, "", release, TWO) == (envelope,), "under whichever build"


def bundle_of(component: bytes) -> BuildBundle:
    app = {"component": component.hex(), "source_digest": TWO.hex(), "toolchain": {"componentize-py": "0.25"}}
    manifest = {
        "project": {"name": "site"}, "project_file": "[project]", "apps": {"web": app},
        "source": {"commit": "ab" * 20, "dirty": True},
    }  # fmt: skip
    return BuildBundle("b" * 64, Path(), manifest)


def test_a_build_is_signed_as_slsa_provenance_and_goes_with_every_release_of_its_components(tmp_path: Path) -> None:
    envelope = sign_build(SIGNER, MESH, bundle_of(ONE))
    read = read_evidence(Ed25519Verifier(), MESH, envelope)
    assert isinstance(read, Attested)
    assert (read.kind, read.passed, read.components, read.configurations) == ("build", True, (ONE,), ())
    opened = open_envelope(Ed25519Verifier(), envelope)
    assert isinstance(opened, Opened)
    said = json.loads(bytes(opened.statement.predicate))
    assert opened.statement.predicate_type == "https://slsa.dev/provenance/v1"
    assert said["buildDefinition"]["resolvedDependencies"] == [
        {"name": "web source", "digest": {"sha256": TWO.hex()}},
        {"name": "repository", "digest": {"gitCommit": "ab" * 20}},
    ]
    assert said["buildDefinition"]["externalParameters"]["uncommitted_changes"]
    assert said["runDetails"]["builder"]["id"].endswith(SIGNER.public_key.hex())

    keep_evidence(tmp_path, "build", "build", envelope)
    mine, other = (Release("site", (Component("web", digest, 1),), b"", "", SIGNER.public_key) for digest in (ONE, TWO))
    for configuration in (ONE, TWO):
        assert held_evidence(tmp_path, "build", mine, configuration) == (envelope,)
    assert held_evidence(tmp_path, "", other, ONE) == ()


# --- what people type -------------------------------------------------------------------------------------------------


def test_windows_and_evidence_are_read_as_written() -> None:
    window = window_of("deny 2026-12-24T00:00+00:00 72h every 7d the holidays")
    assert window == FreezeWindow("deny", 1_798_070_400_000, 259_200_000, 604_800_000, "the holidays")
    assert (evidence_of("smoke:24h:node").by_node, evidence_of("test:90s").max_age_ms) == (True, 90_000)


@pytest.mark.parametrize(
    "text",
    ["deny", "deny tomorrow 1h", "deny 2026-12-24 1h", "never 2026-12-24T00:00Z 1h", "deny 2026-12-24T00:00Z long"],
)
def test_a_window_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        window_of(text)


def holder(**fields: Any) -> RightsView:
    mine = RightsView(("proposer",), ("view", "attest", "propose"), ("*",), ("*",), 1 << 60, ())
    return msgspec.structs.replace(mine, **fields)


def test_a_token_is_never_broader_than_its_maker() -> None:
    assert _narrowed(holder(), "bot", (), ("hello",), (), 1).roles == ("proposer",)
    looking = _narrowed(holder(), "bot", ("viewer",), (), (), 1)
    assert (looking.roles, looking.verbs, looking.kind) == (("proposer",), ("view",), "agent")
    broader: tuple[tuple[RightsView, tuple[Any, ...]], ...] = (
        (holder(), (("deployer",), (), (), 1)),
        (holder(projects=("hello",)), ((), ("other",), (), 1)),
        (holder(environments=("staging",)), ((), (), ("production",), 1)),
        (holder(expires_ms=1), ((), (), (), 1)),
    )
    for mine, wanted in broader:
        with pytest.raises(UsageError) as error:
            _narrowed(mine, "bot", *wanted)
        assert error.value.kind == "grant.broader-than-parent"


def test_a_token_is_made_from_the_grant_that_covers_it_by_itself() -> None:
    staging = holder(roles=("deployer",), environments=("staging",), grants=("aa",))
    mine = Principal(
        "",
        "dev",
        "person",
        ("proposer",),
        ("view", "propose"),
        ("*",),
        ("*",),
        1 << 60,
        (),
        ("bb",),
        "",
        (),
        (staging,),
    )
    assert shared(mine, "bot", ("deployer",), (), ("staging",), 1)[0] == staging
    assert shared(mine, "bot", ("proposer",), (), ("production",), 1)[0].grants == ("bb",)
    with pytest.raises(UsageError):
        shared(mine, "bot", ("deployer",), (), ("production",), 1)
    assert mine.every_verb == ("view", "propose", "attest")


# --- a node without its gate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modified", ["n0", "n1"])
def test_a_node_whose_rules_were_taken_out_gets_nothing_decided_that_the_others_refuse(modified: str) -> None:
    net = ChainNet(3, 3)
    machine = net.nodes[modified].machine
    lawful = machine.apply
    machine.apply = lambda state, command, *rest: lawful(state, _without_expect(command), *rest)  # type: ignore[method-assign]
    outcome = net.add(modified, 1, "a", expect=7)
    assert outcome.outcome != "decided"
    assert [counter(net[name].state, "a") for name in ("n0", "n1", "n2")] == [0, 0, 0]
    assert any(isinstance(message, Declined) and message.rule == "counter.expect" for _, _, message in net.sent)


def _without_expect(command: bytes) -> bytes:
    read = decode(command, CounterCommand)
    return encode(msgspec.structs.replace(read, expect=-1)) if isinstance(read, Add) else command
