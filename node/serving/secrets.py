"""The secrets this node may open: values for the releases it prepares, in memory only, and boxes for nodes that come later.

Versions and boxes are records (protocols/changes/secrets.py); a change names each version by digest, so what an app
gets is what was approved. When a node becomes eligible for an environment, one holder, the first by rendezvous, seals
its copy of the data key to it and notes that in its audit log. Nothing here writes a value to disk, to a log or into an
answer. Not here: who may set a secret (grants), and how the guest gets it (wasi:config).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from node.journal.audit import AuditedPaper
from protocols.changes.change import SecretVersion
from protocols.changes.effective import Effective, EffectiveApp
from protocols.changes.secrets import Box, Resealed, SealedSecret, SealError, open_paper, reseal, unseal
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.keys import public_key_of
from protocols.liveness import Belief
from protocols.machine import Entropy, Now, PeerId
from protocols.records.gossip import Publish, RecordsForgotten, RecordsMerged, RecordsVoided
from protocols.records.key_table import BODY_MAX_BYTES, make_key
from protocols.records.record import Entry
from protocols.state.placement import eligible, rendezvous
from protocols.trust.grants import Rights

WAIT_S = 20.0
"""How long preparing waits for a holder to seal a value to this node, or for the record to arrive."""

SEALERS = 2
"""So many nodes seal a version to each node that came later: one that seals a box which opens nothing keeps nobody out."""

LOOK_EVERY_S = 1.0
WAIT_STEP_S = 0.2
TRIED_AGAIN_MS = 15_000
"""A box that was published and has not come back as a record by then is made again."""

_log = logging.getLogger("freehold.secrets")


class SecretError(Exception):
    """A value cannot be had here; the text names the secret and says why, never more."""


class SealedAwayError(SecretError):
    """No other node sealed it to this one yet, or it has not arrived; either may come."""


@dataclass(frozen=True, slots=True)
class HeldSecret:
    """One version as its author signed it; `key` is its record's key."""

    id: bytes
    key: str
    signed: Signed
    secret: SealedSecret


