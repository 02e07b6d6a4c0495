"""Packages written in Rust, built on this machine for the sandbox: recipes, the toolchain, and the cache of what was built.

A recipe (`wheels.toml`) pins the source by digest, and the source its crates by its own lock file. Nothing built comes with
Freehold: `freehold wheels build NAME` makes it once for each machine. The compiled module names libc's and Python's symbols as
imports, which componentize-py resolves in the guest; so neither headers nor a libc are needed. Not here: packages in plain
Python (`python_packages.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cli import cache
from cli.errors import BuildError
from cli.guard import run_tool

RECIPES: Final = Path(__file__).parent / "wheels.toml"
COMPILER: Final = "/usr/bin/rustc"
"""The distribution's: rustup's lacks the source of its standard library unless asked for it."""

SUFFIX: Final = ".cpython-314-wasm32-wasi.so"
TARGET: Final = "wasm32-wasip1"
BUILD_TIMEOUT_S: Final = 3 * 3600
FETCH_TIMEOUT_S: Final = 600
INSTALL: Final = "apt-get install rustc-web rust-web-src cargo-web lld-22 (Debian), then run the command again"

PYO3: Final = """implementation=CPython
version=3.14
shared=true
abi3=false
lib_name=python3.14
pointer_width=32
build_flags=
suppress_build_script_link_lines=true
"""
"""What pyo3 would ask an interpreter."""

BACKEND: Final = """
import pathlib, shutil

def prepare_metadata_for_build_wheel(folder, settings=None):
    said = dict(line.split(": ", 1) for line in pathlib.Path("PKG-INFO").read_text().splitlines()[:30] if ": " in line)
    name = f"{said['Name'].replace('-', '_')}-{said['Version']}.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    shutil.copy("PKG-INFO", pathlib.Path(folder) / name / "METADATA")
    return name
"""
"""Stands in for the packages' own build backend while pip fetches a source: nothing of the source is run."""


