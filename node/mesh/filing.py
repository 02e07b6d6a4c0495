"""Filing a record and waiting until it is durable here, for whatever asks this node to write one.

Not here: what the record says and who may have it written.
"""

from __future__ import annotations

import asyncio

from node.api.problems import ProblemError, refused
from node.control import Control
from protocols.records.gossip import Publish
from protocols.refusal import Refusal

TIMEOUT_S = 10.0
BUSY = 503
"""The status of a problem that says to try again."""


async def file_record(control: Control, key: str, body: bytes, *, tombstone: bool = False) -> None:
    """Write one record and wait for it; one that is here already is left alone. Raises ProblemError."""
    if control.holds_record(key) and not tombstone:
        return
    settled = control.expect_record(key)
    if not control.mesh.post(Publish(key, body, tombstone=tombstone)):
        settled.cancel()
        raise ProblemError(BUSY, "node.busy", "the node is busy", "its inbox is full", "try again")
    try:
        problem = await asyncio.wait_for(settled, TIMEOUT_S)
    except TimeoutError:
        raise ProblemError(BUSY, "node.busy", "the node is busy", "the record is not filed yet", "try again") from None
    if problem:
        rule, _, detail = problem.partition(": ")
        raise refused(Refusal(rule, detail))
