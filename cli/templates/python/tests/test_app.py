"""Runs on this machine without the sandbox, with unittest or pytest: freehold.store is in memory here."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web"))

import freehold  # noqa: E402
from app import handle  # noqa: E402


class App(unittest.TestCase):
    def setUp(self):
        freehold.store.reset()
        freehold.config.values = {"GREETING": "good morning"}

    def test_it_greets_and_counts(self):
        self.assertEqual(handle(freehold.Request(path="/")).content(), b"good morning from @NAME@, visit 1\n")
        self.assertEqual(handle(freehold.Request(path="/api/visits")).content(), b'{"visits": 1}')

    def test_it_echoes_json(self):
        request = freehold.Request("POST", "/api/echo", body=b'{"a": 1}')
        self.assertEqual(handle(request).content(), b'{"a": 1}')

    def test_anything_else_is_not_found(self):
        self.assertEqual(handle(freehold.Request(path="/nothing")).status, 404)


if __name__ == "__main__":
    unittest.main()
