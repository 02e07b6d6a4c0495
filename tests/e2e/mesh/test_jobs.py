"""Scheduled apps on real daemons: deployed like any other, run on the one node that the chain names, and moved by hand.

One fleet of two nodes serves both tests, in order. What the clockwork does minute by minute is a unit test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.mesh.nodes import Fleet, Machine, until
from tests.support.runtime.wasm_text import module

EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
PROJECT = """\
[project]
name = "chores"
[app.sweep]
language = "component"
source = "sweep.wasm"
schedule = "* * * * *"
[app.choke]
language = "component"
source = "choke.wasm"
schedule = "* * * * *"
[rollout]
stages = ["100%"]
min_healthy_time = "1s"
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder)
    try:
        first = fleet.found("one", "--policy", "solo")
        second = fleet.join(fleet.invite(first, "--role", "worker"), "two")
        until(lambda: all(member["confirmed"] for member in first.members().values()), 60, "two members")
        first.typed_ok("env", "create", "production", "-y")
        first.typed_ok("project", "create", "chores")
        project = folder / "chores"
        project.mkdir()
        (project / "freehold.toml").write_text(PROJECT)
        (project / "sweep.wasm").write_bytes(module("(nop)"))
        (project / "choke.wasm").write_bytes(module("(call $exit (i32.const 3))", imports=EXIT))
        answer = first.run("deploy", "--folder", str(project), "-m", "chores", "--json", timeout_s=200)
        assert answer.code == 0, answer
        yield [first, second]
    finally:
        fleet.close()


def lane(machine: Machine) -> dict[str, Any]:
    return next(iter(machine.ok("status")["lanes"]))


def jobs(machine: Machine) -> dict[str, dict[str, Any]]:
    """What this node runs by itself."""
    (entry,) = json.loads(machine.get("/v1/lanes"))
    return {candidate["app"]: candidate for candidate in entry["jobs"]}


def keeper_of(machines: list[Machine]) -> tuple[Machine, Machine]:
    """The machine that runs the schedules, and the other."""
    named = lane(machines[0])["schedule_node"]
    first, second = machines
    return (first, second) if first.status()["node"] == named else (second, first)


def test_one_node_runs_the_schedules_and_an_admin_says_which(machines: list[Machine]) -> None:
    keeper, other = keeper_of(machines)
    until(lambda: jobs(keeper).keys() == {"sweep", "choke"}, 30, "the node to have the jobs")
    assert jobs(other) == {}
    assert all(job["next_ms"] % 60_000 == 0 for job in jobs(keeper).values())
    refused = machines[0].run("project", "place", "chores", "--schedules", other.folder.name, "-y")
    assert refused.code == 3, refused
    machines[0].typed_ok("project", "place", "chores", "--schedules", other.folder.name, "-y")
    until(lambda: jobs(other).keys() == {"sweep", "choke"}, 30, "the jobs to be on the other node")
    until(lambda: jobs(keeper) == {}, 30, "the first node to leave them alone")


@pytest.mark.long
def test_a_minute_later_both_jobs_have_run_and_the_failing_one_says_so(machines: list[Machine]) -> None:
    keeper, _ = keeper_of(machines)
    until(lambda: all(job["last_outcome"] for job in jobs(keeper).values()), 90, "a minute to pass")
    seen = jobs(keeper)
    assert seen["sweep"]["last_outcome"] == "succeeded"
    assert (seen["choke"]["last_outcome"], seen["choke"]["last_detail"]) == ("failed", "exit code 3")
    told = {line["event"] for line in keeper.ok("logs", "--project", "chores")["lines"]}
    assert {"job.succeeded", "job.failed"} <= told
    assert (seen["choke"]["failing"], seen["sweep"]["failing"]) == (seen["choke"]["counts"]["failed"], 0)
    named = b'{app="choke",environment="production",outcome="failed",project="chores"} '
    assert b"freehold_job_runs_total" + named in keeper.get("/metrics")
    for machine in machines:  # the other asks the one that runs them
        said = machine.run("status").stdout
        assert "job choke failed" in said
        assert "exit code 3" in said
        assert "job sweep succeeded" in said
        looked = machine.run("doctor", "--json")
        assert looked.code == 1, looked
        (entry,) = [candidate for candidate in looked.json["findings"] if "choke" in candidate["what"]]
        assert entry["fault"]
        assert machine.run(*entry["advice"].split()[1:]).code == 0
    keeper.stop()
    keeper.start()
    until(lambda: jobs(keeper).keys() == {"sweep", "choke"}, 60, "the jobs to be back")
    assert jobs(keeper)["choke"]["counts"]["failed"] >= 1, "a restart forgets nothing"
