"""The audit log of a node: every write through its API, done or refused, as a record that all nodes hold.

One entry for one call, signed and chained (protocols/records/audit.py), with who called, who signed what was handed over, and
how it ended. Entries are taken in order and wait here while the core's inbox is full, and on a node that lost its
records until every other node has given back what it holds: a chain begun anew would overwrite the one that they hold, and
an entry may be on a single one of them. Those wait on disk (audit_backlog.py); no caller is answered before the entry of its
call is durable. Not here: judging anything, and what an API call handed over (api/papers/audit_papers.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from node.journal.audit_backlog import Backlog
from node.journal.audit_shares import OPERATORS_SHARE, PRINCIPAL_SHARE, CallerShares, Refusals, RefusalsTold
from protocols.core import NodeCore
from protocols.envelope import PUBLIC_KEY_BYTES, DecodeError, Signed, decode, digest, encode
from protocols.keys import public_key_of
from protocols.machine import Digest, Now, PeerId, Signer
from protocols.records.audit import (
    KEPT_MS,
    NUMBER_DIGITS,
    TEXT_MAX,
    AuditEntry,
    ChainedEntry,
    entry_digest,
    entry_key,
    read_entry,
    sign_entry,
)
from protocols.records.gossip import Publish, PublishRefused, RecordsMerged
from protocols.records.key_table import DAY_MS
from protocols.records.quotas import Payer
from protocols.records.record import Entry
from protocols.records.sync import AnsweredEqual, Synced
from protocols.refusal import Refusal
from protocols.state.commands import Command, SignedCommand
from protocols.trust.grants import Rights
from protocols.trust.store import Standing

SETTLE_TIMEOUT_S = 10.0
WAITING_MAX = 4_096
"""Entries that wait for the core's inbox, which holds as many; a node that is this far behind has stopped."""

BACKLOG_MAX = 2_048
"""Entries that wait for lost records, 8 MiB at most; beyond it the node takes no writes."""

BACKLOG_FULL = (
    "too many audit entries wait for the records that this node lost; connect it to the other nodes of the mesh"
)

SHARE_USED_UP = 0.99
"""Of the records that this node may write: what else it must say still finds room, and so do the writes under way."""

SHARE_FULL = "its share of the mesh's records is used up by its audit log, until old entries expire"
TOGETHER = "refused calls"
STARTER = "starter"
LOCAL = "socket:"

_log = logging.getLogger("freehold.audit")


