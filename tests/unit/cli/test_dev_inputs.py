"""Which files make `freehold dev` serve anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.dev.inputs import is_input
from cli.project.model import ProjectFile
from cli.project.parse import parse

TOML = """
[project]
name = "p"
[app.web]
language = "javascript"
source = "web"
routes = ["/"]
[app.site]
language = "static"
source = "sites/public"
routes = ["/site"]
[app.job]
language = "component"
source = "job.wasm"
schedule = "* * * * *"
"""


def project(toml: str = TOML) -> ProjectFile:
    return parse(toml)


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("web/app.js", True), ("web/lib/a.css", True), ("web/new", True), ("sites/public/.well-known/a", True),
        ("freehold.toml", True), ("package.json", True), ("package-lock.json", True), ("job.wasm", True),
        ("tsconfig.json", True),
        ("dev.log", False), ("README.md", False), ("webs/app.js", False), ("sites/other.html", False), ("other.wasm", False),
        ("tests/test_app.py", False), ("web/app.log", False), ("web/.env", False), ("web/.cache/a.js", False),
        ("web/node_modules/a/index.js", False), ("web/a.pyc", False), ("web/a.js~", False), (".freehold/dev/x", False),
        ("sites/freehold.toml", False), (".git/index", False), ("../elsewhere/app.js", False),
    ],
)  # fmt: skip
def test_a_change_counts_if_it_is_of_an_apps_source(path: str, counts: bool, tmp_path: Path) -> None:
    assert is_input(tmp_path, project(), str(tmp_path / path)) == counts


def test_a_project_that_is_its_own_source_ignores_what_this_process_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = project('[project]\nname = "p"\n[app.web]\nlanguage = "python"\nsource = "."\nroutes = ["/"]\n')
    for name in ("out.txt", "err.txt", "app.py"):
        (tmp_path / name).write_text("")
    with (tmp_path / "out.txt").open("a") as out, (tmp_path / "err.txt").open("a") as error:
        monkeypatch.setattr("sys.__stdout__", out)
        monkeypatch.setattr("sys.__stderr__", error)
        assert not is_input(tmp_path, whole, str(tmp_path / "out.txt"))
        assert not is_input(tmp_path, whole, str(tmp_path / "err.txt"))
        assert is_input(tmp_path, whole, str(tmp_path / "app.py"))
        assert is_input(tmp_path, whole, str(tmp_path / "gone.py")), "a file that was removed counts too"
