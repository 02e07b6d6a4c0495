"""`hashlib.pbkdf2_hmac` and `scrypt`, which the guest's Python is built without. Runs only inside the sandbox.

PBKDF2 is here in Python over the guest's own hashes: right, and about ten times slower than OpenSSL's. scrypt would take
minutes that way, so it says what to use instead. Not here: the hashes.
"""

from __future__ import annotations

import hashlib

NO_SCRYPT = "the sandbox has no scrypt; use PBKDF2 (werkzeug: generate_password_hash(..., method='pbkdf2'))"
_INNER, _OUTER = bytes(byte ^ 0x36 for byte in range(256)), bytes(byte ^ 0x5C for byte in range(256))


def pbkdf2_hmac(hash_name, password, salt, iterations, dklen=None):
    """As `hashlib.pbkdf2_hmac` (RFC 8018, section 5.2)."""
    if not isinstance(hash_name, str):
        raise TypeError("hash_name must be str")
    inner, outer = hashlib.new(hash_name), hashlib.new(hash_name)
    password, salt = bytes(memoryview(password)), bytes(memoryview(salt))
    dklen = outer.digest_size if dklen is None else dklen
    if iterations < 1:
        raise ValueError("iteration value must be greater than 0.")
    if dklen < 1:
        raise ValueError("key length must be greater than 0.")
    if len(password) > inner.block_size:
        password = hashlib.new(hash_name, password).digest()
    password = password.ljust(inner.block_size, b"\0")
    inner.update(password.translate(_INNER))
    outer.update(password.translate(_OUTER))

    def keyed(message):
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    key = b""
    number = int.from_bytes
    while len(key) < dklen:
        last = keyed(salt + (len(key) // inner.digest_size + 1).to_bytes(4, "big"))
        block = number(last, "big")
        for _ in range(iterations - 1):
            last = keyed(last)
            block ^= number(last, "big")
        key += block.to_bytes(inner.digest_size, "big")
    return key[:dklen]


def scrypt(password, *, salt, n, r, p, maxmem=0, dklen=64):
    """Refuse, by a sentence."""
    raise NotImplementedError(NO_SCRYPT)


def install() -> None:
    """Offer both where the interpreter has none."""
    for function in (pbkdf2_hmac, scrypt):
        if not hasattr(hashlib, function.__name__):
            setattr(hashlib, function.__name__, function)
