"""What an operator is warned of, each warning with what to do about it; and what this node saw that leads to one.

Not here: how warnings are shown (the CLI), and the numbers for a monitoring system (api/reports/metrics.py).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from node.config import NodeConfig, certificates_folder
from node.decisions.acknowledged import Acknowledged
from node.journal.audit import Audit
from node.mesh.mesh import Rejected
from node.serving.workloads import Workloads
from node.store.disk_room import MUTED
from node.upgrade.releases_here import ReleasesHere
from protocols.chain.decision import Voter
from protocols.chain.messages import EntryStored, EraChanged, Quarantined
from protocols.chain.quorum import majority
from protocols.core import NodeCore
from protocols.keys import public_key_of
from protocols.liveness import Belief
from protocols.machine import Now, PeerId
from protocols.state.model import Lane
from protocols.state.placement import eligible, placed
from protocols.trust.hello import QUARANTINE_MS, Admitted, PeerCloned, RefusedBy
from runtime.ingress import certificates

Sees = Callable[[str, str], bool]
"""Whether somebody may hear of a project in an environment."""

DISK_FREE_WARN_BYTES = 1 << 30
CERTIFICATE_WARN_DAYS = 14
RECORDS_WARN = 0.8
RECORDS_HOLD = "grants, revocations, the papers of changes, secrets and the audit log"
REFUSALS_MAX = 32
"""As many as the mesh has nodes: only peers that this node dialled can turn it away."""

_log = logging.getLogger("freehold.control")


LOOK_STEP = "on its machine: freehold doctor (docs/guides/operations.md if it is lost for good)"
"""What is not reached may be well: its clock, version, address and the network come before anything that destroys."""

REJECTS_TOLD_MS = 10 * 60_000
CURES = {
    ("future", "clock", "skew", "early", "stale", "created"): "compare the clocks: timedatectl status on both machines",
    ("expired", "certificate", "credential", "grant"): "look at its certificate: freehold mesh members",
    ("malformed", "unknown", "version", "decode", "kind"): "compare the versions: freehold mesh members",
}
"""By words of a rule or its detail: what to look at first. None of it destroys anything."""


def cure_of(rule: str, detail: str) -> str:
    """Return what to look at where a peer's messages are refused by this rule."""
    said = f"{rule} {detail}".lower()
    texts = (cure for words, cure in CURES.items() if any(word in said for word in words))
    return next(texts, "look there, too: freehold doctor")


def is_alone(core: NodeCore) -> bool:
    """Whether no other node holds what this one holds."""
    return not any(other.node != core.node for other in core.state.nodes)


def voter_warnings(voters: list[PeerId], down: list[PeerId], boot_answers_needed: int) -> list[str]:
    """Say what the voters that are `down` mean; `boot_answers_needed` by this node, if it is a voter that rebooted."""
    count, up = len(voters), len(voters) - len(down)
    texts = []
    if down and up < majority(count):
        texts.append(
            f"{len(down)} of {count} voters are down, or not reached: nothing can be decided until one returns; {LOOK_STEP}"
        )
    elif down and up == majority(count):
        texts.append(
            f"voter {down[0]} is down, or not reached: one more loss, or the reboot of another voter's machine, and nothing"
            f" can be decided; {LOOK_STEP}"
        )
    if boot_answers_needed > up - 1:
        texts.append(
            f"this voter's machine rebooted: it votes again once {boot_answers_needed} other voters have answered, and "
            f"{up - 1} are up; start the others; {LOOK_STEP}"
        )
    return texts


