"""Letting a person in: an invite line's papers come in over HTTPS, and this node admits the key that signed the request.

The admission and the person's chain of grants are filed as records, so that every node knows the key within moments. Not
here: what an invite is worth (protocols/trust/admission.py), and machines that join (protocols/trust/hello.py).
"""

from __future__ import annotations

from collections.abc import Callable

from node.errors import NotDoneError
from node.mesh.core_requests import Filing
from protocols.core import NodeCore
from protocols.envelope import Signed, decode
from protocols.machine import Now, Signer, Verifier
from protocols.records.credentials import admission_record, grant_record
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit
from protocols.trust.invites import BUNDLE_MAX_BYTES, Invite, JoinRequest

ASK_AN_OPERATOR = "ask an operator: freehold mesh invite --kind principal"


class Enrolling:
    """Admits principals on this node."""

    def __init__(
        self, core: NodeCore, filing: Filing, signer: Signer, verifier: Verifier, clock: Callable[[], Now]
    ) -> None:
        """Take what is read, where records are filed, the node's own key, which countersigns, and the clock."""
        self._core, self._filing, self._clock = core, filing, clock
        self._signer, self._verifier = signer, verifier

    async def enrol(self, papers: JoinPapers, key: bytes) -> str:
        """Admit `key`, which signed the request, and file its papers; return the grant's name. Raises NotDoneError."""
        core = self._core
        bundle = admit(core.trust, self._signer, self._verifier, papers, self._clock(), kind="principal", key=key)
        if isinstance(bundle, Refusal):
            raise NotDoneError(bundle, ASK_AN_OPERATOR)
        invite: Invite = decode(bundle.invite.payload, Invite, BUNDLE_MAX_BYTES)
        join: JoinRequest = decode(bundle.join.payload, JoinRequest, BUNDLE_MAX_BYTES)
        assert invite.grant is not None
        assert join.grant is not None
        chain: tuple[Signed, ...] = (invite.grant, join.grant)
        for record in (admission_record(bundle), grant_record(key, chain)):
            await self._filing.file(*record)
        rights = core.dossiers.rights(key, self._clock().wall_ms)
        if isinstance(rights, Refusal):
            raise NotDoneError(rights, ASK_AN_OPERATOR)
        return rights.name
