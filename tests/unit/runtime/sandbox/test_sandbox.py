"""Guests in the sandbox: every end is a value, limits hold, instances are kept, retired and thrown away as told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasmtime import component as wc

from runtime.call import GuestCall
from runtime.engine import bindings
from runtime.engine.engine import engine
from runtime.engine.memory_use import parse
from runtime.outcome import (
    Cancelled,
    DeadlineExceeded,
    Exited,
    HostFailed,
    MemoryRefused,
    NoResponse,
    Outcome,
    Trapped,
)
from runtime.sandbox import sandbox
from runtime.sandbox.sandbox import LoadedApp, LoadError, Sandbox
from tests.support.runtime.wasm_parts import SilentLog, a_spec, an_exchange
from tests.support.runtime.wasm_text import command, exiting_command


@pytest.fixture(autouse=True, params=["raw calls", "the public API"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs on both roads into a guest; the second is the one for an unknown wasmtime."""
    if request.param == "the public API":
        monkeypatch.setattr(bindings, "supported", lambda: False)
    return str(request.param)


def a_command(data: bytes, **limits: Any) -> LoadedApp:
    spec = a_spec(kind="command", **limits)
    return Sandbox().load_component(spec, SilentLog(), wc.Component(engine(), data))


def outcome_of(data: bytes, **limits: Any) -> Outcome:
    return a_command(data, **limits).run().outcome


HANDLER = """
(component
  (import "wasi:http/types@0.2.0" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  (core module $main (memory (export "memory") 1) (global $uses (mut i32) (i32.const 0))
    (func (export "handle") (param i32 i32) {body}))
  (core instance $main (instantiate $main))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (component $shim
    (import "r" (type $r (sub resource))) (import "o" (type $o (sub resource)))
    (import "h" (func $h (param "request" (own $r)) (param "response-out" (own $o))))
    (export $r2 "incoming-request" (type $r)) (export $o2 "response-outparam" (type $o))
    (export "handle" (func $h) (func (param "request" (own $r2)) (param "response-out" (own $o2)))))
  (instance $handler (instantiate $shim
    (with "r" (type $request)) (with "o" (type $outparam)) (with "h" (func $handle))))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))
"""


def a_handler(body: str, **limits: Any) -> LoadedApp:
    component = wc.Component(engine(), wasmtime.wat2wasm(HANDLER.format(body=body)))
    return Sandbox().load_component(a_spec(**limits), SilentLog(), component)


TRAP_ON_SECOND_USE = """
  (global.set $uses (i32.add (global.get $uses) (i32.const 1)))
  (if (i32.gt_u (global.get $uses) (i32.const 1)) (then unreachable))
"""


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1)])
def test_exit_codes_come_from_the_result_and_from_exit(status: int, code: int) -> None:
    assert outcome_of(command(f"(i32.const {status})")) == Exited(code)
    assert outcome_of(exiting_command(status)) == Exited(code)


def test_a_trap_is_a_value_with_the_guests_backtrace() -> None:
    outcome = outcome_of(command("unreachable"))
    assert isinstance(outcome, Trapped)
    assert "unreachable" in outcome.reason
    assert "wasm backtrace" in outcome.backtrace


def test_a_spinning_guest_ends_at_its_deadline() -> None:
    began = time.monotonic()
    assert outcome_of(command("(loop $l (br $l)) unreachable"), timeout_ms=100) == DeadlineExceeded(100)
    assert 0.09 < time.monotonic() - began < 5


def test_cancelling_ends_a_spinning_guest(road: str) -> None:
    if road == "the public API":
        pytest.skip("there only the deadline ends a guest that computes")
    app = a_command(command("(loop $l (br $l)) unreachable"))
    call = GuestCall(time.monotonic() + 60)
    timer = threading.Timer(0.05, call.cancel)
    timer.start()
    assert app.run(call=call).outcome == Cancelled()
    timer.join()


def test_endless_recursion_is_a_trap() -> None:
    body = command("(call 0)")
    outcome = outcome_of(body)
    assert isinstance(outcome, Trapped)
    assert outcome.reason == "call stack exhausted"


def test_memory_beyond_the_cap_is_refused_at_start_and_while_running() -> None:
    megabyte = 1024 * 1024
    at_start = outcome_of(command("(i32.const 0)", memory="100"), memory_max_bytes=megabyte)
    assert isinstance(at_start, MemoryRefused)
    greedy = command("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable")
    running = outcome_of(greedy, memory_max_bytes=megabyte)
    assert isinstance(running, MemoryRefused)
    assert running.memory_max_bytes == megabyte


GARBAGE = """
(component
  (core module $main
    (type $bytes (array (mut i8)))
    (type $node (struct (field (ref null $bytes)) (field (ref null 1))))
    (memory (export "memory") 1)
    (global $kept (mut (ref null $node)) (ref.null $node))
    (func (export "run") (result i32)
      (loop $l
        (global.set $kept (struct.new $node (array.new_default $bytes (i32.const 1000000)) (global.get $kept)))
        (br $l))
      unreachable))
  (core instance $main (instantiate $main))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))
"""


