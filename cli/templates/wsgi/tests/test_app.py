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
    freehold.config.values = {"GREETING": "good morning"}
    return app.test_client()


def test_the_page_greets_and_counts(client):
    assert b"good morning" in client.get("/").data
    assert b"Visit number 2." in client.get("/").data


def test_the_api_tells_the_count(client):
    client.get("/")
    assert client.get("/api/visits").json == {"visits": 1}
