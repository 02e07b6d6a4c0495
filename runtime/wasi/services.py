"""wasi:config, wasi:keyvalue and wasi:logging over the app's services.

Two drafts of wasi:keyvalue are in use and differ in types, not in names: 0.2.0-draft (numeric cursor, unsigned
increment, no compare-and-swap) and 0.2.0-draft2 (text cursor, signed increment, `cas`). Both are served. wasi:config
0.2.0-draft calls its interface `runtime`, 0.2.0-rc.1 `store`. Sources: the WIT of WebAssembly/wasi-keyvalue,
wasi-config and wasi-logging.
Not here: where values live (`runtime/services/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.providers import Bucket, ProviderError

KEY_MAX_BYTES: Final = 1024
"""UTF-8 bytes of one key."""
VALUE_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one value; it crosses whole, one component value per byte."""
BATCH_MAX: Final = 1_000
"""Keys of one batch operation."""

KEYVALUE: Final = "freehold.keyvalue"
"""What spans call it."""

_DRAFT1: Final = re.compile(r"0\.2\.0-draft")
_DRAFT2: Final = re.compile(r"0\.2\.0-draft2")
_CONFIG: Final = re.compile(r"0\.2\.0-(draft|rc\.[0-9]+)|0\.2\.(0|[1-9][0-9]*)")
_LOGGING: Final = re.compile(r"(0\.1\.0-draft)?")


class OpenBucket(Resource, wit="bucket"):
    """A key-value store the guest opened. `cursors` keeps text cursors for the draft whose cursors are numbers."""

    __slots__ = ("bucket", "cursors", "store")

    def __init__(self, bucket: Bucket, store: str) -> None:
        super().__init__()
        self.store = store
        self.bucket = bucket
        self.cursors: list[str] = []


class Cas(Resource, wit="cas"):
    """A compare-and-swap handle: a key and the value it had."""

    __slots__ = ("bucket", "current", "key", "store")

    def __init__(self, this: OpenBucket | Cas, key: str, current: bytes | None) -> None:
        super().__init__()
        self.bucket: Bucket = this.bucket
        self.store: str = this.store
        self.key = key
        self.current = current


config: Final = Interface("wasi:config/store", _CONFIG)
config_runtime: Final = Interface("wasi:config/runtime", _CONFIG)
logging: Final = Interface("wasi:logging/logging", _LOGGING)
store1: Final = Interface("wasi:keyvalue/store", _DRAFT1, system=KEYVALUE)
store2: Final = Interface("wasi:keyvalue/store", _DRAFT2, system=KEYVALUE)
atomics1: Final = Interface("wasi:keyvalue/atomics", _DRAFT1, system=KEYVALUE)
atomics2: Final = Interface("wasi:keyvalue/atomics", _DRAFT2, system=KEYVALUE, quiet=frozenset({"[method]cas.current"}))
batch1: Final = Interface("wasi:keyvalue/batch", _DRAFT1, system=KEYVALUE)
batch2: Final = Interface("wasi:keyvalue/batch", _DRAFT2, system=KEYVALUE)

INTERFACES: Final = (
    config, config_runtime, logging, store1, store2, atomics1, atomics2, batch1, batch2,
)  # fmt: skip


@config.function("get")
@config_runtime.function("get")
def _config_get(guest: Guest, key: str) -> str | None:
    return guest.services.spec.config.get(key)


@config.function("get-all")
@config_runtime.function("get-all")
def _config_get_all(guest: Guest) -> list[tuple[str, str]]:
    return list(guest.services.spec.config.items())


@logging.function("log")
def _log(guest: Guest, level: str, context: str, message: str) -> None:
    guest.log_entry(level, context, message)


def _error(error: ProviderError) -> Err:
    return Err((error.kind, error.text if error.kind == "other" else None))


