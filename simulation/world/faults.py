"""What goes wrong in one run: a list of faults drawn from the seed before anything starts, and how each is done.

A run's faults are data, so that a failing seed can be minimised by taking faults away one at a time. Faults that belong
to one protocol (an equivocating voter, a revoked peer) are the fleet's own and are added to `Faults.special`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from protocols.chain.messages import Mute
from protocols.machine import Store
from simulation.world.network import Link
from simulation.world.world import BarrierCrash, BarrierSide, Host, World

GENERIC_KINDS = (
    "crash", "reboot", "barrier", "barrier", "barrier", "partition", "partition", "one_way", "isolate", "clog",
    "disk_loss", "rollback_database", "rollback_both", "disk_full", "slow_fsync", "clock_jump", "drift",
)  # fmt: skip
"""Barriers stand three times: random crashes alone miss persistence bugs."""

LAST_FAULT_SHARE = 0.9
"""Faults start in this share of the safety phase, so that the last ones also have effects."""


@dataclass(frozen=True)
class Fault:
    """One fault: when it starts, what it is, whom it hits (indices of hosts), and two numbers its kind reads."""

    at_ms: int
    kind: str
    hosts: tuple[int, ...]
    duration_ms: int
    amount: int


def draw(
    source: random.Random, host_count: int, safety_ms: int, count: int, kinds: tuple[str, ...]
) -> tuple[Fault, ...]:
    """Draw `count` faults for a world of `host_count` hosts, in order of time."""
    faults = []
    for _ in range(count):
        size = source.randint(1, max(1, host_count - 1))
        faults.append(
            Fault(
                at_ms=source.randrange(1, max(2, int(safety_ms * LAST_FAULT_SHARE))),
                kind=source.choice(kinds),
                hosts=tuple(sorted(source.sample(range(host_count), size))),
                duration_ms=source.choice((200, 1_000, 4_000, 12_000)),
                amount=source.randint(1, 12),
            )
        )
    return tuple(sorted(faults, key=lambda fault: fault.at_ms))


@dataclass
class Faults:
    """Performs faults in one world and can undo all that last, for the liveness phase."""

    world: World
    special: dict[str, Callable[[Fault], None]] = field(default_factory=dict)
    healed: bool = False

    def schedule(self, faults: tuple[Fault, ...]) -> None:
        """Let each fault happen at its time."""
        for fault in faults:
            self.world.at(fault.at_ms, self.perform, fault)

    def perform(self, fault: Fault) -> None:
        """Do one fault now, unless the world was healed."""
        if self.healed:
            return
        self.world.counts[f"fault {fault.kind}"] += 1
        special = self.special.get(fault.kind)
        if special is not None:
            special(fault)
            return
        host = self.world.hosts[fault.hosts[0]]
        self.world.trace.record(
            self.world.now_ms, host.name, "fault", f"{fault.kind} {fault.duration_ms} ms, {fault.amount}"
        )
        match fault.kind:
            case "crash" | "reboot":
                self._restart(host, fault, kept=fault.kind == "crash")
            case "barrier":
                side = tuple(BarrierSide)[fault.amount % 3]
                host.barrier_crash = BarrierCrash(1 + fault.amount // 3, side, fault.duration_ms)
            case "partition" | "one_way" | "isolate" | "rift":
                self._cut(fault)
            case "clog":
                until_ms = self.world.now_ms + fault.duration_ms
                for far in self.world.hosts:
                    self.world.network.clogged_until_ms[host.peer, far.peer] = until_ms
            case "disk_loss" | "rollback_database" | "rollback_both":
                self._damage(host, fault)
            case "disk_full" if fault.amount % 2 == 0:
                # The host's watch over its disk is in time: it stops voting before a write can fail.
                host.receive(Mute("the disk is full"))
                self.world.after(fault.duration_ms, host.receive, Mute(""))
            case "disk_full":
                host.disk.full = True
                self.world.after(fault.duration_ms, self._set_disk, host, "full", False)
            case "slow_fsync":
                host.disk.fsync_ms = 20 * fault.amount
                self.world.after(fault.duration_ms, self._set_disk, host, "fsync_ms", 0)
            case "clock_jump":
                host.clock.jump((-1) ** fault.amount * 300_000 * fault.amount)
            case "drift":
                host.clock.set_drift(self.world.now_ms, (-1) ** fault.amount * 2_000 * fault.amount)
            case _:
                raise ValueError(f"unknown fault {fault.kind}")

    def heal(self) -> None:
        """End every fault that lasts: links whole, disks free and quick, clocks right, all hosts up."""
        self.healed = True
        world = self.world
        world.network.cut.clear()
        world.network.clogged_until_ms.clear()
        world.network.faults.loss = world.network.faults.duplication = world.network.faults.reordering = 0.0
        for host in world.hosts:
            host.barrier_crash = None
            host.disk.full = False
            host.disk.fsync_ms = 0
            host.clock.wall_offset_ms = 0
            host.clock.set_drift(world.now_ms, 0)
            host.receive(Mute(""))

    def _restart(self, host: Host, fault: Fault, kept: bool) -> None:
        host.crash(fault.kind)
        self.world.after(fault.duration_ms, host.start, kept)

    def _damage(self, host: Host, fault: Fault) -> None:
        host.crash(fault.kind)
        match fault.kind:
            case "disk_loss":
                for store in Store:
                    host.disk.lose(store)
            case "rollback_database":
                host.disk.roll_back(Store.VOTE, fault.amount)
            case _:
                # A whole-machine snapshot takes all three files back, and the machine boots from it.
                for store in Store:
                    host.disk.roll_back(store, fault.amount)
        self.world.after(fault.duration_ms, host.start, fault.kind == "rollback_database")

    def _cut(self, fault: Fault) -> None:
        group = {self.world.hosts[index].peer for index in fault.hosts[: 1 if fault.kind == "isolate" else None]}
        links = []
        for near in self.world.hosts:
            for far in self.world.hosts:
                # A rift divides a group within itself, and leaves it connected to everybody else.
                if near.peer in group and (far.peer in group) == (fault.kind == "rift"):
                    links.append((near.peer, far.peer))
                    if fault.kind != "one_way":
                        links.append((far.peer, near.peer))
        for link in links:
            self.world.network.cut.setdefault(link, self.world.now_ms)
        self.world.after(fault.duration_ms, self._mend, tuple(links))

    def _mend(self, links: tuple[Link, ...]) -> None:
        for link in links:
            self.world.network.cut.pop(link, None)

    def _set_disk(self, host: Host, name: str, value: int | bool) -> None:
        setattr(host.disk, name, value)
