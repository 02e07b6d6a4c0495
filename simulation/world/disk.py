"""A simulated disk: three key-value stores whose writes are atomic and durable, until a fault says otherwise.

`apply` is what `Persist` performs. What a crash or a fault can do to it: lose the write that was under way, tear the
fence slot that was under way, forget the newest batches of a store (an old snapshot, or a damaged write-ahead log),
lose everything, fill up, become slow, become unreadable. Not here: when faults happen (faults.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocols.machine import Store, Write

UNDO_MAX = 64
"""How many batches back a snapshot can be: further would only repeat what losing the disk shows."""

Table = dict[bytes, bytes]


class SimulatedDiskFullError(Exception):
    """The write did not fit; nothing of it was applied."""


@dataclass
class StoreState:
    """One store: its tables, and how to undo its newest batches."""

    tables: dict[str, Table] = field(default_factory=dict)
    undo: list[list[Write]] = field(default_factory=list)
    readable: bool = True
    batch_count: int = 0


class Disk:
    """One host's disk; `fsync_ms` is how long each durable write takes now."""

    def __init__(self) -> None:
        self.stores = {store: StoreState() for store in Store}
        self.full = False
        self.fsync_ms = 0
        self.fsync_count = 0

    def apply(self, store: Store, writes: Sequence[Write]) -> None:
        """Apply one batch atomically. Raises DiskFullError and applies nothing if the disk is full."""
        if self.full:
            raise SimulatedDiskFullError(store.value)
        self.fsync_count += 1
        state = self.stores[store]
        undo: list[Write] = []
        for write in writes:
            table = state.tables.setdefault(write.table, {})
            undo.append(Write(write.table, write.key, table.get(write.key)))
            if write.value is None:
                table.pop(write.key, None)
            else:
                table[write.key] = write.value
        undo.reverse()
        state.undo.append(undo)
        del state.undo[:-UNDO_MAX]
        state.batch_count += 1

    def load(self, store: Store) -> dict[str, Table] | None:
        """Return a copy of a store's tables, or None if it is unreadable."""
        state = self.stores[store]
        if not state.readable:
            return None
        return {name: dict(table) for name, table in state.tables.items()}

    def roll_back(self, store: Store, batch_count: int) -> int:
        """Forget the newest `batch_count` batches of a store; return how many there were to forget."""
        state = self.stores[store]
        forgotten = 0
        while state.undo and forgotten < batch_count:
            for write in state.undo.pop():
                table = state.tables.setdefault(write.table, {})
                if write.value is None:
                    table.pop(write.key, None)
                else:
                    table[write.key] = write.value
            forgotten += 1
        state.batch_count -= forgotten
        return forgotten

    def tear(self, writes: Sequence[Write], source: random.Random) -> None:
        """Leave the fence slot that was being written half old, half garbage, as a power cut would."""
        for write in writes:
            if write.value:
                cut = source.randrange(len(write.value))
                torn = write.value[:cut] + source.randbytes(len(write.value) - cut)
                self.stores[Store.FENCE].tables.setdefault(write.table, {})[write.key] = torn

    def lose(self, store: Store) -> None:
        """Empty a store, as a new disk is."""
        self.stores[store] = StoreState()