class Concerns:
    """Remembers how peers and the chain treat this node, and finds what is wrong now."""

    def __init__(
        self,
        core: NodeCore,
        config: NodeConfig,
        folder: Path,
        workloads: Workloads,
        audit: Audit,
        clock: Callable[[], Now],
        rebuilt: str,
        rejected: Mapping[PeerId, Rejected],
        elsewhere: Sequence[Callable[[], Sequence[str]]],
        acknowledged: Acknowledged,
    ) -> None:
        """Take what is read, and why this process began without the records that the node had ("" if it has them).

        `rejected` is what was refused of each peer last, `elsewhere` what says by what other parts are worried.
        """
        self._rejected, self._elsewhere, self._acknowledged = rejected, elsewhere, acknowledged
        self._core, self._config, self._folder, self._clock = core, config, folder, clock
        self._workloads, self._audit = workloads, audit
        self.rebuilt = rebuilt
        self.quarantined = ""
        """Why this node gave up its vote, until a store made since has one."""
        self.refused_by: dict[PeerId, str] = {}
        """Why peers turned this node away at hello, until they admit it."""
        self._doubles: dict[PeerId, int] = {}

    def hear(self, event: Any) -> None:
        """Take one of the core's notices."""
        match event:
            case RefusedBy(peer, rule, detail):
                if len(self.refused_by) < REFUSALS_MAX:
                    self.refused_by[peer] = f"{rule}: {detail}"
            case Admitted(peer):
                self.refused_by.pop(peer, None)
            case PeerCloned(peer):
                self._doubles[peer] = self._clock().wall_ms
            case Quarantined(reason, _):
                self.quarantined = reason
                _log.error("this node gave up its vote: %s", reason, extra={"event": "vote.quarantined"})
            case EntryStored() | EraChanged():
                if self.quarantined and Voter(self._core.node, self._core.chain.store_id) in self._core.state.voters:
                    self.quarantined = ""
            case _:
                pass

    def doubles(self) -> list[PeerId]:
        """Peers that were proven to this node to be two living processes, not long ago."""
        wall_ms = self._clock().wall_ms
        return sorted(peer for peer, at_ms in self._doubles.items() if wall_ms - at_ms < QUARANTINE_MS)

    def warnings(self, sees: Sees = lambda _project, _environment: True) -> list[str]:
        """What an operator should look at now, each with what to do."""
        core = self._core
        texts = self._of_membership()
        if self._audit.behind:
            awaited = ", ".join(self._audit.awaited) or "any other node"
            texts.append(
                "what is written through this node waits for its place in the audit log: it lost records, and"
                f" {awaited} may hold some of them; start it; {LOOK_STEP}"
            )
        if core.chain.muted:
            step = f"free some space on {self._folder}" if core.chain.muted == MUTED else "freehold mesh upgrade plan"
            texts.append(f"this node serves and does not vote: {core.chain.muted}; {step}")
        if core.chain.stalled:
            texts.append(f"this node cannot follow the chain: {core.chain.stalled}; update it")
        voters = [voter.node for voter in core.state.voters]
        connected = core.hello.admitted()
        down = [node for node in voters if node != core.node and self._lost(node, connected)]
        texts += voter_warnings(voters, down, core.chain.boot_answers_needed)
        for expiring in core.trust.expiring(self._clock().wall_ms):
            word = "has expired" if expiring.expired else "expires soon"
            texts.append(f"the certificate of {expiring.node} {word}; is an issuer node reachable?")
        texts += self.own(sees)
        free = shutil.disk_usage(self._folder).free
        if free < DISK_FREE_WARN_BYTES and not core.chain.muted:
            texts.append(f"{free >> 20} MiB are left on the disk of {self._folder}; free some space")
        return texts

    def _of_membership(self) -> list[str]:
        """What is wrong with this node's place in the mesh."""
        core, alone = self._core, is_alone(self._core)
        texts = []
        if core.trust.key_revoked(public_key_of(core.node)):
            texts.append(
                "this node was revoked: the mesh sends it nothing and takes nothing from it, for good; stop it,"
                " and join with a new invite if it is to come back"
            )
        if self.quarantined:
            cure = "freehold mesh restore FILE, or freehold mesh reset" if alone else "freehold mesh voters --replace"
            texts.append(f"this node's vote is quarantined ({self.quarantined}); {cure}")
        if self.rebuilt and alone:
            texts.append(f"{self.rebuilt}: {RECORDS_HOLD} are lost; restore a backup: freehold mesh restore FILE")
        elif self.rebuilt:
            texts.append(f"{self.rebuilt}; its records come back from the peers. Check the disk: freehold doctor")
        texts += [
            f"{peer} turns this node away: {why}; freehold mesh members on that side"
            for peer, why in sorted(self.refused_by.items())
        ]
        texts += [f"two machines use the key of {peer}; stop the copy for good" for peer in self.doubles()]
        return texts

    def _lost(self, node: PeerId, connected: Sequence[PeerId]) -> bool:
        """Whether a voter counts as gone: believed down, or suspected and out of reach.

        Where most of those who could agree that it is down are gone too, a suspicion is all there will ever be.
        """
        belief = self._core.liveness.belief(node)
        return belief is Belief.DOWN or (belief is Belief.SUSPECT and node not in connected)

    def own(self, sees: Sees = lambda _project, _environment: True) -> list[str]:
        """The warnings that nobody but this node can judge from what it says of itself; each as "what; what to do"."""
        core = self._core
        lanes = [lane for lane in core.state.lanes if sees(lane.project, lane.environment)]
        texts = self._unprepared(lanes) + self._unready(lanes) + self._of_rejects()
        for lane in lanes:
            runs = lane.schedule_node if lane.base is not None and lane.base.schedules else None
            if runs is not None and core.liveness.belief(runs) is Belief.DOWN:
                texts.append(
                    f"the schedules of {lane.project} in {lane.environment} stand still: {runs} is down; "
                    f"freehold project place {lane.project} --env {lane.environment} --schedules NODE"
                )
        failed = ReleasesHere(self._folder).read().failed
        if failed is not None:
            texts.append(f"the upgrade to {failed.version} went back: {failed.why}; freehold mesh upgrade plan")
        used = self._audit.fullness
        if used >= RECORDS_WARN:
            texts.append(
                f"{100 * used:.0f} % of the records that this node may write are used up, most of them entries of its audit"
                " log, which expire after 400 days; write through another node: --context"
            )
        if self._acknowledged.open:
            texts.append(
                f"this mesh was reset {core.state.resets} times: what the lost voters decided is abandoned; "
                "compare what runs with what should: freehold status, and then: freehold mesh acknowledge"
            )
        return texts + self._of_certificates() + [text for worried in self._elsewhere for text in worried()]

    def _unprepared(self, lanes: Sequence[Lane]) -> list[str]:
        """What of that the chain names this node could not make ready."""
        texts = []
        for lane in lanes:
            candidate = (lane.rollout.candidate,) if lane.rollout is not None else ()
            for deployed in (lane.base, *candidate, *lane.retained):
                why = self._workloads.failures.get(deployed.change) if deployed is not None else None
                if deployed is not None and why is not None:
                    texts.append(
                        f"release {deployed.release.hex()[:12]} of {lane.project} in {lane.environment} is not ready here:"
                        f" {why.splitlines()[0]}; freehold logs --project {lane.project}"
                    )
        return texts

    def _unready(self, lanes: Sequence[Lane]) -> list[str]:
        """What this node is to run and does not run yet, though nothing failed: it fetches, compiles or tries it."""
        core, texts = self._core, []
        for lane in lanes:
            base = lane.base
            if base is None or base.change in self._workloads.failures:
                continue
            here = core.node in placed(lane, base, eligible(core.state, lane.environment))
            if here and (lane.project, lane.environment) not in self._workloads.running:
                texts.append(
                    f"{lane.project} in {lane.environment} is not served here yet: release {base.release.hex()[:12]} is"
                    f" fetched, compiled and tried first; freehold logs --project {lane.project}"
                )
        return texts

    def _of_rejects(self) -> list[str]:
        """Whose messages were refused lately, and what is likely wrong: a clock, a certificate or a version."""
        now_ms = self._clock().mono_ms
        return [
            f"messages of {peer} are refused here ({rejected.rule}{': ' if rejected.detail else ''}{rejected.detail});"
            f" {cure_of(rejected.rule, rejected.detail)}"
            for peer, rejected in sorted(self._rejected.items())
            if now_ms - rejected.at_ms < REJECTS_TOLD_MS
        ]

    def _of_certificates(self) -> list[str]:
        """What is wrong with the certificates that visitors get."""
        texts: list[str] = []
        folder = certificates_folder(self._config, self._folder)
        if not self._config.ingress_tls or (self._config.acme is not None and not certificates.holds_any(folder)):
            return texts
        try:
            held = certificates.read(folder)
        except certificates.CertificateError as error:
            return [*texts, f"visitors get the certificates from before: {error}; mend what is in {folder}"]
        return texts + [
            f"{certificate.path} ends in {left} days; put its successor in its place"
            for certificate in held
            if (left := certificates.days_left(certificate)) <= CERTIFICATE_WARN_DAYS
        ]
