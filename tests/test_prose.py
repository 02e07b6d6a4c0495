"""The rule of plain English as far as a test can hold it: sentence length, banned openings and phrases, the glossary.

Held to it: the pages of the docs, README and ARCHITECTURE, the first sentence of each docstring, and what errors say. Not here:
whether a sentence is good; a reader says that.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, source_files, tracked

WORDS_MAX = 36
"""In a sentence. What is longer holds more than one idea."""

FIGURES = ("docs/reports/", "docs/project/decisions/", "benchmarks/", "CHANGELOG.md")
"""Lists of figures, and papers that are not rewritten."""

BANNED_OPENINGS = (
    "Note that",
    "It should be noted",
    "Basically",
    "Simply",
    "Of course",
    "Obviously",
    "Please",
    "In order to",
)

BANNED_PHRASES = {
    "cannot be meant": "say what is wrong with it",
    "does nothing twice": "say that a second call changes nothing",
    "was here before": "say that the clock was set back over it",
    "does as well": "say that it works, too",
    "with less than yours and an end": "say which rights it has, and when they end",
    "utilize": "use",
    "leverage": "use",
    "and/or": "say which",
}

SYNONYMS = {
    "cluster": "mesh",
    "leader": "the preferred proposer, or the voters",
    "canary": "the first stage",
    "namespace": "project, or environment",
    "tenant": "project",
    "privilege": "right",
    "whitelist": "the list of what is allowed",
    "blacklist": "the list of what is refused",
    "roll-out": "rollout",
    "roll-back": "rollback",
    "username": "name",
    "replica set": "the nodes that serve it",
    "shard": "lane, or partition",
    "consensus round": "slot",
    "microservice": "app",
    "deployment unit": "release",
}
"""Words for which the glossary has another; errors, help and the docs use the glossary's."""

_SYNONYM = re.compile(rf"\b(?:{'|'.join(SYNONYMS)})s?\b", re.IGNORECASE)

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(`])")


def sentences_of_page(text: str) -> Iterator[str]:
    """The sentences of a Markdown page: not its code, tables, headings and pictures; a line of code is one word."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip().startswith(("|", "#", "![")) or paragraph.startswith("    "):
            continue
        for item in re.split(r"\n(?=\s*(?:[-*]|\d+\.)\s)", paragraph):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "X", item))
            yield from filter(None, _SENTENCE.split(re.sub(r"\s+", " ", plain).strip()))


def first_sentences(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node)
            if said:
                first = re.sub(r"`[^`]*`", "X", said.split("\n\n")[0])
                yield _SENTENCE.split(re.sub(r"\s+", " ", first))[0]


def faults_of(sentence: str) -> list[str]:
    """What is wrong with a sentence, each with what to write instead."""
    texts = (
        [f"{len(sentence.split())} words, {WORDS_MAX} at most: {sentence}"] if len(sentence.split()) > WORDS_MAX else []
    )
    texts += [
        f"opens with {opening!r}: {sentence}" for opening in BANNED_OPENINGS if sentence.startswith(opening + " ")
    ]
    texts += [f"{phrase!r} ({better}): {sentence}" for phrase, better in BANNED_PHRASES.items() if phrase in sentence]
    return texts


def pages() -> list[Path]:
    return [path for path in tracked(".md") if not str(path.relative_to(ROOT)).startswith(FIGURES)]


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_plain_english(path: Path) -> None:
    assert [fault for sentence in sentences_of_page(path.read_text()) for fault in faults_of(sentence)] == []


def test_docstrings_and_messages_are_plain_english() -> None:
    texts = []
    for path in source_files():
        tree = ast.parse(path.read_text())
        texts += [f"{path}: {fault}" for sentence in first_sentences(tree) for fault in faults_of(sentence)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                texts += [
                    f"{path}:{node.lineno}: {phrase!r} ({better})"
                    for phrase, better in BANNED_PHRASES.items()
                    if phrase in node.value
                ]
    assert texts == []


def said_by(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What a module may say to a person: its texts of several words, and docstrings, which are the help of commands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def test_errors_and_help_use_the_words_of_the_glossary() -> None:
    texts = [
        f"{path.relative_to(ROOT)}:{line}: {word[0]!r}: say {SYNONYMS[word[0].lower().removesuffix('s')]}"
        for path in source_files()
        if path.relative_to(ROOT).parts[0] in {"cli", "node"}
        for line, text in said_by(ast.parse(path.read_text()))
        for word in _SYNONYM.finditer(text)
    ]
    assert texts == []
    glossary = (ROOT / "docs" / "project" / "glossary.md").read_text()
    assert not _SYNONYM.search(glossary), "a word cannot be banned and explained"
    (seen,) = said_by(ast.parse('raise CommandError("the Clusters are down")'))
    assert _SYNONYM.search(seen[1])


def test_the_check_sees_what_it_is_for() -> None:
    page = (
        "# Of a heading\n\nNote that it works. It leads on "
        + "and on " * 20
        + ".\n\n```\nPlease run\n```\n\n| Please |\n"
    )
    assert [len(faults_of(sentence)) for sentence in sentences_of_page(page)] == [1, 1]
    assert faults_of("This " + "word " * (WORDS_MAX - 1)) == []
    assert [len(faults_of(sentence)) for sentence in first_sentences(ast.parse('"""It does as well."""'))] == [1]
