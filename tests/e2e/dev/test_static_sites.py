"""A static site as visitors get it: from the folder while it is edited, and as a release."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import run_freehold, serving

PROJECT = '[project]\nname = "site"\n[app.web]\nlanguage = "static"\nsource = "public"\nroutes = ["/site"]\n'
SCRIPT = b"let a = 1;\n" * 500


def project(folder: Path) -> Path:
    (folder / "public" / "docs").mkdir(parents=True)
    (folder / "freehold.toml").write_text(PROJECT)
    (folder / "public" / "index.html").write_text("<h1>hello</h1>")
    (folder / "public" / "docs" / "index.html").write_text("docs")
    (folder / "public" / "app.js").write_bytes(SCRIPT)
    (folder / "public" / ".env").write_text("SECRET=1")
    return folder


@pytest.mark.parametrize("flags", [(), ("--exact",)], ids=["from source", "as a release"])
def test_a_folder_is_a_website(flags: tuple[str, ...], tmp_path: Path) -> None:
    with serving(project(tmp_path), *flags) as process:
        answer = process.call("/site/")
        assert (answer.status, answer.text) == (200, "<h1>hello</h1>")
        assert process.call("/site/", headers={"if-none-match": answer.headers["etag"]}).status == 304
        assert process.call("/site/docs").headers["location"] == "/site/docs/"
        assert process.call("/site/docs/").text == "docs"
        zipped = process.call("/site/app.js", headers={"accept-encoding": "gzip"})
        assert (zipped.headers["content-encoding"], gzip.decompress(zipped.body)) == ("gzip", SCRIPT)
        head = process.call("/site/app.js", "HEAD")
        assert (head.body, head.headers["content-length"]) == (b"", str(len(SCRIPT)))
        part = process.call("/site/app.js", headers={"range": "bytes=-4"})
        assert (part.status, part.body, part.headers["content-range"]) == (206, b" 1;\n", "bytes 5496-5499/5500")
        for path in ("/site/.env", "/site/%2e%2e/freehold.toml", "/site/../freehold.toml", "/site/nothing"):
            assert process.call(path).status == 404, path
        assert process.call("/site/", "POST", b"x").status == 405
        if not flags:
            (tmp_path / "public" / "index.html").write_text("<h1>olleh</h1>")
            assert process.event()["event"] == "serving"
            changed = process.call("/site/", headers={"if-none-match": answer.headers["etag"]})
            assert (changed.status, changed.text) == (200, "<h1>olleh</h1>"), "a file of equal size is another file"


def test_a_folder_without_a_first_page_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (project(tmp_path) / "public" / "index.html").unlink()
    code, answer, _ = run_freehold("build", "--folder", str(tmp_path))
    assert code == 1
    assert "public holds no index.html" in answer["error"]["message"]
    assert "set source of [app.web]" in answer["error"]["next_step"]
