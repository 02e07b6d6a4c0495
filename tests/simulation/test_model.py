"""The formal model of the decision chain holds, and each mistake that can be switched on breaks it."""

from __future__ import annotations

import shutil

import pytest

from simulation.model.__main__ import RUNS, ModelRun, check


def run_and_judge(run: ModelRun, limit_s: int) -> None:
    outcome = check(run, limit_s)
    if run.mistake:
        assert outcome.violated, f"the model is too weak: {run.title} went unnoticed over {outcome.states} states"
    else:
        assert not outcome.violated, outcome.output[-4000:]


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java: apt-get install default-jre")


@needs_java
@pytest.mark.parametrize("run", [run for run in RUNS if run.quick], ids=lambda run: run.title)
def test_the_model_holds_and_finds_each_mistake(run: ModelRun) -> None:
    run_and_judge(run, 120)


@needs_java
@pytest.mark.long
@pytest.mark.parametrize("run", [run for run in RUNS if not run.quick], ids=lambda run: run.title)
def test_the_larger_models_hold_and_find_each_mistake(run: ModelRun) -> None:
    run_and_judge(run, 1_800)
