"""From the text of a freehold.toml to a `ProjectFile`, or to every problem found, each with its place.

Pure but for `load`: text in, values out, never an exception for what a file may hold. Work and memory are bounded by
the caps below. Not here: which keys exist (`schema.py`) and what one value means (`kinds.py`).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.project.kinds import LIST_ITEMS_MAX, ValueRefusedError, describe, shorten
from cli.project.locate import KeyPath, TextPosition, locate
from cli.project.model import ProjectFile
from cli.project.rules import build_project
from cli.project.schema import FILE, Either, Field, Listed, Named, Shape, Table, allowed

FILE_NAME: Final = "freehold.toml"

FILE_MAX_BYTES: Final = 64 * 1024
"""A hundred apps fit; more is generated text that belongs elsewhere."""

LINE_CHARS_MAX: Final = 1000
"""The TOML parser's work grows with the square of a dotted key's depth, and a key cannot span lines."""

PROBLEMS_MAX: Final = 20
"""Problems reported at once: more is noise, and the first ones explain the rest."""


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One thing wrong in the file. `key` is the dotted path, "" for the file itself; `allowed` may be empty."""

    line: int
    column: int
    key: str
    message: str
    allowed: str = ""
    suggestion: str = ""

    def sentence(self, file_name: str = FILE_NAME) -> str:
        """Return it as one line, in the form editors and terminals make clickable."""
        key = f" {self.key}" if self.key else ""
        suggestion = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        permitted = f" (allowed: {self.allowed})" if self.allowed else ""
        return f"{file_name}:{self.line}:{self.column}:{key} {self.message}{suggestion}{permitted}"


class ProjectFileError(Exception):
    """The file cannot be used; `problems` says why, in the order of the file, at most `PROBLEMS_MAX`."""

    def __init__(self, problems: Iterable[FileProblem], file_name: str = FILE_NAME) -> None:
        file_problems = sorted(problems, key=lambda problem: (problem.line, problem.column))
        self.left_off = max(0, len(file_problems) - PROBLEMS_MAX)
        self.problems = tuple(file_problems[:PROBLEMS_MAX])
        lines = [problem.sentence(file_name) for problem in self.problems]
        super().__init__("\n".join([*lines, *([f"... and {self.left_off} more"] if self.left_off else [])]))


