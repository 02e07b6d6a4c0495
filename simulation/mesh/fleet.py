"""A fleet of whole nodes in the simulated world: founded, joined, driven by principals, with scripted workloads.

Each host runs a `NodeCore` (or, before it has a certificate, a `JoinMachine`); what its rollout agent orders is done by
the workshop (workshop.py). Scenarios (scenarios.py) and measurements
of scale (scale.py) are made of these verbs. Not here: faults of disk, network and clock (the world's), and judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from protocols.chain.acceptor import founding_effects
from protocols.chain.context import Stored
from protocols.chain.decision import RESET_DOMAIN, Reset, ResetTo, Voter
from protocols.chain.messages import Booted, Outcome, Submit, SubmitReset
from protocols.chain.pacing import ChainTimes
from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.change import CHANGE_DOMAIN, Change, Component, Plan, Release, Stage
from protocols.changes.demands import SOLO, Policy
from protocols.changes.evidence import EvidenceRun, attest
from protocols.core import CoreSetup, CoreStored, NodeCore
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import peer_id
from protocols.liveness import LivenessConfig
from protocols.machine import Digest, PeerId, Persist
from protocols.records.credentials import grant_record, revocation_record
from protocols.records.gossip import Publish
from protocols.records.key_table import make_key
from protocols.records.papers import Ending, end_paper
from protocols.state.commands import (
    Action,
    Command,
    ConfirmNode,
    Exhibits,
    Reconfigure,
    SignedCommand,
    Start,
    sign_command,
)
from protocols.state.gate import gate_of
from protocols.state.model import MeshState
from protocols.state.placement import eligible
from protocols.trust.certificates import Labels, NodeRole, issue
from protocols.trust.genesis import Genesis, mesh_id
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.hello import RefusedBy
from protocols.trust.invites import Address, Invite, InviteLine, make_invite
from protocols.trust.joining import Joined, JoinMachine
from protocols.trust.revocations import Revocation, sign_revocation
from protocols.trust.store import Credentials
from simulation.mesh.workshop import Script, Workshop
from simulation.world.clock import WALL_START_MS
from simulation.world.entropy import KeyRing
from simulation.world.network import LinkFaults
from simulation.world.world import Boot, Host, World

DAY_MS = 86_400_000
KNOCK_AGAIN_MS = 30_000
"""How long a dialler leaves a peer alone that refused it."""
NODE_ROLES: tuple[NodeRole, ...] = ("issuer", "voter", "worker")
STAGES = Plan((Stage("1"), Stage("100%")))
STORE = b"s" * 16


@dataclass(frozen=True)
class FleetConfig:
    """What all nodes of a fleet share; timers are the machines' own unless given."""

    policy: Policy = SOLO
    founder: str = "n1"
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    chain: ChainTimes = field(default_factory=ChainTimes)
    keys: KeyRing | None = None
    """Makes and checks all signatures; the world's own, quick ones unless given."""


@dataclass
class NodeFiles:
    """What a node keeps in files beside its stores."""

    credentials: tuple[Credentials, ...] = ()
    line: InviteLine | None = None
    invite_key: str = ""


