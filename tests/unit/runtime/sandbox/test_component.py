"""What a file is and why it is refused, read without compiling; and what only the types reveal."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import component as wc

from runtime.engine.engine import engine
from runtime.engine.linking import LinkError, link
from runtime.sandbox.component import ComponentError, check, inspect
from runtime.sandbox.sandbox import ENTRIES
from runtime.wasi import INTERFACES
from tests.support.runtime.wasm_text import command, exiting_command, importing, module

GOOD = exiting_command(0)


def test_a_command_is_read_with_its_imports_and_exports(tmp_path: Path) -> None:
    path = tmp_path / "c.wasm"
    path.write_bytes(GOOD)
    info = inspect(path)
    assert (info.kind, info.imports, info.exports) == (
        "command", ("wasi:cli/exit@0.2.3",), ("wasi:cli/run@0.2.3",),
    )  # fmt: skip
    assert info.problems == ()
    assert check(GOOD, "command") == info


def test_a_core_command_is_a_module_and_may_be_a_job_but_not_an_app() -> None:
    data = module("nop")
    assert inspect(data).kind == "module"
    assert check(data, "command").kind == "module"
    with pytest.raises(ComponentError, match="core WebAssembly module, not a component"):
        check(data, "http")


def test_a_command_is_not_an_app_with_routes() -> None:
    with pytest.raises(ComponentError, match="so it is a command"):
        check(GOOD, "http")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"#!/bin/sh", "not WebAssembly"),
        (b"\0asm\x02\0\0\0", "unknown version"),
        (b"\0asm", "unknown version"),
        (GOOD[:-9], "truncated or corrupt"),
        (GOOD[:20], "truncated or corrupt"),
    ],
)
def test_a_damaged_file_is_named_as_such(data: bytes, sentence: str) -> None:
    with pytest.raises(ComponentError, match=sentence):
        inspect(data)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wasi:messaging/producer@0.2.0-draft", "wasi:messaging comes in a later step"),
        ("acme:billing/ledger@1.0.0", "which this host does not offer"),
        ("wasi:io/streams@0.3.0", "but not version 0.3.0"),
        ("wasi:http/types@0.2.0-rc-2023-12-05", "but not version"),
    ],
)
def test_an_import_nobody_serves_is_named(name: str, sentence: str) -> None:
    info = inspect(importing(name))
    assert len(info.problems) == 1
    assert name in info.problems[0]
    assert sentence in info.problems[0]
    with pytest.raises(ComponentError):
        check(importing(name))


def test_a_component_that_exports_neither_world_says_what_it_exports() -> None:
    text = '(component (instance $i) (export "acme:shop/cart@1.0.0" (instance $i)))'
    info = inspect(bytes(wasmtime.wat2wasm(text)))
    assert "acme:shop/cart@1.0.0" in info.problems[0]


def test_a_module_that_imports_from_elsewhere_or_has_no_start_is_refused() -> None:
    foreign = module("nop", imports='(import "env" "f" (func))')
    assert "env.f" in inspect(foreign).problems[0]
    assert "_start" in inspect(bytes(wasmtime.wat2wasm("(module)"))).problems[0]


@pytest.mark.parametrize("version", ["0.2.0", "0.2.1", "0.2.9", "0.2.12", "0.2.99"])
def test_every_patch_version_links(version: str) -> None:
    component = wc.Component(engine(), exiting_command(0, version))
    assert link(engine(), component, INTERFACES, ENTRIES["command"]).entry.shape == "()->result<_,_>"


WRONG_TYPES = {
    "a parameter": ("wasi:cli/exit@0.2.0", '(export "exit" (func (param "status" u32)))', "another type for exit"),
    "a result": ("wasi:random/random@0.2.0", '(export "get-random-u64" (func (result u32)))', "another type"),
    "a function": ("wasi:random/random@0.2.0", '(export "get-dice" (func (result u32)))', "get-dice"),
    "a resource": ("wasi:io/poll@0.2.0", '(export "promise" (type (sub resource)))', "a resource promise"),
    "a resource in the place of another": (
        "wasi:io/poll@0.2.0",
        """(export "error" (type $e (sub resource)))
        (export "[method]error.ready" (func (param "self" (borrow $e)) (result bool)))""",
        "which it does not have",
    ),
}


@pytest.mark.parametrize("what", WRONG_TYPES)
def test_types_that_are_not_the_interfaces_are_refused_before_anything_runs(what: str) -> None:
    name, items, sentence = WRONG_TYPES[what]
    component = wc.Component(engine(), importing(name, items))
    with pytest.raises(LinkError, match=sentence):
        link(engine(), component, INTERFACES, ENTRIES["command"])


def test_a_function_on_the_wrong_resource_is_refused() -> None:
    text = command(
        "(i32.const 0)",
        imports="""
        (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
        (alias export $error "error" (type $e))
        (import "wasi:io/poll@0.2.0" (instance
          (export "pollable" (type $p (eq $e)))
          (export "[method]pollable.ready" (func (param "self" (borrow $p)) (result bool)))))""",
    )
    with pytest.raises(LinkError, match="borrow<error>"):
        link(engine(), wc.Component(engine(), text), INTERFACES, ENTRIES["command"])


@settings(max_examples=300, database=None)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_no_damage_makes_the_reader_fail_in_another_way(seed: int, flips: int) -> None:
    generator = random.Random(seed)
    data = bytearray(GOOD if seed % 2 else module("nop"))
    for _ in range(flips):
        data[generator.randrange(8, len(data))] = generator.randrange(256)
    del data[generator.randrange(8, len(data) + 1) :]
    try:
        info = inspect(bytes(data))
    except ComponentError:
        return
    assert info.kind in {"http", "command", "module"}


@settings(max_examples=200, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_header_are_read_or_refused(tail: bytes) -> None:
    for header in (b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"):
        with contextlib.suppress(ComponentError):
            assert inspect(header + tail).kind in {"http", "command", "module"}
