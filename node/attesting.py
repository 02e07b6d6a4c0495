"""What a node itself attests: that a change's smoke checks passed in its own sandbox, where policy asks a node to say so.

A statement by the node's key over the components and the configuration it ran, filed like any other evidence. Not
here: running the checks (releases.py), and whether the statement is enough (protocols/policy.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from node.releases import Prepared
from protocols.core import NodeCore
from protocols.envelope import digest, encode
from protocols.evidence import Run, attest
from protocols.key_table import make_key
from protocols.machine import Digest, Now, Signer
from protocols.mesh_types import MeshState
from protocols.policy import PROTECTED
from protocols.records import Publish

_log = logging.getLogger("freehold.attesting")


class SmokeWitness:
    """Files a node's smoke evidence."""

    def __init__(self, core: NodeCore, signer: Signer, post: Callable[[Any], bool], clock: Callable[[], Now]) -> None:
        """Take the core to read, the node's key, where records are published, and the clock."""
        self._core, self._signer, self._post, self._clock = core, signer, post, clock

    def passed(self, change: Digest, prepared: Prepared) -> None:
        """File evidence for a change whose checks passed here, if its environment asks for a node's word."""
        proposed = self._core.dossiers.changes.get(change)
        if proposed is None or not asks_nodes(self._core.state, proposed.change.environment):
            return
        effective = prepared.effective
        names = tuple(f"{check.app} GET {check.path} {check.status}" for check in effective.smoke)
        run = Run(
            mesh=self._core.trust.mesh.hex(),
            kind="smoke",
            covers="sandbox",
            finished_ms=self._clock().wall_ms,
            tools={"freehold": version("freehold"), "wasmtime": version("wasmtime")},
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


def asks_nodes(state: MeshState, environment: str) -> bool:
    """Whether some demand of an environment can only be met by a node."""
    found = next((one for one in state.environments if one.name == environment), None)
    if found is None:
        return False
    policy = found.policy or state.policy
    demands = [policy.demands, *((PROTECTED,) if found.protected and found.policy is None else ())]
    return any(one.by_node for demand in demands for one in demand.evidence)
