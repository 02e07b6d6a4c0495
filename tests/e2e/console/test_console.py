"""The console in a real browser: let in, review, approve with a touch, watch a release fail and go back, read why.

Two nodes, a person who proposes and one who approves and steers from a laptop over HTTPS. By keyboard alone.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.console.serving import asset, asset_names
from tests.support.mesh.looking_on import LINK, Greeter, Team, a_team
from tests.support.mesh.nodes import until
from tests.support.mesh.site import visitors

pytestmark = pytest.mark.long

PAGE_MAX_BYTES = 60_000
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> \u202egnp.exe <script>document.title='taken'</script>"


@dataclass(frozen=True)
class Story:
    """The team before the console, and the project that it releases."""

    team: Team
    greeter: Greeter

    def configure(self, greeting: str, *, healthy: str = "1s", hosts: str = "") -> None:
        self.greeter.configure(greeting, healthy=healthy, hosts=hosts, stages='["1", "100%"]')

    def proposed(self, request: str) -> str:
        return self.team.proposed(self.greeter.deploy(self.team.dev, request))

    def runs(self, change: str) -> bool:
        return self.greeter.runs(self.team.dev, change)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("con")
    with a_team(folder, "greeter") as team:
        yield Story(team, Greeter(folder))


def test_the_link_lets_one_browser_in_once_with_a_key_that_cannot_be_read(story: Story) -> None:
    page, link = story.team.page, story.team.console.wait_for(LINK, 1)[0]
    enrolled = page.js(
        """(async () => {
          const { knownKey } = await import('/assets/sign.js');
          const where = await (await fetch('/console/where')).json();
          const key = await knownKey(where.mesh);
          const out = await crypto.subtle.exportKey('pkcs8', key.pair.privateKey).then(() => 'EXPORTED', (error) => error.name);
          return [key.name, out];
        })()"""
    )
    assert enrolled[1] == "InvalidAccessError"
    mine = story.team.ann.ok("token", "list")["principals"]
    (browser,) = [key for key in mine if key["key"] == enrolled[0]]
    assert browser["yours"]
    assert not {"approve", "admin"} & set(browser["verbs"])
    code = link.partition("#")[2]
    again = page.js(
        f"fetch('/console/enrol', {{method: 'POST', headers: {{'Freehold-Code': {json.dumps(code)}}}, "
        f"body: JSON.stringify({{key: '{'ab' * 32}'}})}}).then(async (one) => [one.status, (await one.json()).why])"
    )
    assert again[0] == 422
    assert "was used" in again[1]


def test_nobody_but_the_browser_that_was_let_in_is_answered(story: Story) -> None:
    page = story.team.page
    assert page.js("fetch('/v1/node').then((one) => one.status)") == 401
    assert page.js("fetch('/console/change', {method: 'POST', body: '\"00\"'}).then((one) => one.status)") == 401
    for fields in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in ("/", "/assets/console.js", "/console/where"):
            asked = urllib.request.Request(
                f"http://127.0.0.1:{story.team.port}{path}", headers={"Host": f"localhost:{story.team.port}", **fields}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asked, timeout=10)
            assert refused.value.code == 403
            refused.value.close()
    stranger = page.js(
        """(async () => {
          const { makeKey, signed } = await import('/assets/sign.js');
          const key = await makeKey();
          const body = JSON.stringify('ab'.repeat(32));
          const send = async (fields) => (await fetch('/console/change', { method: 'POST', headers: fields, body })).status;
          const fields = await signed(key, 'POST', location.origin + '/console/change', body, '');
          return [await send(fields), await send({ ...fields, 'Content-Digest': 'sha-256=:AAAA:' })];
        })()"""
    )
    assert stranger == [401, 401], "a key without a grant, and a body that was not signed"


@pytest.mark.timeout(600)
def test_a_person_reviews_and_approves_by_keyboard_alone(story: Story) -> None:
    page = story.team.page
    story.configure("hello")
    change = story.proposed("greet")
    story.team.show("/")
    page.has("Waits for approval")
    page.tab_to("Review it")
    page.key("Enter")
    page.has("What you would sign")
    shown = page.text()
    assert shown.index("newly reaches") < shown.index("Components") < shown.index("What you would sign")
    assert change in shown
    page.tab_to("Approve with passkey")
    page.key("Enter")
    page.has("Approved.")
    until(lambda: story.runs(change), 200, "the release to run")
    story.team.show("/lane/greeter/production")
    page.has("What runs")
    page.has(change[:12])


@pytest.mark.timeout(600)
def test_what_a_change_newly_reaches_stands_first_and_hostile_text_is_text(story: Story) -> None:
    page = story.team.page
    page.js("document.title = 'mine'")
    story.configure("hello again", hosts='allow_hosts = ["evil.example:443"]')
    change = story.proposed(HOSTILE)
    for view in ("/", "/projects", f"/change/{change}"):
        story.team.show(view)
        page.has("onerror")
        shown = page.text()
        assert "\u202e" not in shown
        assert "<202E>gnp.exe" in shown
    page.has("It newly reaches")
    shown = page.text()
    assert shown.index("evil.example") < shown.index("hello again"), "what it reaches stands before what it says"
    assert page.js("document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert "taken" not in page.js("document.title")
    rejected = story.team.ann.typed("reject", change, "-m", "it opens the network", "--json")
    assert rejected.code == 0, rejected


@pytest.mark.timeout(600)
def test_a_release_that_fails_goes_back_on_the_page_with_numbers_reason_and_the_nodes_log_lines(story: Story) -> None:
    page = story.team.page
    story.configure("", healthy="20s")
    change = story.proposed("greet nobody")
    with visitors(story.team.fleet.machines, "greeter", "/greeter", every_s=0.02):
        story.team.approve(change)
        story.team.show("/lane/greeter/production")
        page.has("Stage 1 of 2", 60)
        page.has("Abort: return to what ran")
        page.has("Why the last release went back", 120)
    page.has("errors in")
    page.has("ValueError: no greeting is configured", 60)
    page.has("Last log lines on")
    story.team.show("/")
    page.has("The last release went back")
    page.js("document.activeElement.blur()")
    story.team.show("/history")
    page.has("abort")
    story.team.show("/logs")
    page.has("Node")
    page.until("(document.querySelector('main pre') || {innerText: ''}).innerText.includes('serving')")


@pytest.mark.timeout(300)
def test_the_page_signs_what_it_shows_to_be_done_and_draws_no_button_that_would_be_refused(story: Story) -> None:
    page = story.team.page
    story.configure("good day")
    change = story.proposed("greet better")
    story.team.approve(change)
    until(lambda: story.runs(change), 200, "the release to run")
    story.team.show("/lane/greeter/production")
    page.has("Roll back to the release before")
    for words in ("Promote", "Abort", "Resume", "Pause"):
        assert words not in page.js("[...document.querySelectorAll('button')].map((one) => one.innerText).join()")
    page.tab_to("Roll back")
    page.key("Enter")
    page.has("Sure?")
    page.key("Enter")  # a key that is held
    assert "Decided" not in page.text()
    page.has("Sure?")
    time.sleep(0.6)
    page.key("Enter")
    page.has("Decided: rollback.", 40)
    newest = story.team.dev.ok("decisions")["decisions"][0]
    assert newest["action"] == "rollback"
    assert newest["names"] == ["ann's browser"]


def test_the_page_is_small_and_holds_nothing_inline(story: Story) -> None:
    assert sum(len(asset(name)) for name in asset_names()) <= PAGE_MAX_BYTES
    for name in asset_names():
        text = asset(name).decode()
        assert "innerHTML" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        if name.endswith(".html"):
            assert "<script>" not in text
            assert "style=" not in text
    with urllib.request.urlopen(urllib.request.Request(story.team.origin), timeout=10) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    page = story.team.page
    page.go(story.team.origin)
    page.has("What needs you")
    painted = page.until("(performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime")
    assert painted < 2_000, f"first paint after {painted:.0f} ms (aim 200 on a quiet machine)"
    assert not [text for text in page.said if "Content Security Policy" in text], page.said


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_view_fits_the_window(story: Story, width: int, dark: bool, tmp_path: Path) -> None:
    page = story.team.page
    page.resize(width=width, height=800, dark=dark)
    change = story.team.dev.ok("changes")["changes"][0]["id"]
    views = {"home": "/", "lane": "/lane/greeter/production", "change": f"/change/{change}", "projects": "/projects",
             "nodes": "/nodes", "logs": "/logs", "history": "/history"}  # fmt: skip
    for name, view in views.items():
        story.team.show(view)
        page.until(f"location.hash === {json.dumps('#' + view)} && !!document.querySelector('h1')")
        time.sleep(0.6)
        over = page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        page.picture(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")
        assert over <= 0, f"{name} is {over} px too wide at {width}"
    page.resize(width=1440, height=900)
