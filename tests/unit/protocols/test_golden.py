"""What is sent, signed and stored keeps its bytes, whatever the classes are called."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
from msgspec import inspect

from protocols.envelope import decode, encode
from tests.support.protocols.golden import FILE, example, lines, structs


def test_every_struct_has_the_bytes_it_had() -> None:
    assert lines() == FILE.read_text().splitlines()


def test_what_is_encoded_is_read_back_as_it_was() -> None:
    for cls in structs():
        value = example(inspect.type_info(cls))
        if cls.__module__ != "runtime.messages":  # which has a codec of its own, and tests beside it
            assert decode(encode(value), cls) == value, cls


def takes_its_name_as_tag(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for keyword in node.keywords
        if keyword.arg == "tag" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
    ]


def test_no_tag_is_made_of_a_class_name() -> None:
    assert takes_its_name_as_tag("class A(Struct, tag=True): ...\nclass B(Struct, tag='B'): ...") == ["A"]
    for module in {cls.__module__ for cls in structs()}:
        assert takes_its_name_as_tag(Path(module.replace(".", "/") + ".py").read_text()) == [], module


def test_a_field_more_or_a_tag_changed_is_seen() -> None:
    class Before(msgspec.Struct, tag="a"):
        number: int

    class Longer(msgspec.Struct, tag="a"):
        number: int
        more: str = ""

    class Retagged(msgspec.Struct, tag="b"):
        number: int

    encodings = {encode(example(inspect.type_info(cls))) for cls in (Before, Longer, Retagged)}
    assert len(encodings) == 3
