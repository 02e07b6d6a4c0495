"""`os.environ` as the project's configuration. Runs only inside the sandbox.

An instance's environment is what freehold.toml configures for the environment it runs in, and the secrets it was granted.
While a component is built there is none: an app that reads it as it is imported would keep the builder's answer for ever.
So such reads are noticed, and that app is imported in each instance instead. Not here: who notices (`freehold_entry.py`).
"""

from __future__ import annotations

import os

building = True
"""Whether the component is being built: no configuration can be had."""

_declared: frozenset[str] = frozenset()
_read: set[str] = set()


class _Watched(os._Environ):
    """Notes what is asked for."""

    def __getitem__(self, key):
        note(key)
        return super().__getitem__(key)

    def __iter__(self):
        _read.update(_declared)
        return super().__iter__()


def watch(declared: frozenset[str]) -> None:
    """Note from now on which of the names that freehold.toml declares are read."""
    global _declared
    _declared = declared
    os.environ.clear()
    os.environ.__class__ = _Watched


def note(key) -> None:
    """Remember that `key` was asked for."""
    if isinstance(key, str) and key in _declared:
        _read.add(key)


def read() -> list[str]:
    """Return the declared names that were asked for since `watch`."""
    return sorted(_read)


def built() -> None:
    """The component is about to be made: stop watching."""
    global building
    os.environ.__class__ = os._Environ
    building = False


def fill() -> None:
    """Give this instance its environment, once; without effect for an app that was granted no configuration."""
    global fill
    fill = _nothing
    try:
        from wit_world.imports import config_store
    except ImportError:
        return
    for name, value in config_store.get_all():
        if name and "=" not in name and "\0" not in name + value:
            os.environ[name] = value


def _nothing() -> None:
    """The environment is there."""
