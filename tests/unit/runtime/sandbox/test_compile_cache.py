"""The compile cache: compiled once, checked before every use, bounded, and honest about files that cannot compile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.sandbox import compile_cache
from runtime.sandbox.compile_cache import CompileCache, TamperedError, artifact_name, check_artifact
from runtime.sandbox.component import CompilerEndedError, ComponentError
from runtime.sandbox.sandbox import LoadError, Sandbox
from tests.support.runtime.wasm_parts import SilentLog, a_spec
from tests.support.runtime.wasm_text import command, importing, module


def a_component(folder: Path, data: bytes) -> tuple[Path, str]:
    path = folder / f"{len(list(folder.iterdir()))}.wasm"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


async def test_one_digest_is_compiled_once_however_many_ask(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path, digest = a_component(source, command("(i32.const 0)"))
    cache = CompileCache(tmp_path / "cache")
    artifacts = await asyncio.gather(*(cache.ensure(path, digest) for _ in range(4)))
    assert len(set(artifacts)) == 1
    assert cache.compilations == 1
    check_artifact(artifacts[0])
    assert await CompileCache(tmp_path / "cache").ensure(path, digest) == artifacts[0]


def test_what_a_killed_process_left_half_made_is_removed_and_what_a_living_one_makes_is_kept(
    tmp_path: Path,
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = [tmp_path / f".{'ab' * 32}.{ended.pid}-0011aabb{end}" for end in (".tmp", ".record")]
    living = tmp_path / f".{'ab' * 32}.{os.getpid()}-0011aabb.tmp"
    for path in (*left, living):
        path.write_bytes(b"half")
    CompileCache(tmp_path)
    assert sorted(tmp_path.glob(".*.*")) == [living]


async def test_a_tampered_artifact_is_removed_with_a_warning_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path, digest = a_component(source, command("(i32.const 0)"))
    cache = CompileCache(tmp_path / "cache")
    artifact = await cache.ensure(path, digest)
    good = artifact.read_bytes()
    artifact.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(TamperedError, match="does not match"):
        check_artifact(artifact)
    spec = a_spec(artifact=artifact, kind="command")
    with pytest.raises(LoadError, match="does not match"):
        Sandbox().load(spec, SilentLog())
    with caplog.at_level(logging.WARNING):
        await cache.ensure(path, digest)
    assert "does not match" in caplog.text
    assert cache.compilations == 2
    check_artifact(artifact)
    assert Sandbox().load(spec, SilentLog()).run().outcome is not None


@pytest.mark.parametrize("record", [b"", b"{}", b'{"sha256": "00", "size": "x"}', b"[]", b"null"])
async def test_a_record_that_says_nothing_is_not_believed(tmp_path: Path, record: bytes) -> None:
    artifact = tmp_path / artifact_name("ab")
    artifact.write_bytes(b"code")
    artifact.with_suffix(".json").write_bytes(record)
    with pytest.raises(TamperedError):
        check_artifact(artifact)


async def test_files_that_cannot_compile_are_refused_with_a_sentence_and_leave_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    cache = CompileCache(tmp_path / "cache")
    good = command("(i32.const 0)")
    position = good.index(b"\x41\x00\x0b")  # i32.const 0; end
    cases = [
        (good[:position] + b"\x42\x00\x0b" + good[position + 3 :], "invalid"),  # i64 where the type says i32
        (b"text", "not WebAssembly"),
        (importing("wasi:messaging/producer@0.2.0-draft"), "later step"),
        (importing("wasi:random/random@0.2.0", '(export "get-random-u64" (func (result string)))'), "another type"),
    ]
    for data, sentence in cases:
        path, digest = a_component(source, data)
        with pytest.raises(ComponentError, match=sentence):
            await cache.ensure(path, digest)
    path, _ = a_component(source, good)
    with pytest.raises(ComponentError, match="does not have the digest"):
        await cache.ensure(path, "00" * 32)
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.name != ".lock"] == []


async def test_the_least_recently_used_artifacts_go_when_the_folder_is_full(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    components = [a_component(source, command(f"(i32.const {n})")) for n in (0, 1)]
    cache = CompileCache(tmp_path / "cache", max_bytes=1)
    first = await cache.ensure(*components[0])
    second = await cache.ensure(*components[1])
    assert not first.exists()
    assert not first.with_suffix(".json").exists()
    check_artifact(second)
    assert json.loads(second.with_suffix(".json").read_text())["component"] == components[1][1]


async def test_a_component_that_takes_too_long_to_compile_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path, digest = a_component(
        source, module("(i32.store (i32.load (i32.const 0)) (i32.load (i32.load (i32.const 4))))" * 100_000)
    )
    shorter = (
        "import sys; from runtime.sandbox import compiler; compiler.limits_for = lambda _: (1, 1 << 33); "
        "sys.exit(compiler.main(sys.argv[1:]))"
    )
    monkeypatch.setattr(compile_cache, "_command", lambda *paths: [sys.executable, "-c", shorter, *map(str, paths)])
    with pytest.raises(ComponentError, match="of processor time") as ended:
        await CompileCache(tmp_path / "cache").ensure(path, digest)
    assert not isinstance(ended.value, CompilerEndedError), "each try would take five minutes of the processor"
