"""The simulated world: a virtual clock, an event heap, and hosts that perform the effects of one machine each.

This is the second interpreter of the effects of protocols/machine.py (the first is node/). Everything that happens is
an entry of the heap, ordered by time and then by the order in which it was scheduled, so one seed gives one run. A
host is a computer: its disk outlives its process, its process owns a machine. A crash can fall on either side of any
durability barrier; effects behind the barrier are then never performed. Not here: which faults happen (faults.py),
what the machines decide, and who judges it (the checkers).
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from protocols.machine import (
    Broadcast,
    Disconnect,
    Effect,
    Machine,
    Notify,
    PeerId,
    Persist,
    Reject,
    Send,
    Store,
    Tick,
)
from simulation.world.clock import HostClock
from simulation.world.disk import Disk, SimulatedDiskFullError, Table
from simulation.world.entropy import KeyRing, SeededEntropy, stream
from simulation.world.network import SWEEP_MS, LinkFaults, Network
from simulation.world.trace import Trace

RESTART_AFTER_ERROR_MS = 2_000
"""How long an init system waits before it starts a process that ended on an error (a full disk, say)."""


CALLS_MAX = 3_000_000
"""Ten times what the busiest honest run needs: beyond it, machines answer each other without end."""


class BarrierSide(Enum):
    """Where, around a durable write, a crash falls."""

    BEFORE = "before"
    TORN = "torn"
    AFTER = "after"


@dataclass
class BarrierCrash:
    """Crash at the `countdown`-th next durable write, on the given side of it, and start again later."""

    countdown: int
    side: BarrierSide
    restart_ms: int


@dataclass(frozen=True)
class Boot:
    """What a machine is made from: its host, the disk's stores (None: unreadable), what the system kept."""

    host: Host
    vote: dict[str, Table] | None
    state: dict[str, Table] | None
    fence: dict[str, Table] | None
    boot_nonce: bytes
    runtime_folder_kept: bool
    """False after a reboot or a restore: the volatile runtime folder is empty."""
    entropy: SeededEntropy


MakeMachine = Callable[[Boot], Machine[Any, Effect]]


class Host:
    """One computer of the world and the process on it."""

    def __init__(self, world: World, name: str, peer: PeerId, make_machine: MakeMachine) -> None:
        self.world = world
        self.name = name
        self.peer = peer
        self.make_machine = make_machine
        self.disk = Disk()
        self.clock = HostClock()
        self.machine: Machine[Any, Effect] | None = None
        self.up = False
        self.boot_count = 0
        self.boot_nonce = b""
        self.barrier_crash: BarrierCrash | None = None
        self.busy = False
        self._inbox: deque[Any] = deque()
        self._tick_at_ms: int | None = None
        self._source = stream(world.seed, f"host/{name}")
        self.entropy = SeededEntropy(self._source)

    # --- the process --------------------------------------------------------------------------------------------------

    def start(self, runtime_folder_kept: bool = True) -> None:
        """Start the process: make the machine from what the disk holds."""
        if self.up:
            return
        self.up = True
        self.busy = False
        self.boot_count += 1
        self.boot_nonce = self._source.randbytes(8)
        self._inbox.clear()
        self._tick_at_ms = None
        self.world.trace.record(self.world.now_ms, self.name, "start", f"boot {self.boot_count}")
        self.machine = self.make_machine(
            Boot(
                self,
                self.disk.load(Store.VOTE),
                self.disk.load(Store.STATE),
                self.disk.load(Store.FENCE),
                self.boot_nonce,
                runtime_folder_kept,
                self.entropy,
            )
        )
        self._arm()

    def crash(self, why: str) -> None:
        """End the process at once; whatever it had not made durable is gone."""
        if not self.up:
            return
        self.world.trace.record(self.world.now_ms, self.name, "crash", why)
        self.world.counts["crashes"] += 1
        self.up = False
        self.machine = None
        self.world.network.host_down(self.peer)

    # --- driving the machine ------------------------------------------------------------------------------------------

    def receive(self, event: Any, boot_count: int | None = None) -> None:
        """Hand one event to the machine, after those that wait while a durable write is under way."""
        if not self.up or (boot_count is not None and boot_count != self.boot_count):
            return
        if self.busy:
            self._inbox.append(event)
            return
        self._handle(event)

    def _handle(self, event: Any) -> None:
        assert self.machine is not None
        self.world.trace.record(self.world.now_ms, self.name, "handle", getattr(event, "message", event))
        self._perform(self.machine.handle(event, self.clock.now(self.world.now_ms)), 0)

    def _perform(self, effects: Sequence[Effect], start: int) -> None:
        for index in range(start, len(effects)):
            effect = effects[index]
            match effect:
                case Send():
                    self.world.network.send(self.peer, effect.peer, effect.message)
                case Persist():
                    if not self._persist(effect, effects, index):
                        return
                case Broadcast(message, exclude):
                    for peer in self.world.network.connected(self.peer):
                        if peer not in exclude:
                            self.world.network.send(self.peer, peer, message)
                case Disconnect(peer, reason):
                    self.world.network.disconnect(self.peer, peer, reason)
                case Reject(peer, rule, _):
                    self.world.counts["rejects"] += 1
                    self.world.rejects[rule] += 1
                    self.world.trace.record(self.world.now_ms, self.name, "reject", effect)
                case Notify(event):
                    self.world.trace.record(self.world.now_ms, self.name, "notify", event)
                    for observe in self.world.observers:
                        observe(self, event)
                    if not self.up:
                        return
                case _:
                    assert_never(effect)
        self._arm()

    def _persist(self, effect: Persist, effects: Sequence[Effect], index: int) -> bool:
        """Make one batch durable; False if what follows must wait (a slow disk) or never comes (a crash)."""
        crash = self.barrier_crash
        if crash is not None:
            crash.countdown -= 1
            if crash.countdown <= 0:
                self._crash_at_barrier(crash, effect)
                return False
        try:
            self.disk.apply(effect.store, effect.writes)
        except SimulatedDiskFullError:
            self.crash("disk full")
            self.world.after(RESTART_AFTER_ERROR_MS, self.start)
            return False
        content = b"".join(write.key + (write.value or b"-") for write in effect.writes)
        self.world.trace.record(self.world.now_ms, self.name, "persist", effect, content)
        for watch in self.world.persist_watchers:
            watch(self, effect)
        if self.disk.fsync_ms:
            self.busy = True
            self.world.after(self.disk.fsync_ms, self._resume, effects, index + 1, self.boot_count)
            return False
        return True

    def _resume(self, effects: Sequence[Effect], start: int, boot_count: int) -> None:
        if not self.up or boot_count != self.boot_count:
            return
        self.busy = False
        self._perform(effects, start)
        while self.up and self._inbox and not self.busy:
            self._handle(self._inbox.popleft())

    def _crash_at_barrier(self, crash: BarrierCrash, effect: Persist) -> None:
        self.barrier_crash = None
        self.world.counts["crashes at a barrier"] += 1
        if crash.side is BarrierSide.AFTER and not self.disk.full:
            self.disk.apply(effect.store, effect.writes)
            for watch in self.world.persist_watchers:
                watch(self, effect)
        elif crash.side is BarrierSide.TORN and effect.store is Store.FENCE:
            self.disk.tear(effect.writes, self._source)
        self.crash(f"{crash.side.value} a durable write to {effect.store.value}")
        self.world.after(crash.restart_ms, self.start)

    def _arm(self) -> None:
        """See to it that a Tick comes when the machine wants one; a later deadline lets the earlier tick fire idly."""
        if self.machine is None or self.busy:
            return
        due_ms = self.machine.deadline_ms()
        if due_ms is None:
            return
        at_ms = max(self.clock.world_ms(due_ms), self.world.now_ms)
        if self._tick_at_ms is None or at_ms < self._tick_at_ms:
            self._tick_at_ms = at_ms
            self.world.at(at_ms, self._tick, at_ms, self.boot_count)

    def _tick(self, at_ms: int, boot_count: int) -> None:
        if not self.up or boot_count != self.boot_count or self._tick_at_ms != at_ms:
            return
        self._tick_at_ms = None
        assert self.machine is not None
        due_ms = self.machine.deadline_ms()
        if due_ms is not None and self.clock.now(at_ms).mono_ms >= due_ms:
            self.receive(Tick())
        else:
            self._arm()


