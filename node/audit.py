"""The audit log of a node: every write through its API, done or refused, as a record that all nodes hold.

One entry for one call, signed and chained (protocols/audit.py), with who called, who signed what was handed over, and
how it ended. Entries are taken in order and wait here while the core's inbox is full, and on a node that lost its
records until a peer has given them back: a chain begun anew would overwrite the one that the others hold. Not here:
judging anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from node.api.models import CommandBody, RecordBody, SecretBody
from node.api.operations import Upload
from protocols.audit import (
    KEPT_MS,
    NUMBER_DIGITS,
    TEXT_MAX,
    AuditEntry,
    Link,
    entry_digest,
    entry_key,
    read_entry,
    sign_entry,
)
from protocols.commands import Command, SignedCommand
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.evidence import open_envelope
from protocols.grants import Grant, Rights
from protocols.key_table import DAY_MS
from protocols.machine import Digest, Now, PeerId, Signer
from protocols.records import Publish
from protocols.refusal import Refusal
from protocols.revocations import RevocationStatement
from protocols.sealing import SealedSecret, SecretPaper
from protocols.sync import AnsweredEqual, Synced

SETTLE_TIMEOUT_S = 2.0
SETTLE_LOOK_S = 0.01
WAITING_MAX = 4_096
"""Entries that wait for the core's inbox, which holds as many; a node that is this far behind has stopped."""

_log = logging.getLogger("freehold.audit")


class Paper(msgspec.Struct, frozen=True):
    """What a write hands over, as the log shows it."""

    verb: str
    target: str
    digest: bytes
    signers: tuple[bytes, ...] = ()


