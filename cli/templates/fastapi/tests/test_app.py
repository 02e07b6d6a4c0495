"""Asks the app as it is served: `freehold test` sets FREEHOLD_URL, `freehold dev` prints an address to set it to."""

import json
import os
import unittest
import urllib.error
import urllib.request

URL = os.environ.get("FREEHOLD_URL", "")


def ask(path):
    with urllib.request.urlopen(URL + path, timeout=30) as answer:
        return json.load(answer)


@unittest.skipUnless(URL, "FREEHOLD_URL is not set; run: freehold test")
class App(unittest.TestCase):
    def test_each_visit_counts(self):
        before = ask("/api/visits")["visits"]
        self.assertEqual(ask("/")["visits"], before + 1)

    def test_a_path_is_converted_and_checked(self):
        self.assertEqual(ask("/api/squares/7"), 49)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            ask("/api/squares/seven")
        self.assertEqual(caught.exception.code, 422)
        self.assertEqual(json.load(caught.exception)["detail"][0]["type"], "int_parsing")

    def test_the_document_names_every_route(self):
        self.assertIn("/api/squares/{number}", ask("/openapi.json")["paths"])


if __name__ == "__main__":
    unittest.main()
