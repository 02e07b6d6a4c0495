"""A rollback is whole and needs nobody: the author's machine and a node are gone, and no registry was ever asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mesh.losses import FIRST, SECOND, Losses
from tests.support.mesh.nodes import until


@pytest.mark.timeout(400)
def test_a_rollback_is_whole_without_the_author_and_with_a_node_gone(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    stage = Losses(tmp_path_factory.mktemp("lost"), component)
    try:
        machine, _, three = stage.fleet.machines
        stage.deploy(*FIRST)
        before = machine.ok("status", "--project", "site")["lanes"][0]["base"]
        stage.deploy(*SECOND)
        until(lambda: all(stage.seen(index) == SECOND for index in range(3)), 30, "the second release everywhere")
        second = machine.ok("status", "--project", "site")["lanes"][0]["base"]["change"]
        stage.lose_the_author()
        three.kill()
        answer = machine.run("rollback", "--project", "site", "-m", "the second was worse", "--json")
        assert answer.code == 0, answer
        until(lambda: all(stage.seen(index) == FIRST for index in (0, 1)), 20, "the first release, whole")
        base = machine.ok("status", "--project", "site")["lanes"][0]["base"]
        assert base == before, "code, configuration, secret versions and desired state are those of before"
        three.start()
        until(lambda: stage.seen(2) == FIRST, 60, "the node that was away to follow")
        # And forth again: what was left is kept, too.
        assert machine.run("rollback", second, "--project", "site", "-m", "no, the first was", "--json").code == 0
        until(lambda: all(stage.seen(index) == SECOND for index in range(3)), 20, "the second release, whole")
    finally:
        stage.close()
