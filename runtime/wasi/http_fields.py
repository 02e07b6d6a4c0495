"""The `fields` resource of wasi:http/types: headers and trailers, with syntax, forbidden names and immutability.

Names are lower-cased, as HTTP/2 and wasmtime do. Sources: wasi:http 0.2 WIT; RFC 9110 sections 5.1, 5.5, 7.6.1.
Not here: what fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.exchange import Headers

FORBIDDEN: Final = frozenset(
    {
        "connection", "host", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Fields of the connection, not of the message: the host's business. The same set as wasmtime's."""

FIELDS_MAX: Final = 1_024
"""Entries in one `fields`."""
FIELDS_MAX_BYTES: Final = 128 * 1024
"""Names and values in one `fields`."""

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

INVALID_SYNTAX: Final = Err(("invalid-syntax", None))
FORBIDDEN_NAME: Final = Err(("forbidden", None))
IMMUTABLE: Final = Err(("immutable", None))
TOO_BIG: Final = INVALID_SYNTAX
"""`header-error` has no case for size in 0.2."""


class Fields(Resource, wit="fields", aliases=("headers", "trailers")):
    """An ordered multimap of lower-case names."""

    __slots__ = ("entries", "mutable", "size")

    def __init__(self, entries: Iterable[tuple[str, bytes]] = (), *, mutable: bool = True) -> None:
        super().__init__()
        self.entries = list(entries)
        self.mutable = mutable
        self.size = sum(len(name) + len(value) for name, value in self.entries)

    def add(self, name: str, value: bytes) -> Err | None:
        """Append one entry after all checks."""
        lowered = _checked(name)
        if isinstance(lowered, Err):
            return lowered
        if not _VALUE.fullmatch(value):
            return INVALID_SYNTAX
        if not self.mutable:
            return IMMUTABLE
        self.size += len(name) + len(value)
        if self.size > FIELDS_MAX_BYTES or len(self.entries) >= FIELDS_MAX:
            self.size -= len(name) + len(value)
            return TOO_BIG
        self.entries.append((lowered, value))
        return None

    def remove(self, name: str) -> None:
        """Remove every entry of a lower-case name."""
        self.entries = [entry for entry in self.entries if entry[0] != name]
        self.size = sum(len(name) + len(value) for name, value in self.entries)

    def frozen(self) -> Headers:
        """The entries as the host passes them on."""
        return tuple(self.entries)


def incoming(headers: Headers) -> Fields:
    """Return what a guest may see of fields from outside: immutable, without the connection's own."""
    return Fields([entry for entry in headers if entry[0] not in FORBIDDEN], mutable=False)


def content_length(headers: Iterable[tuple[str, bytes]]) -> int | None:
    """Return the declared length, None if there is none; raises ValueError on one that is no number or differs."""
    lengths = {value.strip() for name, value in headers if name == "content-length"}
    if not lengths:
        return None
    if len(lengths) > 1 or not (only := lengths.pop()).isdigit() or len(only) > 19:
        raise ValueError("content-length is not one number")
    return int(only)


def _checked(name: str) -> str | Err:
    if not _NAME.fullmatch(name):
        return INVALID_SYNTAX
    lowered = name.lower()
    return FORBIDDEN_NAME if lowered in FORBIDDEN else lowered


def add_functions(types: Interface) -> None:
    """Register the functions with wasi:http/types."""
    for name, function in (
        ("[constructor]fields", _constructor),
        ("[static]fields.from-list", _from_list),
        ("[method]fields.get", _get),
        ("[method]fields.has", _has),
        ("[method]fields.set", _set),
        ("[method]fields.delete", _delete),
        ("[method]fields.append", _append),
        ("[method]fields.entries", _entries),
        ("[method]fields.clone", _clone),
    ):
        types.functions[name] = function


def _constructor(guest: Guest) -> Fields:
    return Fields()


def _from_list(guest: Guest, entries: list[tuple[str, bytes]]) -> Fields | Err:
    fields = Fields()
    for name, value in entries:
        refused = fields.add(name, value)
        if refused is not None:
            return refused
    return fields


def _get(guest: Guest, this: Fields, name: str) -> list[bytes]:
    lowered = name.lower()
    return [value for key, value in this.entries if key == lowered]


def _has(guest: Guest, this: Fields, name: str) -> bool:
    lowered = name.lower()
    return any(key == lowered for key, _ in this.entries)


def _set(guest: Guest, this: Fields, name: str, values: list[bytes]) -> Err | None:
    lowered = _checked(name)
    if isinstance(lowered, Err):
        return lowered
    if not all(_VALUE.fullmatch(value) for value in values):
        return INVALID_SYNTAX
    if not this.mutable:
        return IMMUTABLE
    this.remove(lowered)
    for value in values:
        refused = this.add(lowered, value)
        if refused is not None:
            return refused
    return None


def _delete(guest: Guest, this: Fields, name: str) -> Err | None:
    lowered = _checked(name)
    if isinstance(lowered, Err):
        return lowered
    if not this.mutable:
        return IMMUTABLE
    this.remove(lowered)
    return None


def _append(guest: Guest, this: Fields, name: str, value: bytes) -> Err | None:
    return this.add(name, value)


def _entries(guest: Guest, this: Fields) -> list[tuple[str, bytes]]:
    return this.entries


def _clone(guest: Guest, this: Fields) -> Fields:
    return Fields(this.entries)
