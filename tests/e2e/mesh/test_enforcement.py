"""The machines enforce approval: every way around the gate, tried through the API of a running node, is refused by its own
rule, says what is missing and who can give it, starts nothing and stands in the audit log. The client here is a modified
one: it signs what it likes. Last, a node is a modified one, too: it has no gate, and the others refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import msgspec
import pytest

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.errors import CommandError
from cli.views.audit import verify_chains
from cli.views.why import explain
from node.config import NodeConfig, read_config
from node.daemon import Daemon
from node.journal import audit_shares
from node.membership.found import found_mesh
from protocols.chain.decision import material_of
from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.change import CHANGE_DOMAIN, Change, Component, Plan, Release, Route, Stage
from protocols.changes.demands import SOLO, TEAM, Demands, EvidenceDemand, FreezeWindow, Policy
from protocols.changes.effective import Effective, EffectiveApp, SmokeCheck
from protocols.changes.evidence import EvidenceRun, attest
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.records.credentials import revocation_record
from protocols.refusal import Refusal
from protocols.state import gate as gatekeeping
from protocols.state.commands import (
    ClaimRoutes,
    Command,
    CreateEnvironment,
    CreateProject,
    Exhibits,
    Start,
    WithdrawApproval,
    sign_command,
)
from protocols.state.gate import gate_of
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant, PrincipalKind, Role
from protocols.trust.revocations import NOTHING_VALID, Revocation, sign_revocation
from tests.support.mesh.in_process import LANE, House, a_house, until

HOUR_MS = 3_600_000
FRESH_MS = 10_000
REVOKED_WITHIN_S = 10.0
"""Pushed at once: milliseconds on a quiet machine."""
COMPONENT = digest(b"a component that nobody ever needs to run")


def key(name: str) -> Ed25519Signer:
    return Ed25519Signer(digest(name.encode()))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class World:
    """One node, its client, and people and agents with keys of their own."""

    client: NodeClient
    admin: Ed25519Signer
    daemon: Daemon
    mesh: Digest = field(init=False)
    node: PeerId = field(init=False)
    chains: dict[bytes, tuple[Signed, ...]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    routes: dict[str, str] = field(default_factory=dict)

    async def furnish(self) -> None:
        self.mesh = await self.client.mesh()
        self.node = PeerId((await self.client.get("/v1/node"))["node"])
        window = FreezeWindow("deny", 0, 1 << 50, reason="year's end")
        policies = {
            "production": None,
            "staging": None,
            "tested": Policy("solo", Demands(evidence=(EvidenceDemand("test", HOUR_MS),))),
            "observed": Policy("solo", Demands(evidence=(EvidenceDemand("smoke", HOUR_MS, by_node=True),))),
            "frozen": msgspec.structs.replace(SOLO, demands=Demands(windows=(window,))),
            "demanding": SOLO,
            "watched": msgspec.structs.replace(
                TEAM,
                demands=msgspec.structs.replace(
                    TEAM.demands, evidence=(EvidenceDemand("smoke", FRESH_MS, by_node=True),)
                ),
            ),
        }
        for name, policy in policies.items():
            sequence = (await self.client.state()).sequence
            await self.client.decide(self.admin, CreateEnvironment(name, (), policy), expect=sequence)
        await self.client.decide(self.admin, CreateProject("hello"))
        for name, roles in {
            "dev": ("proposer", "deployer"), "ann": ("approver",), "bob": ("approver",), "eve": ("viewer",),
            "both": ("proposer", "deployer", "approver"),
        }.items():  # fmt: skip
            await self.grant(name, roles)
        await self.grant("agent", ("proposer", "deployer"), kind="agent", parent="dev")
        await self.grant("helper", ("proposer", "deployer"), kind="agent", parent="both")
        # The founder: a sealed key that is the admin's, the everyday key it gave itself, agents under either.
        await self.grant("me", ("proposer", "deployer"), same_person=True)
        await self.grant("my agent", ("proposer", "deployer"), kind="agent", parent="me")
        await self.grant("admin's agent", ("proposer", "deployer"), kind="agent")
        # Two people who logged in with one invite, each with a sealed and an everyday key.
        for guest in ("gil", "hal"):
            self.chains[key("invite").public_key] = (self.link("invite", ("deployer", "approver"), invite_uses=2),)
            await self.grant(guest, ("deployer", "approver"), parent="invite", publish=False)
            await self.grant(f"{guest}-me", ("deployer",), parent=guest, publish=False)
        del self.chains[key("invite").public_key]

    def link(
        self, name: str, roles: tuple[Role, ...], *, kind: PrincipalKind = "person", parent: str = "", **fields: Any
    ) -> Signed:
        above = self.chains[key(parent).public_key] if parent else ()
        grant = Grant(
            key(name).public_key, kind, name, roles, (ANY,), (ANY,), now_ms() + (24 - len(above)) * HOUR_MS,
            secrets.token_bytes(16), digest(above[-1].payload) if above else b"", **fields,
        )  # fmt: skip
        return sign(key(parent) if parent else self.admin, GRANT_DOMAIN, self.mesh, grant)

    async def grant(
        self, name: str, roles: tuple[Role, ...], *, parent: str = "", publish: bool = True, **fields: Any
    ) -> None:
        above = self.chains[key(parent).public_key] if parent else ()
        chain = (*above, self.link(name, roles, parent=parent, **fields))
        self.chains[key(name).public_key] = chain
        if publish:
            await self.client.publish("grant", key(name).public_key.hex(), encode(chain))

    # --- what is proposed and shown ---------------------------------------------------------------------------------

    async def change(self, environment: str = "production", author: str = "dev", **fields: Any) -> Change:
        state = await self.client.state()
        release = self.release(author)
        app = EffectiveApp("web", COMPONENT, "http", 1_000, 1 << 20, "fresh")
        new_change = Change(
            project="hello", environment=environment, request="greet", release=digest(encode(release)), base=b"",
            configuration=digest(encode(Effective("hello", environment, (app,)))),
            policy=gate_of(state, environment, release).digest, author=key(author).public_key, created_ms=now_ms(),
            plan=Plan((Stage("100%"),)),
        )  # fmt: skip
        return msgspec.structs.replace(new_change, **fields)

    def release(self, author: str) -> Release:
        return Release("hello", (Component("web", COMPONENT, 11),), b"[project]", "", key(author).public_key)

    def approval(self, by: str, change: Change, **fields: Any) -> bytes:
        said = Approval(
            b"", Digest(digest(encode(change))), change.project, change.environment, now_ms(), now_ms() + HOUR_MS
        )
        mesh = fields.pop("mesh", self.mesh)
        return sign_approval(
            key(by), mesh, Approval(**{name: fields.get(name, getattr(said, name)) for name in _APPROVAL})
        )

    def evidence(self, by: str, change: Change, kind: str = "test", **fields: Any) -> bytes:
        run = EvidenceRun(
            fields.get("mesh", self.mesh).hex(), cast("Any", kind), "sandbox", fields.get("finished_ms", now_ms())
        )
        return attest(
            key(by), run, passed=fields.get("passed", True), components=(("web", fields.get("component", COMPONENT)),),
            configuration=fields.get("configuration", change.configuration),
        )  # fmt: skip

    # --- trying -----------------------------------------------------------------------------------------------------

    async def start(self, change: Change, by: str = "dev", **shown: Any) -> tuple[str, str]:
        """Submit a start as a client that skips every check of its own; return the voters' rule and its detail."""
        author = shown.get("author", next(person for person in _PEOPLE if key(person).public_key == change.author))
        signed = encode(sign(key(shown.get("signed_by", author)), CHANGE_DOMAIN, self.mesh, change))
        release = encode(shown.get("release") or self.release(author))
        approvals, evidence = shown.get("approvals", ()), shown.get("evidence", ())
        statements = shown.get("statements", ())
        # The admin's key is one of the mesh's own and shows no grant.
        chains = [encode(chain) for chain in self.chains.values()]
        exhibits = Exhibits(
            change=digest(signed), release=digest(release), grants=tuple(digest(chain) for chain in chains),
            approvals=tuple(digest(approval) for approval in approvals), evidence=tuple(digest(entry) for entry in evidence),
            statements=tuple(digest(statement) for statement in statements),
        )  # fmt: skip
        state = await self.client.state()
        lane = state.lane("hello", change.environment)
        assert lane is not None
        action = Start(bytes(digest(encode(change))), (self.node,), break_glass=shown.get("break_glass", ""))
        command = Command(secrets.token_bytes(16), action, "hello", change.environment, lane.sequence)
        signed_command = sign_command([key(by)], self.mesh, command, exhibits)
        material = (signed, release, *chains, *approvals, *evidence, *statements)
        answer = await self.client.post("/v1/commands", {"command": encode(signed_command), "material": material})
        return str(answer["rule"] if answer["outcome"] != "decided" else "decided"), answer["detail"]

    async def refuse(self, case: str, rule: str, change: Change, by: str = "dev", **shown: Any) -> None:
        answer, detail = await self.start(change, by, **shown)
        self.refusals[case] = answer if answer == rule else f"{answer}, not {rule}"
        if not any(words in detail for words in _WAYS_ON):
            self.silent.append(f"{case}: {detail}")

    def told(self, change: Digest, approver: str) -> str:
        """What the gate would say of a change once somebody approves it, by the papers that are there now."""
        control = self.daemon.control
        assert control is not None
        proposed = control.core.dossiers.changes[change]
        approval = self.approval(approver, proposed.change)
        held = control.core.dossiers.approvals
        with mock.patch.object(control.core.dossiers, "approvals", lambda named: (*held(named), approval)):
            waiting = control.starter.starts[change]
            shown = control.starter.complete(change, waiting.signed, waiting.nodes)
            judged = None if isinstance(shown, Refusal) else control.starter._judge(*shown)
        return judged.rule if judged is not None else ""

    async def audited(self, verb: str, count: int) -> list[dict[str, Any]]:
        """The audit entries of a verb, once there are as many: an entry is a record, written after the answer."""
        rows: list[dict[str, Any]] = []
        for _ in range(100):
            rows = [row for row in await self.client.get("/v1/audit", limit=500) if row["verb"] == verb]
            if len(rows) >= count:
                break
            await asyncio.sleep(0.05)
        return rows


