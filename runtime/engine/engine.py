"""The one wasmtime engine of a process and the one thread that ticks its epoch.

An engine's configuration is part of every compiled artifact's name: change it here and all recompile. Not here: stores.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Final

import wasmtime

from runtime.engine import bindings

TICK_S: Final = 0.010
"""How late a deadline, a cancellation or a flushed byte of a computing guest may be."""

LINGER_S: Final = 1.0
"""How long the ticks go on after the last call ended: a hundred of them cost about a millisecond."""

WASM_STACK_MAX_BYTES: Final = 1984 * 1024
"""The guest's stack: CPython's own limit of recursion must be met before it, so that deep input is an error of the app and
not the end of its instance. wasmtime's fibers hold 2 MiB, and it refuses more here than there.
"""

CONFIGURATION: Final = f"epoch=1;stack={WASM_STACK_MAX_BYTES};opt=speed;concurrency=0"
"""What an artifact depends on besides the component and the release of wasmtime."""


@cache
def engine() -> wasmtime.Engine:
    """Return the process's engine."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = WASM_STACK_MAX_BYTES
    config.cranelift_opt_level = "speed"
    bindings.without_concurrency(config)
    return wasmtime.Engine(config)


class Ticker:
    """Increments the epoch every `TICK_S` while calls come; sleeps without waking once none came for a second.

    It outlasts each call by that second because waking a thread for every request costs more than the ticks do.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._running = 0
        self._ticking = False
        self._busy = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """A call begins."""
        with self._lock:
            self._running += 1
            if self._ticking:
                return
            self._ticking = True
            self._busy.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="epoch", daemon=True)
                self._thread.start()

    def leave(self) -> None:
        """A call ended."""
        with self._lock:
            self._running -= 1

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._busy.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        idle_ticks = 0
        while not self._stopped.is_set():
            self._busy.wait()
            self._stopped.wait(TICK_S)
            self._engine.increment_epoch()
            with self._lock:
                idle_ticks = 0 if self._running else idle_ticks + 1
                if idle_ticks * TICK_S >= LINGER_S and not self._stopped.is_set():
                    idle_ticks, self._ticking = 0, False
                    self._busy.clear()


@cache
def ticker() -> Ticker:
    """Return the process's ticker."""
    return Ticker(engine())
