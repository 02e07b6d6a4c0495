"""The guest's key derivation gives what OpenSSL's gives. Not here: how fast."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from types import ModuleType

import pytest
import wasmtime

from cli.project import native_hash
from cli.project.python_build import GUEST


class Compiled(ModuleType):
    """The compiled module in a memory of its own, with what CPython would give it left out."""

    BLOCK = 4096

    def __init__(self) -> None:
        super().__init__("_freehold_hash")
        self.store = wasmtime.Store(wasmtime.Engine())
        module = wasmtime.Module(self.store.engine, native_hash.module())
        i32 = wasmtime.ValType.i32()
        self.memory = wasmtime.Memory(self.store, wasmtime.MemoryType(wasmtime.Limits(1, None)))
        table = wasmtime.TableType(wasmtime.ValType.funcref(), wasmtime.Limits(8, None))
        place = wasmtime.GlobalType(i32, False)
        document: dict[str, object] = {
            "memory": self.memory, "__indirect_function_table": wasmtime.Table(self.store, table, None),
            "__memory_base": wasmtime.Global(self.store, place, wasmtime.Val.i32(1024)),
            "__table_base": wasmtime.Global(self.store, place, wasmtime.Val.i32(1)),
            "PyModule_Create2": wasmtime.Func(self.store, wasmtime.FuncType([i32, i32], [i32]), lambda *_: 0),
        }  # fmt: skip
        unused = wasmtime.Func(self.store, wasmtime.FuncType([i32], [i32]), lambda _: 0)
        self.made = wasmtime.Instance(
            self.store, module, [document.get(import_type.name, unused) for import_type in module.imports]
        )

    def romix(self, block: bytearray, table: bytearray, work: bytearray, n: int, r: int) -> None:
        """Do what the guest's module does on the same arrays."""
        places = [self.BLOCK, self.BLOCK + len(block), self.BLOCK + len(block) + len(work)]
        missing = places[2] + len(table) - self.memory.data_len(self.store)
        if missing > 0:
            self.memory.grow(self.store, (missing >> 16) + 1)
        self.memory.write(self.store, block, places[0])
        self._called("mix", places[0], places[2], places[1], n, r)
        block[:] = self.memory.read(self.store, places[0], places[0] + len(block))

    def rounds256(self, work: bytearray, count: int) -> None:
        """Repeat HMAC-SHA-256."""
        self._repeated("repeat256", work, count)

    def rounds512(self, work: bytearray, count: int) -> None:
        """Repeat HMAC-SHA-512."""
        self._repeated("repeat512", work, count)

    def _repeated(self, name: str, work: bytearray, count: int) -> None:
        self.memory.write(self.store, work, self.BLOCK)
        self._called(name, self.BLOCK, count)
        work[:] = self.memory.read(self.store, self.BLOCK, self.BLOCK + len(work))

    def _called(self, name: str, *given: int) -> None:
        function = self.made.exports(self.store)[name]
        assert isinstance(function, wasmtime.Func)
        function(self.store, *given)


@pytest.fixture(scope="module")
def hashing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("freehold_hash", GUEST / "freehold_hash.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_freehold_hash"] = Compiled()
    spec.loader.exec_module(module)
    del sys.modules["_freehold_hash"]
    return module


@pytest.mark.parametrize("name", ["sha1", "sha224", "sha256", "sha384", "sha512"])
def test_it_derives_the_same_key(hashing: ModuleType, name: str) -> None:
    chance = random.Random(7)
    for size in (0, 1, 63, 64, 65, 127, 128, 129, 300):
        password, salt = chance.randbytes(size), chance.randbytes(chance.randrange(40))
        rounds, length = chance.randrange(1, 30), chance.choice([None, 1, 20, 32, 33, 100])
        pair = (name, password, salt, rounds, length)
        assert hashing.pbkdf2_hmac(*pair) == hashlib.pbkdf2_hmac(*pair), pair
    many = (name.upper(), b"password", b"salt", 1000, 200)
    assert hashing.pbkdf2_hmac(*many) == hashlib.pbkdf2_hmac(*many)


def test_what_hashlib_refuses_is_refused(hashing: ModuleType) -> None:
    for wrong in (("sha256", b"", b"", 0, 1), ("sha256", b"", b"", 1, 0), ("none", b"", b"", 1, 1)):
        with pytest.raises(ValueError, match=r".+"):
            hashing.pbkdf2_hmac(*wrong)
    with pytest.raises(OverflowError):
        hashing.pbkdf2_hmac("sha256", b"", b"", 1 << 31)
    with pytest.raises(TypeError):
        hashing.pbkdf2_hmac("sha256", "text", b"", 1)


@pytest.mark.parametrize(
    ("n", "r", "p", "length"), [(2, 1, 1, 1), (16, 1, 1, 64), (64, 3, 2, 33), (1024, 8, 16, 64)], ids=str
)
def test_scrypt_derives_the_same_key(hashing: ModuleType, n: int, r: int, p: int, length: int) -> None:
    for password, salt in ((b"", b""), (b"password", b"NaCl"), (bytes(range(200)), b"\xff" * 70)):
        table = {"salt": salt, "n": n, "r": r, "p": p, "dklen": length}
        assert hashing.scrypt(password, **table) == hashlib.scrypt(password, **table), table


@pytest.mark.parametrize(
    "wrong",
    [{"n": 3}, {"n": 1}, {"n": 0}, {"r": 0}, {"p": 0}, {"n": 1 << 30}, {"n": 32768, "r": 8}, {"dklen": 0}],
    ids=str,
)
def test_what_scrypt_of_hashlib_refuses_is_refused(hashing: ModuleType, wrong: dict[str, int]) -> None:
    table = {"salt": b"", "n": 16, "r": 1, "p": 1, **wrong}
    for scrypt in (hashlib.scrypt, hashing.scrypt):
        with pytest.raises(ValueError, match=r".+"):
            scrypt(b"", **table)


def test_more_memory_is_taken_where_it_is_named(hashing: ModuleType) -> None:
    table = {"salt": b"a", "n": 32768, "r": 8, "p": 1, "maxmem": 132 * 32768 * 8}
    assert hashing.scrypt(b"a", **table) == hashlib.scrypt(b"a", **table)
