"""A folder with a long name is no reason for anything: a node in it runs, prepares and serves a release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Fleet, Machine, free_port
from tests.support.mesh.site import Site, ask


class LongMachine(Machine):
    """One whose volatile folder's path leaves no room for a socket."""

    @property
    def environment(self) -> dict[str, str]:
        folder = self.folder / ("a-long-name-" * 15)
        folder.mkdir(exist_ok=True)
        return {**super().environment, "RUNTIME_DIRECTORY": str(folder)}

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()[-2000:]}"
        return self.run("node", "status", "--data", str(self.data)).code == 0


@pytest.mark.timeout(120)
def test_a_release_is_prepared_and_served_from_a_folder_of_any_length(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("l")
    monkeypatch.setattr("tests.support.mesh.nodes.Machine", LongMachine)
    fleet = Fleet(folder)
    ingress = f"127.0.0.1:{free_port()}"
    try:
        machine = fleet.found("one", "--ingress", ingress)
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("from afar", '["100%"]')
        answer = site.deploy(machine)
        assert answer.code == 0, answer
        assert ask(ingress, "site", "/config/get?key=GREETING") == (200, "from afar")
        machine.stop()
        machine.start()
        assert ask(ingress, "site", "/config/get?key=GREETING") == (200, "from afar"), "its workers were found again"
    finally:
        fleet.close()
