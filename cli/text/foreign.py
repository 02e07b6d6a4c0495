"""Text from elsewhere on a terminal: what would act on the terminal, or look like something else, is shown as what it is.

Whatever a peer, a person or a guest wrote may hold control characters, newlines where one line is meant, marks that turn
the direction of text, and characters without a width. Each becomes its code point in angle brackets. Everything that
`Output` writes for people passes through here; where one line is meant, `one_line` does more. Not here: answers for
programs, which JSON escapes.
"""

from __future__ import annotations

import unicodedata

LINE_MAX_CHARS = 2_000
"""Of one line of foreign text where one line is meant: a screen has fewer."""

INDENT = "  | "
"""Before each further line of foreign text: a line that begins so was not written by this program."""

_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Categories of characters that have no shape of their own: controls, formats (bidirectional marks), line separators."""


def harmless(text: str) -> str:
    """Return text of several lines with everything but its newlines made visible."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(one if one == "\n" or not _acts(one) else f"<{ord(one):04X}>" for one in text)


def one_line(text: str) -> str:
    """Return foreign text for a place where one line is meant: newlines, too, are made visible; the rest is cut off."""
    cut = text if len(text) <= LINE_MAX_CHARS else f"{text[:LINE_MAX_CHARS]}<...>"
    return harmless(cut).replace("\n", "<000A>")


def quoted(text: str) -> str:
    """Return foreign text of several lines so that no line of it can be taken for this program's own."""
    first, *more = harmless(text).split("\n")
    return "\n".join((first, *(INDENT + line for line in more)))


def _acts(one: str) -> bool:
    return unicodedata.category(one) in _ACTING
