"""What artifacts belong to: the projects whose changes name them, and until then whoever uploaded them.

Uploads are remembered in this process alone: after a restart the same bytes are sent again, which costs nothing but them.
Not here: the bytes (artifacts.py), and who may see what (api/callers/scope.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from protocols.core import NodeCore
from protocols.state.model import Deployed

UPLOADS_PER_PRINCIPAL_MAX = 1_024
"""A change names 64 components at most, and is proposed minutes after they were sent. The uploader pays."""

PRINCIPALS_MAX = 1_024
RELEASES_MAX = 4_096
"""Manifests whose components are remembered: as many as changes are held at all, or they are read again."""


class Belongings:
    """Finds the places of an artifact."""

    def __init__(self, core: NodeCore, components: Callable[[bytes], list[bytes]]) -> None:
        """Take the core, and what returns a manifest's digest with those of its components, if it is here."""
        self._core, self._components = core, components
        self._uploads: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()
        self._named: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def uploaded(self, principal: str, digest: bytes) -> None:
        """Note who sent the bytes of an artifact: who has them may see that they are here."""
        mine = self._uploads.setdefault(principal, OrderedDict())
        self._uploads.move_to_end(principal)
        mine[digest] = None
        mine.move_to_end(digest)
        while len(mine) > UPLOADS_PER_PRINCIPAL_MAX:
            mine.popitem(last=False)
        while len(self._uploads) > PRINCIPALS_MAX:
            self._uploads.popitem(last=False)

    def uploaders(self, digest: bytes) -> tuple[str, ...]:
        """Who sent an artifact, as far as that is remembered."""
        return tuple(principal for principal, mine in self._uploads.items() if digest in mine)

    def places(self, digest: bytes) -> set[tuple[str, str]]:
        """The project and environment of every change, and of all that runs or may return, that names an artifact."""
        return {where for where, named in self._naming() if digest in named}

    def _naming(self) -> Iterator[tuple[tuple[str, str], tuple[bytes, ...]]]:
        for proposed in self._core.dossiers.changes.values():
            change = proposed.change
            yield (change.project, change.environment), (change.configuration, *self._of_release(change.release))
        for lane in self._core.state.lanes:
            candidate = (lane.rollout.candidate,) if lane.rollout is not None else ()
            held: tuple[Deployed | None, ...] = (lane.base, *candidate, *lane.retained)
            for deployed in held:
                if deployed is not None:
                    yield (
                        (lane.project, lane.environment),
                        (deployed.configuration, *self._of_release(deployed.release)),
                    )

    def _of_release(self, release: bytes) -> tuple[bytes, ...]:
        known = self._named.get(release)
        if known is None:
            known = tuple(self._components(release))
            if len(known) > 1:  # one that is not here may come
                self._named[release] = known
                while len(self._named) > RELEASES_MAX:
                    self._named.popitem(last=False)
        return known
