"""The style as a test: module docstrings, sizes, banned names, the fixed top level. Not: what ruff and mypy check."""

from __future__ import annotations

import ast
import re
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
    texts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            texts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            texts |= names & modules.keys()
            if not names <= modules.keys():
                texts.add(node.module)
    return {name for name in texts if name in modules and modules[name] != path}


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
    table: dict[str, list[str]] = {}
    for name, text in sources.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                table.setdefault(node.name, []).append(name)
    return {name: files for name, files in table.items() if len(files) > 1}


def test_one_word_is_one_thing() -> None:
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in source_files()}
    assert {name: files for name, files in defined_twice(sources).items() if name not in TWO_MEANINGS} == {}
    assert defined_twice({"a.py": "class Run: ...\nclass _One: ...", "b.py": "class Run: ...\nclass _One: ..."}) == {
        "Run": ["a.py", "b.py"]
    }


HARNESS_WORDS: dict[str, str] = {
    **dict.fromkeys(
        ("Machine", "Fleet", "FleetConfig", "Node", "Site", "World", "Quiet"),
        "what a harness runs: whole nodes, or machines alone in virtual time; each harness has its own",
    ),
    **dict.fromkeys(
        ("Answer", "Received", "Client", "Stream", "Page", "Booted", "Ended", "Held", "Tally", "Target", "Side"),
        "the same idea seen from outside by a test, which must not use the product's type for it",
    ),
    **dict.fromkeys(
        ("Disk", "SystemEntropy", "SeededEntropy", "Guest", "Case", "Load", "Row", "Shown"),
        "a stand-in, or a row of a table of one test or benchmark",
    ),
}
"""Names of classes of the product, or of another harness, that support code of tests and benchmarks has, with why."""


def test_support_code_has_no_further_words_of_two_meanings() -> None:
    support = [
        path
        for path in files_of_tests()
        if path.relative_to(ROOT).parts[:2] == ("tests", "support") or "benchmarks" in path.parts
    ]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in (*source_files(), *support)}
    assert defined_twice(sources).keys() == HARNESS_WORDS.keys(), "name the new one apart, or take the old one out"


LED_ON = {"cli/project/registry.py": "a registry keeps its blobs elsewhere; their digest says what they are"}
"""Files in which an answer may lead a request to another address, each with why."""


def led_on(text: str) -> list[str]:
    """The requests of a program that go where an answer leads them: aiohttp's own default."""
    verbs = {"get", "post", "put", "patch", "delete", "head", "request"}
    opened = [
        item.context_expr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AsyncWith)
        for item in node.items
    ]
    return [
        ast.unparse(call)
        for call in opened
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in verbs
        if not any(keyword.arg == "allow_redirects" for keyword in call.keywords)
    ]


def test_no_request_goes_where_an_answer_leads_it() -> None:
    led = {str(path.relative_to(ROOT)): led_on(path.read_text()) for path in source_files()}
    assert {name: calls for name, calls in led.items() if calls}.keys() == LED_ON.keys()
    near = "async with session.{}:\n    ..."
    assert led_on(near.format("post(url, data=b)")) == ["session.post(url, data=b)"]
    assert led_on(near.format("get(url, allow_redirects=False)")) == []


def test_the_command_line_reads_answers_by_their_types() -> None:
    untyped = re.compile(r"client\.(?:get|post)\(")
    paths = [path for path in source_files() if path.is_relative_to(ROOT / "cli") and untyped.search(path.read_text())]
    assert paths == [], "use NodeClient.read and send, with a body of protocols/api_models.py"
    assert untyped.search("await self._client.get('/v1/node')")
    assert not untyped.search("client.get_bytes('/v1/state')")


LIBRARY_ALIASES = {"wasmtime.component as wc"}
"""The product's only names for what is called otherwise: that of a library, which would hide our own word."""


def import_aliases(source: str) -> list[str]:
    return [
        f"{f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''}{alias.name} as {alias.asname}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]


def test_what_is_imported_keeps_its_name() -> None:
    aliases = {alias for path in source_files() for alias in import_aliases(path.read_text())}
    assert aliases == LIBRARY_ALIASES, "rename the thing itself, so that it has one name everywhere"
    assert import_aliases("from cli.access import contexts as home") == ["cli.access.contexts as home"]
    assert import_aliases("import json\nfrom cli.access import contexts") == []


MODULE_NAMED = re.compile(r"(?<![\w./*-])([a-z_][\w/]*\.py)\b")


def test_a_docstring_that_names_a_module_names_one_that_is_there() -> None:
    there = {str(path.relative_to(ROOT)) for path in tracked(".py")}
    tails = {"/".join(parts[start:]) for parts in (name.split("/") for name in there) for start in range(len(parts))}
    gone = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*source_files(), *files_of_tests())
        for name in MODULE_NAMED.findall(ast.get_docstring(ast.parse(path.read_text())) or "")
        if name not in tails
    ]
    assert gone == []
    assert MODULE_NAMED.findall("asking (api/views.py), `gone.py`; not `x/*.py`") == ["api/views.py", "gone.py"]


def test_no_lock_file_names_a_registry() -> None:
    for path in tracked("requirements.txt", "package-lock.json", "Cargo.lock", "crates.lock"):
        text = path.read_text()
        assert "https://" not in text.replace("https://opencollective.com", "").replace("https://github.com", ""), path
        assert "--index-url" not in text, path
        assert "registry+" not in text, path


def test_the_top_level_is_fixed() -> None:
    allowed = {
        *PACKAGES, "tests", "examples", "docs", "benchmarks", ".ci", ".github", ".pre-commit-config.yaml",
        "pyproject.toml", "README.md", "Makefile",
        "LICENSE", "ARCHITECTURE.md", "CHANGELOG.md", "requirements.txt", ".gitignore",
    }  # fmt: skip
    assert {path.relative_to(ROOT).parts[0] for path in tracked("")} <= allowed