@dataclass(frozen=True, slots=True)
class WheelRecipe:
    """How one package's compiled module is made; `minutes` of processor time, about."""

    name: str
    version: str
    sdist_sha256: str
    module: str
    minutes: int

    def digest(self) -> str:
        """Return the digest that names what is built."""
        return hashlib.sha256(repr((sorted(asdict(self).items()), PYO3, TARGET)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The tools, by path, and the version of the compiler."""

    cargo: str
    rustc: str
    linker: str
    version: str


def recipes() -> dict[str, WheelRecipe]:
    """Return the recipes by package name."""
    return {load["name"]: WheelRecipe(**load) for load in tomllib.loads(RECIPES.read_text())["wheel"]}


def constraints() -> str:
    """Return what pip must keep to: only the versions of the recipes run in the sandbox."""
    return "".join(f"{recipe.name}=={recipe.version}\n" for recipe in recipes().values())


def found(recipe: WheelRecipe) -> Path | None:
    """Return the compiled module if it was built on this machine."""
    path = cache.cache_folder() / "wheels" / recipe.digest() / "module.so"
    return path if path.is_file() else None


def build_wheel(recipe: WheelRecipe, on_step: Callable[[str], None]) -> Path:
    """Return the compiled module, built now if it was not before. Raises `BuildError`."""

    def make(work: Path) -> None:
        tools = find_toolchain(recipe.name)
        on_step("fetching its source")
        source = _fetch(recipe, work / "source")
        on_step(f"compiling it with Rust {tools.version} (about {recipe.minutes} minutes of processor time, once)")
        path = _compile(recipe, tools, source, work)
        shutil.move(path, work / "module.so")
        for name in ("source", "target", "tmp", "library"):
            shutil.rmtree(work / name, ignore_errors=True)

    return cache.entry("wheels", recipe.digest(), make) / "module.so"


def find_toolchain(name: str) -> Toolchain:
    """Return the Rust toolchain of this machine that has the standard library's source. Raises `BuildError`."""
    linker = next((path for tool in ("wasm-ld-22", "wasm-ld") if (path := shutil.which(tool))), None)
    compilers = [path for path in (COMPILER, shutil.which("rustc")) if path and Path(path).is_file()]
    rustc = next((path for path in compilers if (Path(_said(path, "--print", "sysroot")) / SOURCES).is_dir()), None)
    cargo = _cargo()
    lacking = [what for what, tool in {"cargo": cargo, "rustc with the source of its standard library": rustc,
                                       "wasm-ld": linker}.items() if tool is None]  # fmt: skip
    if cargo is None or rustc is None or linker is None:
        raise BuildError(
            name, f"it is built by a Rust toolchain, of which this machine lacks {', '.join(lacking)}",
            next_step=INSTALL, kind="tool-missing",
        )  # fmt: skip
    return Toolchain(cargo, rustc, linker, _said(rustc, "--version").split()[1])


SOURCES: Final = Path("lib/rustlib/src/rust/library")


def _cargo() -> str | None:
    rustup = shutil.which("rustup")
    return (_said(rustup, "which", "cargo") or None) if rustup else shutil.which("cargo")


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    return done.stdout.strip()


def _fetch(recipe: WheelRecipe, folder: Path) -> Path:
    folder.mkdir()
    (folder / "backend").mkdir()
    (folder / "backend" / "maturin.py").write_text(BACKEND)
    listed = folder / "requirements.txt"
    listed.write_text(f"{recipe.name}=={recipe.version} --hash=sha256:{recipe.sdist_sha256}\n")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
               "--require-hashes", "--dest", str(folder), "-r", str(listed), "--quiet", "--no-input"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(folder / "backend"), "TMPDIR": str(folder)}
    done = run_tool(command, environment=environment, timeout_s=FETCH_TIMEOUT_S)
    archive = next(folder.glob("*.tar.gz"), None)
    if done.returncode != 0 or archive is None:
        raise BuildError(
            recipe.name, "its source could not be fetched: " + done.stderr.decode("utf-8", "replace")[-600:],
            next_step="check the network, then run the command again", kind="packages-failed",
        )  # fmt: skip
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    return next((folder / "unpacked").iterdir())


def _compile(recipe: WheelRecipe, tools: Toolchain, source: Path, work: Path) -> Path:
    library = work / "library"
    library.mkdir()
    (library / "libc.a").write_bytes(b"!<arch>\n")  # empty, for -lc: libc is the guest's
    (work / "tmp").mkdir()
    (work / "pyo3").write_text(PYO3)
    arguments = ["--shared", "--experimental-pic", f"-L{library}", "--allow-undefined"]
    flags = ["relocation-model=pic", "target-feature=-crt-static", "link-self-contained=no", f"linker={tools.linker}",
             "linker-flavor=wasm-ld", *(f"link-arg={argument}" for argument in arguments)]  # fmt: skip
    pair = ("HOME", "PATH", "CARGO_HOME", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE")
    environment = {
        **{name: os.environ[name] for name in pair if name in os.environ},
        "RUSTC": tools.rustc, "RUSTC_BOOTSTRAP": "1", "CARGO_TARGET_DIR": str(work / "target"), "TMPDIR": str(work / "tmp"),
        "PYO3_CONFIG_FILE": str(work / "pyo3"), "RUSTFLAGS": " ".join(f"-C {flag}" for flag in flags),
    }  # fmt: skip
    command = [tools.cargo, "build", "--locked", "--release", "--lib", "--target", TARGET,
               "-Z", "build-std=std,panic_abort"]  # fmt: skip
    done = run_tool(command, folder=source, environment=environment, timeout_s=BUILD_TIMEOUT_S)
    paths = sorted((work / "target" / TARGET / "release").glob("*.wasm"))
    if done.returncode != 0 or len(paths) != 1:
        said = done.stderr.decode("utf-8", "replace")
        raise BuildError(
            recipe.name, "it could not be compiled:\n" + "\n".join(said.splitlines()[-30:]),
            next_step=f"check the toolchain ({INSTALL})", kind="build-failed",
        )  # fmt: skip
    return paths[0]
