"""Grants that end soon: whoever acts from here hears of it from 30 days before, at the end of every command.

A node is asked for the everyday key's grants once a day, and each time while they end soon; what it said is kept beside
the contexts. Not here: renewing them (commands/principals/key.py).
"""

from __future__ import annotations

import os
import time

import msgspec

from cli.access import contexts
from cli.text.units import in_words
from protocols.api_models import PrincipalView
from protocols.trust.certificates import DAY_MS

WARN_MS = 30 * DAY_MS
ASKED_EVERY_MS = DAY_MS
KEPT_MAX = 256
"""Keys whose grants are remembered; more than a person has."""
FILE = "endings.json"


class GrantEnd(msgspec.Struct, frozen=True):
    """When the last of a key's grants ends (wall ms; 0: it has none), and when that was asked."""

    name: str
    kind: str
    ends_ms: int
    asked_ms: int

    def words(self, wall_ms: int) -> str:
        """What is to be said at `wall_ms`, or ""."""
        if not self.ends_ms or self.ends_ms - wall_ms > WARN_MS:
            return ""
        renewed = "freehold token create NAME" if self.kind == "agent" else "an admin: freehold key renew"
        when = "has ended" if self.ends_ms <= wall_ms else f"ends in {in_words(self.ends_ms - wall_ms)}"
        return f"the grant of {self.name or 'your key'} {when}; {renewed}"

    def is_old(self, wall_ms: int) -> bool:
        """Whether a node is to be asked again; a clock that went back asks, too."""
        return bool(self.words(wall_ms)) or not 0 <= wall_ms - self.asked_ms < ASKED_EVERY_MS


def ending_of(one: PrincipalView, wall_ms: int) -> GrantEnd:
    """Return when a principal's rights end: the last of its grants decides, since each stands alone."""
    ends_ms = max(one.expires_ms, *(held.expires_ms for held in one.beside), 0)
    return GrantEnd(str(one.name), str(one.kind), ends_ms, wall_ms)


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def known(key: str) -> GrantEnd | None:
    """Return what was kept of a key (hex)."""
    return _read().get(key)


def keep(key: str, ending: GrantEnd) -> None:
    """Keep what a node said of a key; one that cannot be kept is asked for again. A runner keeps nothing."""
    if os.environ.get(contexts.TOKEN_VARIABLE):
        return
    others = {name: grant_end for name, grant_end in _read().items() if name != key}
    newest = sorted(others.items(), key=lambda item: -item[1].asked_ms)[: KEPT_MAX - 1]
    try:
        contexts.write_durably(contexts.home_folder() / FILE, msgspec.json.encode({key: ending, **dict(newest)}))
    except OSError:
        return


def _read() -> dict[str, GrantEnd]:
    try:
        return msgspec.json.decode((contexts.home_folder() / FILE).read_bytes(), type=dict[str, GrantEnd])
    except (OSError, msgspec.DecodeError):
        return {}
