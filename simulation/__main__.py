"""The simulator's command line: many seeds, one seed with its trace, the mutants, or the scale of a fleet.

Exit codes: 0 all clean, 127 a machine crashed, 128 liveness, 129 safety. Not here: the runs themselves (hunt.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from simulation.chain.mutants import Mutant
from simulation.chain.run import Result, Verdict
from simulation.hunt.hunt import BY_NAME, HuntTally, collect_rarely, hostile_runs, kills, minimised, run_seed, runs
from simulation.hunt.report import hostile_page, mutant_rows, mutants_page, seeds_page
from simulation.mesh import scale
from simulation.mesh.scale_plot import draw

PROGRESS_EVERY = 100
MUTANT_SEEDS_MAX = 3_000


def say(line: str = "") -> None:
    """Print one line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run one seed")
    parser.add_argument("--trace", action="store_true", help="show who sent, stored and decided what")
    parser.add_argument(
        "--mutants", action="store_true", help="break the protocol in every named way; all must be noticed"
    )
    parser.add_argument("--hostile", type=int, help="run so many seeds of a hostile member among honest stores")
    parser.add_argument("--mutant", help="only this mutant")
    parser.add_argument("--scale", help="measure fleets of these sizes, as in 3,10,32; write a table and a plot")
    parser.add_argument("--jobs", type=int, default=1, help="run seeds or mutants in so many processes")
    parser.add_argument("--write", action="store_true", help="write seeds.md, mutants.md or hostile.md, to commit")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/reports"), help="the folder that --scale and --write write to"
    )
    options = parser.parse_args(arguments)
    collect_rarely()
    if options.scale:
        return scales([int(size) for size in options.scale.split(",")], options.out)
    if options.hostile:
        page = options.out / "hostile.md" if options.write else None
        return hostile(options.first_seed, options.hostile, options.jobs, page)
    if options.seed is not None:
        return one_seed(options.seed, options.trace)
    if options.mutants or options.mutant:
        names = [options.mutant] if options.mutant else list(BY_NAME)
        page = options.out / "mutants.md" if options.write else None
        return mutants(names, (options.seeds or MUTANT_SEEDS_MAX, options.first_seed), options.jobs, page)
    page = options.out / "seeds.md" if options.write else None
    return many_seeds(options.first_seed, options.seeds or 1_000, options.jobs, page)


def many_seeds(first_seed: int, count: int, jobs: int, page: Path | None) -> int:
    """Run seeds; report progress, what happened in them, and every failure made small."""
    tally, started = HuntTally(), perf_counter()
    for result in runs(first_seed, count, jobs):
        tally.add(result)
        if result.verdict is not Verdict.CLEAN:
            show_failure(result)
        if tally.seeds % PROGRESS_EVERY == 0 or tally.seeds == count:
            elapsed = perf_counter() - started
            hours, speed = tally.virtual_ms / 3_600_000, tally.virtual_ms / 1000 / elapsed
            rates = f"{tally.seeds / elapsed:.1f}/s, {hours:.1f} virtual hours, {speed:.0f}x real time"
            say(f"{tally.seeds:6} seeds, {rates}, {tally.decisions} decisions, {len(tally.failed)} failed")
    say()
    for name, number in sorted(tally.counts.items()):
        say(f"{number:12,}  {name}")
    if page is not None:
        page.write_text(seeds_page(first_seed, tally))
    return int(tally.verdict)


def hostile(first_seed: int, count: int, jobs: int, page: Path | None = None) -> int:
    """Run seeds of a hostile member; say how often it tried, and each cell that did not hold."""
    tally = HuntTally()
    for number, result in enumerate(hostile_runs(first_seed, count, jobs), 1):
        tally.add(result)
        if result.verdict is not Verdict.CLEAN:
            say(f"seed {result.seed}: {result.invariant}: {result.detail}")
        if number % (10 * PROGRESS_EVERY) == 0 or number == count:
            say(f"{number:6} seeds of a hostile member, {tally.counts.total():,} attempts, {len(tally.failed)} failed")
    if page is not None:
        page.write_text(hostile_page(first_seed, tally))
    return int(tally.verdict)


def one_seed(seed: int, trace: bool) -> int:
    """Run one seed, with its trace if asked for."""
    result = run_seed(seed, trace)
    for line in result.lines:
        say(line)
    say(f"seed {seed}: {result.verdict.name.lower()} {result.invariant} {result.detail}".rstrip())
    say(f"{result.virtual_ms} virtual ms, {result.decisions} decisions, {result.events} events, digest {result.digest}")
    return int(result.verdict)


def mutants(names: Sequence[str], seeds: tuple[int, int], jobs: int, page: Path | None) -> int:
    """Run every mutant until it is noticed, at most `seeds` (how many, the first); a survivor is a hole in the simulator."""
    pairs: list[tuple[Mutant, Result | None]] = []
    for mutant, result in kills(names, *seeds, jobs):
        rows = mutant_rows([(mutant, result)])
        for line in rows if not pairs else rows[2:]:
            say(line)
        pairs.append((mutant, result))
    if page is not None:
        page.write_text(mutants_page(pairs))
    return int(Verdict.SAFETY) if any(result is None for _, result in pairs) else 0


def scales(sizes: Sequence[int], folder: Path) -> int:
    """Measure fleets of these sizes, write scale.md and scale.svg; an aim that is missed is a failure."""
    found_scales = []
    for nodes in sorted(sizes):
        found_scales.append(scale.measure(nodes))
        say(f"{nodes} nodes measured")
    for line in scale.table(found_scales):
        say(line)
    for aim, value, met in scale.aims(found_scales):
        say(f"{'met   ' if met else 'MISSED'}  {aim}: {value}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.md").write_text(scale.report(found_scales, "scale.svg"))
    (folder / "scale.svg").write_text(draw(found_scales))
    return 0 if all(met for _, _, met in scale.aims(found_scales)) else int(Verdict.LIVENESS)


def show_failure(result: Result) -> None:
    """Make a failing run small and show it."""
    say(f"seed {result.seed}: {result.verdict.name.lower()}: {result.invariant}: {result.detail}")
    small = minimised(result)
    say(f"  minimised: {small.host_count} hosts, {small.client_count} clients, {small.safety_ms} ms, faults:")
    for fault in small.faults:
        say(f"    {fault}")


if __name__ == "__main__":
    sys.exit(main())
