"""wasi:random: all three interfaces from the operating system's generator; the insecure ones need no weaker source."""

from __future__ import annotations

import secrets
from typing import Final

from runtime.engine.guest import Guest, GuestTrap
from runtime.engine.interface import Interface

RANDOM_MAX_BYTES: Final = 1024 * 1024
"""Bytes in one request; they cross as one value each."""

random: Final = Interface("wasi:random/random")
insecure: Final = Interface("wasi:random/insecure")
insecure_seed: Final = Interface("wasi:random/insecure-seed")


@random.function("get-random-bytes")
@insecure.function("get-insecure-random-bytes")
def _random_bytes(guest: Guest, length: int) -> bytes:
    if length > RANDOM_MAX_BYTES:
        raise GuestTrap(f"more than {RANDOM_MAX_BYTES} random bytes in one call")
    return secrets.token_bytes(length)


@random.function("get-random-u64")
@insecure.function("get-insecure-random-u64")
def _random_u64(guest: Guest) -> int:
    return secrets.randbits(64)


@insecure_seed.function("insecure-seed")
def _seed(guest: Guest) -> tuple[int, int]:
    return secrets.randbits(64), secrets.randbits(64)
