"""A hostile member among honest stores: no seed shows a cell that does not hold, and every mutant is noticed."""

from __future__ import annotations

import pytest

from simulation.__main__ import main
from simulation.chain.mutants import Mutant
from simulation.chain.run import Verdict
from simulation.hunt.hunt import kill
from simulation.mesh.hostile import hostile_run
from simulation.mesh.hostile_cells import CELLS
from simulation.mesh.hostile_keys import KEY_CELLS
from simulation.mesh.hostile_mutants import HOSTILE_MUTANTS

SEEDS = 40


def test_a_hostile_member_gets_nothing_in_any_cell() -> None:
    for seed in range(SEEDS):
        result = hostile_run(seed)
        assert result.verdict is Verdict.CLEAN, (seed, result.invariant, result.detail)
        assert result.events >= len(CELLS) + len(KEY_CELLS), "every cell is tried in every run"


def test_a_run_is_the_same_each_time() -> None:
    assert hostile_run(7).digest == hostile_run(7).digest
    assert hostile_run(7).digest != hostile_run(8).digest


@pytest.mark.parametrize("mutant", HOSTILE_MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_trust_records_sync_placement_secrets_and_analysis_is_noticed(mutant: Mutant) -> None:
    assert kill(mutant, SEEDS) is not None


def test_there_are_enough_mutants_and_the_command_line_runs_the_member(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(HOSTILE_MUTANTS) >= 25
    assert main(["--hostile", "3"]) == 0
    assert "3 seeds of a hostile member" in capsys.readouterr().out