class Fleet:
    """Some hosts that may become one mesh; see the module."""

    def __init__(
        self,
        names: Sequence[str],
        seed: int = 0,
        config: FleetConfig | None = None,
        faults: LinkFaults | None = None,
    ) -> None:
        """Make the hosts, switched off; the founder's store is on its disk."""
        self.config = config or FleetConfig()
        self.world = World(seed, faults or LinkFaults(10, 100))
        if self.config.keys is not None:
            self.world.keys = self.config.keys
        self.admin = self.world.keys.signer("admin")
        self.signers = {name: self.world.keys.signer(f"node/{name}") for name in names}
        self.peers = {name: peer_id(signer.public_key) for name, signer in self.signers.items()}
        self.name_of = {peer: name for name, peer in self.peers.items()}
        self.genesis = encode(
            Genesis(
                name="home",
                nonce=b"n" * 16,
                admins=(self.admin.public_key,),
                threshold=1,
                voter_node=self.peers[self.config.founder],
                voter_store=STORE,
                policy=encode(self.config.policy),
                created_ms=WALL_START_MS,
            )
        )
        self.mesh = mesh_id(self.genesis)
        self.identities = {name: NodeFiles() for name in names}
        self.hosts = {name: self.world.add_host(name, self.peers[name], self._make) for name in names}
        self.outcomes: dict[bytes, Outcome] = {}
        self.releases: dict[Digest, tuple[Change, bytes]] = {}
        self.grants: dict[str, tuple[Signed, ...]] = {}
        self.changes: dict[Digest, str] = {}
        self._refused_until_ms: dict[frozenset[PeerId], int] = {}
        self._ids = 0
        self._serial = 0
        self.world.observers.append(self._observed)
        self.world.may_connect = self._may_connect
        self.world.network.lingers = True
        for effect in founding_effects(STORE):
            assert isinstance(effect, Persist)
            self.hosts[self.config.founder].disk.apply(effect.store, effect.writes)
        self.workshop = Workshop(self.world)

    # --- hosts --------------------------------------------------------------------------------------------------------

    def _make(self, boot: Boot) -> Any:
        name = boot.host.name
        identity = self.identities[name]
        if identity.line is not None and not identity.credentials:
            invite_signer = self.world.keys.signer(identity.invite_key)
            return JoinMachine(
                identity.line, invite_signer, self.signers[name], self.world.keys, boot.entropy, name=name
            )
        setup = CoreSetup(
            self.genesis,
            self.signers[name],
            self.world.keys,
            boot.entropy,
            boot.boot_nonce,
            liveness=self.config.liveness,
            chain=self.config.chain,
        )
        stored = CoreStored(
            Stored(boot.vote, boot.fence, boot.runtime_folder_kept), boot.state or {}, identity.credentials
        )
        self.workshop.restarted(name)
        self.world.after(0, boot.host.receive, Booted(), boot.host.boot_count)
        return NodeCore(setup, stored, boot.host.clock.now(self.world.now_ms))

    def core(self, name: str) -> NodeCore:
        """The running core of a host. Raises LookupError when it is down or has not joined."""
        machine = self.hosts[name].machine
        if not isinstance(machine, NodeCore):
            raise LookupError(f"{name} runs no node")
        return machine

    def cores(self) -> list[tuple[str, NodeCore]]:
        """Every running core by name."""
        return [(name, host.machine) for name, host in self.hosts.items() if isinstance(host.machine, NodeCore)]

    def certify(self, name: str, roles: tuple[NodeRole, ...] = NODE_ROLES, labels: Labels = ()) -> None:
        """Let an admin sign the certificate of a host by hand, as an operator without invites would."""
        self._serial += 1
        signed = issue(
            self.admin, self.mesh, self.peers[name], roles=roles, labels=labels, serial=self._serial,
            wall_ms=WALL_START_MS + self.world.now_ms,
        )  # fmt: skip
        self.identities[name].credentials = (Credentials((signed,)),)

    def _may_connect(self, near: Host, far: Host) -> bool:
        """A newcomer knows only the addresses of its invite, and nobody knows it."""
        until_ms = self._refused_until_ms.get(frozenset((near.peer, far.peer)), 0)
        return self.world.now_ms >= until_ms and self._knows(near, far) and self._knows(far, near)

    def _knows(self, near: Host, far: Host) -> bool:
        if not isinstance(near.machine, JoinMachine):
            return True
        line = self.identities[near.name].line
        return line is not None and any(address.pin == far.peer for address in line.addresses)

    # --- principals ---------------------------------------------------------------------------------------------------

    def principal(self, name: str) -> Any:
        """The signer of a principal; "admin" is the founder's admin key."""
        return self.admin if name == "admin" else self.world.keys.signer(f"principal/{name}")

    def grant(self, name: str, roles: tuple[Role, ...], via: str) -> None:
        """Let the admin grant roles everywhere for 30 days, and publish the grant through a host."""
        expires_ms = WALL_START_MS + self.world.now_ms + 30 * DAY_MS
        grant = Grant(
            self.principal(name).public_key, "person", name, roles, ("*",), ("*",), expires_ms, b"g" * 16
        )  # fmt: skip
        self.grants[name] = (sign(self.admin, GRANT_DOMAIN, self.mesh, grant),)
        self.publish(via, *grant_record(self.principal(name).public_key, self.grants[name]))

    def submit(
        self,
        via: str,
        action: Action,
        *by: str,
        lane: tuple[str, str] = ("", ""),
        shown: tuple[Exhibits, tuple[bytes, ...]] | None = None,
        expect: int | None = -1,
    ) -> bytes:
        """Sign a command as the principals and submit it through a host; return the request id its outcome will have.

        `expect` -1 takes the sequence that the host holds. Shown exhibits gain the signers' grants.
        """
        self._ids += 1
        if expect == -1:
            expect = self._sequence(self.core(via).state, lane)
        exhibits, material = shown or (Exhibits(), ())
        chains = tuple(encode(self.grants[name]) for name in by if name in self.grants)
        if not exhibits.grants:
            exhibits = Exhibits(**{**_fields(exhibits), "grants": tuple(bytes(digest(chain)) for chain in chains)})
            material = (*material, *chains)
        command = Command(self._ids.to_bytes(16, "big"), action, *lane, expect)
        signed = sign_command([self.principal(name) for name in by], self.mesh, command, exhibits)
        return self.send_command(via, signed, material)

    def send_command(self, via: str, signed: SignedCommand, material: tuple[bytes, ...]) -> bytes:
        """Submit a signed command through a host; return its request id."""
        self._ids += 1
        request_id = b"request-%d" % self._ids
        self.hosts[via].receive(Submit(request_id, encode(signed), tuple(dict.fromkeys(material))))
        return request_id

    @staticmethod
    def _sequence(state: MeshState, lane: tuple[str, str]) -> int:
        if not any(lane):
            return state.sequence
        found_lane = state.lane(*lane)
        return found_lane.sequence if found_lane is not None else 0

    def outcome(self, request_id: bytes, within_ms: int = 60_000) -> Outcome | None:
        """Run the world until a request is answered; None if it was not in time."""
        self.world.run_while(lambda: request_id not in self.outcomes, self.world.now_ms + within_ms)
        return self.outcomes.get(request_id)

    def publish(self, via: str, key: str, body: bytes = b"", *, tombstone: bool = False) -> None:
        """Write one record through a host."""
        self.hosts[via].receive(Publish(key, body, tombstone=tombstone))

    def note(self, text: str) -> tuple[str, bytes]:
        """Return key and body of a paper that only says `text`: the admin's evidence that a component passed its tests."""
        component = digest(text.encode())
        run = EvidenceRun(self.mesh.hex(), "test", "host", WALL_START_MS)
        body = attest(self.admin, run, passed=True, components=((text, component),), configuration=component)
        return make_key("evidence", component.hex(), digest(body).hex()), body

    def end_note(self, text: str, via: str) -> None:
        """Publish, through a host, that the admin takes a note back."""
        key, body = self.note(text)
        ending = Ending(key, WALL_START_MS + self.world.now_ms)
        self.publish(via, key, end_paper(self.admin, self.mesh, ending, body), tombstone=True)

    def revoke(self, kind: Literal["node", "principal"], key: bytes, via: str) -> None:
        """Publish the admin's revocation of a key through a host."""
        wall_ms = WALL_START_MS + self.world.now_ms
        revocation = Revocation(kind, key, 0, 0, "lost", wall_ms)
        statement = sign_revocation(self.admin, self.mesh, revocation)
        self.publish(via, *revocation_record(revocation, statement))

    # --- the mesh -----------------------------------------------------------------------------------------------------

    def confirm(self, name: str, via: str) -> bytes:
        """Let the admin ask the chain to confirm a node with the roles and labels of its certificate."""
        certificate = self.core(via).trust.certificate(self.peers[name])
        labels = certificate.labels if certificate else ()
        roles: tuple[str, ...] = certificate.roles if certificate else NODE_ROLES
        return self.submit(via, ConfirmNode(self.peers[name], labels, roles), "admin", expect=None)

    def invite(self, key: str, uses: int, via: str) -> InviteLine:
        """Make an invite for nodes, good for a day, with a host's address in it."""
        wall_ms = WALL_START_MS + self.world.now_ms
        signer = self.world.keys.signer(key)
        invite = Invite(self.mesh, signer.public_key, "node", NODE_ROLES, (), uses, wall_ms, wall_ms + DAY_MS)
        address = Address(f"/dns/{via}/tcp/7070", self.peers[via])
        return InviteLine(b"", make_invite(self.admin, invite), invite, (address,))

    def join(self, name: str, line: InviteLine, invite_key: str, via: str) -> None:
        """Start a host as a newcomer that holds an invite line and dials only `via`."""
        here = InviteLine(line.seed, line.signed, line.invite, (Address(f"/dns/{via}/tcp/7070", self.peers[via]),))
        self.identities[name] = NodeFiles(line=here, invite_key=invite_key)
        self.hosts[name].start()

    def replace_voters(self, via: str, names: Sequence[str]) -> bytes:
        """Let the admin name the voters, shown the readiness that a host has heard of. Raises LookupError."""
        wanted = {self.peers[name] for name in names}
        ready = {said.node: (said, signed) for said, signed in self.core(via).chain.ready_stores()}
        present = {voter.node: voter.store_id for voter in self.core(via).state.voters}
        voters = []
        for node in sorted(wanted):
            store = ready[node][0].store_id if node in ready else present.get(node)
            if store is None:
                raise LookupError(f"{via} has not heard that {self.name_of[node]} could vote")
            voters.append(Voter(node, store))
        material = tuple(encode(signed) for node, (_, signed) in sorted(ready.items()) if node in wanted)
        shown = Exhibits(statements=tuple(bytes(digest(entry)) for entry in material)), material
        return self.submit(via, Reconfigure(tuple(voters)), "admin", shown=shown)

    def reset(self, via: str, names: Sequence[str]) -> None:
        """Let the admin start a new era from the head that a host holds, with these voters."""
        chain = self.core(via).chain
        head = chain.position
        voters = tuple(sorted(Voter(self.peers[name], self.core(name).chain.store_id) for name in names))
        wall_ms = WALL_START_MS + self.world.now_ms
        reset = Reset(self.mesh, head.resets + 1, head.slot + 1, head.digest, wall_ms, voters, "majority lost")
        approval = sign(self.admin, RESET_DOMAIN, self.mesh, reset)
        self.hosts[via].receive(SubmitReset(encode(ResetTo(approval.payload, (approval,)))))

    # --- the change path ----------------------------------------------------------------------------------------------

    def propose(
        self, name: str, by: str, via: str, lane: tuple[str, str] = ("shop", "prod"), script: Script | None = None,
        plan: Plan = STAGES,
    ) -> Digest:  # fmt: skip
        """Publish a change of the lane to a release called `name` through a host; return the change's id."""
        project, environment = lane
        state = self.core(via).state
        author = self.principal(by)
        component = digest(name.encode())
        release = Release(
            project, (Component("web", component, 1_000),), b"# " + name.encode(), "commit", author.public_key
        )
        data = encode(release)
        held = state.lane(project, environment)
        change = Change(
            project=project,
            environment=environment,
            request=f"release {name}",
            release=digest(data),
            base=held.base.release if held is not None and held.base is not None else b"",
            configuration=digest(b"configuration"),
            policy=gate_of(state, environment, release).digest,
            author=author.public_key,
            created_ms=WALL_START_MS + self.world.now_ms,
            plan=plan,
        )
        signed = sign(author, CHANGE_DOMAIN, self.mesh, change)
        new_digest = digest(signed.payload)
        self.changes[new_digest] = name
        self.workshop.scripts[new_digest] = script or Script()
        self.releases[new_digest] = (change, data)
        body = encode(signed)
        self.publish(via, make_key("change", project, digest(body).hex()), body)
        return new_digest

    def approve(self, change: Digest, by: str, via: str) -> None:
        """Publish a principal's approval of a change, good for a day."""
        said, _ = self.releases[change]
        wall_ms = WALL_START_MS + self.world.now_ms
        body = sign_approval(
            self.principal(by),
            self.mesh,
            Approval(b"", change, said.project, said.environment, wall_ms, wall_ms + DAY_MS),
        )
        self.publish(via, make_key("approval", change.hex(), digest(body).hex()), body)

    def start(self, change: Digest, by: str, via: str, *, supersede: bool = False) -> bytes:
        """Submit the start of a change over every node its environment selects, with all the host holds for it."""
        core = self.core(via)
        said, release = self.releases[change]
        proposed = core.dossiers.changes.get(change)
        if proposed is None:
            raise LookupError(f"{via} holds no change {self.changes[change]} by somebody who may propose it")
        nodes = tuple(sorted(eligible(core.state, said.environment)))
        approvers = [name for name in (*self.grants, "admin") if name != by]
        shown = core.dossiers.exhibits(
            proposed,
            release=release,
            signers=(self.principal(by).public_key,),
            speakers=tuple(self.principal(name).public_key for name in approvers),
            envelopes=(core.dossiers.approvals(change), ()),
            statements=core.agent.conductor.prepared(change, nodes),
        )
        action = Start(change, nodes, supersede=supersede)
        return self.submit(via, action, by, lane=(said.project, said.environment), shown=shown)

    @staticmethod
    def exhibit(statements: Sequence[bytes]) -> tuple[Exhibits, tuple[bytes, ...]]:
        """Exhibits that show nodes' statements, with their bytes."""
        return Exhibits(statements=tuple(bytes(digest(statement)) for statement in statements)), tuple(statements)

    def _observed(self, host: Host, event: Any) -> None:
        match event:
            case Outcome():
                self.outcomes[event.request_id] = event
            case Joined():
                self.identities[host.name].credentials = (event.credentials, event.admitted_by_credentials)
                self.world.after(0, self._restart, host)
            case RefusedBy(peer, _, _):
                self._refused_until_ms[frozenset((host.peer, peer))] = self.world.now_ms + KNOCK_AGAIN_MS
            case _:
                pass

    def _restart(self, host: Host) -> None:
        host.crash("joined; starting as a member")
        host.start()


def _fields(exhibits: Exhibits) -> dict[str, Any]:
    return {name: getattr(exhibits, name) for name in exhibits.__struct_fields__}
