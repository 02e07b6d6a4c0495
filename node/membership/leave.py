"""Leaving a mesh: the node drains itself, waits until nothing runs here, and revokes itself.

A node may do both with its own key; that it is gone from the chain's list of nodes is an admin's command afterwards.
A voter is refused: to change who decides is an admin's, and a revoked voter would count as one lost for good. Not here:
removing a node that cannot or will not leave (an admin's `freehold mesh remove`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.errors import NotDoneError, NotNowError
from node.mesh.core_requests import ChainRequests, Filing
from node.serving.workloads import Workloads
from protocols.core import NodeCore
from protocols.envelope import encode
from protocols.machine import Entropy, Now, Signer
from protocols.records.credentials import revocation_record
from protocols.refusal import Refusal
from protocols.state.commands import Command, DrainNode, sign_command
from protocols.trust.revocations import Revocation, sign_revocation

DRAIN_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.2
STOP_AFTER_S = 1.0
"""The revocation is on its way to every peer, and the answer to whoever asked."""

VOTES = "leave.votes"
"""The rule of a node that cannot leave because it votes."""

NOT_DRAINED = "leave.not-drained"
"""The rule of a node whose apps did not end in time."""


class Leaving:
    """Lets this node leave, once."""

    def __init__(
        self,
        core: NodeCore,
        requests: ChainRequests,
        filing: Filing,
        workloads: Workloads,
        *,
        signer: Signer,
        entropy: Entropy,
        clock: Callable[[], Now],
        stop: Callable[[], None],
    ) -> None:
        """Take what is read and asked, the node's own key, and what ends the daemon."""
        self._core, self._requests, self._filing, self._workloads = core, requests, filing, workloads
        self._signer, self._entropy, self._clock, self._stop = signer, entropy, clock, stop

    async def leave(self, reason: str) -> str:
        """Drain, revoke and stop this node; return the revocation's key. Raises NotDoneError if it is a voter."""
        self._refuse_voter()
        await self._drain()
        key = await self._revoke(reason)
        asyncio.get_running_loop().call_later(STOP_AFTER_S, self._stop)
        return key

    def _refuse_voter(self) -> None:
        core = self._core
        if any(voter.node == core.node for voter in core.state.voters):
            raise NotDoneError(
                Refusal(VOTES, "this node is a voter; an admin gives its vote to another first"),
                f"freehold mesh voters --replace {core.node} OTHER, or freehold mesh remove {core.node}",
            )

    async def _drain(self) -> None:
        core = self._core
        node = next((held for held in core.state.nodes if held.node == core.node), None)
        if node is not None and not node.draining:
            command = Command(self._entropy.random_bytes(16), DrainNode(core.node))
            signed = sign_command([self._signer], core.trust.mesh, command)
            outcome = await self._requests.submit(encode(signed), ())
            if outcome.outcome != "decided":
                raise NotDoneError(
                    Refusal(outcome.rule or "leave.undecided", outcome.detail or "no majority of voters answered"),
                    "freehold mesh members",
                )
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while self._workloads.running:  # noqa: ASYNC110  orders are obeyed one by one, none says "last"
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise NotNowError(
                Refusal(NOT_DRAINED, f"apps still run here after {DRAIN_TIMEOUT_S:.0f} s"), "freehold status"
            ) from None

    async def _revoke(self, reason: str) -> str:
        core = self._core
        revocation = Revocation(
            kind="node",
            subject=self._signer.public_key,
            last_seq=core.records.store.last_seq(core.node),
            last_serial=core.trust.next_serial(self._signer.public_key) - 1,
            reason=reason or "left",
            at_ms=self._clock().wall_ms,
        )
        key, body = revocation_record(revocation, sign_revocation(self._signer, core.trust.mesh, revocation))
        await self._filing.file(key, body)
        return key
