"""Runs on this machine without the sandbox, with unittest or pytest: freehold.store is in memory here."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web"))

import freehold  # noqa: E402
from app import app  # noqa: E402


class Guestbook(unittest.TestCase):
    def setUp(self):
        freehold.store.reset()
        self.client = app.test_client()

    def test_an_entry_is_shown_and_escaped(self):
        signed = self.client.post("/sign", data={"name": "<i>Ann</i>", "words": "hello"})
        self.assertEqual(signed.status_code, 302)
        page = self.client.get("/").get_data(as_text=True)
        self.assertIn("&lt;i&gt;Ann&lt;/i&gt;", page)
        self.assertIn("1 signed so far", page)

    def test_a_name_is_needed(self):
        self.assertEqual(self.client.post("/sign", data={"words": "hello"}).status_code, 400)


if __name__ == "__main__":
    unittest.main()
