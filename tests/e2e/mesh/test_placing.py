"""Data is placed on a node that has just joined: the command says what visitors get until then, and waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mesh.nodes import PASSPHRASE, Answer, Fleet, until
from tests.support.mesh.site import COUNT, Site


@pytest.mark.timeout(240)
def test_data_placed_on_a_node_that_just_joined_is_served_when_the_command_ends(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    folder = tmp_path_factory.mktemp("p")
    fleet = Fleet(folder)
    try:
        machine = fleet.found("one")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("hello", '["100%"]', app='keyvalue = ["visits"]')
        answer = site.deploy(machine)
        assert answer.code == 0, answer
        two = fleet.join(fleet.invite(machine), "two")
        until(lambda: all(view["confirmed"] for view in machine.members().values()), 60, "the new node to be confirmed")
        placed: list[Answer] = []

        def place() -> None:
            placed.append(
                machine.typed("project", "place", "site", "--data", "two", "-y", "--json", typing=(PASSPHRASE,))
            )

        command = threading.Thread(target=place)
        command.start()
        said: set[str] = set()
        while command.is_alive():
            lane = site.lane(machine)
            if lane["data_node"] == two.status()["node"] and "site/production" not in two.status()["running"]:
                entry = machine.run("doctor", "--json").json["findings"]
                said |= {
                    candidate["what"]
                    for candidate in entry
                    if candidate["fault"] and "site/production" in candidate["what"]
                }
        (answer,) = placed
        assert answer.code == 0, answer
        assert answer.json["serves"] is True
        assert "visitors get 503 until two" in answer.stderr
        assert site.ask(two, COUNT) == (200, "1")
        until(lambda: site.ask(machine, COUNT)[0] == 200, 10, "the other node to lead visitors there")
        for words in said:
            assert "no visitor is served" in words
        assert machine.run("doctor", "--json").json["faults"] == 0
    finally:
        fleet.close()
