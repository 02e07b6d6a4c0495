"""A change as the console's page shows it, and its approval by passkey: what is shown and what is signed are one change.

The diff is computed here from bytes that are checked against their digests, so a node can withhold a change and cannot
show another. Not here: what voters check of a touch (protocols/changes/passkeys.py).
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict

import msgspec

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.passkeys import StoredPasskey, Touched, known_passkeys
from cli.access.principals import principal_of
from cli.change.review import change_at, release_at, review_change, review_text
from cli.errors import CommandError
from cli.text.foreign import builtins_of
from cli.views.papers import without_bytes
from protocols.api_models import ApprovalBody, PapersView, RecordView
from protocols.changes.approvals import Approval, approval_statement, read_approval
from protocols.changes.change import Change
from protocols.keys import Ed25519Verifier
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.gate import gate_of
from protocols.trust.grants import covers

SPAN_MS = 24 * 3_600_000
OFFERED_MAX = 64


class TouchGiven(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A touch for a statement (base64) that was offered: each time a change is shown, another one is."""

    statement: str
    touched: Touched


class Approving:
    """Shows changes and files their approvals. Mutable: the statements that were offered for a touch."""

    def __init__(self, context: Context, client: NodeClient, origin: str) -> None:
        """Take the context, the connection, and the page's origin: only passkeys of it can be asked."""
        self._context, self._client, self._origin = context, client, origin
        self._offered: OrderedDict[str, dict[str, StoredPasskey]] = OrderedDict()

    async def shown(self, named: str) -> dict[str, object]:
        """Return a change's review, its papers, and what a passkey of this page would sign, if one may."""
        change, _ = await change_at(self._client, named)
        review = await review_change(self._client, named)
        papers = await self._client.read(PapersView, f"/v1/changes/{named}/papers")
        answer = {"review": builtins_of(review), "text": review_text(review), "papers": without_bytes(papers)}
        usable = await self._usable(change, {papers.author.key, *papers.author.lineage})
        keys = {approval.key for approval in papers.approvals if not approval.problem}
        if not usable or any(stored_passkey.id.hex() in keys for stored_passkey in usable.values()):
            return {**answer, "offer": None}
        gate = gate_of(await self._client.state(), change.environment, await release_at(self._client, change.release))
        now_ms = time.time_ns() // 1_000_000
        until_ms = now_ms + min(SPAN_MS, gate.approval_max_ms)
        said = Approval(b"", Digest(bytes.fromhex(named)), change.project, change.environment, now_ms, until_ms)
        statement = base64.b64encode(approval_statement(bytes.fromhex(self._context.mesh), said)).decode()
        self._offered[statement] = usable
        while len(self._offered) > OFFERED_MAX:
            self._offered.popitem(last=False)
        return {**answer, "offer": {"rp": "localhost", "credentials": sorted(usable), "statement": statement}}

    async def _usable(self, change: Change, authors: set[str]) -> dict[str, StoredPasskey]:
        """The passkeys of this page that would count for a change: not its author's, and granted for that place."""
        stored_passkeys = {}
        for passkey in known_passkeys(self._context):
            if self._origin not in passkey.origins:
                continue
            principal = await principal_of(self._client, passkey.id)
            counts = any(
                "approve" in held.verbs
                and covers(held.projects, change.project)
                and covers(held.environments, change.environment)
                for held in principal.each
            )
            if counts and not principal.problem and authors.isdisjoint(principal.lineage):
                stored_passkeys[passkey.credential] = passkey
        return stored_passkeys

    async def take(self, given: TouchGiven) -> dict[str, object]:
        """File a touch for a statement that was offered. Raises CommandError naming the rule it breaks."""
        stored_passkey = self._offered.get(given.statement, {}).get(given.touched.credential)
        if stored_passkey is None:
            raise CommandError("that was not offered here", next_step="load the change again", kind="no-offer")
        envelope = given.touched.envelope(stored_passkey, base64.b64decode(given.statement))
        read = read_approval(Ed25519Verifier(), bytes.fromhex(self._context.mesh), envelope)
        if isinstance(read, Refusal):
            raise CommandError(f"{read.rule}: {read.detail}", next_step="load the change again", kind=read.rule)
        await self._client.send(RecordView, "/v1/approvals", ApprovalBody(envelope))
        return {"change": read.change.hex(), "approver": read.key.hex(), "expires_ms": read.expires_ms}
