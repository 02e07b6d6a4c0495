"""Commands of WASI preview 1 as others make them: toolchains' own output, and the test suites that they publish.

Nothing of them is committed. wasi-testsuite comes from a clone that WASI_TESTSUITE names, or from its home; Go's tests
come with Go, and are skipped by name where a tool is missing. Not here: single functions (test_preview1.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import wasmtime

from runtime.engine.engine import engine
from runtime.engine.guest import GuestServices
from runtime.outcome import Exited
from runtime.providers import Providers
from runtime.sandbox.sandbox import CommandResult, ModuleApp
from tests.support.runtime.projects import built
from tests.support.runtime.wasm_parts import SilentLog, a_spec

TESTSUITE: Final = "https://github.com/WebAssembly/wasi-testsuite"
COMMIT: Final = "9f80ca35444cfd9e63100725615140a346652e6c"
"""Of the branch prod/testsuite-base, which holds the programs as built."""

GO_PACKAGES: Final = (
    "bufio", "bytes", "container/heap", "container/list", "encoding/base64", "encoding/binary", "encoding/json", "errors",
    "hash/crc32", "path", "regexp", "slices", "sort", "strconv", "strings", "unicode/utf8",
)  # fmt: skip
GO_READS_FILES: Final = {"regexp": "TestRE2Search|TestFowler"}
"""Tests that read files beside their source, which a command has not. (Examples are captured in a file, so none is run.)"""

GO_HELLO: Final = """package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	done := make(chan string)
	go func() { time.Sleep(time.Millisecond); done <- "worked" }()
	fmt.Println("hello", os.Args[1:], <-done, len(os.Getenv("NAME")))
	fmt.Fprintln(os.Stderr, "to stderr")
	os.Exit(3)
}
"""

RUST_HELLO: Final = """
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    println!("hello [{}] worked {}", words.join(" "), std::env::var("NAME").map_or(0, |text| text.len()));
    eprintln!("to stderr");
    std::process::exit(3);
}
"""

ASSEMBLYSCRIPT_HELLO: Final = """
const words = process.argv.slice(1).join(" ");
process.stdout.write("hello [" + words + "] worked " + process.env.get("NAME").length.toString() + "\\n");
process.stderr.write("to stderr\\n");
process.exit(3);
"""

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not on this machine")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js and npm are not on this machine")


def run(
    data: bytes, *arguments: str, environment: dict[str, str] | None = None, timeout_ms: int = 60_000
) -> CommandResult:
    spec = a_spec(kind="module", environment=environment or {}, timeout_ms=timeout_ms, memory_max_bytes=1 << 30)
    services = GuestServices(spec, SilentLog(), Providers(), None)
    return ModuleApp(spec, wasmtime.Module(engine(), data), services).run(arguments)


def made(*command: str, folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def said(result: CommandResult) -> tuple[Any, str, str]:
    return result.outcome, result.stdout.decode().strip(), result.stderr.decode().strip()


def as_job(program: Path, folder: Path) -> bytes:
    """Return the program as `freehold build` keeps it, which has instantiated it once."""
    (folder / "job").mkdir()
    shutil.copy(program, folder / "job" / "job.wasm")
    (folder / "freehold.toml").write_text(
        '[project]\nname = "job"\n[app.job]\nlanguage = "component"\nsource = "job/job.wasm"\n'
        'schedule = "0 3 * * *"\nmemory_max = "64MiB"\n'
    )
    _, [app] = built(folder)
    assert app.kind == "module"
    return app.component.read_bytes()


@pytest.mark.long
@needs_go
def test_what_go_makes_is_built_and_runs(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO_HELLO)
    made("go", "build", "-o", "hello.wasm", "main.go", folder=tmp_path, GOOS="wasip1", GOARCH="wasm")
    result = run(as_job(tmp_path / "hello.wasm", tmp_path), "a", "b", environment={"NAME": "four"})
    assert said(result) == (Exited(3), "hello [a b] worked 4", "to stderr")


def rustc() -> str | None:
    text = shutil.which("rustc")
    if text is None:
        return None
    told = subprocess.run(
        [text, "--print", "target-libdir", "--target", "wasm32-wasip1"], capture_output=True, text=True, check=False
    )
    return text if told.returncode == 0 and Path(told.stdout.strip()).is_dir() else None


@pytest.mark.long
@pytest.mark.skipif(rustc() is None, reason="Rust for wasm32-wasip1 is not on this machine")
def test_what_rust_makes_is_built_and_runs(tmp_path: Path) -> None:
    (tmp_path / "hello.rs").write_text(RUST_HELLO)
    made("rustc", "--target", "wasm32-wasip1", "-O", "hello.rs", "-o", "hello.wasm", folder=tmp_path)
    result = run(as_job(tmp_path / "hello.wasm", tmp_path), "a", "b", environment={"NAME": "four"})
    assert said(result) == (Exited(3), "hello [a b] worked 4", "to stderr")


@pytest.mark.long
@needs_npm
def test_what_assemblyscript_makes_is_built_and_runs(tmp_path: Path) -> None:
    (tmp_path / "hello.ts").write_text(ASSEMBLYSCRIPT_HELLO)
    (tmp_path / "package.json").write_text("{}")
    made("npm", "install", "--no-audit", "--no-fund", "assemblyscript", "@assemblyscript/wasi-shim", folder=tmp_path)
    shim = "node_modules/@assemblyscript/wasi-shim/asconfig.json"
    made("npx", "asc", "hello.ts", "--config", shim, "-O", "-o", "hello.wasm", folder=tmp_path)
    result = run(as_job(tmp_path / "hello.wasm", tmp_path), "a", "b", environment={"NAME": "four"})
    assert said(result) == (Exited(3), "hello [a b] worked 4", "to stderr")


@pytest.mark.long
@needs_go
@pytest.mark.parametrize("package", GO_PACKAGES)
def test_a_package_of_go_passes_its_own_tests(package: str, tmp_path: Path) -> None:
    made("go", "test", "-c", "-o", str(tmp_path / "all.wasm"), package, folder=tmp_path, GOOS="wasip1", GOARCH="wasm")
    chosen = ("-test.run=^Test", f"-test.skip={GO_READS_FILES.get(package, '^$')}")
    result = run((tmp_path / "all.wasm").read_bytes(), "-test.short", *chosen, timeout_ms=300_000)
    outcome, told, errors = said(result)
    assert outcome == Exited(0), (told[-2000:], errors[-2000:])
    assert told.endswith("PASS"), told[-500:]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's programs, unpacked from a clone."""
    folder = tmp_path_factory.mktemp("wasi")
    clone = os.environ.get("WASI_TESTSUITE")
    if clone is None:
        clone = str(folder / "clone")
        fetching = [
            "git",
            "clone",
            "--quiet",
            "--bare",
            "--depth=1",
            "--branch",
            "prod/testsuite-base",
            TESTSUITE,
            clone,
        ]
        done = subprocess.run(fetching, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            pytest.skip(f"{TESTSUITE} cannot be fetched from here; set WASI_TESTSUITE to a clone of it")
    packed = subprocess.run(
        ["git", "archive", COMMIT, *(f"tests/{text}/testsuite/wasm32-wasip1" for text in ("assemblyscript", "c", "rust"))],
        cwd=clone, capture_output=True, check=True,
    ).stdout  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    return folder / "tests"


@pytest.mark.long
def test_the_programs_of_wasi_testsuite_that_need_no_folder_are_right(programs: Path) -> None:
    table: dict[str, str] = {}
    for program in sorted(programs.glob("*/testsuite/wasm32-wasip1/*.wasm")):
        described = program.with_suffix(".json")
        told: dict[str, Any] = json.loads(described.read_text()) if described.exists() else {}
        if "root" in told:
            continue
        result = run(program.read_bytes(), *told.get("args", ()), environment=told.get("env"))
        right = (Exited(told.get("exit_code", 0)), told.get("stdout", result.stdout.decode()))
        seen = (result.outcome, result.stdout.decode())
        table[f"{program.parts[-4]}/{program.stem}"] = "" if seen == right else f"{seen} {result.stderr!r}"
    assert len(table) == 23
    assert {name: why for name, why in table.items() if why} == {}