class World:
    """One simulated run, from one seed."""

    def __init__(self, seed: int, faults: LinkFaults | None = None, keep_trace: bool = False) -> None:
        self.seed = seed
        self.now_ms = 0
        self.trace = Trace(keep_trace)
        self.keys = KeyRing()
        self.hosts: list[Host] = []
        self._host_by_peer: dict[PeerId, Host] = {}
        self.network = Network(self, stream(seed, "network"), faults or LinkFaults())
        self.observers: list[Callable[[Host, Any], None]] = []
        self.persist_watchers: list[Callable[[Host, Persist], None]] = []
        self.counts: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.may_connect: Callable[[Host, Host], bool] = lambda near, far: True
        self.calls = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.at(0, self._sweep)

    def add_host(self, name: str, peer: PeerId, make_machine: MakeMachine) -> Host:
        """Put one more computer into the world, switched off."""
        host = Host(self, name, peer, make_machine)
        self.hosts.append(host)
        self._host_by_peer[peer] = host
        return host

    def host_of(self, peer: PeerId) -> Host:
        """The computer of a peer."""
        return self._host_by_peer[peer]

    def at(self, time_ms: int, call: Callable[..., None], *args: Any) -> None:
        """Schedule a call at a world time, not before now."""
        self._order += 1
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), self._order, call, args))

    def after(self, delay_ms: int, call: Callable[..., None], *args: Any) -> None:
        """Schedule a call `delay_ms` from now."""
        self.at(self.now_ms + delay_ms, call, *args)

    def run_until(self, end_ms: int) -> None:
        """Let everything happen that is due by `end_ms`."""
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, call, args = heapq.heappop(heap)
            call(*args)
            self.calls += 1
            if self.calls > CALLS_MAX:
                raise RuntimeError(f"a runaway: {CALLS_MAX} calls by {self.now_ms} ms of virtual time")
        self.now_ms = end_ms

    def run_while(self, unfinished: Callable[[], bool], end_ms: int, step_ms: int = 100) -> bool:
        """Run until `unfinished()` is false or `end_ms` has come; return whether it finished."""
        while unfinished():
            if self.now_ms >= end_ms:
                return False
            self.run_until(min(self.now_ms + step_ms, end_ms))
        return True

    def _sweep(self) -> None:
        self.network.sweep()
        self.after(SWEEP_MS, self._sweep)
