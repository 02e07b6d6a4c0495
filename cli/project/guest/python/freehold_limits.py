"""Limits that a guest's interpreter has to keep itself, since the sandbox can only end it. Runs only inside the sandbox.

A deep enough JSON text would use up the guest's stack, which ends the instance with all it holds. Not here: memory and
time, which the node limits.
"""

from __future__ import annotations

import json.decoder
import json.scanner
import re

JSON_DEPTH_MAX = 1000
"""As deep as Python's own functions may call each other, by default."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


class TooDeep(RecursionError, ValueError):
    """JSON nested too deeply: a RecursionError, and an error of the text as frameworks catch it."""


def depth_of(text: str, start: int) -> int:
    """Return how deep the JSON text nests from `start`, without reading it as JSON."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text, start):
        first = match[0][0]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > JSON_DEPTH_MAX:
                break
        elif first in "]}":
            depth -= 1
    return deepest


def install() -> None:
    """Make every JSON decoder made from now on refuse what is too deep for the guest's stack."""
    made = json.scanner.make_scanner

    def make_scanner(context):
        scan = made(context)

        def scan_once(text, start):
            if text.count("[") + text.count("{") > JSON_DEPTH_MAX and depth_of(text, start) > JSON_DEPTH_MAX:
                raise TooDeep(f"the JSON text nests deeper than {JSON_DEPTH_MAX}")
            return scan(text, start)

        return scan_once

    json.scanner.make_scanner = make_scanner
    json._default_decoder = json.decoder.JSONDecoder()
