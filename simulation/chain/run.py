"""One run: a safety phase under faults, then all is healed and liveness is demanded.

In the safety phase every invariant is checked as things happen. Then links heal, disks work, clocks are right and all
hosts run; the operator resets the chain only if no majority of its stores is left. From then on every host must get a
command decided and all heads must become equal within a bound. Not here: fleets, faults and checkers themselves.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from protocols.chain.chain import Chain
from simulation.chain.checkers import ClientOperation, Violation
from simulation.chain.fleet import ChainFleet, MakeChain
from simulation.chain.plan import ChainPlan

HEALED_SETTLE_MS = 6_000
"""Hosts that were about to restart do; quarantines, boot reads and replacements happen."""
LIVE_BOUND_MS = 60_000
CONVERGE_BOUND_MS = 20_000
DETOUR_BOUND_MS = 20_000
RETRY_MS = 9_000


class Verdict(IntEnum):
    """How a run ended; the numbers are the process's exit codes."""

    CLEAN = 0
    CRASH = 127
    LIVENESS = 128
    SAFETY = 129


@dataclass
class Result:
    """What one run showed."""

    seed: int
    verdict: Verdict
    invariant: str = ""
    detail: str = ""
    virtual_ms: int = 0
    digest: str = ""
    decisions: int = 0
    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


def chain_run(plan: ChainPlan, make_chain: MakeChain = Chain, keep_trace: bool = False) -> Result:
    """Run one plan to its end, or to the first violation."""
    fleet = ChainFleet(plan, make_chain, keep_trace)
    result = Result(plan.seed, Verdict.CLEAN)
    try:
        _safety_phase(fleet)
        _liveness_phase(fleet)
        fleet.checker.check_replay()
        if not plan.liar:
            fleet.clients.check_refusals(fleet.checker.commands)
            fleet.clients.check_history(fleet.checker.commands)
    except Violation as violation:
        result.verdict = Verdict.LIVENESS if violation.invariant in ("Live", "Converge") else Verdict.SAFETY
        result.invariant, result.detail = violation.invariant, violation.detail
    except Exception:
        result.verdict = Verdict.CRASH
        result.invariant, result.detail = "crash", traceback.format_exc()
    world = fleet.world
    result.virtual_ms, result.digest, result.events = world.now_ms, world.trace.digest(), world.trace.event_count
    result.decisions = fleet.checker.decisions
    result.counts = world.counts + world.network.counts + Counter({f"reject {k}": v for k, v in world.rejects.items()})
    result.lines = world.trace.lines
    return result


def _safety_phase(fleet: ChainFleet) -> None:
    plan = fleet.plan
    fleet.faults.schedule(plan.faults)
    fleet.start_workload(plan.safety_ms)
    fleet.world.run_until(plan.safety_ms)


def _liveness_phase(fleet: ChainFleet) -> None:
    world = fleet.world
    fleet.faults.heal()
    fleet.update_all()
    for host in world.hosts:
        if not host.up:
            world.after(1, host.start)
    world.run_until(world.now_ms + HEALED_SETTLE_MS)
    try:
        _demand_life(fleet)
    except Violation:
        if not fleet.checker.forked:
            raise
    if fleet.fork_stands():
        _demand_proof(fleet)


def _demand_life(fleet: ChainFleet) -> None:
    world = fleet.world
    was_reset = fleet.majority_lost()
    if was_reset:
        fleet.reset()
        world.run_until(world.now_ms + HEALED_SETTLE_MS)
    if not world.run_while(fleet.left_open, world.now_ms + LIVE_BOUND_MS):
        raise Violation("Live", f"a decision stayed accepted and undecided for {LIVE_BOUND_MS} ms")
    waiting = {host.name: fleet.write(host, "live", 1) for host in world.hosts if host.peer not in fleet.revoked}
    end_ms = world.now_ms + LIVE_BOUND_MS
    while waiting:
        # A liar may be found out, and give up its store, only now: then the other two stores of three may not do (6241).
        if not was_reset and fleet.majority_lost():
            was_reset = True
            fleet.reset()
            world.run_until(world.now_ms + HEALED_SETTLE_MS)
            end_ms = world.now_ms + LIVE_BOUND_MS
        if world.now_ms >= end_ms:
            raise Violation("Live", f"{', '.join(sorted(waiting))} got no command decided in {LIVE_BOUND_MS} ms")
        world.run_until(world.now_ms + 200)
        waiting = {name: _again(fleet, operation) for name, operation in waiting.items() if not _served(operation)}
    if not world.run_while(lambda: not _converged(fleet), world.now_ms + CONVERGE_BOUND_MS):
        heads = {host.name: chain.position.slot for host in world.hosts if (chain := fleet.chain_of(host))}
        raise Violation("Converge", f"heads differ {CONVERGE_BOUND_MS} ms after all was well: {heads}")
    if not was_reset and not fleet.plan.liar:
        _demand_detour(fleet)


def _demand_detour(fleet: ChainFleet) -> None:
    """A voter whose messages to the holder of its promise are lost must get its command decided through the others."""
    world = fleet.world
    chains = {host: chain for host in world.hosts if (chain := fleet.chain_of(host)) is not None and chain.speaking}
    holders = [(host, holder) for host, chain in chains.items() if (holder := chain.promise_holder) is not None]
    voters = max((len(chain.voters) for chain in chains.values()), default=0)
    if not holders or len(chains) < voters or fleet.revoked:
        return  # without the cut the others must be a majority
    host, holder = holders[0]
    world.network.cut[host.peer, holder] = world.now_ms
    operation = fleet.write(host, "live", 1)
    served = world.run_while(lambda: not _served(operation), world.now_ms + DETOUR_BOUND_MS)
    world.network.cut.pop((host.peer, holder), None)  # a fault that ends may have mended it
    world.counts["detours"] += 1
    if not served:
        raise Violation("Live", f"{host.name} got no command past its promise's holder in {DETOUR_BOUND_MS} ms")


def _demand_proof(fleet: ChainFleet) -> None:
    """A lie forked the chain: an honest node must find out who told it once the two sides meet.

    Only if both sides are still on some disk: a side that was wiped or rolled back leaves nothing to prove, and no fork.
    """
    fleet.world.counts["forks by a liar"] += 1
    if not fleet.world.run_while(lambda: not fleet.liar_proven(), fleet.world.now_ms + CONVERGE_BOUND_MS):
        raise Violation("Liar", f"a lie forked the chain and nobody proved it in {CONVERGE_BOUND_MS} ms")


def _served(operation: ClientOperation) -> bool:
    return operation.outcome in ("decided", "superseded")


def _again(fleet: ChainFleet, operation: ClientOperation) -> ClientOperation:
    if operation.outcome in ("", "decided"):
        return operation
    host = next(host for host in fleet.world.hosts if host.name == operation.host)
    return fleet.write(host, "live", 1)


def _converged(fleet: ChainFleet) -> bool:
    chains = [fleet.chain_of(host) for host in fleet.world.hosts]
    heads = {(chain.position.era, chain.position.slot, chain.position.digest) for chain in chains if chain is not None}
    return len(heads) == 1 and None not in chains and not any(chain.stalled for chain in chains if chain is not None)
