"""A drain for a time, by the command: its plan, what members say of it, and its end after the node that keeps it crashed."""

from __future__ import annotations

import time

import pytest

from tests.support.mesh.nodes import Fleet, until


@pytest.mark.timeout(200)
def test_a_node_drained_for_a_time_is_undrained_by_itself_also_after_a_crash(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("drained"))
    try:
        machine = fleet.found("one", "--policy", "solo")
        planned = machine.run("node", "drain", "one", "--for", "20s")
        assert planned.code == 1, planned
        assert "after 20s the asked node undrains it" in planned.stderr, "the plan says when it ends"
        answer = machine.typed_ok("node", "drain", "one", "--for", "20s", "-y")
        node, until_ms = answer["node"], answer["until_ms"]
        until(lambda: machine.members()[node]["drained_until_ms"] == until_ms, 20, "the node to say until when")
        machine.kill()
        machine.start()
        until(lambda: not machine.members()[node]["draining"], 90, "the undrain to be handed over")
        assert time.time() * 1000 >= until_ms, "it was undrained too early"
        assert machine.members()[node]["drained_until_ms"] == 0
    finally:
        fleet.close()
