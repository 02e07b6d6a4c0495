"""Host functions that leave a span in the trace of the request they serve: what it was about, how long, and how it ended.

For a request whose trace is not recorded they are the functions themselves, at the price of one look. Not here: where
spans go (`runtime/services/spans.py`), and calls to other hosts, which end later than their function returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from runtime.engine.codecs import Err
from runtime.services.spans import CLIENT, PRODUCER, new_span_id

NAME_MAX_CHARS: Final = 64
"""Of a store or a subject in a span: a guest wrote it."""


def spanned(function: Callable[..., Any], system: str, item: str) -> Callable[..., Any]:
    """Return the host function of a WIT item such as `[method]bucket.get`, with a span for each call."""
    operation = item.rpartition(".")[2].rpartition("]")[2]
    kind, names = (PRODUCER, _MESSAGING) if system == "freehold.queue" else (CLIENT, _DATABASE)

    def serve(guest: Any, *arguments: Any) -> Any:
        spans = guest.services.spans
        place = guest.place() if spans is not None else None
        if place is None:
            return function(guest, *arguments)
        began_ns, failed = time.time_ns(), "stopped"
        try:
            outcome = function(guest, *arguments)
            failed = _reason(outcome) if isinstance(outcome, Err) else ""
            return outcome
        finally:
            store = _store(arguments)
            attributes = {names[0]: system, names[1]: operation, names[2]: store}
            spans.add(place, new_span_id(), f"{operation} {store}", kind, began_ns, attributes, failed)

    return serve


_DATABASE: Final = ("db.system.name", "db.operation.name", "db.namespace")
_MESSAGING: Final = ("messaging.system", "messaging.operation.name", "messaging.destination.name")
"""Attributes of OpenTelemetry's semantic conventions: the system, the operation, what it is about."""


def _reason(found: Err) -> str:
    """Why a host function refused: the kind of the refusal, never a guest's own values."""
    value = found.value
    return value[0] if isinstance(value, tuple) and value and isinstance(value[0], str) else "refused"


def _store(arguments: tuple[Any, ...]) -> str:
    """The name of the store, container or subject that a call is about, "" if it says none."""
    first = arguments[0] if arguments else ""
    if isinstance(first, tuple):
        first = first[0]
    name = first if isinstance(first, str) else getattr(first, "store", "")
    return str(name)[:NAME_MAX_CHARS]
