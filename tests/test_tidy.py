"""The style as a test: module docstrings, sizes, banned names, the fixed top level. Not: what ruff and mypy check."""

from __future__ import annotations

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("node", "protocols", "runtime", "cli", "simulation")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
BANNED_MODULE_NAMES = {"utils", "util", "helpers", "common", "manager", "misc"}


def tracked(*suffixes: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return sorted(ROOT / name for name in listing.split("\0") if name.endswith(suffixes) and (ROOT / name).is_file())


def source_files() -> list[Path]:
    return [
        path
        for path in tracked(".py")
        if path.relative_to(ROOT).parts[0] in PACKAGES and "templates" not in path.parts and "guest" not in path.parts
    ]


def files_of_tests() -> list[Path]:
    return [
        path
        for path in tracked(".py")
        if path.relative_to(ROOT).parts[0] in {"tests", "benchmarks"}
        and "shapes" not in path.parts  # apps as people write
    ]


@pytest.mark.parametrize("path", [*source_files(), *files_of_tests()], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), f"{path}: open with what the module is and what it is not"
    assert text.count("\n") <= FILE_LINES_MAX, f"{path}: over {FILE_LINES_MAX} lines; split it"
    assert path.stem not in BANNED_MODULE_NAMES, f"{path}: name the thing it holds"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{node.lineno}: {node.name} has {length} lines"


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The files of ours that a file imports, wherever in it and whether or not only for the type checker."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules.keys()
            if not names <= modules.keys():
                found.add(node.module)
    return {name for name in found if name in modules and modules[name] != path}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, as the names on it; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {}
    for path in source_files():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    assert not circle_in({name: imports_of(path, modules) for name, path in modules.items()})


def test_a_circle_behind_type_checking_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.b import B\n")
    (tmp_path / "b.py").write_text("def late() -> None:\n    from pack import a\n")
    (tmp_path / "c.py").write_text("import pack.a\n")
    modules = {f"pack.{name}": tmp_path / f"{name}.py" for name in "abc"}
    graph = {name: imports_of(path, modules) for name, path in modules.items()}
    assert set(circle_in(graph)) == {"pack.a", "pack.b"}
    assert not circle_in({name: graph[name] for name in ("pack.a", "pack.c")} | {"pack.b": set()})


TWO_MEANINGS: dict[str, str] = {}
"""Names of public classes that are allowed two meanings, each with its reason."""


def defined_twice(sources: dict[str, str]) -> dict[str, list[str]]:
    """The names of public classes that more than one file defines, and those files."""
    found: dict[str, list[str]] = {}
    for name, text in sources.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return {name: files for name, files in found.items() if len(files) > 1}


def test_one_word_is_one_thing() -> None:
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in source_files()}
    assert {name: files for name, files in defined_twice(sources).items() if name not in TWO_MEANINGS} == {}
    assert defined_twice({"a.py": "class Run: ...\nclass _One: ...", "b.py": "class Run: ...\nclass _One: ..."}) == {
        "Run": ["a.py", "b.py"]
    }


def test_no_lock_file_names_a_registry() -> None:
    for path in tracked("requirements.txt", "package-lock.json", "Cargo.lock"):
        text = path.read_text()
        assert "https://" not in text.replace("https://opencollective.com", "").replace("https://github.com", ""), path
        assert "--index-url" not in text, path


def test_the_top_level_is_fixed() -> None:
    allowed = {
        *PACKAGES, "tests", "examples", "docs", "benchmarks", ".ci", ".github", ".pre-commit-config.yaml",
        "pyproject.toml", "README.md", "Makefile",
        "LICENSE", "ARCHITECTURE.md", "CHANGELOG.md", "requirements.txt", ".gitignore",
    }  # fmt: skip
    assert {path.relative_to(ROOT).parts[0] for path in tracked("")} <= allowed
