"""A fleet whose wall clock jumps while it runs: daemons, workers and commands alike, all at once. Not a test.

Its machines keep their addresses when they start again, and may run the files of an earlier release.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.mesh.nodes import Fleet, Machine, free_port

DAY_NS = 86_400 * 1_000_000_000
CLOCK = Path(__file__).with_name("clock")


@dataclass
class JumpingMachine(Machine):
    """A machine under the test's clock; `code` holds the files of the release that it runs, if not this one's."""

    clock: Path = Path()
    code: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        path = str(CLOCK) if self.code is None else f"{CLOCK}:{self.code}"
        return {**super().environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TEST_CLOCK": str(self.clock)}


class JumpingFleet(Fleet):
    """A fleet under one clock, which only goes forward."""

    def __init__(self, folder: Path, compiled: Path | None = None, code: Path | None = None) -> None:
        super().__init__(folder, compiled)
        folder.mkdir(parents=True, exist_ok=True)
        self.ahead_ns = 0
        self.code = code
        self._clock = folder / "clock"
        self.jump(0)

    def machine(self, name: str) -> Machine:
        machine = JumpingMachine(self.folder / name, compiled=self.compiled, clock=self._clock, code=self.code)
        self.machines.append(machine)
        return machine

    def _addresses(self, name: str, options: tuple[str, ...]) -> tuple[str, ...]:
        del name
        listen = () if "--listen" in options else ("--listen", f"127.0.0.1:{free_port()}")
        return (*listen, "--ingress", f"127.0.0.1:{free_port()}")

    def jump(self, days: float) -> None:
        """Have it be so many days later, at once."""
        self.ahead_ns += int(days * DAY_NS)
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("<q", self.ahead_ns))

    @property
    def ahead_days(self) -> int:
        """How far the clock has jumped."""
        return self.ahead_ns // DAY_NS

    @property
    def now_ms(self) -> int:
        """The wall clock of the fleet."""
        return (time.time_ns() + self.ahead_ns) // 1_000_000
