"""Instantiates a component once, as the node will: what a file asks for and cannot have shows at build, not to a visitor.

Nothing of the app runs but what an instance runs as it is made, within the app's own limits. Not here: reading what
the file says of itself (`runtime/sandbox/component.py`), and serving it (`cli/dev/trial.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cli.cache import cache_folder
from cli.project.model import App
from runtime.outcome import Completed, MemoryRefused, Outcome, Trapped
from runtime.sandbox.compile_cache import CompileCache
from runtime.sandbox.component import ComponentError, Kind
from runtime.sandbox.sandbox import LoadError, Sandbox
from runtime.spec import AppSpec


class _NoLog:
    """What an instance says while it is made is not kept."""

    def emit(self, level: str, context: str, message: str) -> bool:
        """Forget the entry."""
        return True

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Forget them."""


def instantiate_once(app: App, component: Path, digest: str, kind: Kind) -> None:
    """Compile `component`, or find it compiled, and make one instance of it. Raises `ComponentError`."""
    artifact = asyncio.run(CompileCache(cache_folder() / "compiled").ensure(component, digest))
    spec = AppSpec(
        "build", app.name, "", artifact, digest, kind=kind, timeout_ms=app.timeout_ms,
        memory_max_bytes=app.memory_max_bytes, instances_ready=1,
    )  # fmt: skip
    try:
        loaded = Sandbox().load(spec, _NoLog())
    except LoadError as error:
        raise ComponentError(f"The component cannot be loaded: {error}.") from None
    try:
        outcome = loaded.prepare()
    finally:
        loaded.close()
    if not isinstance(outcome, Completed):
        raise ComponentError(f"No instance of it can be made: {_reason(outcome)}.")


def _reason(outcome: Outcome) -> str:
    if isinstance(outcome, MemoryRefused):
        return f"it needs more than its {outcome.memory_max_bytes >> 20} MiB of memory ({outcome.reason})"
    return outcome.reason if isinstance(outcome, Trapped) else str(outcome)
