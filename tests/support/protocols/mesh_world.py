"""A small mesh for tests of the replicated state: people, agents, three nodes, one project. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.change import CHANGE_DOMAIN, Change, Component, Plan, Release, Route, Stage
from protocols.changes.demands import SOLO, Demands, Policy
from protocols.changes.evidence import EvidenceRun, attest
from protocols.changes.statements import Counts, HealthVerdict, Prepared, Statement, TimeoutVote, VerdictWord, state_it
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer, peer_id
from protocols.machine import Digest, PeerId
from protocols.refusal import Refusal
from protocols.state.apply import apply, genesis_state
from protocols.state.commands import (
    Abort,
    Action,
    ClaimRoutes,
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    Exhibits,
    Promote,
    SignedCommand,
    Start,
    sign_command,
)
from protocols.state.exhibits import Rules
from protocols.state.gate import gate_of
from protocols.state.model import Deployed, Lane, MeshState, Rollout
from protocols.trust.genesis import Genesis, mesh_id
from protocols.trust.grants import GRANT_DOMAIN, Grant, PrincipalKind, Role
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, signer

CONFIGURATION = digest(b"configuration")
COMPONENT = digest(b"component")
PLAN = Plan((Stage("1"), Stage("100%")))
NODES = ("n1", "n2", "n3")


def node_id(name: str) -> PeerId:
    return peer_id(signer(name).public_key)


def refused(answer: object) -> str:
    assert isinstance(answer, Refusal), answer
    assert answer.detail
    return answer.rule


@dataclass
class Shown:
    """Exhibits under construction, with the material behind them."""

    fields: dict[str, Any] = field(default_factory=dict)
    material: dict[Digest, bytes] = field(default_factory=dict)

    def one(self, name: str, data: bytes) -> Shown:
        named = digest(data)
        self.material[named] = data
        self.fields[name] = named
        return self

    def add(self, name: str, *items: bytes) -> Shown:
        for data in items:
            named = digest(data)
            self.material[named] = data
            self.fields[name] = (*self.fields.get(name, ()), named)
        return self

    @property
    def exhibits(self) -> Exhibits:
        return Exhibits(**self.fields)


@dataclass
class MeshWorld:
    policy: Policy = SOLO
    nodes: Sequence[str] = NODES
    at_ms: int = WALL_MS
    protected: bool = False
    own_policy: Policy | None = None

    def __post_init__(self) -> None:
        self.admin = signer("admin")
        genesis = Genesis(
            name="home",
            nonce=b"n" * 16,
            admins=(self.admin.public_key,),
            threshold=1,
            voter_node=node_id(self.nodes[0]),
            voter_store=b"s" * 16,
            policy=encode(self.policy),
            created_ms=self.at_ms,
        )
        self.genesis = genesis
        self.mesh = mesh_id(encode(genesis))
        self.rules = Rules(VERIFIER, self.mesh)
        self.state: MeshState = genesis_state(genesis, self.mesh)
        self._ids = 0

    # --- commands

    def command(
        self,
        action: Action,
        signers: Sequence[Ed25519Signer],
        shown: Shown | None = None,
        *,
        project: str = "",
        environment: str = "",
        expect: int | None = None,
    ) -> SignedCommand:
        self._ids += 1
        command = Command(self._ids.to_bytes(16, "big"), action, project, environment, expect)
        return sign_command(signers, self.mesh, command, (shown or Shown()).exhibits)

    def judge(self, command: SignedCommand, shown: Shown | None = None) -> MeshState | Refusal:
        material = shown.material if shown else {}
        answer = apply(self.state, command, material, self.at_ms, self.rules)
        assert answer == apply(self.state, command, dict(reversed(material.items())), self.at_ms, self.rules)
        if isinstance(answer, MeshState):
            self.state = answer
        return answer

    def govern(
        self,
        action: Action,
        *signers: Ed25519Signer,
        shown: Shown | None = None,
        expect: int | None = -1,
    ) -> MeshState | Refusal:
        wanted = self.state.sequence if expect == -1 else expect
        return self.judge(self.command(action, signers, shown, expect=wanted), shown)

    def on_lane(
        self,
        action: Action,
        *signers: Ed25519Signer,
        shown: Shown | None = None,
        expect: int | None = -1,
        project: str = "shop",
        environment: str = "prod",
    ) -> MeshState | Refusal:
        lane = self.state.lane(project, environment)
        wanted = (lane.sequence if lane else 0) if expect == -1 else expect
        signed_command = self.command(action, signers, shown, project=project, environment=environment, expect=wanted)
        return self.judge(signed_command, shown)

    @property
    def lane(self) -> Lane:
        lane = self.state.lane("shop", "prod")
        assert lane is not None
        return lane

    @property
    def rollout(self) -> Rollout:
        assert self.lane.rollout is not None
        return self.lane.rollout

    @property
    def base(self) -> Deployed:
        assert self.lane.base is not None
        return self.lane.base

    def furnish(self, *routes: Route) -> MeshWorld:
        for name in self.nodes[1:]:
            done = self.govern(ConfirmNode(node_id(name), (("zone", name),), ("worker", "voter")), self.admin)
            assert isinstance(done, MeshState), done
        environment = CreateEnvironment("prod", policy=self.own_policy, protected=self.protected)
        assert isinstance(self.govern(CreateProject("shop", ("web",)), self.admin), MeshState)
        assert isinstance(self.govern(environment, self.admin), MeshState)
        if routes:
            assert isinstance(self.on_lane(ClaimRoutes(routes), self.admin), MeshState)
        return self

    # --- what people and nodes sign

    def grant(
        self,
        name: str,
        *roles: Role,
        by: Ed25519Signer | None = None,
        kind: PrincipalKind = "person",
        parent: tuple[Signed, ...] = (),
        expires_ms: int = WALL_MS + 30 * DAY_MS,
        environments: tuple[str, ...] = ("*",),
        same_person: bool = False,
        invite_uses: int = 0,
    ) -> tuple[Signed, ...]:
        grant = Grant(
            signer(name).public_key,
            kind,
            name,
            roles,
            ("*",),
            environments,
            expires_ms,
            b"g" * 16,
            parent=digest(parent[-1].payload) if parent else b"",
            same_person=same_person,
            invite_uses=invite_uses,
        )
        return (*parent, sign(by or self.admin, GRANT_DOMAIN, self.mesh, grant))

    def release(self, number: int = 1, author: str = "admin", demands: Demands | None = None) -> Release:
        return Release(
            "shop",
            (Component("web", COMPONENT, 1000),),
            b"[project]\n# %d" % number,
            "commit",
            signer(author).public_key,
            (("prod", demands),) if demands else (),
        )

    def change(self, release: Release, author: str = "admin", plan: Plan = PLAN, **fields: Any) -> Change:
        table = {
            "project": "shop",
            "environment": "prod",
            "request": "make it blue",
            "release": digest(encode(release)),
            "base": self.lane.base.release if self.lane.base else b"",
            "configuration": CONFIGURATION,
            "policy": gate_of(self.state, "prod", release).digest,
            "author": signer(author).public_key,
            "created_ms": self.at_ms,
            "plan": plan,
        }
        return Change(**{**table, **fields})

    def approval(self, by: str, change: Change, **fields: Any) -> bytes:
        said = {
            "key": b"",
            "change": digest(encode(change)),
            "project": "shop",
            "environment": "prod",
            "approved_ms": self.at_ms,
            "expires_ms": self.at_ms + DAY_MS,
        }
        return sign_approval(signer(by), fields.pop("mesh", self.mesh), Approval(**{**said, **fields}))

    def evidence(self, by: str, kind: Any = "test", **fields: Any) -> bytes:
        run = EvidenceRun(fields.get("mesh", self.mesh).hex(), kind, "sandbox", fields.get("finished_ms", self.at_ms))
        return attest(
            signer(by),
            run,
            passed=fields.get("passed", True),
            components=(("web", fields.get("component", COMPONENT)),),
            configuration=fields.get("configuration", CONFIGURATION),
        )

    def said(self, name: str, statement: Statement) -> bytes:
        return encode(state_it(signer(name), self.mesh, statement))

    def case_for(self, change: Change, release: Release, *, author: str = "admin", **shown: Any) -> Shown:
        """Exhibits of a start: the change, its manifest, and every node prepared unless `prepared` says whose."""
        new_shown = Shown().one("change", encode(sign(signer(author), CHANGE_DOMAIN, self.mesh, change)))
        new_shown.one("release", encode(release))
        ready = Prepared(digest(encode(change)), change.base, "passed")
        new_shown.add("statements", *(self.said(name, ready) for name in shown.get("prepared", self.nodes)))
        new_shown.add("grants", *(encode(chain) for chain in shown.get("grants", ())))
        new_shown.add("approvals", *shown.get("approvals", ()))
        new_shown.add("evidence", *shown.get("evidence", ()))
        return new_shown

    def start(self, change: Change, *signers: Ed25519Signer, shown: Shown, **fields: Any) -> MeshState | Refusal:
        nodes = tuple(sorted(node_id(name) for name in fields.pop("nodes", self.nodes)))
        return self.on_lane(Start(digest(encode(change)), nodes, **fields), *signers, shown=shown)

    def started(self, number: int = 1, plan: Plan = PLAN, **fields: Any) -> MeshWorld:
        """Start a rollout as the admin under a policy that asks for nothing."""
        release = self.release(number)
        change = self.change(release, plan=plan, **fields)
        done = self.start(change, self.admin, shown=self.case_for(change, release))
        assert isinstance(done, MeshState), done
        return self

    # --- health

    def names(self, nodes: Sequence[PeerId]) -> tuple[str, ...]:
        return tuple(name for node in nodes for name in self.nodes if node_id(name) == node)

    @property
    def cohort(self) -> tuple[str, ...]:
        return self.names(self.rollout.cohort)

    def verdict(self, word: VerdictWord = "pass", **fields: Any) -> HealthVerdict:
        table = {
            "era": self.state.era,
            "rollout": self.rollout.id,
            "opened": self.rollout.opened,
            "sequence": 1,
            "verdict": word,
            "healthy_ms": 10_000,
            "candidate": Counts(),
            "base": Counts(),
            "smoke_runs": 1,
        }
        return HealthVerdict(**{**table, **fields})

    def verdicts(self, word: VerdictWord = "pass", names: Sequence[str] | None = None, **fields: Any) -> Shown:
        said = self.verdict(word, **fields)
        return Shown().add("statements", *(self.said(name, said) for name in names or self.cohort))

    def timeouts(self, *names: str) -> Shown:
        shown = Shown()
        for voter in self.state.voters:
            vote = TimeoutVote(self.state.era, self.rollout.id, self.rollout.opened, voter)
            shown.add("statements", *(self.said(name, vote) for name in names if node_id(name) == voter.node))
        return shown

    def promote(self, *signers: Ed25519Signer, shown: Shown | None = None) -> MeshState | Refusal:
        shown = shown or self.verdicts()
        return self.on_lane(Promote(self.rollout.id, self.rollout.stage), *signers, shown=shown)

    def abort(self, *signers: Ed25519Signer, shown: Shown | None = None) -> MeshState | Refusal:
        return self.on_lane(Abort(self.rollout.id, "because"), *signers, shown=shown)

    def deployed(self, number: int = 1, **fields: Any) -> MeshWorld:
        """Take release `number` through every stage."""
        self.started(number, **fields)
        while self.lane.rollout is not None:
            done = self.promote()
            assert isinstance(done, MeshState), done
        return self
