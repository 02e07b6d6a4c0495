"""The transcripts of this folder, replayed: what the fleet answers must be what the file says.

`FREEHOLD_REWRITE=1 pytest tests/scenarios` writes the new answers into the files, to be reviewed as a diff.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from simulation.mesh.scenarios import duration_ms, replay

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
EXPECTED = {
    "canary_fails",
    "clock_ahead",
    "conflicting_routes",
    "invite_used_twice",
    "isolated_minority_reverts",
    "majority_lost_and_reset",
    "normal_rollout",
    "one_node_growing_to_three",
    "partition_mid_promotion",
    "revoked_proposer",
    "snapshot_restored",
    "stale_node_returns",
    "two_first_deploys",
    "two_operators",
    "voter_loses_disk",
    "voter_replaced",
}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_fleet_answers_as_written(path: Path) -> None:
    written = path.read_text()
    answered = replay(written)
    if os.environ.get("FREEHOLD_REWRITE"):
        path.write_text(answered)
        return
    diff = "\n".join(difflib.unified_diff(written.splitlines(), answered.splitlines(), "written", "answered"))
    assert answered == written, f"{path.stem} answers otherwise (FREEHOLD_REWRITE=1 takes it over):\n{diff}"


def test_every_scenario_is_there_and_names_what_it_shows() -> None:
    assert {path.stem for path in TRANSCRIPTS} == EXPECTED
    for path in TRANSCRIPTS:
        assert "\n# Shows 03 section" in path.read_text(), path.stem


def test_a_command_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no such command: explode"):
        replay("> explode n1")
    with pytest.raises(ValueError, match="not a duration"):
        duration_ms("soon")
