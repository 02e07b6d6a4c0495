"""Where each key and list entry of a TOML document stands: line and column, by path.

Python's own parser gives values without positions, and the libraries that keep formatting keep no line numbers either,
so this walks the text once more. It reads only documents that `tomllib` has already accepted: no error handling, no
values, only the places. A test holds it against the parser: every path the parser yields has a place. Source: TOML 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class TextPosition:
    """A position in the file, both counted from 1."""

    line: int
    column: int


def locate(text: str) -> dict[KeyPath, TextPosition]:
    """Return the place of every table, key and list entry of a valid TOML document. Linear in the text."""
    return _Walk(text.replace("\r\n", "\n")).document()


class _Walk:
    """One pass over the text. `_at` is the offset of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._places: dict[KeyPath, TextPosition] = {(): TextPosition(1, 1)}
        self._list_lengths: dict[KeyPath, int] = {}
        self._line = 1
        self._line_start = 0
        self._counted = 0

    def document(self) -> dict[KeyPath, TextPosition]:
        header: KeyPath = ()
        self._skip_blank(newlines=True)
        while self._at < len(self._text):
            if self._peek() == "[":
                header = self._header()
            else:
                self._pair(header)
            self._skip_blank(newlines=True)
        return self._places

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _here(self) -> TextPosition:
        newlines = self._text.count("\n", self._counted, self._at)
        if newlines:
            self._line += newlines
            self._line_start = self._text.rindex("\n", self._counted, self._at) + 1
        self._counted = self._at
        return TextPosition(self._line, self._at - self._line_start + 1)

    def _skip_blank(self, *, newlines: bool) -> None:
        while (char := self._peek()) and (char in " \t" or (newlines and char in "\n#")):
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                self._at += 1

    def _header(self) -> KeyPath:
        is_list = self._text.startswith("[[", self._at)
        self._at += 2 if is_list else 1
        self._skip_blank(newlines=False)
        place = self._here()
        path = self._resolve(self._key(), whole=not is_list)
        self._skip_blank(newlines=False)
        self._at += 2 if is_list else 1
        self._mark(path, place)
        if is_list:
            entry = self._list_lengths.get(path, 0)
            self._list_lengths[path] = entry + 1
            path = (*path, entry)
            self._mark(path, place)
        return path

    def _resolve(self, keys: Sequence[str], *, whole: bool) -> KeyPath:
        """Step into the last entry of every list of tables on the way; the last key too if `whole`."""
        path: KeyPath = ()
        for index, key in enumerate(keys):
            path = (*path, key)
            if path in self._list_lengths and (whole or index < len(keys) - 1):
                path = (*path, self._list_lengths[path] - 1)
        return path

    def _mark(self, path: KeyPath, place: TextPosition) -> None:
        for length in range(1, len(path) + 1):
            self._places.setdefault(path[:length], place)

    def _pair(self, parent: KeyPath) -> None:
        place = self._here()
        path = (*parent, *self._key())
        self._mark(path, place)
        self._skip_blank(newlines=False)
        self._at += 1  # the equals sign
        self._skip_blank(newlines=False)
        self._value(path)

    def _key(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip_blank(newlines=False)
            if self._peek() in {'"', "'"}:
                keys.append(self._string())
            else:
                start = self._at
                while self._peek() in _BARE and self._peek():
                    self._at += 1
                keys.append(self._text[start : self._at])
            self._skip_blank(newlines=False)
            if self._peek() != ".":
                return keys
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        match self._peek():
            case '"' | "'":
                self._string()
            case "[":
                self._list(path)
            case "{":
                self._inline_table(path)
            case _:
                while (char := self._peek()) and char not in ",]}#\n":
                    self._at += 1

    def _list(self, path: KeyPath) -> None:
        self._at += 1
        entry = 0
        while True:
            self._skip_blank(newlines=True)
            if self._peek() == "]":
                self._at += 1
                return
            self._mark((*path, entry), self._here())
            self._value((*path, entry))
            entry += 1
            self._skip_blank(newlines=True)
            if self._peek() == ",":
                self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while True:
            self._skip_blank(newlines=True)
            if self._peek() == "}":
                self._at += 1
                return
            self._pair(path)
            self._skip_blank(newlines=True)
            if self._peek() == ",":
                self._at += 1

    def _string(self) -> str:
        quote = self._peek()
        delimiter = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(delimiter)
        start = self._at
        while not self._text.startswith(delimiter, self._at):
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        end = self._at
        self._at += len(delimiter)
        # Up to two quotes may stand directly before the closing three.
        while len(delimiter) == 3 and self._peek() == quote:
            self._at += 1
            end += 1
        body = self._text[start:end]
        return _unescape(body) if quote == '"' and len(delimiter) == 1 else body


def _unescape(body: str) -> str:
    """Resolve the escapes of a quoted key."""
    if "\\" not in body:
        return body
    parts: list[str] = []
    position = 0
    while position < len(body):
        if body[position] != "\\":
            parts.append(body[position])
            position += 1
            continue
        letter = body[position + 1]
        digits = {"u": 4, "U": 8}.get(letter, 0)
        parts.append(chr(int(body[position + 2 : position + 2 + digits], 16)) if digits else _ESCAPES[letter])
        position += 2 + digits
    return "".join(parts)
