"""What the documentation says of itself: its links lead somewhere, its pictures are the ones their source draws.

Not here: the README's commands (e2e/install/test_readme.py), and the site's own build (`make docs`).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, tracked

LINK = re.compile(r"\]\(([^)\s]+)\)")
MADE_AT_BUILD = {"commands.md", "http-api.md", "constants.md"}


@pytest.mark.parametrize("page", tracked(".md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    if "templates" in page.parts or "fixtures" in page.parts:
        return
    for target in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = target.partition("#")[0]
        assert (page.parent / path).exists() or Path(path).name in MADE_AT_BUILD, f"{page}: {target} leads nowhere"


def test_each_picture_is_small_and_shown_by_a_page() -> None:
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    pages = "".join(page.read_text() for page in tracked(".md"))
    for picture in pictures:
        assert picture.stat().st_size < 150_000, f"{picture.name} is too large; see docs/pictures.py"
        assert f"pictures/{picture.name}" in pages or picture.suffix == ".cast", f"no page shows {picture.name}"
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000


def test_the_recording_is_drawn_from_its_events_and_runs_nothing() -> None:
    film = (ROOT / "docs" / "pictures" / "deploy.svg").read_text()
    for word in ("<script", 'href="http', "url(", "<image", "<foreignObject", " on"):
        assert word not in re.sub(r">[^<]*</text>", "></text>", film), word
    events = [json.loads(line) for line in (ROOT / "docs" / "pictures" / "deploy.cast").read_text().splitlines()]
    typed = "".join(event[2] for event in events[1:])
    for words in ("freehold diff", "freehold deploy", "freehold why"):
        assert words in typed
        assert words in "".join(re.findall(r">([^<]*)</text>", film)), "run: make pictures"


def test_the_sequence_diagrams_are_drawn_from_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import diagrams

    for name, walk in diagrams.WALKS.items():
        assert (diagrams.FOLDER / f"{name}.svg").read_text() == diagrams.draw(walk), "run: python docs/diagrams.py"


def test_each_actor_of_a_diagram_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import diagrams

    for walk in diagrams.WALKS.values():
        for actor in walk.actors:
            assert "/" not in actor.file or (ROOT / actor.file).exists(), f"{walk.title}: {actor.file} is gone"


def test_the_rooms_of_each_walk_are_there_and_counted() -> None:
    text = (ROOT / "docs" / "concepts" / "walks.md").read_text()
    walks = re.findall(r"^Rooms: (.+?)\.\s(\d+)\srooms;", text, re.DOTALL | re.MULTILINE)
    assert len(walks) == 4
    for listed, count in walks:
        rooms = re.findall(r"`([^`]+)`", listed)
        assert [room for room in rooms if not (ROOT / room).is_file()] == []
        assert len(set(rooms)) == len(rooms) == int(count)


@pytest.mark.parametrize("page", ["orientation.md", "style.md"])
def test_what_a_page_says_of_the_code_is_there(page: str) -> None:
    cells = (ROOT / "docs" / "project" / page).read_text().split("|")
    named = {
        name
        for cell in cells
        for name in re.findall(r"`((?:cli|node|protocols|runtime|simulation|tests|docs)/[^`: ]*)`", cell)
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert len(named) > 15


def test_each_decision_says_why_and_is_numbered_once() -> None:
    records = sorted((ROOT / "docs" / "project" / "decisions").glob("[0-9]*.md"))
    assert [int(record.name[:3]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:3]}: "), record
        assert "\n## Decision, and why\n" in text, record
