"""Whole nodes deciding: what a decision costs in CPU at 3 and 7 voters, and how fast virtual time runs.

All nodes share one core and one process; signatures are Ed25519, messages are encoded and decoded on the way, stores are
in memory (fsync is `node`'s). Commands are signed by an admin and submitted one at a time through different nodes. Not
here: records (`records`), the wire (`wire`), latency on real links (docs/reports/scale.md).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, TypeVar

from benchmarks.rows import Row
from protocols.changes.demands import Policy
from protocols.core import decode_message
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.state.commands import CreateProject
from simulation.chain.plan import ChainPlan, chain_plan
from simulation.chain.run import Result, Verdict, chain_run
from simulation.hunt.hunt import WHOLE_EVERY, collect_rarely
from simulation.mesh.fleet import Fleet, FleetConfig
from simulation.mesh.run import MeshPlan, mesh_plan, mesh_run
from simulation.world.entropy import KeyRing

DECISIONS = 150
GROWTH_MAX_MS = 600_000
IDLE_MS = 600_000
PlanT = TypeVar("PlanT", ChainPlan, MeshPlan)
PLANS = 30


class RealKeys(KeyRing):
    """Ed25519 in place of the simulator's quick signatures."""

    def __init__(self) -> None:
        super().__init__()
        self._verifier = Ed25519Verifier()

    def signer(self, name: str) -> Any:
        return Ed25519Signer(hashlib.sha256(name.encode()).digest())

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return self._verifier.verify(public_key, message, signature)

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        return self._verifier.verify_es256(point, message, signature)


def grown(nodes: int, keys: KeyRing | None) -> Fleet:
    """A fleet in which every node is a voter."""
    names = [f"n{index}" for index in range(nodes)]
    fleet = Fleet(names, 1, FleetConfig(Policy("solo", voters_target=nodes), founder="n0", keys=keys))
    fleet.world.network.codec = decode_message
    for name in names:
        fleet.certify(name)
        fleet.hosts[name].start()
    fleet.world.run_until(3_000)
    for name in names[1:]:
        fleet.outcome(fleet.confirm(name, "n0"))
    grew = fleet.world.run_while(
        lambda: any(len(core.chain.voters) < nodes for _, core in fleet.cores()), GROWTH_MAX_MS, 1_000
    )
    assert grew, f"the mesh did not grow to {nodes} voters"
    return fleet


def deciding(nodes: int, decisions: int) -> Iterator[Row]:
    fleet = grown(nodes, RealKeys())
    names = list(fleet.hosts)
    sent, began_ms = fleet.world.network.counts["sent"], fleet.world.now_ms
    start = time.process_time()
    for number in range(decisions):
        answer = fleet.outcome(fleet.submit(names[number % nodes], CreateProject(f"p{number}"), "admin"))
        assert answer is not None
        assert answer.outcome == "decided", answer
    took_s = time.process_time() - start
    rate = decisions / took_s
    note = f"{nodes} nodes on one core; {(fleet.world.now_ms - began_ms) / decisions:.0f} ms each on 10-100 ms links"
    yield Row(f"decisions, {nodes} voters", round(rate, 1), "1/s", ">= 20", rate >= 20, note=note)
    yield Row(f"CPU of one of {nodes} voters per decision", round(took_s / decisions / nodes * 1000, 2), "ms")
    messages = (fleet.world.network.counts["sent"] - sent) / decisions
    yield Row(f"messages per decision, {nodes} voters, liveness included", round(messages, 1), "")


def virtual_time(quick: bool) -> Iterator[Row]:
    collect_rarely()
    fleet = grown(5, None)
    start = time.process_time()
    fleet.world.run_until(fleet.world.now_ms + IDLE_MS)
    speed = IDLE_MS / 1000 / (time.process_time() - start)
    yield Row("five idle nodes under virtual time", round(speed), "x real", ">= 200", speed >= 200)
    whole = (
        chosen_mesh_plan for seed in count(0, WHOLE_EVERY) if (chosen_mesh_plan := mesh_plan(seed)).host_count == 5
    )
    chains = (drawn for seed in count(1) if seed % WHOLE_EVERY and (drawn := chain_plan(seed)).host_count == 5)
    yield under_faults("whole nodes", whole, mesh_run, 2 if quick else PLANS)
    yield under_faults("chains", chains, chain_run, 2 if quick else PLANS)


def under_faults(what: str, plans: Iterator[PlanT], run_plan: Callable[[PlanT], Result], most: int) -> Row:
    """The simulator's own runs of five hosts, by seed: clients at work, faults as drawn, judges watching."""
    start, virtual_ms, faults = time.process_time(), 0, 0
    for entry in islice(plans, most):
        result = run_plan(entry)
        assert result.verdict is Verdict.CLEAN, (entry.seed, result.detail)
        virtual_ms += result.virtual_ms
        faults += len(entry.faults)
    speed = virtual_ms / 1000 / (time.process_time() - start)
    note = f"{most} runs of the simulator, {faults} faults"
    return Row(f"five busy {what} under faults, judged", round(speed), "x real", ">= 200", speed >= 200, note=note)


def run(quick: bool = False) -> Iterator[Row]:
    """Measure; yields rows."""
    for nodes in (3, 7):
        yield from deciding(nodes, DECISIONS // 10 if quick else DECISIONS)
    yield from virtual_time(quick)
