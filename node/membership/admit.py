"""Letting a person in: an invite line's papers come in over HTTPS, and this node admits the key that signed the request.

The admission and the person's chain of grants are filed as records, so that every node knows the key within moments. Not
here: what an invite is worth (protocols/trust/admission.py), and machines that join (protocols/trust/hello.py).
"""

from __future__ import annotations

from node.api.problems import refused
from node.control import Control
from node.mesh.filing import file_record
from protocols.envelope import Signed, decode
from protocols.machine import Signer, Verifier
from protocols.records.credentials import admission_record, grant_record
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit
from protocols.trust.invites import BUNDLE_MAX_BYTES, Invite, JoinRequest


class Enrolling:
    """Admits principals on this node."""

    def __init__(self, control: Control, signer: Signer, verifier: Verifier) -> None:
        """Take the node's own key, which countersigns."""
        self._control = control
        self._signer = signer
        self._verifier = verifier

    async def enrol(self, papers: JoinPapers, key: bytes) -> str:
        """Admit `key`, which signed the request, and file its papers; return the grant's name. Raises ProblemError."""
        control = self._control
        bundle = admit(
            control.core.trust, self._signer, self._verifier, papers, control.clock(), kind="principal", key=key
        )
        if isinstance(bundle, Refusal):
            raise refused(bundle, "ask an operator: freehold mesh invite --kind principal")
        invite: Invite = decode(bundle.invite.payload, Invite, BUNDLE_MAX_BYTES)
        join: JoinRequest = decode(bundle.join.payload, JoinRequest, BUNDLE_MAX_BYTES)
        assert invite.grant is not None
        assert join.grant is not None
        chain: tuple[Signed, ...] = (invite.grant, join.grant)
        for record in (admission_record(bundle), grant_record(key, chain)):
            await file_record(control, *record)
        rights = control.core.dossiers.rights(key, control.clock().wall_ms)
        if isinstance(rights, Refusal):
            raise refused(rights, "ask an operator: freehold mesh invite --kind principal")
        return rights.name
