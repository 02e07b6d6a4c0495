"""How a host interface is written down: its name, the versions it serves, its functions.

A component imports instances such as `wasi:io/streams@0.2.9`; each is served by the `Interface` whose name and versions
fit. Not here: which interfaces there are (`runtime/wasi/`) or how they reach a component (`linking.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from runtime.engine.spanned import spanned

HostFunction = Callable[..., Any]
"""(guest, lifted arguments...) -> value to lower, or `codecs.Err`."""

_F = TypeVar("_F", bound=HostFunction)

WASI_0_2: Final = re.compile(r"0\.2\.(0|[1-9][0-9]*)")
"""Every released patch version of WASI 0.2; they only ever add."""


class Interface:
    """One WIT interface as the host serves it. `absent` stands in for functions no guest can ever reach.

    Calls of an interface with a `system` leave spans under that name, but for functions that are `quiet`: they touch no
    store.
    """

    def __init__(
        self, name: str, versions: re.Pattern[str] = WASI_0_2, absent: HostFunction | None = None, *,
        system: str = "", quiet: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.name = name
        self.versions = versions
        self.functions: dict[str, HostFunction] = {}
        self.absent = absent
        self._system, self._quiet = system, quiet

    def serves(self, version: str) -> bool:
        """Whether `version`, as it stands after the @ of an import, is one of ours."""
        return self.versions.fullmatch(version) is not None

    def function(self, name: str) -> Callable[[_F], _F]:
        """Register the decorated function under its WIT name, such as `[method]fields.get`."""

        def register(function: _F) -> _F:
            self.functions[name] = function
            return function

        return register

    def find(self, name: str) -> HostFunction | None:
        """Return the function, or the stand-in, or None when the interface has no such function."""
        function = self.functions.get(name, self.absent)
        if function is None or not self._system or name in self._quiet:
            return function
        return spanned(function, self._system, name)


def split_import(name: str) -> tuple[str, str]:
    """Split `wasi:io/streams@0.2.9` into name and version; the version is empty when there is none."""
    base, _, version = name.partition("@")
    return base, version
