"""The whole way of a person by keyboard alone, in a real browser: enrol, review, approve, watch, see it go back, read why.

Tab, Shift+Tab, Enter, arrow keys and letters are all that is pressed; at each step what has the focus is seen to have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Page
from tests.support.mesh.looking_on import Team, a_team
from tests.support.mesh.nodes import until
from tests.support.mesh.site import Site, visitors

SAYS_S = 60.0
HOST = "telemetry.example:443"
WORDS = "the database is out of reach"
STOPS_MAX = 60
"""Of one view: more presses of Tab than it has places to be are a trap."""
FOCUS = """(() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const box = one.getBoundingClientRect(), style = getComputedStyle(one);
  return {
    words: (one.getAttribute('aria-label') || (one.labels && one.labels[0] ? one.labels[0].innerText : one.innerText)).trim(),
    tag: one.localName, drawn: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    there: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
})()"""


@dataclass
class Hands:
    """Somebody's hands on a keyboard, before one page."""

    page: Page

    def focus(self) -> dict[str, Any] | None:
        focused: dict[str, Any] | None = self.page.js(FOCUS)
        return focused

    def press(self, name: str, *, shift: bool = False) -> dict[str, Any] | None:
        """Press a key that moves the focus; whatever has it then must be seen to."""
        self.page.key(name, shift=shift)
        focused = self.focus()
        if focused is not None and focused["tag"] != "main":
            assert focused["drawn"], f"nobody sees that this has the focus: {focused}"
            assert focused["there"], f"what has the focus is not in the window: {focused}"
        return focused

    def reach(self, words: str, *tags: str) -> None:
        """Press Tab until an element of these kinds that says `words` has the focus."""
        met = []
        for _ in range(STOPS_MAX):
            focused = self.press("Tab")
            if focused is not None and words in focused["words"] and focused["tag"] in tags:
                return
            met.append(focused and focused["words"][:40])
        raise AssertionError(f"Tab never reached {words!r}; it met {met}")

    def choose(self, words: str) -> None:
        self.reach(words, "a", "button")
        self.page.key("Enter")

    def type(self, text: str) -> None:
        for letter in text:
            self.page.key(letter, text=letter)

    def around(self) -> list[str]:
        """Every place that Tab comes to, from the page's top round to its top again."""
        while self.press("Tab", shift=True) is not None:
            pass
        return self._until_out(shift=False)

    def back_around(self) -> list[str]:
        """The same the other way."""
        return self._until_out(shift=True)

    def _until_out(self, *, shift: bool) -> list[str]:
        met: list[str] = []
        while (focused := self.press("Tab", shift=shift)) is not None:
            met.append(f"{focused['tag']} {focused['words']}")
            assert len(met) <= STOPS_MAX, f"Tab does not come out again: {met[-8:]}"
        return met


@dataclass
class Story:
    """The team before the console, its project, and Ann's hands."""

    team: Team
    site: Site
    hands: Hands

    def propose(self, greeting: str, app: str = "") -> str:
        plan = 'analysis = { max_error_rate = "1%" }'
        self.site.configure(greeting, app=app, rollout=plan)
        path = self.site.folder / "freehold.toml"
        path.write_text(path.read_text().replace('min_healthy_time = "1s"', 'min_healthy_time = "4s"'))
        return self.team.proposed(self.site.deploy(self.team.dev, "-m", greeting.partition('"')[0], "--detach"))

    def approve(self) -> None:
        """From what waits to the touch."""
        self.hands.choose("What needs you")
        self.team.page.has("Waits for approval")
        self.hands.choose("Review it")
        self.team.page.has("What you would sign")

    def watch(self) -> None:
        """To the project's own view."""
        self.hands.choose("Projects")
        self.team.page.has("answers at")
        self.hands.choose("site in production")


@pytest.fixture
def story(tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("k")
    with a_team(folder, "site", width=1280, press=lambda page, words: Hands(page).choose(words)) as team:
        yield Story(team, Site(folder, component("services")), Hands(team.page))


def test_a_person_goes_the_whole_way_by_keyboard_alone(story: Story) -> None:
    page, hands, site = story.team.page, story.hands, story.site
    first = story.propose("hello")
    story.approve()
    hands.choose("Approve with passkey")
    page.has("Approved.")
    story.watch()
    page.has("Stage 1 of 2")
    page.has("Stage 2 of 2")
    until(lambda: (site.lane(story.team.dev)["base"] or {}).get("change") == first, SAYS_S, "the release to run")
    page.has("What runs")

    bad = story.propose(f'hello", BROKEN = "{WORDS}', app=f'allow_hosts = ["{HOST}"]')
    with visitors(story.team.fleet.machines, path="/crash?key=BROKEN", every_s=0.02):
        story.approve()
        page.has("It newly reaches 1 thing")
        shown = page.text()
        assert bad in shown
        assert shown.index(HOST) < shown.index("BROKEN") < shown.index("What you would sign"), (
            "what it reaches is first"
        )
        _no_trap(hands)
        hands.choose("Approve with passkey")
        page.has("Approved.")
        story.watch()
        page.has("Stage 1 of 2")
        _no_trap(hands)
        page.has("Why the last release went back")
    page.has("errors in")
    failing = page.js("document.querySelector('.alert tbody td').innerText")
    page.has(f"Last log lines on {failing}")
    page.has(WORDS)
    assert (site.lane(story.team.dev)["base"] or {}).get("change") == first

    hands.choose("History")
    page.has("abort")
    _no_trap(hands)
    hands.choose("Logs")
    page.has("With this text")
    hands.reach("Node", "select")
    hands.press("ArrowUp")
    for _ in range(len(story.team.fleet.machines)):
        if page.js("document.activeElement.selectedOptions[0].innerText") == failing:
            break
        hands.press("ArrowDown")
    assert page.js("document.activeElement.selectedOptions[0].innerText") == failing
    hands.reach("With this text", "input")
    hands.type("out of reach")
    page.key("Enter")
    page.until(f"document.querySelector('main pre').innerText.includes({json.dumps(WORDS)})")
    assert page.js("[...document.querySelectorAll('main pre')].every((one) => !one.innerText.includes('GET /'))")
    hands.reach("log lines", "pre")
    _no_trap(hands)
    assert not [text for text in page.said if "pubKeyCredParams" not in text], page.said


def _no_trap(hands: Hands) -> None:
    """Tab goes through the whole view and out of it, and the same way back."""
    there = hands.around()
    assert there[0] == "a Skip to the content"
    assert there == list(reversed(hands.back_around())), "one way leads elsewhere than the other"
