"""Starts that wait: a deployer signs a start once; it is submitted as soon as everything it needs is there.

What is missing (approvals, evidence, prepared nodes) is found by judging the start here exactly as voters will, on
the papers this node holds; the refusal is what `status` shows. A start whose ground has moved (another release runs,
the policy changed) is final and forgotten. What waits is in a file before its giver is answered, and is
taken up again by the next process; signing it again is harmless, the chain refuses duplicates.

The whole file is written anew, or not at all, before that answer and when a start has ended. It needs no checksum: each
start carries its signature, and voters refuse what does not match it. Not in a backup: a start is an order for its
moment, and a restored sole node, which forgot what was decided since, would carry out an old one that nobody gives
any more. Not here: any right to start; the signature and the exhibits carry it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from node.keys import write_private
from node.mesh.core_requests import BusyChainError, ChainRequests
from node.store.artifacts import ArtifactError, ArtifactStore
from protocols.chain.decision import material_of
from protocols.chain.messages import EntryStored
from protocols.changes.approvals import read_approval
from protocols.changes.change import RELEASE_MAX_BYTES, Release
from protocols.changes.demands import PASSKEY_RULES
from protocols.changes.evidence import read_evidence
from protocols.core import NodeCore
from protocols.envelope import DecodeError, decode, encode
from protocols.machine import Digest, Now, PeerId, Verifier
from protocols.records.gossip import RecordsMerged
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Proposed, void
from protocols.rollout.orders import NodePrepared
from protocols.state.apply import apply
from protocols.state.commands import Command, SignedCommand, Start
from protocols.state.exhibits import Rules
from protocols.state.policy import A_NODE_RUNS_IT
from runtime.durable import sync_folder

LOOK_EVERY_S = 1.0
"""While a start waits: for what nothing announces, such as a window that opens."""

AGAIN_MS = 1_000
AGAIN_MAX_MS = 60_000
"""Between two submissions of one start, doubling up to this: voters refuse on what they see, which no record announces."""

FILE_NAME = "starts"
FILE_MAX_BYTES = 1 << 20
"""Room for as many starts as may wait, each over as many nodes as a mesh has."""

STARTS_MAX = 256
KEEP_MS = 24 * 3_600_000
WAITED_FOR = (
    "rollout.not-prepared",
    "approval.",
    "evidence.",
    "window.",
    "policy.",
    "gate.",
    "lane.frozen",
    "rollout.under-way",
)
"""Refusals that time or people can cure; any other is final."""

UNKNOWN = "start.unknown"
"""The rule of a start that no majority has answered: it is tried again, and may be decided yet."""

DUPLICATE = "command.duplicate"
"""The rule of a command that was decided before."""

_log = logging.getLogger("freehold.starter")


NOT_JUDGED = Refusal("start.new", "not judged yet")


@dataclass(slots=True)
class Waiting:
    """One start and what became of it: "waiting" for `refusal`, "started" at `slot`, or "refused"."""

    signed: SignedCommand
    nodes: tuple[PeerId, ...]
    since_ms: int
    outcome: str = "waiting"
    slot: int = 0
    refusal: Refusal = NOT_JUDGED
    refused: int = 0
    """How often voters refused it on what they see, though it was judged right here."""
    again_ms: int = 0
    """Not before this moment (monotonic) is it submitted again: what is refused takes a slot of the chain all the same."""


class Starter:
    """Holds the starts handed to this node."""

    def __init__(
        self,
        core: NodeCore,
        artifacts: ArtifactStore,
        requests: ChainRequests,
        verifier: Verifier,
        clock: Callable[[], Now],
        folder: Path,
        *,
        slot_of: Callable[[SignedCommand], int],
        ended: Callable[[Waiting], None],
        outdated: Callable[[Digest], None],
    ) -> None:
        """Take what is read, where starts are submitted, and the data folder, in which those of an earlier life wait.

        `slot_of` says where a start was decided (0 if nowhere), `ended` hears that one started or was refused for good,
        `outdated` that a node's word on a change has grown too old while its start waited for people.
        """
        self._core = core
        self._artifacts = artifacts
        self._requests = requests
        self._rules = Rules(verifier, core.trust.mesh)
        self._clock = clock
        self._folder = folder
        self.starts: dict[Digest, Waiting] = dict(_taken_up(folder))
        self._slot_of, self._ended, self._outdated = slot_of, ended, outdated
        self._woken = asyncio.Event()

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: what a start waited for may have come."""
        if self.starts and isinstance(event, NodePrepared | RecordsMerged | EntryStored):
            self._woken.set()

    def add(self, signed: SignedCommand) -> Digest | Refusal:
        """Take a start, durably; return the change it names, or why it never can be. Raises OSError; it is not held then.

        A start that only time or people can help waits; one its signer may not give is refused at once, so that it
        cannot take the place of one that waits.
        """
        try:
            command: Command = decode(signed.payload, Command)
        except DecodeError as error:
            return Refusal("command.malformed", str(error))
        if not isinstance(command.action, Start):
            return Refusal("start.other", "only starts wait here; submit other commands")
        for ended in [digest for digest, held in self.starts.items() if held.outcome != "waiting"]:
            if len(self.starts) < STARTS_MAX:
                break
            del self.starts[ended]
        if len(self.starts) >= STARTS_MAX:
            return Refusal("start.limit", f"at most {STARTS_MAX} starts wait on one node")
        change = Digest(command.action.change)
        signed = SignedCommand(signed.payload, signed.signatures)  # its exhibits are found here
        waiting = Waiting(signed, command.action.nodes, self._clock().wall_ms)
        shown = self.complete(change, signed, command.action.nodes)
        judged = shown if isinstance(shown, Refusal) else self._judge(*shown)
        if judged is not None:
            if self._under_way(change, command):
                return change
            if not judged.rule.startswith(WAITED_FOR):
                return judged
            waiting.refusal = judged
        if not write_starts(self._folder, _kept({**self.starts, change: waiting})):
            return Refusal("start.limit", "the starts that wait on this node are too large together")
        self.starts[change] = waiting
        self._woken.set()
        return change

    def _under_way(self, change: Digest, command: Command) -> bool:
        """Whether this change was started from here and runs: who signs its start again has what was asked for."""
        held, lane = self.starts.get(change), self._core.state.lane(command.project, command.environment)
        if held is None or held.outcome != "started" or lane is None:
            return False
        deployed = [lane.base, lane.rollout.candidate if lane.rollout is not None else None]
        return any(entry is not None and entry.change == change for entry in deployed)

    def withdraw(self, change: Digest) -> bool:
        """Forget a start that waits, durably; whether there was one. Raises OSError; it is still held then."""
        waiting = self.starts.get(change)
        if waiting is None or waiting.outcome != "waiting":
            return False
        write_starts(self._folder, _kept({digest: held for digest, held in self.starts.items() if digest != change}))
        del self.starts[change]
        return True

    def _forget_ended(self) -> None:
        """Take what ended out of the file; what stays in it is judged once more by the next process, no more."""
        try:
            write_starts(self._folder, _kept(self.starts))
        except OSError as error:
            _log.error("the file of starts is as it was: %s", error, extra={"event": "starts.not-written"})

    def _judge(self, signed: SignedCommand, material: tuple[bytes, ...]) -> Refusal | None:
        """What voters would say now."""
        judged = apply(self._core.state, signed, material_of(material), self._clock().wall_ms, self._rules)
        return judged if isinstance(judged, Refusal) else None

    async def run(self) -> None:
        """Judge what waits until cancelled."""
        while True:
            waits = any(waiting.outcome == "waiting" for waiting in self.starts.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S if waits else None):
                    await self._woken.wait()
            self._woken.clear()
            for change, waiting in list(self.starts.items()):
                if change not in self.starts:  # withdrawn while another was looked at
                    continue
                if waiting.outcome == "waiting":
                    await self._look(change, waiting)
                    if waiting.outcome != "waiting":
                        if waiting.outcome == "started":
                            self.starts[change] = waiting  # one that was signed meanwhile asks for what is done
                        self._ended(waiting)
                        self._forget_ended()
                elif self._clock().wall_ms - waiting.since_ms > KEEP_MS:
                    del self.starts[change]

    async def _look(self, change: Digest, waiting: Waiting) -> None:
        alone = self._alone()
        if alone is not None:
            waiting.refusal = alone
            return
        shown = self.complete(change, waiting.signed, waiting.nodes)
        if isinstance(shown, Refusal):
            waiting.refusal = shown
            return
        signed, material = shown
        judged = self._judge(signed, material)
        if judged is not None:
            waiting.refusal = judged
            if judged.rule == DUPLICATE and (slot := self._slot_of(waiting.signed)):  # by the process before this one
                waiting.outcome, waiting.slot = "started", slot
            elif not judged.rule.startswith(WAITED_FOR):
                waiting.outcome = "refused"
            elif judged.rule == "evidence.stale" and A_NODE_RUNS_IT in judged.detail:
                self._outdated(change)
            return
        if self._clock().mono_ms < waiting.again_ms:
            return
        try:
            outcome = await self._requests.submit(encode(signed), material)
        except BusyChainError:
            return
        if outcome.outcome == "decided":
            waiting.outcome, waiting.slot = "started", outcome.slot
        elif outcome.outcome != "unknown" and not outcome.rule.startswith((*WAITED_FOR, "fresh.")):
            waiting.outcome = "refused"
        if outcome.outcome not in {"decided", "unknown"}:
            waiting.again_ms = self._clock().mono_ms + min(AGAIN_MS << min(waiting.refused, 10), AGAIN_MAX_MS)
            waiting.refused += 1
        waiting.refusal = Refusal(outcome.rule or UNKNOWN, outcome.detail or "no answer yet")
        _log.info("start %s", outcome.outcome, extra={"event": "start", "change": change.hex(), "rule": outcome.rule})

    def _alone(self) -> Refusal | None:
        """Say so when no start can be decided from here: who waits would otherwise wait in the dark."""
        voters = [voter.node for voter in self._core.state.voters]
        reached = [node for node in voters if node == self._core.node or self._core.hello.standing(node) is not None]
        if len(voters) == 1 or any(node != self._core.node for node in reached):
            return None
        return Refusal(UNKNOWN, f"this node reaches {len(reached)} of {len(voters)} voters")

    def complete(
        self, change: Digest, signed: SignedCommand, nodes: tuple[PeerId, ...]
    ) -> tuple[SignedCommand, tuple[bytes, ...]] | Refusal:
        """Return the start with every paper this node holds for it, and their bytes."""
        proposed = self._core.dossiers.changes.get(change)
        if proposed is None:
            return Refusal("rollout.not-prepared", "this node does not hold the change yet")
        try:
            data = self._artifacts.read(proposed.change.release, RELEASE_MAX_BYTES)
            release: Release = decode(data, Release, RELEASE_MAX_BYTES)
        except (FileNotFoundError, ArtifactError, DecodeError):
            return Refusal("rollout.not-prepared", "this node does not hold the release's manifest yet")
        approvals, evidence, speakers = self._envelopes(proposed, release)
        exhibits, material = self._core.dossiers.exhibits(
            proposed,
            release=data,
            signers=tuple(signature.key for signature in signed.signatures),
            speakers=(*speakers, release.author),
            envelopes=(approvals, evidence),
            statements=self._core.agent.conductor.prepared(change, nodes),
        )
        return SignedCommand(signed.payload, signed.signatures, exhibits), material

    def _envelopes(
        self, proposed: Proposed, release: Release
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]:
        """The approvals and evidence that can be read as such, and the keys that signed them.

        Of what one key says of a kind, and with one result, only the newest: what a command may show has a limit, and the
        same components are built and run again with every change of configuration.
        """
        approvals, speakers = [], []
        newest: dict[tuple[str, bytes, bool], tuple[int, bytes]] = {}
        for data in self._core.dossiers.approvals(proposed.id):
            approval = read_approval(self._rules.verifier, self._rules.mesh, data)
            if isinstance(approval, Refusal) or self._void(approval.key):
                continue
            if not approval.by_passkey or self._core.state.rules_version >= PASSKEY_RULES:
                approvals.append(data)
                speakers.append(approval.key)
        for data in self._core.dossiers.evidence(release):
            attested = read_evidence(self._rules.verifier, self._rules.mesh, data)
            if isinstance(attested, Refusal) or self._void(attested.key):
                continue
            if attested.kind == "build" or proposed.change.configuration in attested.configurations:
                said = (attested.kind, attested.key, attested.passed)
                newest[said] = max(newest.get(said, (0, b"")), (attested.finished_ms, data))
                speakers.append(attested.key)
        return tuple(approvals), tuple(data for _, data in newest.values()), tuple(speakers)

    def _void(self, key: bytes) -> bool:
        """Whether a key was revoked, or not let in: what it signed proves nothing, and voters refuse the rest with it."""
        rights = self._core.dossiers.rights(key, self._clock().wall_ms)
        return self._core.trust.key_revoked(key) or void(rights)


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A start as it was signed, without exhibits, and when it was handed over (wall ms)."""

    signed: SignedCommand
    since_ms: int


def write_starts(folder: Path, kept: Iterable[Kept]) -> bool:
    """Put these in the file, durably; with none there is no file. False if they are too large. Raises OSError."""
    starts = tuple(kept)
    if not starts:
        (folder / FILE_NAME).unlink(missing_ok=True)
        sync_folder(folder)
        return True
    data = encode(starts)
    if len(data) > FILE_MAX_BYTES:
        return False
    write_private(folder / FILE_NAME, data)
    return True


def read_starts(folder: Path) -> tuple[Kept, ...]:
    """Return what waited in an earlier life; none if there was none, or the file is damaged or cannot be read."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            starts: tuple[Kept, ...] = decode(file.read(FILE_MAX_BYTES + 1), tuple[Kept, ...], FILE_MAX_BYTES)
    except FileNotFoundError:
        return ()
    except (OSError, DecodeError) as error:  # it is no reason to run nothing at all
        _log.error(
            "the starts that waited here are lost, sign them again (freehold changes, freehold deploy --change ID): %s: %s",
            path, error, extra={"event": "starts.lost"},
        )  # fmt: skip
        return ()
    return starts


def _kept(starts: dict[Digest, Waiting]) -> list[Kept]:
    return [Kept(start.signed, start.since_ms) for start in starts.values() if start.outcome == "waiting"]


def _taken_up(folder: Path) -> Iterator[tuple[Digest, Waiting]]:
    """The starts that waited when the process before this one ended."""
    for start in read_starts(folder)[:STARTS_MAX]:
        with contextlib.suppress(DecodeError):
            command: Command = decode(start.signed.payload, Command)
            if isinstance(command.action, Start):
                yield Digest(command.action.change), Waiting(start.signed, command.action.nodes, start.since_ms)
