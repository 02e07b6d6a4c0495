"""What loops take and what assignments make is named by its noun. Not here: other style (test_tidy.py)."""

from __future__ import annotations

import ast

import pytest

from tests.test_tidy import ROOT, files_of_tests, source_files

FILLERS = frozenset({"one", "found", "made", "at", "kept", "given", "each"})
"""Words that say nothing of what they hold; parameters may have them, where the callee's name says the noun."""

STANDALONE = ("fixtures", "guests", "walks")
"""Folders of tests whose files are material: programs of guests, and programs as their users write them."""


def filler_names(tree: ast.AST, parameters: frozenset[str] = frozenset()) -> list[tuple[int, str]]:
    """Return the line and name of each loop variable or assigned variable that is a filler.

    A field of a class is read as `concern.kept`, and a parameter as `until(at=...)`: beside the noun, so both may stay.
    """
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        parameters = parameters | {node.arg for node in ast.walk(tree.args) if isinstance(node, ast.arg)}
    named: list[tuple[int, str]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(tree, ast.ClassDef) and isinstance(node, ast.AnnAssign):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in FILLERS - parameters:
            named.append((node.lineno, node.id))
        named += filler_names(node, parameters)
    return sorted(named)


@pytest.mark.parametrize(
    "text",
    [
        "for one in nodes: pass",
        "[at for at in slots]",
        "found = 1",
        "if (made := f()): pass",
        "with f() as one: pass",
        "def f(at):\n kept = at",
    ],
)
def test_a_filler_is_seen(text: str) -> None:
    assert len(filler_names(ast.parse(text))) == 1


@pytest.mark.parametrize(
    "text", ["for node in nodes: pass", "def found(at):\n at += 1", "one()", "self.at = 1", "class A:\n at: int"]
)
def test_what_has_its_noun_is_left_alone(text: str) -> None:
    assert filler_names(ast.parse(text)) == []


def test_loops_and_assignments_name_what_they_hold() -> None:
    paths = [path for path in [*source_files(), *files_of_tests()] if not set(STANDALONE) & set(path.parts)]
    refused = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in paths
        for line, name in filler_names(ast.parse(path.read_text()))
    ]
    assert refused == [], f"name what it holds; {sorted(FILLERS)} say nothing of it"
