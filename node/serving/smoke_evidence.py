"""What a node itself attests: that a change's smoke checks passed in its own sandbox, where policy asks a node to say so.

Policy is the mesh's, the environment's, and what the release's own project file adds. A statement by the node's key over
the components and the configuration it ran, filed like any other evidence. Not here: running the checks (releases.py),
and whether the statement is enough (protocols/state/policy.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from node.serving.releases import PreparedRelease
from node.serving.smoke_bench import SMOKE_ENGINE
from node.store.artifacts import ArtifactStore
from protocols.changes.change import RELEASE_MAX_BYTES, Change, Release
from protocols.changes.evidence import EvidenceRun, attest
from protocols.core import NodeCore
from protocols.envelope import decode, digest, encode
from protocols.machine import Digest, Now, Signer
from protocols.records.gossip import Publish
from protocols.records.key_table import make_key
from protocols.state.gate import gate_of

_log = logging.getLogger("freehold.attesting")


class SmokeWitness:
    """Files a node's smoke evidence."""

    def __init__(
        self,
        core: NodeCore,
        artifacts: ArtifactStore,
        signer: Signer,
        post: Callable[[Any], bool],
        clock: Callable[[], Now],
    ) -> None:
        """Take what is read, the node's key, where records are published, and the clock."""
        self._core, self._artifacts, self._signer, self._post, self._clock = core, artifacts, signer, post, clock

    def passed(self, change: Digest, prepared: PreparedRelease) -> None:
        """File evidence for a change whose checks passed here, if its gate asks for a node's word."""
        proposed = self._core.dossiers.changes.get(change)
        if proposed is None or not self._asked(proposed.change):
            return
        effective = prepared.effective
        names = tuple(f"{check.app} GET {check.path} {check.status}" for check in effective.smoke)
        run = EvidenceRun(
            mesh=self._core.trust.mesh.hex(),
            kind="smoke",
            covers="sandbox",
            finished_ms=self._clock().wall_ms,
            tools={"freehold": version("freehold"), "wasmtime": version("wasmtime"), "engine": SMOKE_ENGINE},
        )
        envelope = attest(
            self._signer,
            run,
            passed=True,
            components=tuple((app.name, app.component) for app in effective.apps),
            configuration=digest(encode(effective)),
            tests=(names, ()),
        )
        component = effective.apps[0].component
        if not self._post(Publish(make_key("evidence", component.hex(), digest(envelope).hex()), envelope)):
            _log.warning("not filed: the inbox is full", extra={"event": "evidence.dropped", "change": change.hex()})

    def _asked(self, change: Change) -> bool:
        state = self._core.state
        if not any(environment.name == change.environment for environment in state.environments):
            return False
        release: Release = decode(self._artifacts.read(change.release, RELEASE_MAX_BYTES), Release, RELEASE_MAX_BYTES)
        return gate_of(state, change.environment, release).asks_nodes