class AuditedPaper(msgspec.Struct, frozen=True):
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
        backlog: Backlog,
        *,
        forgetful: bool,
    ) -> None:
        """Take the core to read, the node's key, where records are published, the clock, and where entries wait.

        `forgetful` says that this node may lack records which its peers hold, its own entries perhaps among them.
        Raises OSError.
        """
        self._core, self._signer, self._post, self._clock = core, signer, post, clock
        self._backlog, self._forgetful = backlog, forgetful
        if forgetful:
            backlog.begin()
        self._shares, self._refusals = CallerShares(), Refusals()
        self._met: set[PeerId] = set()
        """Nodes that gave back all they hold since this one lost its records."""
        self._noted = deque(backlog.load())
        self._kept = backlog.open
        """Whether there is a backlog, which ends when all that is in it is durable as records."""
        self._waiting: deque[Publish] = deque()
        self._oldest, self._looked_ms = (0, 0), 0
        self._settling: dict[asyncio.Future[bool], int] = {}
        self._unkept = False
        """Whether the last entry could not be written to the backlog."""
        self._prefix = entry_key(core.node, 0).rpartition("/")[0]
        self._number = self._durable = 0
        self._go_on()
        self._durable = self._number
        """The newest own entry that is durable as a record; one that was refused counts, for it never will be."""

    @property
    def behind(self) -> bool:
        """Whether entries wait for records that this node lost."""
        return self._forgetful

    @property
    def awaited(self) -> tuple[PeerId, ...]:
        """The nodes that may hold records which this one lost."""
        if not self._forgetful:
            return ()
        trust, wall_ms = self._core.trust, self._clock().wall_ms
        others = (peer for peer in trust.nodes() if peer != self._core.node and peer not in self._met)
        return tuple(peer for peer in others if trust.standing(peer, wall_ms) is not Standing.STRANGER)

    @property
    def full(self) -> str:
        """Why no more writes can be taken down, or ""."""
        if self._forgetful and len(self._noted) >= BACKLOG_MAX:
            return BACKLOG_FULL
        return SHARE_FULL if self.fullness >= SHARE_USED_UP else ""

    @property
    def fullness(self) -> float:
        """How much of what this node may write as records is used up, or of the whole store once that binds it; 1 is all."""
        store = self._core.records.store
        limits = store.limits
        own = store.quotas.held(Payer("audit", self._core.node))[0]
        under_way = self._number - self._durable
        used = max(store.quotas.node_used(self._core.node), (own + under_way) / limits.node_audit_max)
        return used if own < limits.reserve_max else max(used, len(store.entries) / limits.records_max)

    def refusal(self, caller: str) -> Refusal | None:
        """Return why no write of this caller is taken down any more although others' are, or None."""
        if self._operator(caller):
            return None
        most = self._core.records.store.limits.node_audit_max
        if self._shares.of(self._payer(caller), self._clock().wall_ms) >= PRINCIPAL_SHARE * most:
            mine = int(PRINCIPAL_SHARE * most)
            return Refusal(
                "quota.audit-principal",
                f"you have used up your share of this node's audit log: {mine} entries in 400 days",
            )
        if self.fullness >= 1 - OPERATORS_SHARE:
            return Refusal("quota.audit-operators", "what is left of this node's audit log is for its operators")
        return None

    def _payer(self, caller: str) -> str:
        """The principal behind a caller, in hex; the caller itself on the socket, or where no grant tells more."""
        if len(caller) != 2 * PUBLIC_KEY_BYTES or caller.startswith(LOCAL):
            return caller
        return self._core.dossiers.payer(bytes.fromhex(caller)).hex()

    def _operator(self, caller: str) -> bool:
        if len(caller) != 2 * PUBLIC_KEY_BYTES or caller.startswith(LOCAL):
            return True
        return bytes.fromhex(caller) in self._core.trust.every_admin()

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: the others may have given back what was lost, or the inbox have room."""
        match event:
            case AnsweredEqual(peer) | Synced(peer, equal=True) if self._forgetful:
                self._met.add(peer)
            case RecordsMerged(entries):
                self._settle(max([self._durable, *(self._number_of(entry.record.key) for entry in entries)]))
            case PublishRefused(key) if number := self._number_of(key):
                # Nobody takes a revoked node's records: its log has ended, and its callers need not wait for it.
                revoked = self._core.trust.key_revoked(public_key_of(self._core.node))
                self._settle(max(self._durable, number), refused=0 if revoked else number)
            case _:
                pass
        if told := self._refusals.due(self._clock().wall_ms):
            self._tell(told)
        if self._met and not self.awaited:  # all were met, or the last one was revoked
            self._met.clear()
            self._forgetful = False
            self._go_on()
        self.flush()

    def _number_of(self, key: str) -> int:
        """The number of an own entry's record, 0 if it is none."""
        prefix, _, number = key.rpartition("/")
        return int(number) if prefix == self._prefix else 0

    def _go_on(self) -> None:
        """Go on behind the newest own entry that is here, without the entries of the backlog that are."""
        own = links_of(self._core, self._core.node)
        self._number = own[-1].number if own else 0
        self._shares = CallerShares()
        causers = [(_causer(entry), entry.at_ms) for _, entry in read_links(own)]
        payers = {causer: self._payer(causer) for causer, _ in causers}
        for causer, at_ms in causers:
            self._shares.add(payers[causer], at_ms)
        self._previous = entry_digest(own[-1].signed) if own else Digest(b"")
        if self._noted:
            held = {_unplaced(entry) for _, entry in read_links(own)}
            self._noted = deque(entry for entry in self._noted if entry not in held)

    def note(self, caller: str, paper: AuditedPaper, result: str, request: str, *, refused: bool = False) -> None:
        """Take down one write. Those of one caller that were `refused` are told together, but for the first."""
        wall_ms = self._clock().wall_ms
        self._tell(self._refusals.due(wall_ms))
        if refused and not self._refusals.alone(caller, result, wall_ms):
            self._log_write(caller, paper, result, request)
            return
        self._take_down(caller, paper, result, request)

    def _tell(self, windows: list[RefusalsTold]) -> None:
        """Take down how many more calls were refused."""
        for window in windows:
            paper = AuditedPaper(TOGETHER, f"{window.count} more", b"")
            self._take_down(
                window.caller, paper, ", ".join(window.rules), "", count=window.count, first_ms=window.first_ms
            )

    def _take_down(
        self, caller: str, paper: AuditedPaper, result: str, request: str, *, count: int = 1, first_ms: int = 0
    ) -> None:
        now = self._clock()
        lineage: dict[str, None] = {}
        for key in paper.signers:
            rights = self._core.dossiers.rights(key, now.wall_ms)
            lineage.update(dict.fromkeys(key.hex() for key in rights.behind) if isinstance(rights, Rights) else {})
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
            count=count,
            first_ms=first_ms,
        )
        self._shares.add(self._payer(_causer(entry)), now.wall_ms)
        self._noted.append(entry)
        assert len(self._noted) + len(self._waiting) <= WAITING_MAX, "the core takes no more events"
        if self._forgetful:
            self._keep(entry)
        self.flush()
        self._log_write(caller, paper, result, request)

    def _log_write(self, caller: str, paper: AuditedPaper, result: str, request: str) -> None:
        _log.info(
            "%s %s", paper.verb, result[:TEXT_MAX],
            extra={
                "event": "api.write", "principal": caller, "payer": self._payer(caller),
                "detail": paper.target[:TEXT_MAX], "request_id": request,
            },
        )  # fmt: skip

    def note_own(self, paper: AuditedPaper) -> None:
        """Take down what this node did of itself."""
        self.note("node", paper, "done", "")

    def _keep(self, entry: AuditEntry) -> None:
        """Have an entry that waits survive this process."""
        try:
            self._backlog.append(entry)
            self._unkept = False
        except OSError as error:
            self._unkept = True
            _log.error("an audit entry is held in memory only: %s", error, extra={"event": "audit.not-kept"})

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
            numbers = (self._number_of(key) for key in self._core.records.store.entries)
            first = min((number for number in numbers if number), default=0)
            own = read_links(links_of(self._core, self._core.node, first)) if first else []
            self._oldest = (own[0][1].number, own[0][1].at_ms) if own else (self._number + 1, wall_ms)
            self._looked_ms = wall_ms
        return self._oldest

    async def settled(self) -> bool:
        """Wait until what was noted so far is durable, as records or in the backlog; False if that took too long or failed."""
        if self._forgetful:
            return not self._unkept
        if self._durable >= self._number:
            return True
        future = asyncio.get_running_loop().create_future()
        self._settling[future] = self._number
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                return bool(await future)
        except TimeoutError:
            return False
        finally:
            self._settling.pop(future, None)

    def _settle(self, durable: int, *, refused: int = 0) -> None:
        self._durable = durable
        for future, number in self._settling.items():
            if not future.done() and number <= durable:
                future.set_result(number != refused)

    def flush(self) -> None:
        """Chain what was noted, and hand over what waits as far as the inbox takes it."""
        while self._noted and not self._forgetful:
            self._chain(self._noted.popleft())
        while self._waiting and self._post(self._waiting[0]):
            self._waiting.popleft()
        if self._kept and not self._forgetful and not self._waiting and self._durable >= self._number:
            self._backlog.end()
            self._kept = False


