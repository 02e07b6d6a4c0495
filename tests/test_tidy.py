"""The style as a test: module docstrings, sizes, banned names, the fixed top level. Not: what ruff and mypy check."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("node", "protocols", "runtime", "cli", "simulation")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 90
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


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path}: open with what the module is and what it is not"
    assert text.count("\n") <= FILE_LINES_MAX, f"{path}: over {FILE_LINES_MAX} lines; split it"
    assert path.stem not in BANNED_MODULE_NAMES, f"{path}: name the thing it holds"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_no_lock_file_names_a_registry() -> None:
    for path in tracked("requirements.txt", "package-lock.json", "Cargo.lock"):
        text = path.read_text()
        assert "https://" not in text.replace("https://opencollective.com", "").replace("https://github.com", ""), path
        assert "--index-url" not in text, path


def test_the_top_level_is_fixed() -> None:
    allowed = {
        *PACKAGES, "tests", "examples", "docs", "benchmarks", ".ci", "pyproject.toml", "README.md", "Makefile",
        "LICENSE", "ARCHITECTURE.md", "CHANGELOG.md", "requirements.txt", ".gitignore",
    }  # fmt: skip
    assert {path.relative_to(ROOT).parts[0] for path in tracked("")} <= allowed
