"""Runs on this machine without the sandbox, with unittest or pytest: freehold.store is in memory here."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web"))

import freehold  # noqa: E402
from app import app  # noqa: E402


class App(unittest.TestCase):
    def setUp(self):
        freehold.store.reset()
        freehold.config.values = {"GREETING": "good morning"}
        self.client = app.test_client()

    def test_the_page_greets_and_counts(self):
        self.assertIn(b"good morning", self.client.get("/").data)
        self.assertIn(b"Visit number 2.", self.client.get("/").data)

    def test_the_api_tells_the_count(self):
        self.client.get("/")
        self.assertEqual(self.client.get("/api/visits").json, {"visits": 1})


if __name__ == "__main__":
    unittest.main()
