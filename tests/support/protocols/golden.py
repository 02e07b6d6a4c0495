"""Every struct that is sent, signed or stored, made with fixed values and encoded: what a rename must not change.

`python -m tests.support.protocols.golden` writes the file anew. Its lines say tag, bytes and name, so that the change of
a name alone shows as just that. Not here: what any of them means.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

import node
import protocols
import runtime.messages
from protocols.envelope import encode

FILE = Path(__file__).resolve().parents[2] / "unit" / "protocols" / "golden" / "encoded.txt"
SHOWN_ONLY = ("node.api.", "protocols.api_")
"""Bodies of the API: JSON, which its published document pins."""

Built = type[msgspec.Struct]


def structs() -> Iterator[Built]:
    """Yield every struct of the protocols, the node's files and the control socket, in order of module and name."""
    modules = [runtime.messages]
    for package in (protocols, node):
        names = sorted(info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
        modules += [importlib.import_module(name) for name in names if not name.startswith(SHOWN_ONLY)]
    for module in modules:
        for name, value in sorted(vars(module).items()):
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                assert name == value.__name__
                yield value


def example(kind: inspect.Type, depth: int = 0) -> Any:
    """A value of a type, the same each time; of a union, its first member that is not None."""
    match kind:
        case inspect.StructType(cls=cls) | inspect.DataclassType(cls=cls):
            fields = {field.name: example(field.type, depth + 1) for field in kind.fields}
            return cls(**fields)
        case inspect.UnionType(types=types):
            return example(next(entry for entry in types if not isinstance(entry, inspect.NoneType)), depth)
        case inspect.EnumType(cls=cls):
            return next(iter(cls))
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            items = [] if depth > 8 else [example(item, depth + 1)]
            return tuple(items) if isinstance(kind, inspect.VarTupleType) else items
        case inspect.TupleType(item_types=items):
            return tuple(example(item, depth + 1) for item in items)
        case inspect.SetType(item_type=item):
            return {example(item, depth + 1)}
        case inspect.FrozenSetType(item_type=item):
            return frozenset({example(item, depth + 1)})
        case inspect.DictType(key_type=key, value_type=value):
            return {example(key, depth + 1): example(value, depth + 1)}
        case inspect.CustomType(cls=cls) if cls is Path:
            return Path("/a/path")
        case _:
            return SCALARS[type(kind)]


SCALARS: dict[type[inspect.Type], Any] = {
    inspect.BoolType: True,
    inspect.IntType: 7,
    inspect.FloatType: 0.5,
    inspect.StrType: "text",
    inspect.BytesType: b"bytes",
    inspect.NoneType: None,
    inspect.AnyType: 1,
    inspect.RawType: msgspec.Raw(b"\x01"),
}


def encoded(value: msgspec.Struct) -> bytes:
    """As it travels: paths are text on the control socket, and nowhere else."""
    return msgspec.msgpack.encode(value, enc_hook=str) if value.__module__ == "runtime.messages" else encode(value)


def lines() -> list[str]:
    """One line for each struct: its tag ("-" without one), its bytes in hex, its name."""
    texts = []
    for cls in structs():
        value = example(inspect.type_info(cls))
        texts.append(f"{cls.__struct_config__.tag or '-'} {encoded(value).hex()} {cls.__module__}.{cls.__name__}")
    return sorted(texts)


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n")