def test_the_cap_holds_for_collected_memory_and_shared_memory_is_refused() -> None:
    collected = outcome_of(bytes(wasmtime.wat2wasm(GARBAGE)), memory_max_bytes=16 * 1024 * 1024)
    assert isinstance(collected, MemoryRefused)
    shared = outcome_of(command("(i32.const 0)", memory="1 2 shared"))
    assert isinstance(shared, Trapped)
    assert "shared memory" in shared.reason


def test_tables_have_a_largest_size() -> None:
    grow = wasmtime.wat2wasm(
        """(component
          (core module $main (table $t 1 funcref)
            (func (export "run") (result i32)
              (i32.ne (table.grow $t (ref.null func) (i32.const 2000)) (i32.const -1))))
          (core instance $main (instantiate $main))
          (func $run (result (result)) (canon lift (core func $main "run")))
          (instance $exports (export "run" (func $run)))
          (export "wasi:cli/run@0.2.0" (instance $exports)))"""
    )
    assert outcome_of(bytes(grow), table_elements_max=1000) == Exited(0), "refused: the guest saw -1"
    assert outcome_of(bytes(grow), table_elements_max=5000) == Exited(1), "granted"


def test_a_handler_that_answers_nothing_is_no_response() -> None:
    exchange = an_exchange()
    assert a_handler("").handle(exchange) == NoResponse()
    batch = exchange.response.collect()
    assert (batch.head, batch.outcome) == (None, NoResponse())
    assert exchange.body.closed


def test_a_fresh_instance_remembers_nothing_and_a_kept_one_does() -> None:
    fresh = a_handler(TRAP_ON_SECOND_USE, instances="fresh")
    fresh.prepare()
    assert [type(fresh.handle(an_exchange())) for _ in range(3)] == [NoResponse] * 3
    loaded_app = a_handler(TRAP_ON_SECOND_USE, instances="reuse", instances_ready=1)
    ends = [type(loaded_app.handle(an_exchange())) for _ in range(4)]
    assert ends == [NoResponse, Trapped, NoResponse, Trapped], "a trapped instance is never used again"


def test_a_kept_instance_retires_after_its_uses() -> None:
    app = a_handler(TRAP_ON_SECOND_USE, instances="reuse", instance_uses_max=1, instances_ready=1)
    assert [type(app.handle(an_exchange())) for _ in range(3)] == [NoResponse] * 3


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the size of a memory is only known on Linux")
def test_a_kept_instance_retires_when_its_memory_nears_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY_LOOK_USES", 1)
    grows = TRAP_ON_SECOND_USE + "(drop (memory.grow (i32.const 13)))"
    limits: dict[str, Any] = {"instances": "reuse", "instances_ready": 1}
    small_cap = a_handler(grows, memory_max_bytes=16 * 65536, **limits)
    assert [type(small_cap.handle(an_exchange())) for _ in range(3)] == [NoResponse] * 3
    large_cap = a_handler(grows, memory_max_bytes=64 * 65536, **limits)
    assert [type(large_cap.handle(an_exchange())) for _ in range(2)] == [NoResponse, Trapped]


def test_one_guests_trap_does_not_touch_another_running_beside_it() -> None:
    bad = a_handler("unreachable")
    slow = a_command(command("(loop $l (br $l)) unreachable"), timeout_ms=300)
    outcomes: list[Outcome] = []
    beside = threading.Thread(target=lambda: outcomes.append(slow.run().outcome))
    beside.start()
    for _ in range(20):
        assert isinstance(bad.handle(an_exchange()), Trapped)
    beside.join()
    assert outcomes == [DeadlineExceeded(300)]


def test_a_call_that_is_over_before_it_starts_never_reaches_the_guest() -> None:
    exchange = an_exchange(timeout_s=-1)
    assert isinstance(a_handler("unreachable").handle(exchange), DeadlineExceeded)


def test_a_defect_of_the_host_is_told_apart_from_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    app = a_handler("")

    def broken(*_: object) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "_serve", broken)
    exchange = an_exchange()
    outcome = app.handle(exchange)
    assert isinstance(outcome, HostFailed)
    assert "ZeroDivisionError" in outcome.traceback
    assert exchange.response.collect().outcome == outcome


def test_an_artifact_that_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        Sandbox().load(a_spec(artifact=tmp_path / "none.cwasm"), SilentLog())


def test_memories_are_found_before_their_reservations() -> None:
    gigabyte = 1024**3
    maps = "\n".join(
        [
            "10000000-10020000 rw-p 00000000 00:00 0",
            "10020000-10030000 rw-s 00000000 00:00 0",
            f"10030000-{0x10030000 + 4 * gigabyte:x} ---p 00000000 00:00 0",
            "200000000000-200000010000 rw-p 00000000 00:00 0",
            "200000010000-200000020000 ---p 00000000 00:00 0",
        ]
    )
    assert parse(maps) == {0x10000000: 0x30000}
