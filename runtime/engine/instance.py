"""One instantiated component: its store with its caps, its guest, and the two ways it is entered.

Not here: what happens before and after a call (`sandbox.py`), or the slower road for an unknown wasmtime
(`public_api.py`).
"""

from __future__ import annotations

import ctypes
import threading
from typing import Final, Protocol

from runtime.engine import bindings
from runtime.engine.bindings import VAL_BYTES, RawStore
from runtime.engine.codecs import Err, Ok
from runtime.engine.engine import engine
from runtime.engine.guest import Guest, Resource
from runtime.engine.linking import GUESTS, ON_EPOCH, Linked
from runtime.engine.memory_use import linear_memories
from runtime.engine.public_api import PublicComponent, PublicInstance
from runtime.spec import AppSpec

INSTANCES_MAX: Final = 200
"""Core instances in one store; a componentize-py component has about 60."""
TABLES_MAX: Final = 100
MEMORIES_MAX: Final = 9
"""Linear memories in one store, one of them the adapter's; each may grow to the app's cap, toolchains use one or two."""

_counting_memories: Final = threading.Lock()


class Entered(Protocol):
    """An instance as the calls see it. Both raise `WasmError` when the guest ends otherwise than by returning."""

    def handle(self, request: Resource, outparam: Resource) -> None:
        """Call `wasi:http/incoming-handler.handle`."""
        ...

    def run(self) -> Ok | Err:
        """Call `wasi:cli/run.run`."""
        ...

    def close(self) -> None:
        """Free the store."""
        ...


class Instance:
    """An instance, its guest, and how much it was used."""

    __slots__ = ("_entered", "_memories", "guest", "uses")

    def __init__(self, linked: Linked | PublicComponent, guest: Guest) -> None:
        spec = guest.services.spec
        self.guest = guest
        self.uses = 0
        self._memories: frozenset[int] = frozenset()
        if spec.instances == "reuse":
            with _counting_memories:  # one at a time, or another's new memories would count as ours
                before = linear_memories()
                self._entered = _enter(linked, guest, spec)
                self._memories = frozenset(linear_memories().keys() - before.keys())
        else:
            self._entered = _enter(linked, guest, spec)

    def memory_bytes(self) -> int:
        """Return the size of the largest memory, 0 where it cannot be known."""
        if not self._memories:
            return 0
        sizes = linear_memories()
        return max((sizes.get(start, 0) for start in self._memories), default=0)

    def handle(self, request: Resource, outparam: Resource) -> None:
        """Serve one request; raises `WasmError`."""
        self.uses += 1
        self._entered.handle(request, outparam)

    def run(self) -> Ok | Err:
        """Run the command; raises `WasmError`."""
        self.uses += 1
        return self._entered.run()

    def close(self) -> None:
        """Free everything."""
        self.guest.end()
        self._entered.close()


def _enter(linked: Linked | PublicComponent, guest: Guest, spec: AppSpec) -> Entered:
    if isinstance(linked, PublicComponent):
        return PublicInstance(linked, guest, (INSTANCES_MAX, TABLES_MAX, MEMORIES_MAX))
    return RawInstance(linked, guest, spec)


class RawInstance:
    """An instance entered through raw calls."""

    __slots__ = ("_at", "_entry", "_func", "_guest", "_store", "_values")

    def __init__(self, linked: Linked, guest: Guest, spec: AppSpec) -> None:
        self._guest = guest
        self._entry = linked.entry
        self._values = ctypes.create_string_buffer(VAL_BYTES * 3)
        self._at = ctypes.addressof(self._values)
        self._store = RawStore(engine(), ON_EPOCH)
        self._store.limit(spec.memory_max_bytes, spec.table_elements_max, INSTANCES_MAX, TABLES_MAX, MEMORIES_MAX)
        guest.context = self._store.context
        GUESTS[guest.context] = guest
        try:
            instance = linked.component.instantiate(self._store)
            self._func = linked.component.function(self._store, instance, linked.entry_index)
        except BaseException:
            self.close()
            raise

    def handle(self, request: Resource, outparam: Resource) -> None:
        """Lower both handles and call."""
        position = self._at
        lower_request, lower_outparam = self._entry.params
        lower_request.lower(request, position, self._guest)
        lower_outparam.lower(outparam, position + VAL_BYTES, self._guest)
        try:
            self._func.call(position, 2, position + VAL_BYTES * 2, 0)
        finally:
            bindings.val_delete(position)
            bindings.val_delete(position + VAL_BYTES)

    def run(self) -> Ok | Err:
        """Call and lift the result."""
        position = self._at
        self._func.call(position, 0, position, 1)
        assert self._entry.result is not None
        result: Ok | Err = self._entry.result.lift(position, self._guest)
        bindings.val_delete(position)
        return result

    def close(self) -> None:
        """Forget the guest, then free the store: once it is freed, another's new store may have its address."""
        GUESTS.pop(self._guest.context, None)
        self._store.close()
