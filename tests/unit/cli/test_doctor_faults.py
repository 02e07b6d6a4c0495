"""Faults as they are found, each with what doctor says: it names the fault, its cure destroys nothing, its command exists.

A cure that destroys (remove, replace, reset, restore) is allowed where no clock, version, address or network can be the
reason: a revoked key, a store that is another one than the one that votes. Real daemons with faults are in the e2e tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import pytest
from msgspec.structs import replace

from cli.main import freehold
from cli.views import checks
from cli.views.checks import Finding
from node.concerns import CURES, cure_of, voter_warnings
from protocols.chain.decision import Voter
from protocols.changes.demands import SOLO
from protocols.machine import Digest, PeerId
from protocols.state.model import ConfirmedNode, Environment, MeshState
from protocols.trust.certificates import DAY_MS
from tests.unit.cli.test_mesh import NOW_MS, member, store, view

HARMFUL = re.compile(r"\b(remove|replace|reset|purge|leave|uninstall|delete|rm)\b")
COMMAND = re.compile(r"freehold(?: [a-zA-Z-]+| --[a-z-]+)+")


def concern(text: str) -> list[Finding]:
    return checks.node(view(concerns=[text]), NOW_MS)


def warning(texts: Sequence[str]) -> list[Finding]:
    return [Finding(False, *text.rpartition("; ")[::2]) for text in texts]


VOTERS = [PeerId(name) for name in ("oslo", "berlin", "rome")]
STANDING_STILL = (
    "the schedules of shop in production stand still: oslo is down;"
    " freehold project place shop --env production --schedules NODE"
)
UNPREPARED = "release ab of shop in production is not ready here: no room; freehold logs --project shop"
IDLE = member("b", voter=False)
OSLO, BERLIN, ROME = member("oslo"), member("berlin"), member("rome")


@dataclass(frozen=True)
class Fault:
    """A fault that was made: how it is found, a word that must name it, and whether a cure may destroy."""

    name: str
    found: Callable[[], list[Finding]]
    named: str
    may_harm: bool = False


def of_node(name: str, named: str, *, may_harm: bool = False, **fields: Any) -> Fault:
    return Fault(name, lambda: checks.node(view(**fields), NOW_MS), named, may_harm)


def of_members(name: str, named: str, *everyone: Any, may_harm: bool = False) -> Fault:
    return Fault(name, lambda: checks.members(everyone, NOW_MS), named, may_harm)


def rejected(rule: str, detail: str) -> Fault:
    text = f"messages of berlin are refused here ({rule}: {detail}); {cure_of(rule, detail)}"
    return Fault(f"refused by {rule}", lambda: concern(text), rule)


FAULTS = [
    of_node("own key revoked", "was revoked", standing="revoked", may_harm=True),
    of_node("invite shared", "shares its invite", standing="limited", may_harm=True),
    of_node("not confirmed", "not confirmed", standing="joined"),
    of_node("cloned", "another machine uses the key", refused_by={"a": "hello.cloned: twice"}),
    of_node("double", "two machines use the key", doubles=["12D3KooWberlin"]),
    of_node("turned away by version", "hello.version", refused_by={"a": "hello.version: speaks 9"}),
    of_node("turned away by clock", "hello.clock", refused_by={"a": "hello.clock: 4 minutes ahead"}),
    of_node("turned away by certificate", "hello.expired", refused_by={"a": "hello.expired: its certificate ended"}),
    of_node("vote given up", "gave up its vote", quarantined="the store is older", may_harm=True),
    of_node("vote given up alone", "gave up its vote", quarantined="the store is older", alone=True, may_harm=True),
    of_node("state rebuilt", "was damaged", rebuilt="state.db was damaged"),
    of_node("state rebuilt alone", "are lost", rebuilt="state.db was damaged", alone=True, may_harm=True),
    of_node("muted by a full disk", "does not vote", muted="its disk is full"),
    of_node("an old version", "cannot follow the chain", stalled="a command of a newer release"),
    of_node("own certificate ended", "certificate", expires_ms=NOW_MS - 1),
    of_node("disk nearly full", "are left on the disk", disk_free_bytes=500 << 20),
    of_node("disk full", "are left on the disk", disk_free_bytes=10 << 20),
    of_node("old wasmtime", "older than", wasmtime="1.0.0"),
    of_members("certificate ends soon", "expires in", member("oslo", expires_ms=NOW_MS + 3 * DAY_MS)),
    of_members("certificate ended", "has expired", member("oslo", expires_ms=NOW_MS - 1)),
    of_members("clock 400 days ahead", "has expired", member("oslo", standing="expired")),
    of_members("member revoked", "revoked and still listed", member("oslo", standing="revoked"), may_harm=True),
    of_members("member stopped", "was stopped", member("oslo", belief="down", left=True, connected=False)),
    of_members("member down", "down, or nobody reaches it", member("oslo", belief="down", connected=False)),
    of_members("one link cut", "is not connected", member("oslo", connected=False)),
    of_members("invite used twice", "shares its invite", member("oslo", standing="limited"), may_harm=True),
    Fault("one voter lost", lambda: checks.quorum([OSLO, BERLIN, replace(ROME, belief="down")]), "one more lost voter"),
    Fault(
        "two voters lost",
        lambda: checks.quorum([OSLO, replace(BERLIN, belief="down"), replace(ROME, connected=False)]),
        "nothing can be decided",
    ),
    Fault("one voter of three", lambda: checks.quorum([OSLO, IDLE, replace(IDLE, node="c")]), "one voter"),
    Fault("two nodes", lambda: checks.quorum([OSLO, IDLE]), "one voter decides alone"),
    Fault(
        "rebooted and alone",
        lambda: checks.boot_read(
            view(boot_answers_needed=2), [OSLO, BERLIN, replace(ROME, belief="down", connected=False)]
        ),
        "rebooted",
    ),
    Fault("voter's disk lost", lambda: checks.stores((store("b", ready=False), store("b", votes=False, number=2))),
          "another store", may_harm=True),
    Fault("clock 10 s ahead", lambda: checks.clock("oslo", 10_000), "clock of oslo"),
    Fault("clock an hour behind", lambda: checks.clock("oslo", -3_600_000), "behind"),
    Fault("folder open to others", lambda: checks.permissions(0o40755, {}), "other users"),
    Fault("key open to others", lambda: checks.permissions(0o40700, {"node.key": 0o100644}), "node.key"),
    Fault("release unprepared", lambda: concern(UNPREPARED), "not ready"),
    Fault("release under way", lambda: checks.unready(WORLD, [OSLO], {OSLO.node: view(running=[])}), "no visitor"),
    Fault("data holder down", lambda: checks.unserved(WORLD, [replace(OSLO, belief="down")]), "no visitor"),
    Fault("certificate of visitors", lambda: concern("a.pem ends in 3 days; put its successor in its place"), "a.pem"),
    Fault("schedules stand still", lambda: concern(STANDING_STILL), "stand still"),
    Fault("share of records", lambda: concern("90 % are used up; write through another node: --context"), "used up"),
    Fault("voter gone of three", lambda: warning(voter_warnings(VOTERS, VOTERS[:1], 0)), "voter oslo"),
    Fault("voters gone", lambda: warning(voter_warnings(VOTERS, VOTERS[:2], 0)), "2 of 3 voters"),
    Fault("boot read stuck", lambda: warning(voter_warnings(VOTERS, VOTERS[:1], 2)), "rebooted"),
    rejected("record.future", "140 s ahead of this node's clock"),
    rejected("hello.expired", "the certificate ended"),
    rejected("core.malformed", "a message of no known kind"),
    rejected("records.limit", "too many"),
]  # fmt: skip


def world() -> MeshState:
    from protocols.envelope import digest
    from protocols.state.model import Deployed, Lane, Project

    base = Deployed(
        digest(b"change"), digest(b"release"), digest(b"c"), (), (), (), True, 0, 0, (), "", b"k" * 32, 1
    )  # fmt: skip
    lane = Lane("shop", "production", 2, base=base, data_node=PeerId(OSLO.node))
    return replace(
        EMPTY, nodes=(ConfirmedNode(PeerId(OSLO.node), (), ("worker",), 1),), projects=(Project("shop", ("me",)),),
        environments=(Environment("production", (), None, False),), lanes=(lane,),
    )  # fmt: skip


EMPTY = MeshState("home", Digest(b"e" * 32), 1, 1, 2, (b"a" * 32,), 1, SOLO, (Voter(PeerId("oslo"), b"s" * 16),))
WORLD = world()


def exists(text: str) -> bool:
    """Whether a command that is printed can be typed: its words name a command, its options are its options."""
    context, lazy_group = click.Context(freehold, info_name="freehold"), freehold
    words = text.split()[1:]
    for place, word in enumerate(words):
        if isinstance(lazy_group, click.Group) and not word.startswith("-"):
            following = lazy_group.get_command(context, word)
            if following is None:
                return False
            lazy_group = following
        elif word.startswith("--"):
            known = {name for parameter in lazy_group.params for name in parameter.opts}
            if word not in known:
                return False
        elif place == 0:
            return False
    return not isinstance(lazy_group, click.Group)


def test_forty_faults_at_least_are_looked_for() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one.name)
def test_a_fault_is_named_and_its_cure_destroys_nothing(fault: Fault) -> None:
    findings = fault.found()
    assert any(fault.named in entry.what for entry in findings), findings
    for finding in findings:
        assert finding.advice, finding
        if not fault.may_harm:
            assert not HARMFUL.search(finding.advice.replace("DATA/", "").replace("may be deleted", "")), finding
        for text in COMMAND.findall(finding.advice):
            shown = re.sub(r" (?!--)[A-Z][A-Za-z-]*", "", text)  # NODE and FILE stand for what the reader puts there
            assert exists(shown) or exists(" ".join(shown.split()[:3])) or exists(" ".join(shown.split()[:2])), (
                text,
                finding,
            )


def test_a_healthy_node_has_no_fault() -> None:
    assert checks.node(view(), NOW_MS) == []
    assert checks.members([OSLO, BERLIN, ROME], NOW_MS) == []
    assert checks.quorum([OSLO, BERLIN, ROME]) == []
    assert checks.unready(WORLD, [OSLO], {OSLO.node: view(running=["shop/production"])}) == []
    assert checks.unready(WORLD, [OSLO], {}) == [], "who cannot be asked is not accused"
    assert checks.unserved(WORLD, [OSLO]) == []
    assert voter_warnings(VOTERS, [], 0) == []


@pytest.mark.parametrize("voter", [True, False], ids=["voter", "worker"])
@pytest.mark.parametrize("left", [True, False], ids=["stopped", "gone"])
def test_a_member_that_is_gone_without_a_word_is_a_fault_and_a_worker_that_was_stopped_is_none(
    voter: bool, left: bool
) -> None:
    (finding,) = checks.members([member("oslo", belief="down", connected=False, voter=voter, left=left)], NOW_MS)
    assert finding.fault == (voter or not left)


def test_what_to_look_at_follows_from_the_rule() -> None:
    assert len({cure_of(f"x.{words[0]}", "") for words in CURES}) == len(CURES)
    assert "freehold doctor" in cure_of("records.limit", "")


def test_an_engine_that_was_asked_for_and_does_not_serve_is_told() -> None:
    (finding,) = checks.engine("native", "it is not built; run: make native")
    assert not finding.fault
    assert "it is not built" in finding.what
    assert checks.engine("auto", "it is not built; run: make native") == []
    assert checks.engine("native", "") == []
