"""Is a history of client operations linearizable? Judged with the chain's slots as the witness order.

Searching for an order of a history is exponential in the operations whose outcome is unknown. The chain offers one: the
slot of each write, and for each read the head it was answered from. The history is linearizable if that order respects
real time (who returned before another began comes first) and explains every value that was read. If it does not, the
chain broke its promise even if another order exists, because clients are told slots. Source: M. Herlihy, J. Wing,
"Linearizability" (1990); the witness is what G. Lowe calls a linearization point, "Testing for linearizability" (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HistoryWrite:
    """An addition that was decided: where, and when its client called and heard back (-1: never)."""

    name: str
    amount: int
    slot: int
    invoked_ms: int
    returned_ms: int


@dataclass(frozen=True)
class HistoryRead:
    """A read that returned `value`, answered from the head at `slot`."""

    name: str
    value: int
    slot: int
    invoked_ms: int
    returned_ms: int


def problem(writes: Sequence[HistoryWrite], reads: Sequence[HistoryRead]) -> str:
    """Return why the slots do not explain the history, or ""."""
    return _order_problem(writes, reads) or _value_problem(writes, reads)


def _order_problem(writes: Sequence[HistoryWrite], reads: Sequence[HistoryRead]) -> str:
    operations: list[HistoryWrite | HistoryRead] = [*writes, *reads]
    returns = sorted((operation.returned_ms, operation.slot) for operation in operations if operation.returned_ms >= 0)
    place, highest = 0, -1
    for operation in sorted(operations, key=lambda one: one.invoked_ms):
        while place < len(returns) and returns[place][0] < operation.invoked_ms:
            highest = max(highest, returns[place][1])
            place += 1
        if operation.slot < highest or (isinstance(operation, HistoryWrite) and operation.slot == highest):
            return f"slot {operation.slot} was given to an operation that began after slot {highest} had returned"
    return ""


def _value_problem(writes: Sequence[HistoryWrite], reads: Sequence[HistoryRead]) -> str:
    by_name: dict[str, list[HistoryWrite]] = {}
    for write in sorted(writes, key=lambda one: one.slot):
        by_name.setdefault(write.name, []).append(write)
    totals: Mapping[str, list[HistoryWrite]] = by_name
    for read in reads:
        expected = sum(write.amount for write in totals.get(read.name, ()) if write.slot <= read.slot)
        if read.value != expected:
            return f"a read of {read.name} at slot {read.slot} returned {read.value} instead of {expected}"
    return ""
