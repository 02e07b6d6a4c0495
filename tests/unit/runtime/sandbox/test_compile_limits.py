"""What compiling may cost: judged by a function's shape, held to limits by size, and paid for by its project."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from runtime.engine.wasm_binary import encoded_number, section, vector
from runtime.sandbox.code_size import WORK_MAX, code_problem, limits_for
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.sandbox.compile_turns import COMPILERS_MAX, CPU_MAX_S, WINDOW_S, CompileTurns, TurnRefusedError
from runtime.sandbox.component import ComponentError, check

HEAD = b"\0asm\1\0\0\0"
COMPONENT_HEAD = b"\0asm\x0d\0\1\0"
NOP = b"\x01"


def function(size_bytes: int, local_count: int) -> bytes:
    """A function's code of about this size."""
    body = encoded_number(1) + encoded_number(local_count) + b"\x7f" + NOP * size_bytes + b"\x0b"
    return encoded_number(len(body)) + body


def module(*codes: bytes, type_of: bytes = b"\x60\0\0") -> bytes:
    return (
        HEAD + section(1, vector([type_of])) + section(3, vector([b"\0"] * len(codes))) + section(5, vector([b"\0\1"]))
        + section(7, vector([b"\6_start\0" + encoded_number(len(codes) - 1), b"\6memory\2\0"]))
        + section(10, vector(codes))
    )  # fmt: skip


SMALL = function(0, 0)
HUGE = function(WORK_MAX // 1_000 + 10, 1_000)
JUST = function(WORK_MAX // 1_000 - 10, 1_000)


def test_a_function_that_costs_too_much_is_named_and_one_just_below_is_taken() -> None:
    assert code_problem(module(SMALL, JUST, SMALL)) is None
    problem = code_problem(module(SMALL, HUGE, SMALL))
    assert problem is not None
    assert problem.startswith("Function 1 of its code has 100,0")
    assert "1,000 local variables" in problem


@pytest.mark.parametrize("parts", ["parameters", "results", "a type of another kind"])
def test_what_a_function_or_block_carries_counts_as_its_locals_do(parts: str) -> None:
    many = encoded_number(999) + b"\x7f" * 999
    types = {"parameters": b"\x60" + many + b"\0", "results": b"\x60\0" + many, "a type of another kind": b"\x5f\0"}
    wide = function(WORK_MAX // 999 + 10, 0)
    assert code_problem(module(wide)) is None
    assert code_problem(module(wide, type_of=types[parts])) is not None


def test_modules_within_components_are_looked_at_and_depth_has_an_end() -> None:
    nested = COMPONENT_HEAD + section(1, module(HUGE))
    for _ in range(3):
        nested = COMPONENT_HEAD + section(4, nested)
    assert code_problem(nested) is not None
    deep = COMPONENT_HEAD
    for _ in range(40):
        deep = COMPONENT_HEAD + section(4, deep)
    assert "nested" in str(code_problem(deep))


def test_a_file_cut_short_is_refused_in_words() -> None:
    whole = module(SMALL, JUST)
    for cut in (20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ComponentError, match="truncated"):
            check(whole[:cut])


async def test_the_bomb_is_refused_before_a_compiler_runs(tmp_path: Path) -> None:
    path = tmp_path / "bomb.wasm"
    path.write_bytes(module(HUGE, SMALL))
    with pytest.raises(ComponentError, match="more than a node compiles; split it"):
        check(path)
    with pytest.raises(ComponentError, match="more than a node compiles; split it"):
        await CompileCache(tmp_path / "cache").ensure(path, file_digest(path), "shop")


def test_larger_files_may_cost_more_up_to_an_end() -> None:
    mib = 1 << 20
    assert limits_for(0) == (34, (2048 + 128) * mib)
    assert limits_for(18 * mib) == (30 + 4 * 19, (2048 + 128 * 19) * mib)
    assert limits_for(1 << 40) == (300, 8192 * mib)


async def test_what_takes_longer_than_its_size_may_is_ended_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spinning = [
        sys.executable,
        "-c",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
    ]
    monkeypatch.setattr("runtime.sandbox.compile_cache._command", lambda component, target: spinning)
    path = tmp_path / "slow.wasm"
    path.write_bytes(module(SMALL))
    with pytest.raises(ComponentError, match="more than 34 s of processor time; build it with optimization for size"):
        await CompileCache(tmp_path / "cache").ensure(path, file_digest(path), "shop")


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_one_project_has_one_compiler_and_others_are_not_behind_it() -> None:
    turns, going = CompileTurns(), asyncio.Event()
    at_work: list[str] = []

    async def compile_for(payer: str) -> None:
        async with turns.take(payer):
            at_work.append(payer)
            await going.wait()

    greedy = [asyncio.ensure_future(compile_for("greedy")) for _ in range(20)]
    modest = [asyncio.ensure_future(compile_for("modest")) for _ in range(2)]
    decided = [asyncio.ensure_future(compile_for("")) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(at_work) == ["", "", "", "greedy", "modest"]
    assert COMPILERS_MAX == 2
    going.set()
    await asyncio.gather(*greedy, *modest, *decided)
    assert at_work.count("greedy") == 20


async def test_a_projects_processor_time_has_an_end_that_passes_and_is_nobody_elses() -> None:
    clock = Clock()
    turns = CompileTurns(clock)
    for cost_s in (CPU_MAX_S - 1, 1.0):
        async with turns.take("greedy") as turn:
            turn.cpu_s = cost_s
        clock.now_s += 60
    with pytest.raises(TurnRefusedError, match=r"greedy has used its 600 s .* again in 58 min"):
        async with turns.take("greedy"):
            raise AssertionError
    for other in ("modest", ""):
        async with turns.take(other):
            pass
    clock.now_s += WINDOW_S - 120
    async with turns.take("greedy"):
        pass


async def test_a_failed_compilation_is_paid_for_too() -> None:
    turns = CompileTurns(Clock())

    async def fail() -> None:
        async with turns.take("greedy") as turn:
            turn.cpu_s = CPU_MAX_S
            raise ComponentError("no")

    with pytest.raises(ComponentError):
        await fail()
    with pytest.raises(TurnRefusedError):
        async with turns.take("greedy"):
            raise AssertionError
