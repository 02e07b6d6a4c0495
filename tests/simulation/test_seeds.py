"""Seeds: those that ever failed, as many fresh ones as a quick test allows, and one trace per seed everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.__main__ import main
from simulation.chain.mutants import MUTANTS
from simulation.chain.plan import chain_plan
from simulation.chain.run import Result, Verdict, chain_run
from simulation.hunt.hunt import HuntTally, kill, minimised, run_seed
from simulation.mesh.mutants import MESH_MUTANTS
from simulation.mesh.run import mesh_plan, mesh_run

HERE = Path(__file__).parent
QUICK_SECONDS = 25
QUICK_FIRST_SEED = 100_000
QUICK_SEEDS_MAX = 100
"""The same on every machine that is fast enough; the long form runs LONG_SEEDS."""

LONG_SEEDS = 10_000
FAILED = [line.split(" ", 2) for line in (HERE / "seeds.txt").read_text().splitlines() if not line.startswith("#")]


def explain(result: Result) -> str:
    return f"seed {result.seed}: {result.invariant}: {result.detail}"


@pytest.mark.parametrize(("seed", "fleet", "what"), FAILED, ids=[f"{fleet} {seed}" for seed, fleet, _ in FAILED])
def test_a_seed_that_once_failed_stays_clean(seed: str, fleet: str, what: str) -> None:
    number = int(seed)
    result = chain_run(chain_plan(number)) if fleet == "chain:" else mesh_run(mesh_plan(number))
    assert result.verdict is Verdict.CLEAN, f"{explain(result)}; once: {what}"


def test_fresh_seeds_are_clean_for_as_long_as_a_quick_test_may_take() -> None:
    tally, started = HuntTally(), time.process_time()
    seed = QUICK_FIRST_SEED
    while time.process_time() - started < QUICK_SECONDS and seed < QUICK_FIRST_SEED + QUICK_SEEDS_MAX:
        tally.add(run_seed(seed))
        seed += 1
    assert not tally.failed, "\n".join(map(explain, tally.failed))
    assert tally.seeds > 50
    for happened in ("outcome decided", "reads", "quarantines", "crashes at a barrier", "fault partition"):
        assert tally.counts[happened] > 0, f"{happened} never happened in {tally.seeds} seeds"


@pytest.mark.parametrize("seed", [11, 40])
def test_one_seed_gives_one_trace_in_any_process(seed: int) -> None:
    script = f"from simulation.hunt.hunt import run_seed; print(run_seed({seed}).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    assert len(digests) == 1
    assert digests == {run_seed(seed).digest + "\n"}


def test_a_trace_can_be_read() -> None:
    lines = chain_run(chain_plan(11), keep_trace=True).lines
    assert any("persist" in line for line in lines)
    assert any("notify" in line and "EntryStored" in line for line in lines)


@pytest.mark.parametrize("name", ["goodbye-denies", "goodbye-taken-back", "goodbye-unheard"])
def test_a_mutant_of_leaving_is_noticed_at_once(name: str) -> None:
    mutant = next(mutant for mutant in MESH_MUTANTS if mutant.name == name)
    result = kill(mutant, 12)
    assert result is not None
    assert result.invariant == "Goodbye"


@pytest.mark.parametrize("name", ["no-adoption", "volatile-promise", "kept-store-id", "minority-quorum", "stale-read"])
def test_a_mutant_of_the_chain_is_noticed_at_once(name: str) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    assert kill(mutant, 60) is not None


@pytest.mark.parametrize("name", ["skipped-approval", "cohort-ignored", "stranger-admitted"])
def test_a_mutant_of_rollouts_or_admission_is_noticed_at_once(name: str) -> None:
    mutant = next(mutant for mutant in MESH_MUTANTS if mutant.name == name)
    assert kill(mutant, 30) is not None


def test_a_failing_run_is_made_small() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "minority-quorum")
    with mutant.applied():
        seed = next(seed for seed in range(1, 60) if chain_run(chain_plan(seed)).verdict is not Verdict.CLEAN)
        failing = chain_run(chain_plan(seed))
        small = minimised(failing)
        assert chain_run(small).invariant == failing.invariant
    assert len(small.faults) <= len(chain_plan(seed).faults)
    assert chain_run(small).verdict is Verdict.CLEAN


def test_the_command_line_says_what_happened_and_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--first-seed", "11"]) == 0
    assert "3 seeds" in capsys.readouterr().out
    assert main(["--seed", "11", "--trace"]) == 0
    assert "digest" in capsys.readouterr().out
    assert main(["--mutant", "tell-before-store", "--seeds", "5"]) == 0
    assert "DurableBeforeSpeak" in capsys.readouterr().out
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "tell-before-store")
    with mutant.applied():
        assert main(["--seed", "11"]) == Verdict.SAFETY


def test_any_number_of_processes_shows_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for jobs in ("1", "2"):
        assert main(["--seeds", "6", "--first-seed", "8", "--jobs", jobs, "--write", "--out", str(tmp_path)]) == 0
        assert (
            main(["--mutant", "tell-before-store", "--seeds", "5", "--jobs", jobs, "--write", "--out", str(tmp_path)])
            == 0
        )
        pages.append([(tmp_path / name).read_text() for name in ("seeds.md", "mutants.md")])
    assert pages[0] == pages[1]
    assert "| seeds | 8 to 13 |" in pages[0][0]
    assert "| violations | none |" in pages[0][0]
    assert "**1 of 1 were noticed.**" in pages[0][1]
    assert "6 seeds" in capsys.readouterr().out


CORES = str(os.cpu_count() or 1)


@pytest.mark.long
def test_ten_thousand_seeds_are_clean() -> None:
    """Writes docs/reports/seeds.md, which is committed with the code that it is about."""
    assert main(["--seeds", str(LONG_SEEDS), "--jobs", CORES, "--write"]) == 0


@pytest.mark.long
def test_every_mutant_is_noticed() -> None:
    """Writes docs/reports/mutants.md."""
    assert main(["--mutants", "--jobs", CORES, "--write"]) == 0
