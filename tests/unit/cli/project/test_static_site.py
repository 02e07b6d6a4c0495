"""A folder as a website: what its files are answered with, request by request, and which files are its."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli.errors import BuildError
from cli.project import python_build
from cli.project.model import App
from cli.project.parse import ProjectFileError, parse
from cli.project.site import read_site

PAGE = b"<h1>hello</h1>" + b" " * 1000
FILES = {
    "index.html": PAGE,
    "about.html": b"about",
    "docs/index.html": b"docs",
    "docs/deep/page.html": b"deep",
    "app.js": b"let a = 1;\n" * 100,
    "logo.png": bytes(range(256)) * 4,
    "empty.txt": b"",
    "no extension": b"plain",
    "caf\u00e9.html": b"coffee",
    ".well-known/security.txt": b"Contact: mailto:a@example.org",
    "data.bin": b"0123456789",
}


@pytest.fixture(scope="module")
def static() -> Iterator[ModuleType]:
    """The guest's module, outside the sandbox."""
    texts, sys.path[:] = sys.path[:], [str(python_build.GUEST), *sys.path]
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("freehold_static", python_build.GUEST / "freehold_static.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = texts
    for name in set(sys.modules) - before:
        if name.startswith("freehold"):
            del sys.modules[name]


Ask = Callable[..., Any]


@pytest.fixture(params=[{}, {"404.html": b"lost"}], ids=["plain", "with a page for it"])
def files(request: pytest.FixtureRequest) -> dict[str, bytes]:
    return {**FILES, **request.param}


@pytest.fixture
def ask(static: ModuleType) -> Ask:
    return asking(static, FILES)


def asking(static: ModuleType, files: dict[str, bytes], fallback: str = "404.html", *prefixes: str) -> Ask:
    site = static.Site(files, fallback, prefixes)

    def ask(path: str, method: str = "GET", **headers: str) -> Any:
        path, _, query = path.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = site.handle(static.Request(method, path, query, named))
        response.whole = response.content()
        return response

    return ask


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/", PAGE, "text/html; charset=utf-8"),
        ("/index.html", PAGE, "text/html; charset=utf-8"),
        ("/about", b"about", "text/html; charset=utf-8"),
        ("/about.html", b"about", "text/html; charset=utf-8"),
        ("/docs/", b"docs", "text/html; charset=utf-8"),
        ("/docs/deep/page", b"deep", "text/html; charset=utf-8"),
        ("/app.js", FILES["app.js"], "text/javascript; charset=utf-8"),
        ("/app.js?v=2", FILES["app.js"], "text/javascript; charset=utf-8"),
        ("/logo.png", FILES["logo.png"], "image/png"),
        ("/empty.txt", b"", "text/plain; charset=utf-8"),
        ("/no%20extension", b"plain", "application/octet-stream"),
        ("/caf%C3%A9", b"coffee", "text/html; charset=utf-8"),
        ("/cafe%CC%81", b"coffee", "text/html; charset=utf-8"),
        ("/.well-known/security.txt", b"Contact: mailto:a@example.org", "text/plain; charset=utf-8"),
    ],
)
def test_a_file_is_answered_with_its_kind(ask: Ask, path: str, body: bytes, kind: str) -> None:
    answer = ask(path)
    assert (answer.status, answer.whole, answer.headers["content-type"]) == (200, body, kind)
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = ask(path, "HEAD")
    assert (head.status, head.headers) == (200, answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/about/", "/docs/deep/", "/docs/deep", "/logo", "/index.html/", "//", "//about.html", "/docs//",
        "/../index.html", "/docs/../index.html", "/docs/..%2findex.html", "/%2e%2e/index.html", "/docs/%2e%2e/about.html",
        "/..%5cindex.html", "/about.html%00", "/%ff", "/.", "/..", "/docs/.", "/%2findex.html", "/ABOUT.html",
        "/.env", "/.git/config", "/.well-known/", "/.well-known", "/%252e%252e/index.html",
    ],
)  # fmt: skip
def test_a_path_that_names_no_file_is_not_found(static: ModuleType, files: dict[str, bytes], path: str) -> None:
    answer = asking(static, files)(path)
    assert answer.status == 404, answer.whole
    assert answer.whole == files.get("404.html", b"Not Found\n")
    assert "etag" not in answer.headers or "404.html" in files


def test_a_folder_is_sent_to_its_slash_and_nowhere_else(static: ModuleType, ask: Ask) -> None:
    answer = ask("/docs?a=1")
    assert (answer.status, answer.headers["location"]) == (308, "/docs/?a=1")
    below = asking(static, FILES, "404.html", "/site/deep", "/site")
    assert below("/site").headers["location"] == "/site/"
    assert below("/site/").whole == PAGE
    assert below("/site/docs/").whole == b"docs"
    assert below("/site/deep/about").whole == b"about"
    assert below("/sites/about").status == 404
    assert below("//example.org/docs").status == 404


def test_a_page_for_unknown_paths_answers_people_and_not_scripts(static: ModuleType) -> None:
    ask = asking(static, FILES, "index.html")
    assert (ask("/users/7").status, ask("/users/7").whole) == (200, PAGE)
    assert ask("/users/j.doe", accept="text/html,*/*").status == 200
    assert ask("/gone.js", accept="*/*").status == 404
    assert ask("/about").whole == b"about"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO"])
