"""The build of the native engine: pinned without a registry's name, and plain words where it cannot be had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from runtime.native import build

SOURCE = 'source = "registry+https://registry.test/index"\n'


def fake_cargo(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "cargo").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cargo").chmod(0o755)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is built, with a `cargo` of the test's in front of all others."""
    (tmp_path / "crates.lock").write_text(build.PINNED.read_text())
    (tmp_path / "target" / "release").mkdir(parents=True)
    for name, place in {
        "FOLDER": "", "PINNED": "crates.lock", "LOCK": "Cargo.lock", "BUILT": "target/release/lib_engine.so",
        "MODULE": "_engine.abi3.so",
    }.items():  # fmt: skip
        monkeypatch.setattr(build, name, tmp_path / place)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def test_every_crate_but_ours_is_pinned_by_its_hash() -> None:
    crates = build.PINNED.read_text().split("[[package]]")[1:]
    pinned = [re.search(r'^checksum = "[0-9a-f]{64}"$', crate, re.MULTILINE) is not None for crate in crates]
    assert len(crates) > 20
    assert [crate for crate, is_pinned in zip(crates, pinned, strict=True) if not is_pinned] == [
        crate for crate in crates if '"freehold-native"' in crate
    ]


def test_the_lock_file_of_cargo_is_the_pinned_one_and_the_registry(tree: Path) -> None:
    pinned = build.PINNED.read_text()
    whole = build.with_registry(pinned, SOURCE)
    assert build.without_registry(whole) == pinned
    assert whole.count(SOURCE) == pinned.count("checksum = ")
    assert build.without_registry(pinned) == pinned


def test_cargo_builds_what_is_pinned(tree: Path) -> None:
    makes = f"printf '%s' '{SOURCE}' > Cargo.lock"
    fake_cargo(
        tree / "bin",
        f"case $1 in --version) echo cargo 1.90.0;; generate-lockfile) {makes};;"
        " build) cp Cargo.lock seen; echo engine > target/release/lib_engine.so;; esac",
    )
    assert build.main() == 0
    assert build.MODULE.read_text() == "engine\n"
    assert (tree / "seen").read_text() == build.with_registry(build.PINNED.read_text(), SOURCE)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo cargo 1.75.0", "cargo 1.75.0 is too old"),
        ("[ $1 = --version ] && echo cargo 1.90.0 || { echo cannot reach the index >&2; exit 101; }", "cannot reach"),
        ("[ $1 = --version ] && echo cargo 1.90.0 || touch Cargo.lock", "without a registry"),
    ],
    ids=["old", "offline", "odd"],
)
def test_a_cargo_that_fails_leaves_a_working_installation_and_is_named(
    tree: Path, capsys: Any, script: str, says: str
) -> None:
    build.MODULE.write_text("the one before")
    fake_cargo(tree / "bin", script)
    assert build.main() == 1
    said = capsys.readouterr().out
    assert says in said
    assert "Python serves as before" in said
    assert build.MODULE.read_text() == "the one before"


def test_no_cargo_is_named_with_what_to_install(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tree))
    assert build.main() == 1
    assert "apt-get install cargo" in capsys.readouterr().out