def load(path: Path) -> tuple[ProjectFile, str]:
    """Read the file at `path`; return the project and the exact text. Raises `ProjectFileError` and `OSError`."""
    with path.open("rb") as file:
        raw = file.read(FILE_MAX_BYTES + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProjectFileError([FileProblem(line, 1, "", "is not UTF-8 text here")], str(path.name)) from None
    return parse(text), text


def parse(text: str) -> ProjectFile:
    """Return the project that `text` describes, or raise `ProjectFileError` with every problem found."""
    document, places = _read(text)
    checker = _Checker(places)
    values = checker.table(FILE, document, ())
    project = build_project(values, checker.complain) if not checker.problems else None
    if project is None or checker.problems:
        raise ProjectFileError(checker.problems)
    return project


def _read(text: str) -> tuple[dict[str, object], dict[KeyPath, TextPosition]]:
    """Parse the TOML and locate its keys."""
    if len(text.encode("utf-8", "surrogatepass")) > FILE_MAX_BYTES:
        raise ProjectFileError([FileProblem(1, 1, "", f"is larger than {FILE_MAX_BYTES // 1024} KiB")])
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LINE_CHARS_MAX:
            message = f"this line has {len(line)} characters; the limit is {LINE_CHARS_MAX}"
            raise ProjectFileError([FileProblem(number, LINE_CHARS_MAX + 1, "", message)])
    try:
        return tomllib.loads(text), locate(text)
    except RecursionError:
        raise ProjectFileError([FileProblem(1, 1, "", "is nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise ProjectFileError([_syntax_problem(text, str(error))]) from None


def _syntax_problem(text: str, message: str) -> FileProblem:
    match = re.search(r"^(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)$", message, re.DOTALL)
    if match is None:
        return FileProblem(1, 1, "", f"is not TOML: {message}")
    said = match[1][:1].lower() + match[1][1:]
    if match[2] is None:
        lines = text.rstrip("\n").split("\n")
        return FileProblem(len(lines), len(lines[-1]) + 1, "", f"is not TOML: {said} at the end of the file")
    return FileProblem(int(match[2]), int(match[3]), "", f"is not TOML: {said}")


class _Checker:
    """Walks the schema and the document together and gathers problems."""

    def __init__(self, places: Mapping[KeyPath, TextPosition]) -> None:
        self.problems: list[FileProblem] = []
        self._places = places

    def complain(self, path: KeyPath, message: str, permitted: str = "", suggestion: str = "") -> None:
        """Record a problem at `path`, or at the nearest table above it that stands in the file."""
        position = path
        while position not in self._places:
            position = position[:-1]
        place = self._places[position]
        self.problems.append(FileProblem(place.line, place.column, dotted(path), message, permitted, suggestion))

    def table(self, table: Table, value: object, path: KeyPath) -> dict[str, object]:
        """Read a table with fixed keys; absent keys are left out."""
        document: dict[str, object] = {}
        if not isinstance(value, dict):
            self.complain(path, f"is {describe(value)}, not a table", allowed(table))
            return document
        known = [field.key for field in table.fields]
        for key, item in value.items():
            field = table.field(key)
            if field is None:
                close = difflib.get_close_matches(key[:60], known, n=1, cutoff=0.6)
                self.complain((*path, key), "is not a key here", ", ".join(known), close[0] if close else "")
            else:
                document[key] = self.value(field.shape, item, (*path, key))
        self._missing(table.fields, value, path)
        return document

    def _missing(self, fields: Iterable[Field], value: Mapping[str, object], path: KeyPath) -> None:
        for field in fields:
            if field.required and field.key not in value:
                self.complain((*path, field.key), "is missing", allowed(field.shape))

    def value(self, shape: Shape, value: object, path: KeyPath) -> object:
        """Read one value of any shape; None after a problem."""
        match shape:
            case Table():
                return self.table(shape, value, path)
            case Named():
                return self._named(shape, value, path)
            case Listed():
                return self._listed(shape, value, path)
            case Either(short, table, key):
                if isinstance(value, dict):
                    return self.table(table, value, path)
                return {key: self.value(short, value, path)}
            case _:
                try:
                    return shape.read(value)
                except ValueRefusedError as error:
                    self.complain(path, str(error), shape.allowed)
                    return None

    def _named(self, shape: Named, value: object, path: KeyPath) -> dict[str, object]:
        if not isinstance(value, dict):
            self.complain(path, f"is {describe(value)}, not a table", allowed(shape))
            return {}
        if len(value) > LIST_ITEMS_MAX:
            self.complain(path, f"has {len(value)} entries; the limit is {LIST_ITEMS_MAX}")
            return {}
        table: dict[str, object] = {}
        for key, item in value.items():
            try:
                shape.name.read(key)
            except ValueRefusedError:
                self.complain((*path, key), "is not a usable name", shape.name.allowed)
            else:
                table[key] = self.value(shape.value, item, (*path, key))
        return table

    def _listed(self, shape: Listed, value: object, path: KeyPath) -> tuple[object, ...]:
        if not isinstance(value, list):
            self.complain(path, f"is {describe(value)}, not a list", allowed(shape))
            return ()
        if not shape.low <= len(value) <= LIST_ITEMS_MAX:
            self.complain(path, f"has {len(value)} entries; {shape.low} to {LIST_ITEMS_MAX} are allowed")
            return ()
        return tuple(self.value(shape.value, item, (*path, index)) for index, item in enumerate(value))


def dotted(path: KeyPath) -> str:
    """Write a path as the developer would: app.web.routes[0]."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", step) is not None
            parts.append(("." if parts else "") + (step if bare else shorten(step)))
    return "".join(parts)
