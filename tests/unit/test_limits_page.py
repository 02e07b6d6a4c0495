"""The page of limits names who pays for each; a limit of a shared thing without a payer is a failure."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return import_module("generate")


@pytest.fixture
def payers(page: ModuleType) -> ModuleType:
    return import_module("payers")


def test_each_limit_has_somebody_who_pays(page: ModuleType, payers: ModuleType) -> None:
    limits = list(page.limited())
    assert len(limits) > 400
    missing = []
    for place, name, _, _ in limits:
        try:
            assert payers.payer_of(place, name)
        except KeyError:
            missing.append(f"{place} {name}")
    assert not missing, "docs/payers.py says who pays for each limit"


def test_nobody_pays_for_what_is_gone(page: ModuleType, payers: ModuleType) -> None:
    named = {(place, name) for place, name, _, _ in page.limited()}
    for place, owner in page.FIELDS.values():
        fields = {name for name, _, _ in page.fields_of(ROOT / place, owner)}
        assert fields == set(payers.PAYERS[f"{place}:{owner}"]), place
    places = {place for place, _ in named}
    for place, said in payers.PAYERS.items():
        if place == "cli" or ":" in place:
            continue
        assert place in places, f"{place} has no limit"
        if isinstance(said, dict):
            assert set(said) == {name for where, name in named if where == place}, place


def test_the_page_shows_each_limit_with_its_payer(page: ModuleType) -> None:
    text = page.constants_page()
    assert "| `delegations_max` | `1024` | the principal whose right they rest on |" in text
    assert "| calls | 64 | 64 | 24 |" in text
    assert "| `NONCES_PER_KEY_MAX` |" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.split("|")[1:4]), line


def test_a_limit_that_nobody_pays_for_is_noticed(payers: ModuleType) -> None:
    with pytest.raises(KeyError):
        payers.payer_of("node/feed.py", "NEW_MAX")
    with pytest.raises(KeyError):
        payers.payer_of("node/new.py", "NEW_MAX")
