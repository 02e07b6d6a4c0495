"""Packages written in Rust: recipes, what a machine without the toolchain or the built module is told. Not here: a build."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.errors import BuildError
from cli.project import python_packages, wheels


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CORE = python_packages.Resolved(
    "pydantic-core", "", "pydantic_core-1-cp314-cp314-manylinux_2_17_x86_64.whl", ("fastapi", "pydantic")
)


def core(version: str) -> python_packages.Resolved:
    return python_packages.Resolved("pydantic-core", version, CORE.wheel, CORE.needed_by)


def test_every_recipe_pins_its_source_and_names_a_module() -> None:
    for name, recipe in wheels.recipes().items():
        assert name == recipe.name == python_packages.normal_name(name)
        assert re.fullmatch(r"[0-9a-f]{64}", recipe.sdist_sha256)
        assert re.fullmatch(r"\w+/\w+", recipe.module)
        assert f"{name}=={recipe.version}\n" in wheels.constraints()


def test_what_was_not_built_here_is_refused_with_the_command_that_builds_it() -> None:
    recipe = wheels.recipes()["pydantic-core"]
    with pytest.raises(
        BuildError, match=r"pydantic-core \(needed by pydantic, by fastapi\) .* not yet built"
    ) as caught:
        python_packages._compiled("web", core(recipe.version))
    assert caught.value.next_step == "freehold wheels build pydantic-core"


def test_what_was_built_is_used_for_that_version_alone() -> None:
    recipe = wheels.recipes()["pydantic-core"]
    place = wheels.cache.cache_folder() / "wheels" / recipe.digest() / "module.so"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\0asm")
    assert python_packages._compiled("web", core(recipe.version)) == (recipe, place)
    assert python_packages._compiled("web", core(recipe.version + "1")) is None
    assert python_packages._compiled("web", python_packages.Resolved("numpy", "1", "")) is None


@pytest.mark.parametrize("field", ["version", "sdist_sha256", "module"])
def test_a_changed_recipe_is_built_anew(field: str) -> None:
    recipe = wheels.recipes()["jiter"]
    changed = wheels.WheelRecipe(**{**wheels.asdict(recipe), field: "0" * 64})
    assert changed.digest() != recipe.digest()


def test_a_machine_without_the_toolchain_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wheels.shutil, "which", lambda tool: None)
    monkeypatch.setattr(wheels, "COMPILER", str(tmp_path / "rustc"))
    with pytest.raises(
        BuildError, match="lacks cargo, rustc with the source of its standard library, wasm-ld"
    ) as caught:
        wheels.find_toolchain("jiter")
    assert "apt-get install rustc-web rust-web-src" in caught.value.next_step


def test_a_compiler_without_the_source_of_its_library_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "rustc"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo rustc 9.9.9 || echo {tmp_path}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(wheels, "COMPILER", str(compiler))
    monkeypatch.setattr(wheels.shutil, "which", lambda tool: None if tool in ("rustc", "rustup") else "/bin/true")
    with pytest.raises(BuildError, match="lacks rustc with the source"):
        wheels.find_toolchain("jiter")
    (tmp_path / wheels.SOURCES).mkdir(parents=True)
    assert wheels.find_toolchain("jiter").rustc == str(compiler)