def served(error_of: Callable[[ProviderError], Err]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a provider's refusal into an interface's error, as `error_of` words it."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def serve(guest: Guest, *arguments: Any) -> Any:
            try:
                return function(guest, *arguments)
            except ProviderError as error:
                note_away(guest, error)
                return error_of(error)

        return serve

    return wrap


_served = served(_error)


def note_away(guest: Guest, error: ProviderError) -> None:
    """Remember for the answer that a service was away."""
    if error.retry_after_s is not None and guest.exchange is not None:
        guest.exchange.retry_after_s = error.retry_after_s


def _check_key(key: str) -> None:
    if not key or len(key.encode()) > KEY_MAX_BYTES:
        raise ProviderError("other", f"a key has 1 to {KEY_MAX_BYTES} bytes")


def _check_value(value: bytes) -> None:
    if len(value) > VALUE_MAX_BYTES:
        raise ProviderError("other", f"a value has at most {VALUE_MAX_BYTES} bytes")


def _check_batch(items: list[Any]) -> None:
    if len(items) > BATCH_MAX:
        raise ProviderError("other", f"a batch has at most {BATCH_MAX} keys")


@store1.function("open")
@store2.function("open")
@_served
def _open(guest: Guest, identifier: str) -> OpenBucket:
    return OpenBucket(guest.services.open_bucket(identifier), identifier)


@store1.function("[method]bucket.get")
@store2.function("[method]bucket.get")
@_served
def _get(guest: Guest, this: OpenBucket, key: str) -> bytes | None:
    _check_key(key)
    return this.bucket.get(key)


@store1.function("[method]bucket.set")
@store2.function("[method]bucket.set")
@_served
def _set(guest: Guest, this: OpenBucket, key: str, value: bytes) -> None:
    _check_key(key)
    _check_value(value)
    this.bucket.set(key, value)


@store1.function("[method]bucket.delete")
@store2.function("[method]bucket.delete")
@_served
def _delete(guest: Guest, this: OpenBucket, key: str) -> None:
    _check_key(key)
    this.bucket.delete(key)


@store1.function("[method]bucket.exists")
@store2.function("[method]bucket.exists")
@_served
def _exists(guest: Guest, this: OpenBucket, key: str) -> bool:
    _check_key(key)
    return this.bucket.exists(key)


@store2.function("[method]bucket.list-keys")
@_served
def _list_keys(guest: Guest, this: OpenBucket, cursor: str | None) -> tuple[list[str], str | None]:
    keys, following = this.bucket.list_keys(cursor)
    return list(keys), following


@store1.function("[method]bucket.list-keys")
@_served
def _list_keys_numbered(guest: Guest, this: OpenBucket, cursor: int | None) -> tuple[list[str], int | None]:
    if cursor is not None and cursor >= len(this.cursors):
        raise ProviderError("other", "that cursor was not given by this bucket handle")
    keys, following = this.bucket.list_keys(this.cursors[cursor] if cursor is not None else None)
    if following is None:
        return list(keys), None
    if following not in this.cursors:
        if len(this.cursors) >= BATCH_MAX:
            raise ProviderError("other", f"more than {BATCH_MAX} pages through one bucket handle")
        this.cursors.append(following)
    return list(keys), this.cursors.index(following)


@atomics1.function("increment")
@_served
def _increment_unsigned(guest: Guest, this: OpenBucket, key: str, delta: int) -> int:
    _check_key(key)
    if delta > 2**63 - 1:
        raise ProviderError("other", "a delta has at most 63 bits")
    value = this.bucket.increment(key, delta)
    if value < 0:
        raise ProviderError("other", "the value under this key is negative")
    return value


@atomics2.function("increment")
@_served
def _increment(guest: Guest, this: OpenBucket, key: str, delta: int) -> int:
    _check_key(key)
    return this.bucket.increment(key, delta)


@atomics2.function("[static]cas.new")
@_served
def _cas_new(guest: Guest, this: OpenBucket, key: str) -> Cas:
    _check_key(key)
    return Cas(this, key, this.bucket.get(key))


@atomics2.function("[method]cas.current")
def _cas_current(guest: Guest, this: Cas) -> bytes | None:
    return this.current


@atomics2.function("swap")
def _swap(guest: Guest, cas: Cas, value: bytes) -> Err | None:
    try:
        _check_value(value)
        if cas.bucket.swap(cas.key, cas.current, value):
            return None
        return Err(("cas-failed", Cas(cas, cas.key, cas.bucket.get(cas.key))))
    except ProviderError as error:
        note_away(guest, error)
        return Err(("store-error", _error(error).value))


@batch1.function("get-many")
@_served
def _get_many(guest: Guest, this: OpenBucket, keys: list[str]) -> list[tuple[str, bytes] | None]:
    _check_batch(keys)
    values = this.bucket.get_many(keys)
    return [(key, value) if value is not None else None for key, value in zip(keys, values, strict=True)]


batch2.functions["get-many"] = _get_many


@batch1.function("set-many")
@batch2.function("set-many")
@_served
def _set_many(guest: Guest, this: OpenBucket, pairs: list[tuple[str, bytes]]) -> None:
    _check_batch(pairs)
    for key, value in pairs:
        _check_key(key)
        _check_value(value)
    this.bucket.set_many(pairs)


@batch1.function("delete-many")
@batch2.function("delete-many")
@_served
def _delete_many(guest: Guest, this: OpenBucket, keys: list[str]) -> None:
    _check_batch(keys)
    for key in keys:
        _check_key(key)
    this.bucket.delete_many(keys)
