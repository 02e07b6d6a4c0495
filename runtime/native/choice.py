"""Which engine serves in this process, and why: decided once at a worker's start, and never after a crash.

Not here: what the native engine serves of an app (`plan.py`), nor how it is run (`front.py`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, Literal

from wasmtime import _ffi

Wanted = Literal["auto", "python", "native"]
"""What a node's settings say: "auto" takes the native engine where it is built, fits and has all that the listeners need,
and "native" does the same and has `doctor` warn where it is not so; "python" never takes it."""

ENGINES: Final = ("python", "native")

OTHERS_IN_PYTHON: Final = "addresses with TLS and Unix sockets are served in Python"

NOT_BUILT: Final = "the native engine is not built; run: make native"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that serves, and in a few words why it is not the other one; empty where nothing is to be said."""

    engine: Literal["python", "native"]
    reason: str
    module: Any = None
    """The compiled module, of the native engine."""


def load_module() -> tuple[Any, str]:
    """Return the compiled module, opened over the wasmtime of this process; or None, and why it cannot be used."""
    try:
        module = importlib.import_module("runtime.native._engine")
    except ModuleNotFoundError:
        return None, NOT_BUILT
    except ImportError as error:  # built for another Python, or machine
        return None, f"the native engine does not load ({error}); run: make native"
    if not hasattr(module, "POLL"):
        return None, "it was built of older sources; run: make native"
    try:
        module.open(_ffi.dll._name, version("wasmtime"))
    except RuntimeError as error:
        return None, str(error)
    return module, ""


def choose(
    wanted: Wanted, *, plain_listeners: int, local_only: bool, other_listeners: int = 0, proves: bool = False
) -> EngineChoice:
    """Return the engine for a worker.

    It has `plain_listeners` without TLS and `other_listeners` with it or on a Unix socket, is for this machine alone or
    not, and `proves` the control of names to an authority over HTTP (ACME) or does not.
    """
    if wanted == "python":
        return EngineChoice("python", "asked for")
    if local_only:
        return EngineChoice(
            "python", "a node for this machine alone checks hosts and origins, which the native engine does not"
        )
    if proves:
        return EngineChoice(
            "python", "a node of the [acme] table answers its authority, which the native engine does not"
        )
    if not plain_listeners:
        return EngineChoice("python", "no listener without TLS")
    module, why = load_module()
    if module is None:
        return EngineChoice("python", why)
    return EngineChoice("native", OTHERS_IN_PYTHON if other_listeners else "", module)
