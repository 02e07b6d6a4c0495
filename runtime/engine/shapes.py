"""The types of every function the host serves, as shapes (`codecs.py`), read from `shapes.json`.

A component whose import, or entry, has another shape is refused before it runs: host functions rely on the types of
what they are given. Source: the WIT of WASI 0.2.12 and of the drafts in `wasi/services.py`, as wasmtime resolves them;
names beginning with $ stand for the longer types at the top of the file. Not here: what the functions do.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from runtime.engine.interface import split_import

_NAME = re.compile(r"\$([a-z-]+)")


@cache
def _shapes() -> dict[str, dict[str, str]]:
    content = json.loads(Path(__file__).with_suffix(".json").read_bytes())
    types: dict[str, str] = content["types"]
    return {
        interface: {name: _NAME.sub(lambda match: types[match[1]], shape) for name, shape in functions.items()}
        for interface, functions in content["functions"].items()
    }


def shape_of(interface: str, function: str) -> str | None:
    """Return the shape of a function of an interface, given as a component names it; None if there is no such one.

    Drafts are listed under their full names, since their types differ; 0.2 releases under the bare one.
    """
    shapes = _shapes()
    return (shapes.get(interface) or shapes.get(split_import(interface)[0], {})).get(function)
