"""The daemon's control surface: what the API may read and ask for. One object, so that a handler needs nothing else.

Not here: HTTP (api/), and the order in which the parts start (daemon.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from node.config import NodeConfig, certificates_folder
from node.decisions.drafts import Drafts
from node.decisions.history import DecisionView, payload_of, view_of
from node.decisions.outcomes import Fates
from node.decisions.start_queue import Starter, Waiting
from node.journal.audit import Audit, Paper, paper_of, start_paper
from node.journal.logs import LogStore
from node.mesh.chain_requests import ChainRequests
from node.mesh.mesh import Mesh
from node.mesh.peer_questions import Asking
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactStore
from node.store.storage import Storage
from protocols.chain.decision import Voter
from protocols.chain.messages import EntryStored, EraChanged, Lied, Quarantined, Stalled, SubmitReset
from protocols.chain.quorum import majority
from protocols.core import NodeCore
from protocols.keys import public_key_of
from protocols.liveness import Belief, BeliefChanged
from protocols.machine import Now, PeerId
from protocols.records.gossip import PublishRefused, RecordsMerged
from protocols.rollout.orders import Reverted, Run, Stop
from protocols.state.commands import SignedCommand
from protocols.trust.hello import QUARANTINE_MS, Admitted, Cloned, RefusedBy
from runtime.ingress import certificates

if TYPE_CHECKING:
    from node.api.operations import Call
    from node.membership.admit import Enrolling
    from node.membership.leave import Leaving
    from node.serving.schedules import Schedules
    from node.serving.secrets import Secrets

_log = logging.getLogger("freehold.control")

WATCHERS_MAX = 128
SLOTS_SEARCHED_MAX = 1_000
"""How far back a retried command is looked for: a retry comes within minutes, and a few decisions are made a day."""

WATCHER_EVENTS_MAX = 1_000
PROGRESS_LOOK_S = 1.0
DISK_FREE_WARN_BYTES = 1 << 30
CERTIFICATE_WARN_DAYS = 14
RECORDS_WARN = 0.8
RECORDS_HOLD = "grants, revocations, the papers of changes, secrets and the audit log"
RESET_TIMEOUT_S = 3.0
REFUSALS_MAX = 32
"""As many as the mesh has nodes: only peers that this node dialled can turn it away."""


def voter_warnings(voters: list[PeerId], down: list[PeerId], boot_answers_needed: int) -> list[str]:
    """Say what the voters that are `down` mean; `boot_answers_needed` by this node, if it is a voter that rebooted."""
    count, up = len(voters), len(voters) - len(down)
    found = []
    if down and up < majority(count):
        found.append(
            f"{len(down)} of {count} voters are down: nothing can be decided until one returns; "
            "if none ever will: freehold mesh reset NODE -m REASON"
        )
    elif down and up == majority(count):
        found.append(
            f"voter {down[0]} is down: one more loss, or the reboot of another voter's machine, and nothing can be "
            f"decided; put another node in its place: freehold mesh voters --replace {down[0][-8:]} NODE"
        )
    if boot_answers_needed > up - 1:
        found.append(
            f"this voter's machine rebooted: it votes again once {boot_answers_needed} other voters have answered, and "
            f"{up - 1} are up; start the others (if one is lost for good: freehold mesh reset NODE -m REASON)"
        )
    return found


@dataclass(slots=True)
class Control:
    """Everything a handler may use."""

    config: NodeConfig
    folder: Path
    mesh: Mesh
    storage: Storage
    artifacts: ArtifactStore
    workloads: Workloads
    requests: ChainRequests
    starter: Starter
    logs: LogStore
    asking: Asking
    clock: Callable[[], Now]
    leaving: Leaving = field(init=False)
    enrolling: Enrolling = field(init=False)
    secrets: Secrets = field(init=False)
    schedules: Schedules = field(init=False)
    audit: Audit = field(init=False)
    fates: Fates = field(init=False)
    drafts: Drafts = field(default_factory=Drafts)
    addresses: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    ingress: tuple[str, ...] = ()
    api: str = ""
    api_pin: str = ""
    quarantined: str = ""
    rebuilt: str = ""
    """Why this process began without the records that the node had, if it did."""
    refused_by: dict[PeerId, str] = field(default_factory=dict)
    """Why peers turned this node away at hello, until they admit it."""
    doubles: dict[PeerId, int] = field(default_factory=dict)
    """Peers seen as two living processes, and when (wall ms) that was last proven to this node."""
    _watchers: dict[int, asyncio.Queue[bytes]] = field(default_factory=dict)
    _number: int = 0
    _published: dict[str, dict[asyncio.Future[str], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fates = Fates(self.decision, self._digest_at)

    @property
    def core(self) -> NodeCore:
        """The composed machine, to read."""
        return self.mesh.core

    @property
    def alone(self) -> bool:
        """Whether no other node holds what this one holds."""
        return not any(one.node != self.core.node for one in self.core.state.nodes)

    def decision(self, slot: int) -> DecisionView:
        """What the chain decided at a slot this node holds."""
        return view_of(slot, self.core.chain.ledger.entry(slot))

    def _digest_at(self, slot: int) -> bytes:
        return self.core.chain.ledger.digest_at(slot)

    def slot_of(self, signed: SignedCommand) -> int:
        """Where this very command was decided, of the newest slots; 0 if nowhere."""
        newest = self.core.chain.position.slot
        for slot in range(newest, max(0, newest - SLOTS_SEARCHED_MAX), -1):
            if payload_of(self.core.chain.ledger.entry(slot)) == signed.payload:
                return slot
        return 0

    def history(self, project: str, environment: str, limit: int, *, before: int | None = None) -> list[DecisionView]:
        """The newest decisions, newest first, or the newest `before` a slot; empty names match everything."""
        found: list[DecisionView] = []
        newest = self.core.chain.position.slot
        for slot in range(newest if before is None else min(newest, before - 1), 0, -1):
            view = self.decision(slot)
            here = (not project or view.project == project) and (not environment or view.environment == environment)
            if here and view.action != "noop":
                found.append(view)
            if len(found) >= limit:
                break
        return found

    def warnings(self) -> list[str]:
        """What an operator should look at now, each with what to do."""
        core, now = self.core, self.clock()
        found = []
        if core.trust.key_revoked(public_key_of(core.node)):
            found.append(
                "this node was revoked: the mesh sends it nothing and takes nothing from it, for good; stop it,"
                " and join with a new invite if it is to come back"
            )
        if self.quarantined:
            cure = (
                "freehold mesh restore FILE, or freehold mesh reset" if self.alone else "freehold mesh voters --replace"
            )
            found.append(f"this node's vote is quarantined ({self.quarantined}); {cure}")
        if self.rebuilt and self.alone:
            found.append(f"{self.rebuilt}: {RECORDS_HOLD} are lost; restore a backup: freehold mesh restore FILE")
        elif self.rebuilt:
            found.append(f"{self.rebuilt}; its records come back from the peers. Check the disk: freehold doctor")
        found += [
            f"{peer} turns this node away: {why}; freehold mesh members on that side"
            for peer, why in sorted(self.refused_by.items())
        ]
        found += [
            f"two machines use the key of {peer}; stop the copy for good"
            for peer, at_ms in sorted(self.doubles.items())
            if now.wall_ms - at_ms < QUARANTINE_MS
        ]
        if self.audit.behind:
            awaited = ", ".join(self.audit.awaited) or "any other node"
            found.append(
                "what is written through this node waits for its place in the audit log: it lost records, and"
                f" {awaited} may hold some of them; start it, or for good: freehold mesh remove NODE"
            )
        if core.chain.muted:
            found.append(f"this node serves and does not vote: {core.chain.muted}; free some space on {self.folder}")
        if core.chain.stalled:
            found.append(f"this node cannot follow the chain: {core.chain.stalled}; update it")
        voters = [voter.node for voter in core.state.voters]
        connected = core.hello.admitted()
        down = [node for node in voters if node != core.node and self._lost(node, connected)]
        found += voter_warnings(voters, down, core.chain.boot_answers_needed)
        for expiring in core.trust.expiring(now.wall_ms):
            word = "has expired" if expiring.expired else "expires soon"
            found.append(f"the certificate of {expiring.node} {word}; is an issuer node reachable?")
        found += self.concerns()
        free = shutil.disk_usage(self.folder).free
        if free < DISK_FREE_WARN_BYTES and not core.chain.muted:
            found.append(f"{free >> 20} MiB are left on the disk of {self.folder}; free some space")
        return found

    def _lost(self, node: PeerId, connected: Sequence[PeerId]) -> bool:
        """Whether a voter counts as gone: believed down, or suspected and out of reach.

        Where most of those who could agree that it is down are gone too, a suspicion is all there will ever be.
        """
        belief = self.core.liveness.belief(node)
        return belief is Belief.DOWN or (belief is Belief.SUSPECT and node not in connected)

    def concerns(self) -> list[str]:
        """The warnings that nobody but this node can judge from what it says of itself; each as "what; what to do"."""
        core = self.core
        found = self._unprepared()
        for lane in core.state.lanes:
            runs = lane.schedule_node if lane.base is not None and lane.base.schedules else None
            if runs is not None and core.liveness.belief(runs) is Belief.DOWN:
                found.append(
                    f"the schedules of {lane.project} in {lane.environment} stand still: {runs} is down; "
                    f"freehold project place {lane.project} --env {lane.environment} --schedules NODE"
                )
        used = self.audit.fullness
        if used >= RECORDS_WARN:
            found.append(
                f"{100 * used:.0f} % of the records that this node may write are used up, most of them entries of its audit"
                " log, which expire after 400 days; write through another node: --context"
            )
        if core.state.resets:
            found.append(
                f"this mesh was reset {core.state.resets} times: what the lost voters decided is abandoned; "
                "compare what runs with what should: freehold status"
            )
        return found + self._ingress_warnings()

    def _unprepared(self) -> list[str]:
        """What of that the chain names this node could not make ready."""
        found = []
        for lane in self.core.state.lanes:
            candidate = (lane.rollout.candidate,) if lane.rollout is not None else ()
            for one in (lane.base, *candidate, *lane.retained):
                why = self.workloads.failures.get(one.change) if one is not None else None
                if one is not None and why is not None:
                    found.append(
                        f"release {one.release.hex()[:12]} of {lane.project} in {lane.environment} is not ready here:"
                        f" {why.splitlines()[0]}; freehold logs --project {lane.project}"
                    )
        return found

    def _ingress_warnings(self) -> list[str]:
        if not self.config.ingress_tls:
            return []
        where = certificates_folder(self.config, self.folder)
        try:
            held = certificates.read(where)
        except certificates.CertificateError as error:
            return [f"visitors get the certificates from before: {error}; mend what is in {where}"]
        return [
            f"{one.path} ends in {left} days; put its successor in its place"
            for one in held
            if (left := certificates.days_left(one)) <= CERTIFICATE_WARN_DAYS
        ]

    async def reset(self, entry: bytes, number: int) -> bool:
        """Hand a signed reset to the chain; whether it is in force."""
        self.mesh.post(SubmitReset(entry))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESET_TIMEOUT_S):
                while self.core.chain.position.resets < number:  # noqa: ASYNC110  a refusal is only counted
                    await asyncio.sleep(0.05)
        return self.core.chain.position.resets >= number

    # --- audit ----------------------------------------------------------------------------------------------------------

    def audit_call(self, call: Call, result: str, request: str) -> None:
        """Take down a write that came through the API."""
        self.audit.note(call.principal, paper_of(call.operation.name, call.request.path, call.body), result, request)

    def audit_own(self, paper: Paper) -> None:
        """Take down what this node did of itself."""
        self.audit.note("node", paper, "done", "")

    def audit_start(self, waiting: Waiting) -> None:
        """Take down how a start that waited here has ended."""
        result = "done" if waiting.outcome == "started" else waiting.refusal.rule
        self.audit.note("starter", start_paper(waiting.signed), result, "")

    # --- events ---------------------------------------------------------------------------------------------------------

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: answer who waits for it, tell who watches."""
        match event:
            case RecordsMerged(entries):
                for entry in entries:
                    self._settle(entry.record.key, "")
                    self._tell("record", {"key": entry.record.key})
            case PublishRefused(key, refusal):
                self._settle(key, f"{refusal.rule}: {refusal.detail}")
            case RefusedBy() | Cloned() | Admitted():
                self._met(event)
            case Quarantined(reason, _):
                self.quarantined = reason
                _log.error("this node gave up its vote: %s", reason, extra={"event": "vote.quarantined"})
                self._tell("quarantined", {"reason": reason})
            case EntryStored(slot, entry):
                self._vote_again()
                self._tell("decision", msgspec.to_builtins(view_of(slot, entry)))
            case EraChanged():
                self._vote_again()
            case BeliefChanged(peer, belief, _, _):
                self._tell("member", {"node": peer, "belief": belief.value})
            case Reverted(project, environment, rollout, reason):
                names = {"project": project, "environment": environment}
                self._tell("reverted", {**names, "rollout": rollout.hex(), "reason": reason})
            case Run(project, environment, deployed, role, _):
                names = {"project": project, "environment": environment}
                self._tell("run", {**names, "release": deployed.release.hex(), "role": role})
            case Stop(project, environment):
                self._tell("stop", {"project": project, "environment": environment})
            case Lied() | Stalled():
                self._tell(type(event).__name__.lower(), {})
            case _:
                pass

    def _vote_again(self) -> None:
        """Forget why the vote was given up, once the store made since has one."""
        if self.quarantined and Voter(self.core.node, self.core.chain.store_id) in self.core.state.voters:
            self.quarantined = ""

    def _met(self, event: RefusedBy | Cloned | Admitted) -> None:
        """Remember how hello went with a peer: who turned this node away, and who is seen double."""
        match event:
            case RefusedBy(peer, rule, detail):
                if len(self.refused_by) < REFUSALS_MAX:
                    self.refused_by[peer] = f"{rule}: {detail}"
            case Cloned(peer):
                self.doubles[peer] = self.clock().wall_ms
                self._tell("cloned", {"node": peer})
            case Admitted(peer):
                self.refused_by.pop(peer, None)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield events as server-sent event frames, for ever. Raises RuntimeError when too many watch."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise RuntimeError(f"at most {WATCHERS_MAX} watch one node at once")
        self._number += 1
        number = self._number
        queue = self._watchers[number] = asyncio.Queue(WATCHER_EVENTS_MAX)
        told: dict[tuple[str, str], dict[str, Any]] = {}
        loop = asyncio.get_running_loop()
        look_s = loop.time()
        try:
            while True:
                if loop.time() >= look_s:
                    look_s = loop.time() + PROGRESS_LOOK_S
                    seen = self._progress()
                    for lane in [lane for lane in seen if told.get(lane) != seen[lane]]:
                        yield _frame("rollout", seen[lane])
                    told = seen
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look_s):
                        frame = await queue.get()
                    yield frame
        finally:
            del self._watchers[number]

    def _progress(self) -> dict[tuple[str, str], dict[str, Any]]:
        """How far each rollout is: what nodes say of its open stage changes between two decisions."""
        found = {}
        for lane in self.core.state.lanes:
            rollout = lane.rollout
            if rollout is not None:
                said = self.core.agent.conductor.verdicts(rollout.id, rollout.opened)
                found[lane.project, lane.environment] = {
                    "project": lane.project,
                    "environment": lane.environment,
                    "rollout": rollout.id.hex(),
                    "stage": rollout.stage,
                    "stages": len(rollout.stages),
                    "paused": rollout.paused,
                    "verdicts": {node: one.verdict for node, one in sorted(said.items())},
                }
        return found

    def expect_record(self, key: str) -> asyncio.Future[str]:
        """A future that ends when a record is durable here ("") or refused (why); several may wait for one."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._published.setdefault(key, {})[future] = None
        future.add_done_callback(lambda done: self._forget_expected(key, done))
        return future

    def holds_record(self, key: str) -> bool:
        """Whether a record is here and durable, as far as anybody still waits for it to be."""
        return key in self.core.records.store.entries and key not in self._published

    def _forget_expected(self, key: str, future: asyncio.Future[str]) -> None:
        waiting = self._published.get(key, {})
        waiting.pop(future, None)
        if not waiting:
            self._published.pop(key, None)

    def _settle(self, key: str, problem: str) -> None:
        for future in self._published.pop(key, {}):
            if not future.done():
                future.set_result(problem)

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        if not self._watchers:
            return
        frame = _frame(kind, fields)
        for queue in self._watchers.values():
            if not queue.full():
                queue.put_nowait(frame)


def _frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(fields) + b"\n\n"
