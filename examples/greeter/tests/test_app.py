"""Asks the built app in the sandbox: `freehold test` serves it with throwaway data and says where in FREEHOLD_URL."""

import os
import unittest
import urllib.request


class Greeter(unittest.TestCase):
    def test_it_is_well(self):
        with urllib.request.urlopen(os.environ["FREEHOLD_URL"] + "/health", timeout=10) as answer:
            self.assertEqual(answer.read(), b"fine\n")

    def test_it_speaks_plain_text(self):
        with urllib.request.urlopen(os.environ["FREEHOLD_URL"] + "/health", timeout=10) as answer:
            self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")


if __name__ == "__main__":
    unittest.main()
