"""`hashlib.pbkdf2_hmac` and `scrypt`, which the guest's Python is built without. Runs only inside the sandbox.

What repeats is compiled (`native_hash.py` of the builder): scrypt's table, and the rounds of PBKDF2 with SHA-256 and SHA-512.
With other hashes PBKDF2 runs in Python over the guest's own, right and about ten times slower. Not here: the hashes.
"""

from __future__ import annotations

import hashlib
import math
import struct

import _freehold_hash

MEMORY_MAX_BYTES = 32 << 20  # where the caller names no maxmem, as OpenSSL has it
ROUNDS_MAX = (1 << 31) - 1
_INNER, _OUTER = bytes(byte ^ 0x36 for byte in range(256)), bytes(byte ^ 0x5C for byte in range(256))
_START = [math.isqrt(prime << 128) & (1 << 64) - 1 for prime in (2, 3, 5, 7, 11, 13, 17, 19)]
_COMPILED = {"sha256": ("I", 32, _freehold_hash.rounds256), "sha512": ("Q", 64, _freehold_hash.rounds512)}


def pbkdf2_hmac(hash_name, password, salt, iterations, dklen=None):
    """As `hashlib.pbkdf2_hmac` (RFC 8018, section 5.2)."""
    if not isinstance(hash_name, str):
        raise TypeError("hash_name must be str")
    inner, outer = hashlib.new(hash_name), hashlib.new(hash_name)
    password, salt = bytes(memoryview(password)), bytes(memoryview(salt))
    dklen = outer.digest_size if dklen is None else dklen
    if iterations < 1:
        raise ValueError("iteration value must be greater than 0.")
    if iterations > ROUNDS_MAX:
        raise OverflowError("iteration value is too great.")
    if dklen < 1:
        raise ValueError("key length must be greater than 0.")
    if len(password) > inner.block_size:
        password = hashlib.new(hash_name, password).digest()
    password = password.ljust(inner.block_size, b"\0")
    keys = password.translate(_INNER), password.translate(_OUTER)
    inner.update(keys[0])
    outer.update(keys[1])

    def keyed(message):
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    key = b""
    while len(key) < dklen:
        first = keyed(salt + (len(key) // inner.digest_size + 1).to_bytes(4, "big"))
        if inner.name in _COMPILED:
            key += _compiled(*_COMPILED[inner.name], keys, first, iterations - 1)
        else:
            key += _in_python(keyed, first, iterations - 1)
    return key[:dklen]


def _compiled(word, bits, repeat, keys, first, rounds):
    """The sum of `first` and what `rounds` rounds make of it; the module's work area is told of in `native_hash.py`."""

    def words(text):
        return struct.unpack(f">{len(text) * 8 // bits}{word}", text)

    start = [number >> (64 - bits) for number in _START]
    padding = [1 << (bits - 1), *(0,) * 6, 24 * bits]  # one block of key and eight words of digest were hashed
    block = words(first)
    work = bytearray(struct.pack(f"=72{word}", *start, *start, *block, *padding, *block, *words(keys[0]), *words(keys[1])))
    repeat(work, rounds)
    return struct.pack(f">8{word}", *struct.unpack(f"=72{word}", work)[32:40])


def _in_python(keyed, first, rounds):
    number = int.from_bytes
    last, block = first, number(first, "big")
    for _ in range(rounds):
        last = keyed(last)
        block ^= number(last, "big")
    return block.to_bytes(len(first), "big")


def scrypt(password, *, salt, n, r, p, maxmem=0, dklen=64):
    """As `hashlib.scrypt` (RFC 7914); its table counts against the app's memory, its time against the app's timeout."""
    if n < 2 or n & (n - 1) or n >= 1 << 32:
        raise ValueError("n must be a power of 2.")
    if r < 1 or p < 1 or r * p >= 1 << 30 or 128 * r * (n + p + 2) > (maxmem or MEMORY_MAX_BYTES):
        raise ValueError("Invalid parameter combination for n, r, p, maxmem.")
    if dklen < 1:
        raise ValueError("key length must be greater than 0.")
    blocks = pbkdf2_hmac("sha256", password, salt, 1, 128 * r * p)
    table, work, mixed = bytearray(128 * r * n), bytearray(256 * r), b""
    for at in range(0, len(blocks), 128 * r):
        block = bytearray(blocks[at : at + 128 * r])
        _freehold_hash.romix(block, table, work, n, r)
        mixed += block
    return pbkdf2_hmac("sha256", password, mixed, 1, dklen)


def install() -> None:
    """Offer both where the interpreter has none."""
    for function in (pbkdf2_hmac, scrypt):
        if not hasattr(hashlib, function.__name__):
            setattr(hashlib, function.__name__, function)
