"""Text from elsewhere: the type it has here, and the one way in which it is shown.

Whatever a peer, a person or a guest wrote may hold control characters, newlines where one line is meant, marks that turn
the direction of text, characters without a width, and letters that look like other letters. Each becomes its code point in
angle brackets. Answers of a node are `foreign` as they are read: what needs it is `Foreign`, a text that is harmless
already and which alone knows what was written, so that no view has to think of it. `Output` disarms whatever it writes once
more; JSON for programs has each character, escaped (`json_text`); for models, `visible`. A test holds that nobody writes
to a terminal beside `Output`. Not here: what is written.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Self

import msgspec

LINE_MAX_CHARS = 2_000
"""Of one line of foreign text where one line is meant: a screen has fewer."""

INDENT = "  | "
"""Before each further line of foreign text: a line that begins so was not written by this program."""

STACKED_MAX = 2
"""Marks above and below one letter, as some scripts need; more of them cover other lines."""

_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Me"})
"""Categories of characters that have no shape of their own: controls, formats (bidirectional marks), line separators; and
marks that cover what is around them."""

_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\u17b4\u17b5")
"""Letters and symbols that show nothing."""

_LOOKING_LATIN = frozenset({"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU", "DESERET", "OSAGE", "VAI"})
"""Scripts with letters that look like Latin ones: nobody writes a word in one of them and in Latin."""

_WORD = re.compile(r"[^\W_]+")


class Foreign(str):
    """Text from elsewhere that is not harmless as it is. As a `str` it is what may be shown: printed, cut, joined, compared.

    `raw` is what was written, for JSON and for sending on: `plain` and `json_text` take it.
    """

    __slots__ = ("raw",)
    raw: str

    def __new__(cls, raw: str) -> Self:
        """Take the text as it came."""
        answer = super().__new__(cls, quoted(raw))
        answer.raw = raw
        return answer


def foreign(value: object) -> Any:
    """Return a decoded answer of a node whose texts are `Foreign` where they need it, keys among them."""
    match value:
        case str():
            return value if type(value) is not str or quoted(value) == value else Foreign(value)
        case list():
            return [foreign(entry) for entry in value]
        case dict():
            return {foreign(key): foreign(entry) for key, entry in value.items()}
        case _:
            return value


def visible(value: object) -> Any:
    """Return a JSON value whose texts are harmless: for a model or a page, which read no code points."""
    match value:
        case str():
            return harmless(plain(value))
        case list() | tuple():
            return [visible(entry) for entry in value]
        case dict():
            return {harmless(plain(key)): visible(entry) for key, entry in value.items()}
        case _:
            return value


def plain(value: object) -> Any:
    """Return text, a Struct, or a JSON value, as it came: to be sent or kept, not to be shown. It is msgspec's `enc_hook`, too.

    Raises TypeError for what is no JSON.
    """
    match value:
        case Foreign():
            return value.raw
        case str() | int() | float() | None:
            return value
        case list() | tuple():
            return [plain(entry) for entry in value]
        case Mapping():
            return {plain(key): plain(entry) for key, entry in value.items()}
        case msgspec.Struct():
            return builtins_of(value)
        case _:
            raise TypeError(f"{type(value).__name__} is no JSON")


def for_model(made: object) -> bytes:
    """Return a Struct or a JSON value as JSON for a model, which reads what a person would not see."""
    return msgspec.json.encode(visible(builtins_of(made)))


def builtins_of(made: object) -> Any:
    """Return a Struct as a JSON value, its texts as they came."""
    return msgspec.to_builtins(made, enc_hook=plain)


def json_text(value: object, indent: int | None = None) -> str:
    """Return a value as JSON, whole, and with nothing in it that acts on a terminal: such characters are escaped."""
    return escaped(json.dumps(plain(value), indent=indent, ensure_ascii=False))


def escaped(text: str) -> str:
    """Return a text of JSON with the characters escaped that would act on a terminal: it is the same value."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(_escaped(entry) if entry != "\n" and _acts(entry) else entry for entry in text)


def _escaped(one: str) -> str:
    return json.dumps(one)[1:-1].replace("\x7f", "\\u007f")


def harmless(text: str) -> str:
    """Return text of several lines with everything but its newlines made visible."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    marked = _look_alikes(text)
    shown, stacked = [], 0
    for index, entry in enumerate(text):
        stacked = stacked + 1 if unicodedata.category(entry) == "Mn" else 0
        hidden = index in marked or _acts(entry) or stacked > STACKED_MAX
        shown.append(f"<{ord(entry):04X}>" if hidden and entry != "\n" else entry)
    return "".join(shown)


def one_line(text: str) -> str:
    """Return foreign text for a place where one line is meant: newlines, too, are made visible; the rest is cut off."""
    cut = text if len(text) <= LINE_MAX_CHARS else f"{text[:LINE_MAX_CHARS]}<...>"
    return harmless(cut).replace("\n", "<000A>")


def quoted(text: str) -> str:
    """Return foreign text of several lines so that no line of it can be taken for this program's own."""
    first, *more = harmless(text).split("\n")
    return "\n".join((first, *(INDENT + line for line in more)))


def _acts(one: str) -> bool:
    return unicodedata.category(one) in _ACTING or one in _BLANK or "\ufe00" <= one <= "\ufe0f"


def _look_alikes(text: str) -> set[int]:
    """Where letters, digits and blanks stand that look like others: forms of ASCII, and other scripts in a Latin word."""
    numbers = {
        index
        for index, entry in enumerate(text)
        if not entry.isascii()
        and unicodedata.category(entry) in {"Lu", "Ll", "Lt", "Lm", "Nd", "Zs"}
        and unicodedata.normalize("NFKC", entry).isascii()
    }
    for word in _WORD.finditer(text):
        scripts = {_script(text) for text in word[0]}
        if "LATIN" in scripts and not scripts.isdisjoint(_LOOKING_LATIN):
            numbers |= {index for index in range(*word.span()) if _script(text[index]) in _LOOKING_LATIN}
    return numbers


def _script(letter: str) -> str:
    if letter.isascii():
        return "LATIN" if letter.isalpha() else ""
    return unicodedata.name(letter, "").partition(" ")[0]
