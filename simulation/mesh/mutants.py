"""Named ways to break admission and rollouts, which only runs of whole nodes can notice; see mutants.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from protocols import liveness
from protocols.rollout import agent, conductor
from protocols.rollout.agent import RolloutAgent
from protocols.state import analysis, freshness, gate, lanes
from protocols.trust.store import Standing, TrustStore
from simulation.chain.mutants import Mutant, Patch
from simulation.mesh.run import KINDS

_LEAVES = ("leave", "leave", "leave", "crash", "isolate")
_CUTS = ("partition", "isolate", "isolate", "one_way", "crash")


def _health_over_live_nodes() -> Sequence[Patch]:
    """Stages are judged over the nodes that were heard, not over the pinned cohort."""
    assess = analysis.assess

    def lenient(judged: Any, verdicts: Any, at_ms: int, **rest: Any) -> Any:
        heard = tuple(node for node in judged.order if node in verdicts)
        stages = tuple(
            msgspec.structs.replace(stage, size=sum(node in verdicts for node in judged.order[: stage.size]))
            for stage in judged.stages
        )
        return assess(msgspec.structs.replace(judged, order=heard, stages=stages), verdicts, at_ms, **rest)

    return [(module, "assess", lenient) for module in (lanes, freshness, conductor) if "assess" in module.__dict__]


def _skipped_approval() -> Sequence[Patch]:
    return [(gate, "approvals_refusal", lambda *rest: ())]


def _unbound_evidence() -> Sequence[Patch]:
    """Verdicts of any stage and rollout are counted."""
    read = lanes.read_said

    def unbound(state: Any, judged: Any, case: Any) -> Any:
        class Relabelled:
            def __getattr__(self, name: str) -> Any:
                return getattr(case, name)

            def statements(self) -> Any:
                entry = case.statements()
                if not isinstance(entry, tuple):
                    return entry
                latest = {}
                for node, said in entry:
                    if hasattr(said, "opened") and node in judged.order:
                        latest[node] = msgspec.structs.replace(
                            said, era=state.era, rollout=judged.id, opened=judged.opened
                        )
                return tuple(latest.items())

        return read(state, judged, Relabelled())  # type: ignore[arg-type]

    return [(module, "read_said", unbound) for module in (lanes, freshness)]


def _stale_verdict() -> Sequence[Patch]:
    return [(freshness, "_stale_health", lambda *rest: None)]


def _cohort_ignored() -> Sequence[Patch]:
    """Every pinned node takes the candidate at once."""

    def takes(self: RolloutAgent, lane: Any, judged: Any, now: Any) -> bool:
        return self._me in judged.order and judged.candidate.change in self._prepared

    return [(RolloutAgent, "_takes_candidate", takes), (agent, "ensure_authorized", lambda *rest: None)]


def _candidate_kept() -> Sequence[Patch]:
    """A node goes on with a candidate that failed on it, until the mesh decides."""
    takes = RolloutAgent._takes_candidate

    def kept(self: RolloutAgent, lane: Any, judged: Any, now: Any) -> bool:
        latched, self._latched = self._latched, {}
        try:
            return takes(self, lane, judged, now)
        finally:
            self._latched = latched

    return [(RolloutAgent, "_takes_candidate", kept)]


def _zombie() -> Sequence[Patch]:
    """A node that once took a candidate never notices that its rollout was aborted."""
    wanted = RolloutAgent._wanted_run

    def undead(self: RolloutAgent, lane: Any, now: Any) -> Any:
        pair = wanted(self, lane, now)
        memory = self.__dict__.setdefault("_undead", {})
        name = (lane.project, lane.environment)
        if pair is not None and pair[1] == "candidate":
            memory[name] = pair
        return memory.get(name, pair)

    return [
        (RolloutAgent, "_wanted_run", undead),
        (agent, "ensure_authorized", lambda *rest: None),
    ]


def _goodbye_denies() -> Sequence[Patch]:
    """A node that stops says of every candidate that it never took it."""
    leave = RolloutAgent._leave

    def denies(self: RolloutAgent, now: Any) -> Any:
        for _, _, watch in self._open_stages():
            watch.health, watch.failed, watch.said = None, "", "pending"
        return leave(self, now)

    return [(RolloutAgent, "_leave", denies)]


def _goodbye_taken_back() -> Sequence[Patch]:
    """A node that said goodbye goes on taking candidates until its process ends."""
    leave = RolloutAgent._leave

    def stays(self: RolloutAgent, now: Any) -> Any:
        beat_ms = self._beat_ms
        said = leave(self, now)
        self._leaving, self._beat_ms = False, beat_ms
        return said

    return [(RolloutAgent, "_leave", stays)]


def _goodbye_unheard() -> Sequence[Patch]:
    """Goodbyes are taken for suspicions like any other."""
    return [(liveness, "_gone", lambda peer, member: False)]


def _stranger_admitted() -> Sequence[Patch]:
    standing = TrustStore.standing

    def open_door(self: TrustStore, node: Any, wall_ms: int) -> Any:
        found_standing = standing(self, node, wall_ms)
        return Standing.MEMBER if found_standing is Standing.STRANGER else found_standing

    return [(TrustStore, "standing", open_door)]


def _revocation_ignored() -> Sequence[Patch]:
    standing = TrustStore.standing

    def forgiving(self: TrustStore, node: Any, wall_ms: int) -> Any:
        found_standing = standing(self, node, wall_ms)
        return Standing.MEMBER if found_standing is Standing.REVOKED else found_standing

    return [(TrustStore, "standing", forgiving), (TrustStore, "key_revoked", lambda self, key: False)]


MESH_MUTANTS = (
    Mutant(
        "health-over-live-nodes", "silent nodes are left out of a stage", _health_over_live_nodes, _CUTS, whole=True
    ),
    Mutant("skipped-approval", "a start needs no approval", _skipped_approval, KINDS, whole=True),
    Mutant("unbound-evidence", "verdicts of another stage count", _unbound_evidence, _CUTS, whole=True),
    Mutant("stale-verdict", "voters ignore newer verdicts they hold", _stale_verdict, _CUTS, whole=True),
    Mutant("cohort-ignored", "every pinned node takes the candidate", _cohort_ignored, KINDS, whole=True),
    Mutant("candidate-kept", "a failing candidate is kept until the mesh decides", _candidate_kept, _CUTS, whole=True),
    Mutant("zombie", "an aborted candidate goes on", _zombie, KINDS, whole=True),
    Mutant("goodbye-denies", "a node that stops denies what it took", _goodbye_denies, _LEAVES, whole=True),
    Mutant("goodbye-taken-back", "a node that said goodbye takes candidates", _goodbye_taken_back, _LEAVES, whole=True),
    Mutant(
        "goodbye-unheard",
        "goodbyes are suspicions like any other",
        _goodbye_unheard,
        ("leave",),
        whole=True,
        expects="Goodbye",
    ),
    Mutant("stranger-admitted", "unknown certificates are good", _stranger_admitted, KINDS, whole=True),
    Mutant(
        "revocation-ignored",
        "revocations change nothing",
        _revocation_ignored,
        ("revoke", "crash", "reboot"),
        whole=True,
    ),
)