_APPROVAL = ("key", "change", "project", "environment", "approved_ms", "expires_ms", "comment")
_PEOPLE = (
    "dev", "ann", "bob", "eve", "both", "agent", "helper", "nobody", "admin", "me", "my agent", "admin's agent", "gil",
    "gil-me", "hal", "hal-me",
)  # fmt: skip
_WAYS_ON = (
    "freehold ",
    "with the role",
    "propose it",
    "propose again",
    "breaks glass",
    "runs it again",
    "in its place",
    "start that one",
)
"""Every refusal says who can give what is missing, or what to run."""


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[World]:
    admin = key("admin")
    config = NodeConfig("one", listen=("127.0.0.1:0",), ingress=("127.0.0.1:0",), workers=1)
    await found_mesh(folder / "one", config, mesh_name="home", admin=admin, policy=TEAM)
    daemon = Daemon(folder / "one", read_config(folder / "one"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(daemon.run())
        try:
            await asyncio.wait_for(daemon.started.wait(), 60)
            async with NodeClient(Context("home", str(daemon.runtime / "api.sock"), "")) as client:
                world = World(client, admin, daemon)
                await world.furnish()
                yield world
        finally:
            daemon.stop()
            await task


async def approvals_that_do_not_count(w: World) -> None:
    change = await w.change()
    other = await w.change(request="something else")
    configured = await w.change(configuration=bytes(range(32)))
    hour_ago = now_ms() - HOUR_MS
    await w.refuse("none", "approval.missing", change)
    await w.refuse("for another change", "approval.other-change", change, approvals=(w.approval("ann", other),))
    rebuilt = Release("hello", (Component("web", bytes(32), 11),), b"[project]", "", key("dev").public_key)
    other_code = await w.change(release=digest(encode(rebuilt)))
    await w.refuse(
        "code altered", "approval.other-change", other_code, release=rebuilt, approvals=(w.approval("ann", change),)
    )
    await w.refuse("code exchanged", "release.other", change, release=rebuilt, approvals=(w.approval("ann", change),))
    elsewhere = await w.change("staging")
    await w.refuse(
        "for the same in another environment",
        "approval.other-change",
        elsewhere,
        approvals=(w.approval("ann", change),),
    )
    await w.refuse("configuration altered", "approval.other-change", configured, approvals=(w.approval("ann", change),))
    elsewhere = w.approval("ann", change, environment="staging")
    await w.refuse("for another environment", "approval.other-environment", change, approvals=(elsewhere,))
    expired = w.approval("ann", change, approved_ms=hour_ago - 1, expires_ms=hour_ago)
    await w.refuse("expired", "approval.expired", change, approvals=(expired,))
    long = w.approval("ann", change, expires_ms=now_ms() + 30 * 24 * HOUR_MS)
    await w.refuse("too long", "approval.too-long", change, approvals=(long,))
    await w.refuse(
        "in another mesh", "approval.other-mesh", change, approvals=(w.approval("ann", change, mesh=bytes(32)),)
    )
    await w.refuse("by a viewer", "approval.no-rights", change, approvals=(w.approval("eve", change),))
    await w.refuse("by the author's agent", "approval.no-rights", change, approvals=(w.approval("agent", change),))
    await w.refuse("by a stranger", "approval.no-rights", change, approvals=(w.approval("nobody", change),))
    own = await w.change(author="both")
    await w.refuse("by the author", "approval.by-author", own, "both", approvals=(w.approval("both", own),))
    agents = await w.change(author="helper")
    await w.refuse(
        "by the agent's person", "approval.by-author", agents, "helper", approvals=(w.approval("both", agents),)
    )
    for author, approver in (
        ("me", "admin"), ("my agent", "admin"), ("admin's agent", "admin"), ("admin", "admin"), ("gil-me", "gil"),
        ("hal-me", "hal"),
    ):  # fmt: skip
        own = await w.change(author=author)
        await w.refuse(
            f"by {approver}, of {author}", "approval.by-author", own, author, approvals=(w.approval(approver, own),)
        )
    for agent in ("me", "my agent"):
        await w.refuse(f"by {agent}", "approval.no-rights", change, approvals=(w.approval(agent, change),))
    guests = await w.change(author="gil-me")
    await w.refuse(
        "two guests of one invite are two people, and this is in order", "rollout.not-prepared", guests, "gil-me",
        approvals=(w.approval("hal", guests),),
    )  # fmt: skip
    await approvals_that_are_forged_or_withdrawn(w, change)


async def approvals_that_are_forged_or_withdrawn(w: World, change: Change) -> None:
    forged = bytearray(w.approval("ann", change))
    forged[len(forged) // 2] ^= 1
    assert (await w.start(change, approvals=(bytes(forged),)))[0] in {"evidence.signature", "evidence.malformed"}
    taken = await w.change(request="taken back")
    await w.client.decide(
        key("ann"), WithdrawApproval(bytes(digest(encode(taken)))), project="hello", environment="production"
    )
    await w.refuse("withdrawn", "approval.withdrawn", taken, approvals=(w.approval("ann", taken),))


async def evidence_that_does_not_count(w: World) -> None:
    change = await w.change("tested")
    await w.refuse("no evidence", "evidence.missing", change)
    failed = w.evidence("dev", change, passed=False)
    await w.refuse("failed", "evidence.failed", change, evidence=(failed,))
    stale = w.evidence("dev", change, finished_ms=now_ms() - 2 * HOUR_MS)
    await w.refuse("stale", "evidence.stale", change, evidence=(stale,))
    foreign = w.evidence("dev", change, component=bytes(32))
    await w.refuse("other component", "evidence.other-digests", change, evidence=(foreign,))
    configured = w.evidence("dev", change, configuration=bytes(32))
    await w.refuse("other configuration", "evidence.other-digests", change, evidence=(configured,))
    await w.refuse("by a stranger's run", "evidence.stranger", change, evidence=(w.evidence("nobody", change),))
    await w.refuse(
        "another mesh's", "evidence.other-mesh", change, evidence=(w.evidence("dev", change, mesh=bytes(32)),)
    )
    watched = await w.change("observed")
    own = w.evidence("dev", watched, "smoke")
    await w.refuse("only self-attested", "evidence.self-attested", watched, evidence=(own,))


async def changes_and_signers_that_do_not_fit(w: World) -> None:
    frozen = await w.change("frozen")
    await w.refuse("freeze window", "window.frozen", frozen)
    await w.refuse("glass broken by a deployer", "command.not-allowed", frozen, break_glass="I must")
    change = await w.change("staging")
    good = w.approval("ann", change)
    await w.refuse("started by a viewer", "command.not-allowed", change, "eve", approvals=(good,))
    await w.refuse("started by a stranger", "grant.none", change, "nobody", approvals=(good,))
    forged = await w.change("staging", author="dev")
    await w.refuse("author forged", "change.signature", forged, "dev", signed_by="agent", approvals=(good,))
    moved = await w.change("staging", policy=bytes(32))
    await w.refuse("another policy", "change.policy-moved", moved, approvals=(w.approval("ann", moved),))
    based = await w.change("staging", base=bytes(32))
    await w.refuse("another base", "change.base-moved", based, approvals=(w.approval("ann", based),))
    old = await w.change("staging", created_ms=now_ms() - 60 * 24 * HOUR_MS)
    await w.refuse("too old", "change.age", old, approvals=(w.approval("ann", old),))
    # What remains when nothing is wrong: the node has not prepared it, so it does not start either.
    await w.refuse("in order, not prepared", "rollout.not-prepared", change, approvals=(good,))


async def revoked_principals(w: World) -> None:
    """What rests on a revoked key or grant is refused by voters who know of it, whoever shows the old papers."""
    await w.grant("spare", ("proposer", "deployer"), kind="agent", parent="dev")
    for kind, name in (("principal", "bob"), ("principal", "agent"), ("grant", "spare")):
        chain = w.chains[key(name).public_key]
        subject = key(name).public_key if kind == "principal" else bytes(digest(chain[-1].payload))
        revocation = Revocation(cast("Any", kind), subject, NOTHING_VALID, NOTHING_VALID, "lost", now_ms())
        # A grant is taken back by whoever gave it, here the agent's person; a principal by an admin.
        signed = (
            sign_revocation(key("dev"), w.mesh, revocation, chain)
            if kind == "grant"
            else sign_revocation(w.admin, w.mesh, revocation)
        )
        await w.client.publish("revocation", subject.hex(), revocation_record(revocation, signed)[1])
        if kind == "principal" and name == "bob":
            continue
        lane = (await w.client.state()).lane("hello", "staging")
        assert lane is not None
        action = ClaimRoutes((Route("", f"/{name}"),))
        command = Command(secrets.token_bytes(16), action, "hello", "staging", lane.sequence)
        shown = encode(chain)
        exhibited = sign_command([key(name)], w.mesh, command, Exhibits(grants=(digest(shown),)))
        answer = await w.client.post("/v1/commands", {"command": encode(exhibited), "material": (shown,)})
        w.routes[f"by a revoked {kind}"] = answer["rule"]


async def what_rests_on_the_revoked_does_not_start(w: World, change: Change, release: Release) -> None:
    """All else is in order and prepared: an approver, a deployer and an author whose keys are revoked are refused."""
    control = w.daemon.control
    assert control is not None
    conductor = control.core.agent.conductor
    named = digest(encode(change))
    async with asyncio.timeout(60):
        while not conductor.prepared(named):  # noqa: ASYNC110  nodes prepare in their own time
            await asyncio.sleep(0.05)
    shown = {"release": release, "statements": conductor.prepared(named)}
    by_bob = (w.approval("bob", change),)
    await w.refuse("approved by a revoked key", "fresh.revoked", change, approvals=by_bob, **shown)
    by_ann = (w.approval("ann", change),)
    await w.refuse("started by a revoked key", "fresh.revoked", change, "agent", approvals=by_ann, **shown)


async def what_is_in_order_starts(
    w: World, data: bytes, environment: str, approvers: tuple[str, ...] = (), *, break_glass: str = "", **asked: Any
) -> str:
    """One change goes the whole way once it has what policy asks for; return what it waited for at first."""
    release = Release(
        "hello", (Component("web", digest(data), len(data)),), b"[project]", "", key("dev").public_key, **asked
    )
    app = EffectiveApp("web", digest(data), "http", 5_000, 64 << 20, "fresh")
    effective = Effective("hello", environment, (app,), (SmokeCheck("web", "/"),))
    for part in (encode(release), encode(effective), data):
        await w.client.put_artifact(part, digest(part))
    gate = gate_of(await w.client.state(), environment, release)
    change = await w.change(
        environment, release=digest(encode(release)), configuration=digest(encode(effective)), policy=gate.digest,
        plan=Plan((Stage("100%", min_healthy_ms=100),), probe_only=True),
    )  # fmt: skip
    named = digest(encode(change))
    await w.client.publish("change", "hello", encode(sign(key("dev"), CHANGE_DOMAIN, w.mesh, change)))
    for name in approvers[:-1]:  # bob's key is revoked: what it signs is not even kept
        with pytest.raises(CommandError) as refused:
            await w.client.publish("approval", named.hex(), w.approval(name, change))
        assert refused.value.kind == "grant.revoked"
    lane = (await w.client.state()).lane("hello", environment)
    assert lane is not None
    starts = Start(bytes(named), (w.node,), break_glass=break_glass)
    command = Command(secrets.token_bytes(16), starts, "hello", environment, lane.sequence)
    handed = await w.client.start(sign_command([w.admin if break_glass else key("dev")], w.mesh, command))
    if environment == "watched":
        await until(lambda: "evidence.stale" in w.told(named, approvers[-1]), 60)
    if "bob" in approvers:
        await what_rests_on_the_revoked_does_not_start(w, change, release)
    for name in approvers[-1:]:
        await w.client.publish("approval", named.hex(), w.approval(name, change))
    for _ in range(300):
        found_mesh = (await w.client.state()).lane("hello", environment)
        if found_mesh is not None and found_mesh.base is not None:
            keys = tuple(key(name).public_key for name in approvers[-1:])
            assert (found_mesh.base.change, found_mesh.base.approvers) == (named, keys)
            assert (found_mesh.base.break_glass, found_mesh.base.author) == (break_glass, key("dev").public_key)
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError(await w.client.get(f"/v1/changes/{named.hex()}"))
    return f"{handed.outcome} {handed.rule}"


async def test_every_way_around_the_gate_is_refused_by_its_own_rule_and_audited(
    tmp_path: Path, component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Refusals of one caller are told together within a window; here the window is nothing, so that each has its entry.
    monkeypatch.setattr(audit_shares, "WINDOW_MIN_MS", 0)
    async with running(tmp_path) as w:
        await approvals_that_do_not_count(w)
        await evidence_that_does_not_count(w)
        await changes_and_signers_that_do_not_fit(w)
        assert {case: rule for case, rule in w.refusals.items() if ", not " in rule} == {}
        assert w.silent == []
        state = await w.client.state()
        assert [lane for lane in state.lanes if lane.base is not None or lane.rollout is not None] == []
        rows = [
            row for row in await w.audited("start", len(w.refusals) + 1) if not row["result"].startswith("evidence.")
        ]
        refusals = [rule for rule in w.refusals.values() if not rule.startswith("evidence.")]
        assert sorted(row["result"] for row in rows) == sorted(refusals)
        assert all(row["caller"].startswith("socket:") and row["signers"] for row in rows)
        await revoked_principals(w)
        assert w.routes == {"by a revoked principal": "fresh.revoked", "by a revoked grant": "fresh.revoked"}
        data = component("hello").read_bytes()
        # What a revoked approver says neither counts nor stands in the way of what a good one says.
        assert await what_is_in_order_starts(w, data, "staging", ("bob", "ann")) == "waiting approval.missing"
        assert [rule for case, rule in w.refusals.items() if "revoked" in case] == ["fresh.revoked"] * 2
        # Where policy asks for a node's word, or a project does, the node runs the smoke checks again and gives it.
        assert await what_is_in_order_starts(w, data, "observed") == "waiting evidence.missing"
        by_node = Demands(evidence=(EvidenceDemand("smoke", HOUR_MS, by_node=True),))
        demands = (("demanding", by_node),)
        assert await what_is_in_order_starts(w, data, "demanding", demands=demands) == "waiting evidence.missing"
        # What a node said is too old by the time that somebody approves: the node that holds the start runs it again.
        assert await what_is_in_order_starts(w, data, "watched", ("ann",)) == "waiting approval.missing"
        # An admin's reason opens a frozen environment, and stands with what runs ever after.
        handed = await what_is_in_order_starts(w, data, "frozen", break_glass="the site is down")
        assert handed == "waiting rollout.not-prepared"
        told = [row for row in await w.audited("start", 1) if "the site is down" in row["target"]]
        assert told, "the reason is in the audit log"
        assert {entry for row in told for entry in row["signers"]} == {w.admin.public_key.hex()}
        count, nodes, faults = await verify_chains(w.client)
        assert (count > len(rows), nodes, faults) == (True, (w.node,), ())


def without_its_gate(daemon: Daemon) -> None:
    """Take the check of approvals out of one node, wherever it judges: as voter, as proposer, as follower."""
    control = daemon.control
    assert control is not None
    machine = control.core.chain._setup.machine
    lawful = machine.apply

    def lawless(*arguments: Any) -> Any:
        judged = lawful(*arguments)
        if not isinstance(judged, Refusal):
            return judged
        with mock.patch.object(gatekeeping, "approvals_refusal", return_value=()):
            return lawful(*arguments)

    machine.apply = lawless  # type: ignore[method-assign]


async def test_a_node_without_its_gate_starts_nothing_because_the_others_refuse(
    component: Callable[[str], Path],
) -> None:
    by_node = (EvidenceDemand("smoke", HOUR_MS, by_node=True),)
    policy = msgspec.structs.replace(TEAM, demands=msgspec.structs.replace(TEAM.demands, evidence=by_node))
    async with a_house(3, policy=policy, voter_after_s=1) as house:
        await until(lambda: all(len(house.control(index).core.state.voters) == 3 for index in range(3)), 60)
        await house.prepare_lane()
        proposal, start = await house.propose(component("hello"))
        modified, nodes = house.control(1), tuple(sorted(house.control(index).core.node for index in range(3)))
        conductor = modified.core.agent.conductor
        await until(lambda: conductor.prepared_nodes(proposal.id) == nodes, 60)
        without_its_gate(house.daemons[1])
        complete = modified.starter.complete(proposal.id, start, nodes)
        assert not isinstance(complete, Refusal)
        signed, material = complete
        assert not isinstance(modified.core.chain._setup.machine.apply(
            modified.core.state, encode(signed), material_of(material), now_ms()), Refusal)  # fmt: skip
        async with house.client(1) as client:
            answer = await client.post("/v1/commands", {"command": encode(signed), "material": material})
            assert (answer["outcome"], answer["rule"]) == ("refused", "approval.missing"), answer
            told = [row for row in await client.get("/v1/audit", limit=500) if row["verb"] == "start"]
            assert sorted(row["result"] for row in told) == ["approval.missing", "waiting approval.missing"]
        for index in range(3):
            lane = house.control(index).core.state.lane(*LANE)
            assert lane is None or (lane.base is None and lane.rollout is None)
            assert not house.runs(index)
        # The same start with somebody's approval goes through the same three nodes.
        ann = Ed25519Signer(secrets.token_bytes(32))
        grant = Grant(ann.public_key, "person", "ann", ("approver",), (ANY,), (ANY,), now_ms() + HOUR_MS, bytes(16))
        mesh = modified.core.trust.mesh
        approval = Approval(b"", proposal.id, *LANE, now_ms(), now_ms() + HOUR_MS)
        async with house.client(0) as client:
            await client.publish("grant", grant.key.hex(), encode((sign(house.admin, GRANT_DOMAIN, mesh, grant),)))
            await client.publish("approval", proposal.id.hex(), sign_approval(ann, mesh, approval))
        await until(lambda: house.based(proposal.id) and all(house.runs(index) for index in range(3)), 60)
        await every_node_explains_it(house)
        await a_revocation_is_heard_everywhere(house, ann.public_key)


async def every_node_explains_it(house: House) -> None:
    """The eight answers are the same from every node, each with who signed what it rests on."""
    told = []
    for index in range(3):
        async with house.client(index) as client:
            told.append(await explain(client, *LANE))
    assert len(told[0]) == 8
    sources = [[(answer.question, answer.sources) for answer in answers] for answers in told]
    assert sources[0] == sources[1] == sources[2]
    signed = {source.kind for why_answer in told[0] for source in why_answer.sources if source.signed_by}
    assert {"decision", "change", "release", "approval", "evidence"} <= signed
    assert all(why_answer.sources for why_answer in told[0] if "rollback" not in why_answer.question), told[0]


async def a_revocation_is_heard_everywhere(house: House, principal: bytes) -> None:
    """A revoked person has no rights on any node within seconds, measured from the answer to whoever revoked."""
    mesh = house.control(0).core.trust.mesh
    revocation = Revocation("principal", principal, NOTHING_VALID, NOTHING_VALID, "left the team", now_ms())
    async with house.client(0) as client:
        await client.publish(
            "revocation",
            principal.hex(),
            revocation_record(revocation, sign_revocation(house.admin, mesh, revocation))[1],
        )
    began_s = time.monotonic()
    for index in range(3):
        async with house.client(index) as client:
            while not (await client.get(f"/v1/principals/{principal.hex()}"))["problem"].startswith("grant.revoked"):
                assert time.monotonic() - began_s < REVOKED_WITHIN_S, f"node {index} goes on believing"
                await asyncio.sleep(0.02)