def _causer(entry: AuditEntry) -> str:
    """Who caused an entry: its caller, or who signed the start that waited here."""
    return entry.signers[0] if entry.caller == STARTER and entry.signers else entry.caller


def _unplaced(entry: AuditEntry) -> AuditEntry:
    """An entry as it was noted, before it had its place in the chain."""
    return replace(entry, number=0, previous=b"", oldest=1, oldest_at_ms=0)


def links_of(core: NodeCore, node: str = "", number: int = 0) -> list[ChainedEntry]:
    """Return the audit entries this node holds, of one node or of all, in ascending order of node and number.

    With a `number` only that entry of the node is read.
    """
    entries = core.records.store.entries
    wanted = [entry_key(PeerId(node), number)] if number else list(entries)
    chained_entries = (link_of(key, entries[key], node) for key in wanted)
    return sorted((link for link in chained_entries if link is not None), key=lambda link: (link.node, link.number))


def link_of(key: str, entry: Entry, node: str = "") -> ChainedEntry | None:
    """Return the audit entry in a record, None if there is none that can be read, or it is another node's."""
    if not key.startswith("/audit/") or entry.record.tombstone:
        return None
    author, place = entry.parsed.parts
    if node and author != node:
        return None
    try:
        signed: Signed = decode(entry.record.body, Signed)
        return ChainedEntry(PeerId(author), int(place[:NUMBER_DIGITS]), signed)
    except (DecodeError, ValueError):
        return None


def read_links(links: list[ChainedEntry]) -> list[tuple[ChainedEntry, AuditEntry]]:
    """Return the entries that can be read, with their links."""
    pairs = []
    for link in links:
        try:
            pairs.append((link, read_entry(link.signed)))
        except DecodeError:
            continue
    return pairs


def start_paper(signed: SignedCommand) -> AuditedPaper:
    """What a waiting start handed over."""
    return command_paper("start", encode(signed))


def command_paper(operation: str, data: bytes) -> AuditedPaper:
    """What a call with a command hands over; `operation` names a command that cannot be read."""
    try:
        signed: SignedCommand = decode(data, SignedCommand)
        command: Command = decode(signed.payload, Command)
    except DecodeError:
        return AuditedPaper(operation, "unreadable", digest(data))
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
    return AuditedPaper(verb, where, digest(signed.payload), tuple(signature.key for signature in signed.signatures))
