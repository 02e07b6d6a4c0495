"""Looks at the files of the site, without the sandbox: every link to a page of its own leads somewhere."""

import unittest
from html.parser import HTMLParser
from pathlib import Path

PUBLIC = Path(__file__).resolve().parents[1] / "public"


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src") and value]


def leads_somewhere(link, page):
    path = link.partition("#")[0].partition("?")[0]
    if not path or "//" in path or ":" in path:
        return True  # another site's, or a place on this page
    target = PUBLIC / path.lstrip("/") if path.startswith("/") else page.parent / path
    return any(one.is_file() for one in (target, target / "index.html", target.with_name(target.name + ".html")))


class Site(unittest.TestCase):
    def test_every_link_leads_somewhere(self):
        for page in sorted(PUBLIC.rglob("*.html")):
            links = Links()
            links.feed(page.read_text())
            for link in links.found:
                self.assertTrue(leads_somewhere(link, page), f"{page.name}: {link}")


if __name__ == "__main__":
    unittest.main()
