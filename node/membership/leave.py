"""Leaving a mesh: the node drains itself, waits until nothing runs here, and revokes itself.

A node may do both with its own key; that it is gone from the chain's list of nodes is an admin's command afterwards.
A voter is refused: to change who decides is an admin's, and a revoked voter would count as one lost for good. Not here:
removing a node that cannot or will not leave (an admin's `freehold mesh remove`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.api.problems import ProblemError, refused
from node.control import Control
from node.mesh.filing import file_record
from protocols.envelope import encode
from protocols.machine import Entropy, Signer
from protocols.records.credentials import revocation_record
from protocols.refusal import Refusal
from protocols.state.commands import Command, DrainNode, sign_command
from protocols.trust.revocations import Revocation, revoke

DRAIN_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.2
STOP_AFTER_S = 1.0
"""The revocation is on its way to every peer, and the answer to whoever asked."""


class Leaving:
    """Lets this node leave, once."""

    def __init__(self, control: Control, signer: Signer, entropy: Entropy, stop: Callable[[], None]) -> None:
        """Take the node's own key, and what ends the daemon."""
        self._control = control
        self._signer = signer
        self._entropy = entropy
        self._stop = stop

    async def leave(self, reason: str) -> str:
        """Drain, revoke and stop this node; return the revocation's key. Raises ProblemError if it is a voter."""
        self._refuse_voter()
        await self._drain()
        key = await self._revoke(reason)
        asyncio.get_running_loop().call_later(STOP_AFTER_S, self._stop)
        return key

    def _refuse_voter(self) -> None:
        core = self._control.core
        if any(voter.node == core.node for voter in core.state.voters):
            raise ProblemError(
                409, "leave.votes", "this node votes", "this node is a voter; an admin gives its vote to another first",
                f"freehold mesh voters --replace {core.node} OTHER, or freehold mesh remove {core.node}",
            )  # fmt: skip

    async def _drain(self) -> None:
        control = self._control
        node = next((one for one in control.core.state.nodes if one.node == control.core.node), None)
        if node is not None and not node.draining:
            command = Command(self._entropy.random_bytes(16), DrainNode(control.core.node))
            signed = sign_command([self._signer], control.core.trust.mesh, command)
            outcome = await control.requests.submit(encode(signed), ())
            if outcome.outcome != "decided":
                raise refused(
                    Refusal(outcome.rule or "leave.undecided", outcome.detail or "no majority of voters answered"),
                    "freehold mesh members",
                )
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while control.workloads.running:  # noqa: ASYNC110  orders are obeyed one by one, none says "last"
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise ProblemError(
                503, "leave.not-drained", "still serving", f"apps still run here after {DRAIN_TIMEOUT_S:.0f} s",
                "freehold status",
            ) from None  # fmt: skip

    async def _revoke(self, reason: str) -> str:
        control, core = self._control, self._control.core
        revocation = Revocation(
            kind="node",
            subject=self._signer.public_key,
            last_seq=core.records.store.last_seq(core.node),
            last_serial=core.trust.next_serial(self._signer.public_key) - 1,
            reason=reason or "left",
            at_ms=control.clock().wall_ms,
        )
        key, body = revocation_record(revocation, revoke(self._signer, core.trust.mesh, revocation))
        await file_record(control, key, body)
        return key
