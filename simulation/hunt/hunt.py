"""Hunts: many seeds in a row, mutants until each is killed, and a failing run made small before it is shown.

Minimising tries, again and again, to take faults away, to end the safety phase earlier and to drop clients and hosts,
and keeps whatever still fails in the same way. Not here: what a run is (run.py), and the command line (__main__.py).
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import Pool
from typing import Any, TypeVar

from simulation.chain.mutants import MUTANTS, Mutant
from simulation.chain.plan import ChainPlan, chain_plan
from simulation.chain.run import Result, Verdict, chain_run
from simulation.mesh.hostile import hostile_run
from simulation.mesh.hostile_key_mutants import KEY_MUTANTS
from simulation.mesh.hostile_mutants import HOSTILE_MUTANTS
from simulation.mesh.mutants import MESH_MUTANTS
from simulation.mesh.run import MeshPlan, mesh_plan, mesh_run
from simulation.world.faults import Fault

PlanT = TypeVar("PlanT")
BY_NAME = {mutant.name: mutant for mutant in (*MUTANTS, *MESH_MUTANTS, *HOSTILE_MUTANTS, *KEY_MUTANTS)}

WHOLE_EVERY = 10
"""A run of whole nodes costs several times one of chains."""
GC_THRESHOLD = 200_000
"""A run makes millions of small values and few cycles; the default of 700 spends a twentieth of the time on looking."""
SAFETY_MIN_MS = 2_000
MINIMISE_RUNS_MAX = 300
"""A minute of work at most: a small failing run is worth that, a smaller one is not worth more."""


@dataclass
class HuntTally:
    """What many runs showed together."""

    seeds: int = 0
    virtual_ms: int = 0
    decisions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one run."""
        self.seeds += 1
        self.virtual_ms += result.virtual_ms
        self.decisions += result.decisions
        self.counts += result.counts
        if result.verdict is not Verdict.CLEAN:
            self.failed.append(result)

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of all runs."""
        return max((result.verdict for result in self.failed), default=Verdict.CLEAN)


def run_seed(seed: int, keep_trace: bool = False) -> Result:
    """Run the fleet a seed stands for: every tenth one of whole nodes, the others of chains alone."""
    if seed % WHOLE_EVERY == 0:
        return mesh_run(mesh_plan(seed), keep_trace)
    return chain_run(chain_plan(seed), keep_trace=keep_trace)


def collect_rarely() -> None:
    """Let this process, and those it forks, look for cycles of garbage less often."""
    gc.set_threshold(GC_THRESHOLD, 50, 100)


@contextmanager
def _mapped(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` that works in so many processes; results come in order, and are the same for any number."""
    if jobs <= 1:
        yield map
        return
    with Pool(jobs) as pool:
        yield pool.imap


def runs(first_seed: int, count: int, jobs: int = 1) -> Iterator[Result]:
    """Run seeds; their results come in order, whatever the number of processes."""
    with _mapped(jobs) as mapped:
        yield from mapped(run_seed, range(first_seed, first_seed + count))


def hostile_runs(first_seed: int, count: int, jobs: int = 1) -> Iterator[Result]:
    """Run seeds of a hostile member among honest stores."""
    with _mapped(jobs) as mapped:
        yield from mapped(hostile_run, range(first_seed, first_seed + count))


def _hunted(mutant: Mutant, seed: int) -> Result:
    if mutant.hostile:
        return hostile_run(seed)
    if mutant.whole:
        return mesh_run(mesh_plan(seed, mutant.kinds))
    return chain_run(chain_plan(seed, mutant.kinds, mutant.delay_max_ms, mutant.voters, mutant.liar))


