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

    def test_the_page_greets_as_configured(self):
        self.assertIn(b"good morning", self.client.get("/").data)

    def test_each_visit_counts(self):
        for _ in range(2):
            self.client.get("/")
        self.assertEqual(self.client.get("/api/visits").json, {"visits": 2})


if __name__ == "__main__":
    unittest.main()
