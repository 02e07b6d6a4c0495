"""What callers of the API may hold at once, each with a share, so that nobody uses up what another needs.

Who calls on the Unix socket, the operator, has places that nobody on the network can take. Each of the others has a share
by key, and all keys together leave the node's own limits alone. Not here: how many requests a key may make in two minutes
(nonces.py), and what is kept for good (the records' own quotas).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from node.api.problems import ProblemError

RETRY_AFTER_S = 2
LOCAL = "socket:"
"""How callers on the Unix socket are named."""


@dataclass(frozen=True, slots=True)
class Share:
    """One shared thing: how many there are for the network and for the socket, and how many one principal may hold."""

    name: str
    remote_max: int
    local_max: int
    principal_max: int


CALLS = Share("calls", remote_max=64, local_max=64, principal_max=24)
"""Calls under way: the machine pays for each with a task and a few KiB, a caller with its share."""

BODIES = Share("bodies", remote_max=32, local_max=32, principal_max=6)
"""Calls whose body is still arriving, the slow ones among them; an upload holds a file open."""

ADMISSIONS = Share("admissions", remote_max=8, local_max=8, principal_max=4)
"""Calls that any key may make, by address: strangers who dribble their papers must not use up everybody's."""

FOLLOWERS = Share("followers", remote_max=48, local_max=128, principal_max=8)
"""Streams that go on; each holds a queue of events or lines."""

SHARES = (CALLS, BODIES, ADMISSIONS, FOLLOWERS)


class Shares:
    """Who holds what now."""

    def __init__(self) -> None:
        """Begin with nothing held."""
        self._held: Counter[tuple[str, str]] = Counter()
        self._totals: Counter[tuple[str, bool]] = Counter()

    @contextlib.contextmanager
    def hold(self, share: Share, principal: str) -> Iterator[None]:
        """Hold one place. Raises ProblemError: 429 if the principal's share is used up, 503 if all places are."""
        local = principal.startswith(LOCAL)
        mine, total = (share.name, principal), (share.name, local)
        if not local and self._held[mine] >= share.principal_max:
            raise ProblemError(
                429, f"share.{share.name}", "your share is used up",
                f"{share.principal_max} {share.name} of one caller are under way", "wait for one to end",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        most = share.local_max if local else share.remote_max
        if self._totals[total] >= most:
            raise ProblemError(
                503, "request.busy", "too many calls", f"{most} {share.name} are under way", "try again",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self._held[mine] += 1
        self._totals[total] += 1
        try:
            yield
        finally:
            self._totals[total] -= 1
            self._held[mine] -= 1
            if not self._held[mine]:
                del self._held[mine]