def kill(mutant: Mutant, seeds_max: int, first_seed: int = 0) -> Result | None:
    """Return the first run that fails with a mutant and is clean without it, or None if there is none.

    A run that fails either way shows a bug of the real code, and stands for no mutant.
    """
    for seed in range(first_seed, first_seed + seeds_max):
        with mutant.applied():
            result = _hunted(mutant, seed)
        if result.verdict is not Verdict.CLEAN and mutant.expects in ("", result.invariant):
            control = _hunted(mutant, seed)
            if control.verdict is Verdict.CLEAN:
                return result
            sys.stderr.write(f"seed {seed} under {mutant.name}'s faults fails without it: {control.invariant}\n")
    return None


def _killed(task: tuple[str, int, int]) -> tuple[str, Result | None]:
    name, seeds_max, first_seed = task
    return name, kill(BY_NAME[name], seeds_max, first_seed)


def kills(
    names: Sequence[str], seeds_max: int, first_seed: int, jobs: int = 1
) -> Iterator[tuple[Mutant, Result | None]]:
    """Hunt mutants by name; each with the run that noticed it, in order, whatever the number of processes."""
    tasks = [(name, seeds_max, first_seed) for name in names]
    with _mapped(jobs) as mapped:
        for name, entry in mapped(_killed, tasks):
            yield BY_NAME[name], entry


def minimised(result: Result) -> ChainPlan | MeshPlan:
    """Return the smallest plan found that fails as a seed's run did."""
    if result.seed % WHOLE_EVERY == 0:
        return minimise(mesh_plan(result.seed), result.invariant, _smaller_mesh, mesh_run)
    return minimise(chain_plan(result.seed), result.invariant, _smaller_chain, chain_run)


def minimise(
    failing: PlanT, invariant: str, smaller_than: Callable[[PlanT], Iterator[PlanT]], rerun: Callable[[PlanT], Result]
) -> PlanT:
    """Return a smaller plan that breaks the same invariant."""
    best = failing
    left = MINIMISE_RUNS_MAX
    shrunk = True
    while shrunk and left > 0:
        shrunk = False
        for smaller in smaller_than(best):
            left -= 1
            if left <= 0:
                break
            if rerun(smaller).invariant == invariant:
                best = smaller
                shrunk = True
                break
    return best


def _fewer_faults(faults: tuple[Fault, ...]) -> Iterator[tuple[Fault, ...]]:
    half = len(faults) // 2
    if half:
        yield faults[:half]
        yield faults[half:]
    for index in range(len(faults)):
        yield faults[:index] + faults[index + 1 :]


def _shorter(safety_ms: int) -> Iterator[int]:
    yield from (shorter for shorter in (safety_ms // 2, safety_ms * 3 // 4) if shorter >= SAFETY_MIN_MS)


def _smaller_chain(best: ChainPlan) -> Iterator[ChainPlan]:
    for safety_ms in _shorter(best.safety_ms):
        yield replace(best, safety_ms=safety_ms, faults=tuple(f for f in best.faults if f.at_ms < safety_ms))
    for faults in _fewer_faults(best.faults):
        yield best.with_faults(faults)
    if best.client_count > 1:
        yield replace(best, client_count=best.client_count - 1)
    if best.host_count > best.founder_count:
        fewer = best.host_count - 1
        kept_faults = tuple(fault for fault in best.faults if max(fault.hosts) < fewer)
        yield replace(best, host_count=fewer, faults=kept_faults, target=min(best.target, best.founder_count))
    if best.loss or best.duplication or best.reordering:
        yield replace(best, loss=0.0, duplication=0.0, reordering=0.0)


def _smaller_mesh(best: MeshPlan) -> Iterator[MeshPlan]:
    for safety_ms in _shorter(best.safety_ms):
        yield replace(best, safety_ms=safety_ms, faults=tuple(f for f in best.faults if f.at_ms < safety_ms))
    for faults in _fewer_faults(best.faults):
        yield replace(best, faults=faults)
    if best.client_count > 1:
        yield replace(best, client_count=best.client_count - 1)
    if best.host_count > 1:
        fewer = best.host_count - 1
        yield replace(best, host_count=fewer, faults=tuple(f for f in best.faults if max(f.hosts) < fewer))
    if best.loss:
        yield replace(best, loss=0.0)
