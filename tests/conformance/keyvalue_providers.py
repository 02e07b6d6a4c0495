"""What every provider of key-value stores is held to: a table in docs/reference/providers.md is made from this.

A capability is a check over providers that share their data as workers do. `LACKS` says what one declares not to have; the
check must then fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

import pytest

from runtime.providers import Bucket, KeyValueProvider, ProviderError
from runtime.services.sqlite_keyvalue import StoreCaps

SMALL: Final = StoreCaps(key_max_bytes=8, value_max_bytes=16, store_max_bytes=64, page_max_keys=3, batch_max_keys=4)

Make = Callable[[str, StoreCaps | None], KeyValueProvider]
"""Makes a provider for the stores of an owner; each call stands for another worker process."""


def refused(call: Callable[[], object], words: str) -> None:
    """Hold that a call is refused with these words."""
    with pytest.raises(ProviderError) as exception_info:
        call()
    assert words in exception_info.value.text


def keeps_bytes(make: Make) -> None:
    """values of any bytes, empty ones too; absent is not empty"""
    bucket = make("shop/production", None).open("visits")
    assert bucket.get("a") is None
    bucket.set("a", b"\0\xff\r\n")
    bucket.set("leer/\N{EURO SIGN}", b"")
    assert (bucket.get("a"), bucket.get("leer/\N{EURO SIGN}")) == (b"\0\xff\r\n", b"")
    assert (bucket.exists("leer/\N{EURO SIGN}"), bucket.exists("b")) == (True, False)
    bucket.delete("a")
    bucket.delete("a")
    assert bucket.get("a") is None


def read_your_writes(make: Make) -> None:
    """a write is seen at once, by every process"""
    bucket, two = (make("shop/production", None).open("visits") for _ in range(2))
    for number in range(20):
        bucket.set("a", b"%d" % number)
        assert (bucket.get("a"), two.get("a")) == (b"%d" % number,) * 2


def pages_in_order(make: Make) -> None:
    """keys in byte order, page by page, each once, while others are written"""
    bucket = make("shop/production", SMALL).open("visits")
    for key in ("b", "a", "\N{EURO SIGN}", "c", "B", "d", "e"):
        bucket.set(key, b"")
    keys: list[str] = []
    cursor = None
    while True:
        page, cursor = bucket.list_keys(cursor)
        assert len(page) <= 3
        keys += page
        if cursor is None:
            break
        bucket.set("0", b"")
    assert keys == ["B", "a", "b", "c", "d", "e", "\N{EURO SIGN}"]


def writes_many_whole(make: Make) -> None:
    """many are read in order and written whole or not at all"""
    bucket = make("shop/production", SMALL).open("visits")
    bucket.set_many((("a", b"1"), ("b", b"2"), ("a", b"3")))
    assert list(bucket.get_many(["b", "x", "a"])) == [b"2", None, b"3"]
    refused(lambda: bucket.set_many((("a", b"9"), ("c", b"x" * 17))), "more than 16 bytes")
    refused(lambda: bucket.set_many([(f"{number}", b"x" * 16) for number in range(4)]), "would exceed 64 bytes")
    assert list(bucket.get_many(["a", "c", "0"])) == [b"3", None, None]
    bucket.delete_many(["a", "x", "b"])
    assert bucket.list_keys(None) == ([], None)
    refused(lambda: bucket.get_many(["a"] * 5), "more than 4 keys")


def increments(make: Make) -> None:
    """counters of 64 bits as decimal text, made by the first increment, none lost"""
    buckets = [make("shop/production", None).open("visits") for _ in range(4)]
    threads = [
        threading.Thread(target=lambda one=bucket: [one.increment("n", 1) for _ in range(25)]) for bucket in buckets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bucket = buckets[0]
    assert (bucket.get("n"), bucket.increment("n", -200)) == (b"100", -100)
    bucket.set("text", b"twelve")
    refused(lambda: bucket.increment("text", 1), "not a decimal integer")
    bucket.set("most", b"9223372036854775807")
    refused(lambda: bucket.increment("most", 1), "does not fit 64 bits")
    assert bucket.get("most") == b"9223372036854775807"


def swaps(make: Make) -> None:
    """compare and swap, also with absent, of any bytes"""
    bucket = make("shop/production", None).open("visits")
    assert not bucket.swap("a", b"x", b"y")
    assert bucket.swap("a", None, b"\0")
    assert not bucket.swap("a", None, b"y")
    assert bucket.swap("a", b"\0", b"")
    assert bucket.swap("a", b"", b"z")
    won: list[int] = []

    def race(number: int, one: Bucket) -> None:
        if one.swap("a", b"z", b"%d" % number):
            won.append(number)

    racers = [make("shop/production", None).open("visits") for _ in range(4)]
    threads = [threading.Thread(target=race, args=pair) for pair in enumerate(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert bucket.get("a") == b"%d" % won[0]


def bounds(make: Make) -> None:
    """limits of a key, a value and a store; what is deleted makes room"""
    bucket = make("shop/production", SMALL).open("visits")
    refused(lambda: bucket.set("k" * 9, b""), "more than 8 bytes")
    refused(lambda: bucket.set("\N{EURO SIGN}" * 3, b""), "more than 8 bytes")
    refused(lambda: bucket.set("a", b"x" * 17), "more than 16 bytes")
    for key in "abc":
        bucket.set(key, b"x" * 16)
    refused(lambda: bucket.set("d", b"x" * 16), "would exceed 64 bytes")
    refused(lambda: bucket.swap("d", None, b"x" * 16), "would exceed 64 bytes")
    bucket.set("d", b"x" * 12)
    refused(lambda: bucket.increment("e", 1), "would exceed 64 bytes")
    assert bucket.get("e") is None
    bucket.delete("a")
    assert bucket.increment("e", 1) == 1


def keeps_tenants_apart(make: Make) -> None:
    """no other project, environment or store is reached, whatever a key or a name holds"""
    own = make("shop/production", None).open("visits")
    own.set("key", b"own")
    for owner, store in NEAR:
        other = make(owner, None).open(store)
        for key in HOSTILE_KEYS:
            assert other.get(key) is None, (owner, store, key)
            other.set(key, b"other")
            other.increment(f"{key[:100]}n", 1)
        other.delete_many(list(HOSTILE_KEYS))
    assert own.get("key") == b"own"
    assert own.list_keys(None) == (["key"], None)
    provider = make("shop/production", None)
    for name in ("", "../up", "a/b", "a" * 64, ".hidden", "x\0", "visits:values", "{shop}", "a b", "*"):
        with pytest.raises(ProviderError) as exception_info:
            provider.open(name)
        assert exception_info.value.kind == "no-such-store"


NEAR: Final = (
    ("shop/production", "visit"), ("shop/production", "visits2"), ("shop/production", "Visits"), ("shop", "visits"),
    ("shop/productio", "visits"), ("shop/production2", "visits"), ("shop/staging", "visits"), ("sho/production", "visits"),
    ("shop2/production", "visits"), ("production/shop", "visits"),
)  # fmt: skip
HOSTILE_KEYS: Final = (
    "key", "../key", "../../production/visits/key", "shop/production/visits/key", "visits:key",
    "freehold:{shop/production}:visits:values", "}:visits:values", "key\r\nDEL key\r\n", "key' OR '1'='1", "key\0", "%", "_",
    "*", "[a-z]*", "key; DROP TABLE entries", "$1", "\\x00", "{shop/production}", ":values", "KEYS[1]", "key\n",
)  # fmt: skip

CAPABILITIES: Final[Mapping[str, Callable[[Make], None]]] = {
    check.__name__: check
    for check in (
        keeps_bytes, read_your_writes, pages_in_order, writes_many_whole, increments, swaps, bounds, keeps_tenants_apart,
    )
}  # fmt: skip
PROVIDERS: Final = {"embedded": "embedded (SQLite)", "redis": "Valkey, Redis (6.2 or newer)"}
LACKS: Final[frozenset[tuple[str, str]]] = frozenset()
"""Pairs of provider and capability that are declared not to be there."""
