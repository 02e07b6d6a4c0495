"""Runs on this machine without the sandbox: freehold.store is in memory here."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web"))

import freehold  # noqa: E402
from app import handle  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_stores():
    freehold.store.reset()
    freehold.config.values = {"GREETING": "good morning"}


def test_it_greets_and_counts():
    assert handle(freehold.Request(path="/")).content() == b"good morning from @NAME@, visit 1\n"
    assert handle(freehold.Request(path="/api/visits")).content() == b'{"visits": 1}'


def test_it_echoes_json():
    request = freehold.Request("POST", "/api/echo", body=b'{"a": 1}')
    assert handle(request).content() == b'{"a": 1}'


def test_anything_else_is_not_found():
    assert handle(freehold.Request(path="/nothing")).status == 404
