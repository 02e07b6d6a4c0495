"""Preview 1 commands: arguments, output, exit codes, deadlines, and the absence of everything else."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime

from runtime.engine.engine import engine
from runtime.engine.guest import GuestServices
from runtime.outcome import DeadlineExceeded, Exited, MemoryRefused, Trapped
from runtime.providers import Providers
from runtime.sandbox.sandbox import CommandResult, ModuleApp
from tests.support.runtime.wasm_parts import SilentLog, a_spec
from tests.support.runtime.wasm_text import module

WASI = "wasi_snapshot_preview1"


def run(data: bytes, *arguments: str, log: SilentLog | None = None, **limits: Any) -> CommandResult:
    spec = a_spec(kind="module", environment={"NAME": "value"}, **limits)
    services = GuestServices(spec, log or SilentLog(), Providers(), None)
    return ModuleApp(spec, wasmtime.Module(engine(), data), services).run(arguments)


def imported(name: str, parameters: str, result: str = "(result i32)") -> str:
    return f'(import "{WASI}" "{name}" (func ${name} (param {parameters}) {result}))'


WRITE = imported("fd_write", "i32 i32 i32 i32")
EXIT = imported("proc_exit", "i32", "")


def test_output_is_captured_and_logged_and_the_exit_code_is_kept() -> None:
    log = SilentLog()
    text = module(
        """(i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 6))
           (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
           (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
           (call $proc_exit (i32.const 7))""",
        imports=WRITE + EXIT,
        data='(data (i32.const 16) "hello\\n")',
    )
    result = run(text, log=log)
    assert result == CommandResult(Exited(7), b"hello\n", b"hello\n")
    assert log.entries == [("info", "stdout", "hello"), ("warn", "stderr", "hello")]


def test_arguments_and_environment_arrive_nul_terminated() -> None:
    text = module(
        """(drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
           (drop (call $args_get (i32.const 200) (i32.const 100)))
           (drop (call $environ_get (i32.const 300) (i32.add (i32.const 100) (i32.load (i32.const 4)))))
           (i32.store (i32.const 8) (i32.const 100)) (i32.store (i32.const 12) (i32.const 17))
           (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))""",
        imports=WRITE + "".join(imported(name, "i32 i32") for name in ("args_sizes_get", "args_get", "environ_get")),
    )
    result = run(text, "x", "yz")
    assert result.outcome == Exited(0)
    assert result.stdout == b"a\0x\0yz\0NAME=value"[:17]


@pytest.mark.parametrize(
    ("name", "parameters", "arguments", "errno"),
    [
        ("fd_prestat_get", "i32 i32", "(i32.const 3) (i32.const 0)", 8),
        ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32", "(i32.const 3)" + " (i32.const 0)" * 4
            + " (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0)", 8),
        ("sock_accept", "i32 i32 i32", "(i32.const 3) (i32.const 0) (i32.const 0)", 8),
        ("sock_shutdown", "i32 i32", "(i32.const 1) (i32.const 0)", 57),
        ("fd_readdir", "i32 i32 i32 i64 i32", "(i32.const 2)" + " (i32.const 0)" * 2 + " (i64.const 0) (i32.const 0)", 54),
        ("path_symlink", "i32 i32 i32 i32 i32", "(i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)", 54),
        ("path_symlink", "i32 i32 i32 i32 i32", "(i32.const 0) (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 0)", 8),
        ("path_unlink_file", "i32 i32 i32", "(i32.const 0) (i32.const 0) (i32.const 0)", 54),
        ("fd_tell", "i32 i32", "(i32.const 1) (i32.const 0)", 70),
        ("fd_tell", "i32 i32", "(i32.const 9) (i32.const 0)", 8),
        ("proc_raise", "i32", "(i32.const 9)", 52),
        ("fd_seek", "i32 i64 i32 i32", "(i32.const 1) (i64.const 0) (i32.const 0) (i32.const 0)", 70),
        ("fd_write", "i32 i32 i32 i32", "(i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)", 21),
        ("random_get", "i32 i32", "(i32.const 0) (i32.const -1)", 28),
        ("clock_time_get", "i32 i64 i32", "(i32.const 3) (i64.const 0) (i32.const 0)", 28),
        ("fd_read", "i32 i32 i32 i32", "(i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)", 0),
    ],
)  # fmt: skip
def test_what_is_not_there_answers_an_error_number(name: str, parameters: str, arguments: str, errno: int) -> None:
    text = module(f"(call $proc_exit (call ${name} {arguments}))", imports=imported(name, parameters) + EXIT)
    assert run(text).outcome == Exited(errno)


def test_waiting_ends_at_the_clock_or_at_the_deadline() -> None:
    def sleeping(nanoseconds: int) -> bytes:
        return module(
            f"""(i64.store (i32.const 24) (i64.const {nanoseconds}))
                (i32.store (i32.const 16) (i32.const 1))
                (call $proc_exit (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))""",
            imports=imported("poll_oneoff", "i32 i32 i32 i32") + EXIT,
        )

    assert run(sleeping(1_000_000)).outcome == Exited(0)
    assert run(sleeping(3_600_000_000_000), timeout_ms=50).outcome == DeadlineExceeded(50)


def test_spinning_trapping_and_growing_end_as_values() -> None:
    assert run(module("(loop $l (br $l))"), timeout_ms=50).outcome == DeadlineExceeded(50)
    assert isinstance(run(module("unreachable")).outcome, Trapped)
    assert isinstance(run(module("nop", memory="100"), memory_max_bytes=65536).outcome, MemoryRefused)
    greedy = module("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable")
    assert isinstance(run(greedy, memory_max_bytes=1024 * 1024).outcome, MemoryRefused)


def test_a_function_imported_twice_is_one_function() -> None:
    twice = imported("fd_write", "i32 i32 i32 i32").replace("$fd_write", "$again")
    text = module(
        """(i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 2))
           (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
           (drop (call $again (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))""",
        imports=WRITE + twice,
        data='(data (i32.const 16) "a\\n")',
    )
    assert run(text).stdout == b"a\na\n"


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_standard_stream_is_no_terminal(descriptor: int) -> None:
    """C libraries call a character device a terminal, and print colours to it."""
    text = module(
        f"""(drop (call $fd_fdstat_get (i32.const {descriptor}) (i32.const 0)))
            (call $proc_exit (i32.load8_u (i32.const 0)))""",
        imports=imported("fd_fdstat_get", "i32 i32") + EXIT,
    )
    assert run(text).outcome == Exited(0)


def test_an_exit_code_is_the_one_the_program_gave() -> None:
    assert [run(module(f"(call $proc_exit (i32.const {code}))", imports=EXIT)).outcome for code in (0, 3, 255)] == [
        Exited(0), Exited(3), Exited(255),
    ]  # fmt: skip
