"""What a call of the API hands over, as the audit log shows it. It is read only to name it: nothing in it is believed.

Not here: the log itself (journal/audit.py), and what is read from it (auditing.py).
"""

from __future__ import annotations

from typing import Any

from node.api.operations import Call, Upload
from node.journal.audit import Audit, AuditedPaper, command_paper
from protocols.api_models import ApprovalBody, CommandBody, RecordBody, SecretBody
from protocols.api_upkeep import AcknowledgementBody, DrainBody
from protocols.changes.evidence import open_envelope
from protocols.changes.secrets import SealedSecret, SecretPaper
from protocols.envelope import DecodeError, Signed, decode, digest
from protocols.refusal import Refusal
from protocols.trust.grants import Grant
from protocols.trust.revocations import RevocationStatement


def audit_call(audit: Audit, call: Call, result: str, request: str, refused: bool) -> None:
    """Take down a write that came through the API."""
    paper = paper_of(call.operation.name, call.request.path, call.body)
    audit.note(call.principal, paper, result, request, refused=refused)


def paper_of(operation: str, path: str, body: Any) -> AuditedPaper:
    """What a call hands over: a command, a paper or plain bytes. Reads it only to name it; nothing is believed."""
    match body:
        case CommandBody(command=data) | DrainBody(drain=data):
            return command_paper(operation, data)
        case RecordBody(kind=kind, scope=scope, body=data):
            return AuditedPaper(f"publish {kind}", scope, digest(data), _paper_signers(kind, data))
        case ApprovalBody(envelope=data):
            return AuditedPaper("publish approval", "", digest(data), _paper_signers("approval", data))
        case AcknowledgementBody(paper=data):
            return AuditedPaper(operation, path, digest(data), _paper_signers("change", data))
        case SecretBody(paper=data):
            return _secret_paper(operation, data)
        case Upload(digest=named):
            return AuditedPaper(operation, path, named)
        case _:  # no digest of what may be short and secret: it could be guessed
            return AuditedPaper(operation, path, b"")


def _secret_paper(operation: str, data: bytes) -> AuditedPaper:
    """A secret's name and version; the digest is of what is sealed, which nobody can guess."""
    try:
        signed: Signed = decode(data, Signed)
        paper: SecretPaper = decode(signed.payload, SecretPaper)
    except DecodeError:
        return AuditedPaper(operation, "unreadable", b"")
    where = f"{paper.project}/{paper.environment}/{paper.name}"
    if isinstance(paper, SealedSecret):
        return AuditedPaper("set secret", f"{where} version {paper.version}", digest(data), (signed.key,))
    return AuditedPaper("remove secret", f"{where}, {len(paper.versions)} versions", digest(data), (signed.key,))


def _paper_signers(kind: str, data: bytes) -> tuple[bytes, ...]:
    try:
        match kind:
            case "change":
                return (decode(data, Signed).key,)
            case "grant":
                chain: tuple[Signed, ...] = decode(data, tuple[Signed, ...])
                granted: Grant = decode(chain[-1].payload, Grant)
                return (chain[-1].key, granted.key)
            case "revocation":
                return (decode(data, RevocationStatement).signed.key,)
            case _:
                opened = open_envelope(_NoCheck(), data)
                return () if isinstance(opened, Refusal) else (opened.key,)
    except (DecodeError, IndexError):
        return ()


class _NoCheck:
    """A verifier for reading a name only: the log says who a paper says signed it, and its digest."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Accept."""
        return True

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        """Accept."""
        return True