class Audit:
    """Takes down the writes of one node."""

    def __init__(
        self,
        core: NodeCore,
        signer: Signer,
        post: Callable[[Any], bool],
        clock: Callable[[], Now],
        *,
        forgetful: bool = False,
    ) -> None:
        """Take the core to read, the node's key, where records are published, and the clock.

        `forgetful` says that this node lost records which its peers hold, its own entries perhaps among them.
        """
        self._core, self._signer, self._post, self._clock = core, signer, post, clock
        self._forgetful = forgetful
        self._noted: deque[AuditEntry] = deque()
        self._waiting: deque[Publish] = deque()
        self._oldest, self._looked_ms = (0, 0), 0
        self._go_on()

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: a peer may have given back what was lost, or the inbox have room."""
        in_step = isinstance(event, AnsweredEqual) or (isinstance(event, Synced) and event.equal)
        if self._forgetful and in_step:
            self._forgetful = False
            self._go_on()
        self.flush()

    def _go_on(self) -> None:
        """Go on behind the newest own entry that is here."""
        own = links_of(self._core, self._core.node)
        self._number = own[-1].number if own else 0
        self._previous = entry_digest(own[-1].signed) if own else Digest(b"")

    def note(self, caller: str, paper: Paper, result: str, request: str) -> None:
        """Take down one write."""
        now = self._clock()
        lineage: dict[str, None] = {}
        for key in paper.signers:
            rights = self._core.dossiers.rights(key, now.wall_ms)
            lineage.update(dict.fromkeys(one.hex() for one in rights.behind) if isinstance(rights, Rights) else {})
        entry = AuditEntry(
            number=0,
            at_ms=now.wall_ms,
            previous=b"",
            caller=caller,
            signers=tuple(key.hex() for key in paper.signers),
            lineage=tuple(lineage),
            verb=paper.verb,
            target=paper.target[:TEXT_MAX],
            digest=paper.digest,
            result=result[:TEXT_MAX],
            request=request,
        )
        self._noted.append(entry)
        assert len(self._noted) + len(self._waiting) <= WAITING_MAX, "the core takes no more events"
        self.flush()
        _log.info(
            "%s %s", entry.verb, entry.result,
            extra={"event": "api.write", "principal": caller, "detail": entry.target, "request_id": request},
        )  # fmt: skip

    def _chain(self, noted: AuditEntry) -> None:
        """Give an entry its place behind the one before, and sign it."""
        oldest, oldest_at_ms = self._first_held(noted.at_ms)
        entry = replace(
            noted, number=self._number + 1, previous=bytes(self._previous), oldest=oldest, oldest_at_ms=oldest_at_ms
        )
        signed = sign_entry(self._signer, self._core.trust.mesh, entry)
        self._number, self._previous = entry.number, entry_digest(signed)
        self._waiting.append(Publish(entry_key(self._core.node, entry.number), encode(signed), ttl_ms=KEPT_MS))

    def _first_held(self, wall_ms: int) -> tuple[int, int]:
        """Number and time of the oldest own entry here, looked up once a day; of the one to be written if it is first."""
        if not self._oldest[0] or wall_ms - self._looked_ms > DAY_MS:
            own = read_links(links_of(self._core, self._core.node)[:1])
            self._oldest = (own[0][1].number, own[0][1].at_ms) if own else (self._number + 1, wall_ms)
            self._looked_ms = wall_ms
        return self._oldest

    async def settled(self) -> None:
        """Wait until what was noted so far can be read here: a caller who asks right after a write must find it."""
        key = entry_key(self._core.node, self._number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while self._number and key not in self._core.records.store.entries:  # noqa: ASYNC110
                    await asyncio.sleep(SETTLE_LOOK_S)

    def flush(self) -> None:
        """Chain what was noted, and hand over what waits as far as the inbox takes it."""
        while self._noted and not self._forgetful:
            self._chain(self._noted.popleft())
        while self._waiting and self._post(self._waiting[0]):
            self._waiting.popleft()


def links_of(core: NodeCore, node: str = "") -> list[Link]:
    """Return the audit entries this node holds, of one node or of all, in ascending order of node and number."""
    found = []
    for key, entry in core.records.store.entries.items():
        if not key.startswith("/audit/") or entry.record.tombstone:
            continue
        author, number = entry.parsed.parts
        if node and author != node:
            continue
        try:
            signed: Signed = decode(entry.record.body, Signed)
            found.append(Link(PeerId(author), int(number[:NUMBER_DIGITS]), signed))
        except (DecodeError, ValueError):
            continue
    return sorted(found, key=lambda link: (link.node, link.number))


def read_links(links: list[Link]) -> list[tuple[Link, AuditEntry]]:
    """Return the entries that can be read, with their links."""
    found = []
    for link in links:
        try:
            found.append((link, read_entry(link.signed)))
        except DecodeError:
            continue
    return found


def paper_of(operation: str, path: str, body: Any) -> Paper:
    """What a call hands over: a command, a paper or plain bytes. Reads it only to name it; nothing is believed."""
    match body:
        case CommandBody(command=data):
            return _command_paper(operation, data)
        case RecordBody(kind=kind, scope=scope, body=data):
            return Paper(f"publish {kind}", scope, digest(data), _paper_signers(kind, data))
        case SecretBody(paper=data):
            return _secret_paper(operation, data)
        case Upload(digest=named):
            return Paper(operation, path, named)
        case _:  # no digest of what may be short and secret: it could be guessed
            return Paper(operation, path, b"")


def start_paper(signed: SignedCommand) -> Paper:
    """What a waiting start handed over."""
    return _command_paper("start", encode(signed))


def _command_paper(operation: str, data: bytes) -> Paper:
    try:
        signed: SignedCommand = decode(data, SignedCommand)
        command: Command = decode(signed.payload, Command)
    except DecodeError:
        return Paper(operation, "unreadable", digest(data))
    verb = str(type(command.action).__struct_config__.tag)
    where = f"{command.project}/{command.environment}".strip("/") or "mesh"
    for name in ("change", "rollout", "name", "node"):
        value = getattr(command.action, name, None)
        if value:
            where += f" {value.hex() if isinstance(value, bytes) else value}"
            break
    reason = getattr(command.action, "break_glass", "") or getattr(command.action, "reason", "")
    if reason:
        where += f": {reason}"
    return Paper(verb, where, digest(signed.payload), tuple(one.key for one in signed.signatures))


def _secret_paper(operation: str, data: bytes) -> Paper:
    """A secret's name and version; the digest is of what is sealed, which nobody can guess."""
    try:
        signed: Signed = decode(data, Signed)
        paper: SecretPaper = decode(signed.payload, SecretPaper)
    except DecodeError:
        return Paper(operation, "unreadable", b"")
    where = f"{paper.project}/{paper.environment}/{paper.name}"
    if isinstance(paper, SealedSecret):
        return Paper("set secret", f"{where} version {paper.version}", digest(data), (signed.key,))
    return Paper("remove secret", f"{where}, {len(paper.versions)} versions", digest(data), (signed.key,))


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
