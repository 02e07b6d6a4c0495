"""The guest's key derivation gives what OpenSSL's gives. Not here: how fast."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from types import ModuleType

import pytest

from cli.project.python_build import GUEST


@pytest.fixture(scope="module")
def hashing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("freehold_hash", GUEST / "freehold_hash.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
def test_it_derives_the_same_key(hashing: ModuleType, name: str) -> None:
    chance = random.Random(7)
    for size in (0, 1, 63, 64, 65, 127, 128, 129, 300):
        password, salt = chance.randbytes(size), chance.randbytes(chance.randrange(40))
        rounds, length = chance.randrange(1, 30), chance.choice([None, 1, 20, 32, 33, 100])
        given = (name, password, salt, rounds, length)
        assert hashing.pbkdf2_hmac(*given) == hashlib.pbkdf2_hmac(*given), given


def test_what_hashlib_refuses_is_refused(hashing: ModuleType) -> None:
    for wrong in (("sha256", b"", b"", 0, 1), ("sha256", b"", b"", 1, 0), ("none", b"", b"", 1, 1)):
        with pytest.raises(ValueError, match=r".+"):
            hashing.pbkdf2_hmac(*wrong)
    with pytest.raises(TypeError):
        hashing.pbkdf2_hmac("sha256", "text", b"", 1)
    with pytest.raises(NotImplementedError, match="PBKDF2"):
        hashing.scrypt(b"", salt=b"", n=2, r=1, p=1)