def test_other_methods_are_not_allowed(ask: Ask, method: str) -> None:
    answer = ask("/", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert ask("/", "OPTIONS").status == 204


def test_what_a_visitor_has_is_not_sent_again(static: ModuleType, ask: Ask) -> None:
    tag = ask("/").headers["etag"]
    for entry in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = ask("/", if_none_match=entry)
        assert (answer.status, answer.whole) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["vary"] == "accept-encoding"
    for entry in ('"other"', tag.strip('"'), tag[:-1], ""):
        assert ask("/", if_none_match=entry).status == 200
    assert ask("/", if_match=tag).status == 200
    assert ask("/", if_match=f"W/{tag}").status == ask("/", if_match='"other"').status == 412
    changed = asking(static, {**FILES, "index.html": PAGE.replace(b"hello", b"olleh")})
    assert changed("/", if_none_match=tag).status == 200, "a file of equal size is another file"


@pytest.mark.parametrize(
    ("asked", "status", "body", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=9-9", 206, b"9", "bytes 9-9/10"),
        ("bytes=10-", 416, b"Range Not Satisfiable\n", "bytes */10"),
        ("bytes=10-12", 416, b"Range Not Satisfiable\n", "bytes */10"),
        ("bytes=-0", 416, b"Range Not Satisfiable\n", "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("items=0-1", 200, b"0123456789", None),
        ("bytes=" + "9" * 400 + "-", 200, b"0123456789", None),
    ],
)
def test_a_part_of_a_file_is_answered(ask: Ask, asked: str, status: int, body: bytes, told: str | None) -> None:
    answer = ask("/data.bin", range=asked)
    assert (answer.status, answer.whole, answer.headers.get("content-range")) == (status, body, told)
    assert answer.headers["content-length"] == str(len(body))
    assert ask("/data.bin", "HEAD", range=asked).status == 200


def test_a_part_is_of_the_file_as_it_was_asked_for(ask: Ask) -> None:
    tag = ask("/data.bin").headers["etag"]
    assert ask("/data.bin", range="bytes=0-1", if_range=tag).status == 206
    for other in ('"other"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert ask("/data.bin", range="bytes=0-1", if_range=other).status == 200
    part = ask("/app.js", range="bytes=0-8", accept_encoding="gzip")
    assert (part.whole, part.headers.get("content-encoding")) == (FILES["app.js"][:9], None)


def test_text_is_compressed_for_who_takes_it(ask: Ask) -> None:
    plain = ask("/app.js")
    for accepted in ("gzip", "br, gzip;q=0.5", "x-gzip", "*", "GZIP"):
        answer = ask("/app.js", accept_encoding=accepted)
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.whole) == FILES["app.js"]
        assert answer.headers["content-length"] == str(len(answer.whole))
        assert answer.headers["etag"] != plain.headers["etag"]
        assert ask("/app.js", accept_encoding=accepted, if_none_match=answer.headers["etag"]).status == 304
    for accepted in ("", "br", "gzip;q=0", "gzip; q=0.000", "*;q=0", "identity", "gzip;q=0, *"):
        answer = ask("/app.js", accept_encoding=accepted)
        assert (answer.whole, answer.headers.get("content-encoding")) == (FILES["app.js"], None), accepted
        assert answer.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in ask("/logo.png", accept_encoding="gzip").headers
    assert "vary" not in ask("/logo.png").headers


TOML = """
[project]
name = "site"
[app.web]
language = "static"
source = "public"
{more}
"""


def app_of(more: str = 'routes = ["/"]') -> App:
    return parse(TOML.format(more=more)).base.apps["web"]


def test_a_site_needs_nothing_but_its_folder_and_may_ask_for_nothing() -> None:
    app = app_of()
    assert (app.entry, app.instances) == ("404.html", "reuse")
    for more, said in (
        ('schedule = "* * * * *"', "cannot run a static site"),
        ('routes = ["/"]\nkeyvalue = ["a"]', "a static site has none"),
        ('routes = ["/"]\nallow_hosts = ["a.example:443"]', "a static site has none"),
        ('routes = ["/"]\nsecrets = ["A"]', "a static site has none"),
        ('routes = ["/"]\nconfig = { a = "b" }', "a static site has none"),
        ('routes = ["/"]\nentry = "../x.html"', "does not fit language static"),
        ('routes = ["/"]\nentry = "app.js"', "does not fit language static"),
    ):
        with pytest.raises(ProjectFileError, match=said):
            app_of(more)


def test_what_nobody_means_to_publish_stays_out(tmp_path: Path) -> None:
    names = [
        "index.html",
        ".env",
        ".git/config",
        "a/.htpasswd",
        ".well-known/security.txt",
        "a/b.html",
        "requirements.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    tree = read_site(app_of(), tmp_path)
    assert [name for name, _ in tree.files] == [
        ".well-known/security.txt", "a/b.html", "index.html", "requirements.txt",
    ]  # fmt: skip
    assert python_build.requirements_of(app_of(), tree) is None


def test_a_site_that_cannot_be_served_is_refused_at_build(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=r"holds no index\.html"):
        read_site(app_of(), tmp_path / "empty")
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("x")
    with pytest.raises(BuildError, match=r"public/spa\.html does not exist"):
        read_site(app_of('routes = ["/"]\nentry = "spa.html"'), site)
    (tmp_path / "secret").write_text("x")
    (site / "inside.html").symlink_to("index.html")
    assert len(read_site(app_of(), site).files) == 2
    (site / "outside.html").symlink_to("../secret")
    with pytest.raises(BuildError, match="a link that leads out of the site"):
        read_site(app_of(), site)
