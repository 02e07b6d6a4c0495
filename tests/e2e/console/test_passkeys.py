"""A person makes a passkey and approves with a touch, in a real browser with a virtual authenticator, on real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.mesh.looking_on import LINK, freehold
from tests.support.mesh.nodes import PASSPHRASE, Answer, Fleet, Machine, free_port, until
from tests.support.mesh.site import Site

pytestmark = pytest.mark.long

CHECK = Path(__file__).parents[2] / "verify" / "check_export.py"
SAYS_S = 40.0


@dataclass
class Touching:
    """One node under the policy team; `dev` proposes, `ann` approves from a laptop, over HTTPS."""

    fleet: Fleet
    dev: Machine
    ann: Machine
    site: Site
    page: Page
    port: int

    def proposed(self, greeting: str) -> str:
        self.site.configure(greeting, '["100%"]')
        answer = self.site.deploy(self.dev, "-m", greeting, "--detach")
        assert answer.code == 5, answer
        change: str = answer.json["change"]
        return change

    def runs(self, change: str) -> bool:
        view = json.loads(self.dev.get(f"/v1/changes/{change}"))
        assert (view["start"] or {}).get("outcome") != "refused", view
        return (self.site.lane(self.dev)["base"] or {}).get("change") == change

    def in_browser(self, *arguments: str, button: str, says: str = "Done", typing: bool = False) -> Answer:
        """Run a command of ann's, press the page's button, and let it end."""
        terminal = freehold(self.ann, *arguments)
        try:
            link = terminal.wait_for(LINK, SAYS_S)[0]
            self.page.go(link)
            self.page.has(button)
            self.page.tab_to(button)
            self.page.key("Enter")
            self.page.has(says)
            if says != "Done":
                terminal.interrupt()
                return Answer(1, "", terminal.said)
            code, said = terminal.end(SAYS_S, [("Passphrase of .*: ", PASSPHRASE)] if typing else [])
            return Answer(code, said, said)
        finally:
            terminal.kill()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Touching]:
    browser = Browser()
    folder = tmp_path_factory.mktemp("touch")
    fleet = Fleet(folder)
    try:
        dev = fleet.found("one", "--policy", "team", "--api", "127.0.0.1:0")
        dev.typed_ok("env", "create", "production", "-y")
        dev.typed_ok("project", "create", "site")
        ann = Machine(folder / "ann")
        line = fleet.invite(dev, "--kind", "principal", "--role", "approver", "--for", "ann")
        assert ann.typed("login", line, "--name", "work", typing=(PASSPHRASE, PASSPHRASE)).code == 0
        page = browser.page()
        page.authenticator()
        yield Touching(fleet, dev, ann, Site(folder, component("services")), page, free_port())
    finally:
        fleet.close()
        browser.close()


def test_a_touch_approves_what_policy_asks_a_touch_for(team: Touching, tmp_path: Path) -> None:
    registered = team.in_browser(
        "passkey", "add", "--name", "laptop", "--port", str(team.port), button="Make the passkey", typing=True
    )
    assert registered.code == 0, registered
    assert "approves in your name" in registered.stdout
    (known,) = team.ann.ok("passkey", "list")["passkeys"]
    assert (known["name"], known["problem"]) == ("laptop", "")
    assert known["origins"] == [f"http://localhost:{team.port}"]

    done = team.dev.typed("policy", "set", "--env", "production", "--mode", "team", "--approval", "passkey", "-y")
    assert done.code == 0, done
    assert team.dev.ok("policy", "show", "--env", "production")["policy"]["approval"] == "passkey"
    change = team.proposed("hello")
    by_key = team.ann.typed("approve", change[:12], "--json")
    assert by_key.code == 0, by_key
    assert [gate["rule"] for gate in by_key.json["missing"]] == ["approval.passkey"]
    assert "--passkey" in by_key.json["missing"][0]["detail"]

    approved = team.in_browser("approve", change[:12], "--passkey", "-m", "read it", button="Approve with passkey")
    assert approved.code == 0, approved
    assert f"change {change[:12]} is approved" in approved.stdout
    until(lambda: team.runs(change), 120, "the approved change to run")
    papers = team.ann.ok("evidence", "show", change)
    assert {approval["by_passkey"] for approval in papers["approvals"] if not approval["problem"]} == {True, False}
    folder = tmp_path / "export"
    team.ann.ok("evidence", "export", change, "--to", str(folder))
    assert len(team.ann.ok("evidence", "verify", str(folder), "--change", change)["papers"]) >= 2
    outside = subprocess.run(
        [sys.executable, "-I", str(CHECK), str(folder), change], capture_output=True, text=True, timeout=60, check=False
    )
    assert outside.returncode == 0, outside.stderr


def test_the_page_shows_the_diff_and_what_is_signed_and_another_link_shows_nothing(team: Touching) -> None:
    change = team.proposed("bonjour")
    terminal = freehold(team.ann, "approve", change[:12], "--passkey")
    try:
        link = terminal.wait_for(LINK, SAYS_S)[0]
        team.page.go(re.sub("#.*", "#another", link))
        team.page.has("This link is over")
        assert "bonjour" not in team.page.text()
        team.page.said.clear()
        team.page.go(link)
        team.page.has("Approve with passkey")
        shown = team.page.text()
        for text in ("GREETING", "bonjour", change, "production", "site"):
            assert text in shown, shown
        assert team.page.js("location.hash") == "", "the code stands in no history"
        assert not team.page.said, team.page.said
    finally:
        terminal.interrupt()
        terminal.kill()


def test_who_was_not_verified_approves_nothing(team: Touching) -> None:
    """The authenticator is there and is touched; it knows nobody. The browser itself refuses, and so would voters."""
    change = team.proposed("unseen")
    team.page.call("WebAuthn.disable")
    team.page.authenticator(verified=False)
    refused = team.in_browser("approve", change[:12], "--passkey", button="Approve with passkey", says="was not used")
    assert refused.code == 1
    papers = json.loads(team.dev.get(f"/v1/changes/{change}/papers"))
    assert papers["approvals"] == []