class Secrets:
    """This node's secrets."""

    def __init__(
        self,
        core: NodeCore,
        key: X25519PrivateKey,
        entropy: Entropy,
        post: Callable[[Any], bool],
        clock: Callable[[], Now],
    ) -> None:
        """Take the core to read, the node's sealing key, and where records are published."""
        self._core = core
        self._key = key
        self._entropy = entropy
        self._post = post
        self._clock = clock
        self._held: dict[bytes, HeldSecret] = {}
        self._boxes: dict[bytes, dict[PeerId, dict[PeerId, Box]]] = {}
        """Of nodes that came later: by version, by node, by who sealed it; one who lies hides nobody else's."""
        self._made: dict[tuple[bytes, PeerId], int] = {}
        self._take(core.records.store.entries.values())

    def hear(self, event: Any) -> None:
        """Take one of the core's notices; those that are no records are left alone."""
        match event:
            case RecordsMerged(entries):
                self._take(entries)
            case RecordsVoided(entries) | RecordsForgotten(entries):
                for entry in entries:
                    self._forget(entry)
            case _:
                pass

    async def values(
        self, effective: Effective, app: EffectiveApp, versions: Sequence[SecretVersion]
    ) -> Mapping[str, str]:
        """Return the app's secrets by name, in the versions a change names. Raises SecretError."""
        named = {version.name: version for version in versions}
        table = {}
        for name in app.secrets:
            if name not in named:
                raise SecretError(f"the change names no version of secret {name}; propose it again")
            table[name] = await self._value(effective, named[name])
        return table

    async def run(self, note: Callable[[AuditedPaper], None]) -> None:
        """Seal what this node holds to nodes that may run it and cannot open it yet, until cancelled; note each time."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._held:
                self._serve_newcomers(note)

    # --- what the API shows -------------------------------------------------------------------------------------------

    def versions(self) -> list[HeldSecret]:
        """Every version held, by project, environment, name, and newest first."""
        return sorted(
            self._held.values(),
            key=lambda one: (one.secret.project, one.secret.environment, one.secret.name, -one.secret.version, one.id),
        )

    def openers(self, held: HeldSecret) -> tuple[PeerId, ...]:
        """The nodes that a version is sealed to, ascending."""
        return tuple(sorted({*(box.node for box in held.secret.boxes), *self._boxes.get(held.id, {})}))

    def in_use(self) -> set[bytes]:
        """The ids of versions that a base, a candidate or a release kept for rollback names."""
        named: set[bytes] = set()
        for lane in self._core.state.lanes:
            candidate = (lane.rollout.candidate,) if lane.rollout is not None else ()
            for entry in (lane.base, *candidate, *lane.retained):
                if entry is not None:
                    named |= {version.digest for version in entry.secrets}
        return named

    def problem(self, held: HeldSecret) -> str:
        """Why a version must not be proposed any more, empty if it may: its author needed the right to set it."""
        rights = self._core.dossiers.rights(held.signed.key, held.secret.created_ms)
        if not isinstance(rights, Rights):
            return f"{rights.rule}: {rights.detail}"
        if not rights.allows("secret", held.secret.project, held.secret.environment):
            return f"{rights.name} may not set secrets there"
        return ""

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _value(self, effective: Effective, version: SecretVersion) -> str:
        deadline_s = asyncio.get_running_loop().time() + WAIT_S
        while True:
            held = self._held.get(version.digest)
            if held is not None and (boxes := self._boxes_of(held, self._core.node)):
                break
            if asyncio.get_running_loop().time() > deadline_s:
                what = "is not sealed to this node" if held is not None else "has not arrived here"
                raise SealedAwayError(f"secret {version.name}, version {version.version}, {what}")
            await asyncio.sleep(WAIT_STEP_S)
        secret = held.secret
        if (secret.project, secret.environment, secret.name) != (
            effective.project,
            effective.environment,
            version.name,
        ):
            raise SecretError(f"the change names a version of secret {version.name} that belongs elsewhere")
        problem = SealError("no box opens")
        for box in boxes:
            try:
                return unseal(self._core.trust.mesh, secret, box, self._key).decode()
            except SealError as error:
                problem = error
            except UnicodeDecodeError:
                raise SecretError(f"secret {version.name} is not text") from None
        raise SecretError(str(problem))

    def _boxes_of(self, held: HeldSecret, node: PeerId) -> tuple[Box, ...]:
        """The boxes for a node: the author's own first, then those of the nodes that sealed it later."""
        own = (box for box in held.secret.boxes if box.node == node)
        return (*own, *self._boxes.get(held.id, {}).get(node, {}).values())

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            prefix = entry.parsed.rule.prefix
            if prefix not in {"secret", "resealed"}:
                continue
            if entry.record.tombstone:
                self._forget(entry)
                continue
            try:
                if prefix == "secret":
                    self._take_version(entry)
                else:
                    said: Resealed = decode(entry.record.body, Resealed, BODY_MAX_BYTES)
                    sealers = self._boxes.setdefault(said.secret, {}).setdefault(said.box.node, {})
                    sealers[entry.author] = said.box
            except DecodeError as error:
                _log.warning("not a secret: %s", error, extra={"event": "secret.malformed"})

    def _take_version(self, entry: Entry) -> None:
        signed: Signed = decode(entry.record.body, Signed, BODY_MAX_BYTES)
        paper = open_paper(self._core.trust.verifier, self._core.trust.mesh, signed)
        project, environment, name, id_text = entry.parsed.parts
        if isinstance(paper, SealedSecret) and (paper.project, paper.environment, paper.name) == (
            project,
            environment,
            name,
        ):
            self._held[bytes.fromhex(id_text)] = HeldSecret(bytes.fromhex(id_text), entry.record.key, signed, paper)

    def _forget(self, entry: Entry) -> None:
        if entry.parsed.rule.prefix == "secret":
            self._held.pop(bytes.fromhex(entry.parsed.parts[-1]), None)

    # --- nodes that came later ----------------------------------------------------------------------------------------

    def _serve_newcomers(self, note: Callable[[AuditedPaper], None]) -> None:
        core, now_ms = self._core, self._clock().mono_ms
        for held, lacking in self._wanting():
            if core.node not in self._sealers(held):
                continue
            for node in lacking:
                if now_ms - self._made.get((held.id, node), -TRIED_AGAIN_MS) >= TRIED_AGAIN_MS:
                    self._made[held.id, node] = now_ms
                    paper = self._seal_to(held, node)
                    if paper is not None:
                        note(paper)

    def _sealers(self, held: HeldSecret) -> list[PeerId]:
        """The nodes that seal a version to those that came later: two, since one may lie; the author's choice before others."""
        core, chosen = self._core, {box.node for box in held.secret.boxes}
        able = [node for node in self.openers(held) if node == core.node or core.liveness.belief(node) is Belief.ALIVE]
        ranked = rendezvous(held.id.hex(), able)
        return sorted(ranked, key=lambda node: node not in chosen)[:SEALERS]

    def _wanting(self) -> list[tuple[HeldSecret, list[PeerId]]]:
        """What this node has not sealed yet to nodes that may need it: versions in use, and the newest, which come next."""
        core, used = self._core, self.in_use()
        named: dict[tuple[str, str, str], None] = {}
        pairs = []
        for held in self.versions():
            name = (held.secret.project, held.secret.environment, held.secret.name)
            newest = name not in named
            named[name] = None
            if held.id not in used and not newest:
                continue
            sealed = {box.node for box in held.secret.boxes}
            mine = {node for node, sealers in self._boxes.get(held.id, {}).items() if core.node in sealers}
            lacking = [
                node
                for node in eligible(core.state, held.secret.environment)
                if node not in sealed | mine | {core.node} and not core.trust.key_revoked(public_key_of(node))
            ]
            if lacking and (held.id in used or not self.problem(held)):
                pairs.append((held, lacking))
        return pairs

    def _seal_to(self, held: HeldSecret, node: PeerId) -> AuditedPaper | None:
        secret, box = held.secret, None
        for mine in self._boxes_of(held, self._core.node):
            try:
                box = reseal(self._core.trust.mesh, secret, mine, self._key, node, self._entropy)
                break
            except SealError as error:
                _log.error("not sealed: %s", error, extra={"event": "secret.reseal-failed", "peer": node})
        if box is None:
            return None
        body = encode(Resealed(held.id, box))
        self._post(Publish(make_key("resealed", held.id.hex(), node, digest(body).hex()), body))
        target = f"{secret.project}/{secret.environment}/{secret.name} version {secret.version} for {node}"
        return AuditedPaper("reseal secret", target, held.id)
