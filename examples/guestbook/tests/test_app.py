"""Runs on this machine without the sandbox: freehold.store is in memory here."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web"))

import freehold  # noqa: E402
from app import app  # noqa: E402


@pytest.fixture
def client():
    freehold.store.reset()
    return app.test_client()


def test_an_entry_is_shown_and_escaped(client):
    assert client.post("/sign", data={"name": "<i>Ann</i>", "words": "hello"}).status_code == 302
    page = client.get("/").get_data(as_text=True)
    assert "&lt;i&gt;Ann&lt;/i&gt;" in page
    assert "1 signed so far" in page


def test_a_name_is_needed(client):
    assert client.post("/sign", data={"words": "hello"}).status_code == 400
