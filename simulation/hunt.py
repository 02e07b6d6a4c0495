"""Hunts: many seeds in a row, mutants until each is killed, and a failing run made small before it is shown.

Minimising tries, again and again, to take faults away, to end the safety phase earlier and to drop clients and hosts,
and keeps whatever still fails in the same way. Not here: what a run is (run.py), and the command line (__main__.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from simulation.chain_plan import ChainPlan, plan
from simulation.mutants import Mutant
from simulation.run import Result, Verdict, run

MINIMISE_RUNS_MAX = 300
"""A minute of work at most: a small failing run is worth that, a smaller one is not worth more."""


@dataclass
class Tally:
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


def runs(first_seed: int, count: int) -> Iterator[Result]:
    """Run seeds one after another."""
    for seed in range(first_seed, first_seed + count):
        yield run(plan(seed))


def kill(mutant: Mutant, seeds_max: int, first_seed: int = 0) -> Result | None:
    """Return the first run that fails with a mutant and is clean without it, or None if there is none.

    A run that fails either way shows a bug of the real code, and stands for no mutant.
    """
    for seed in range(first_seed, first_seed + seeds_max):
        with mutant.applied():
            result = run(plan(seed, mutant.kinds, mutant.delay_max_ms))
        if result.verdict is not Verdict.CLEAN and mutant.expects in ("", result.invariant):
            control = run(plan(seed, mutant.kinds, mutant.delay_max_ms))
            if control.verdict is Verdict.CLEAN:
                return result
            sys.stderr.write(f"seed {seed} under {mutant.name}'s faults fails without it: {control.invariant}\n")
    return None


def minimise(failing: ChainPlan, invariant: str, rerun: Callable[[ChainPlan], Result] = run) -> ChainPlan:
    """Return a smaller plan that breaks the same invariant."""
    best = failing
    left = MINIMISE_RUNS_MAX
    shrunk = True
    while shrunk and left > 0:
        shrunk = False
        for smaller in _smaller(best):
            left -= 1
            if left <= 0:
                break
            if rerun(smaller).invariant == invariant:
                best = smaller
                shrunk = True
                break
    return best


def _smaller(best: ChainPlan) -> Iterator[ChainPlan]:
    faults = best.faults
    half = len(faults) // 2
    if half:
        yield best.with_faults(faults[:half])
        yield best.with_faults(faults[half:])
    for safety_ms in (best.safety_ms // 2, best.safety_ms * 3 // 4):
        if safety_ms >= 2_000:
            yield replace(best, safety_ms=safety_ms, faults=tuple(f for f in faults if f.at_ms < safety_ms))
    for index in range(len(faults)):
        yield best.with_faults(faults[:index] + faults[index + 1 :])
    if best.client_count > 1:
        yield replace(best, client_count=best.client_count - 1)
    if best.host_count > best.founder_count:
        fewer = best.host_count - 1
        kept = tuple(fault for fault in faults if max(fault.hosts) < fewer)
        yield replace(best, host_count=fewer, faults=kept, target=min(best.target, best.founder_count))
    if best.loss or best.duplication or best.reordering:
        yield replace(best, loss=0.0, duplication=0.0, reordering=0.0)
