"""Records, stores and refusals as the tests of records name them."""

from __future__ import annotations

from protocols.envelope import Signed
from protocols.machine import (
    Notify,
    Now,
)
from protocols.records.credentials import revocation_record
from protocols.records.gossip import (
    RecordMachine,
    RecordsConfig,
)
from protocols.records.key_table import make_key
from protocols.records.quotas import RecordLimits
from protocols.records.record import read_record
from protocols.records.store import (
    OfferOutcome,
    OfferResult,
    RecordStore,
)
from protocols.refusal import Refusal
from protocols.trust.revocations import Revocation, RevocationStatement, sign_revocation
from tests.support.protocols.record_world import (
    ADMIN,
    MESH,
    AnyBody,
    FastSigner,
    fast_id,
    immutable,
    trust_of,
)
from tests.support.protocols.trust_world import WALL_MS, SeededEntropy

NAMES = ("n0", "n1", "n2")

NOW = Now(0, WALL_MS)


def store(**limits: int) -> RecordStore:
    trust = trust_of(NAMES)
    return RecordStore(trust, RecordLimits(**limits), court=AnyBody(trust))


def refused(offered: OfferResult) -> str:
    assert offered.outcome is OfferOutcome.REFUSED, offered
    assert offered.refusal is not None
    assert offered.refusal.detail
    return offered.refusal.rule


def entry_of(signed: Signed):  # type: ignore[no-untyped-def]
    entry = read_record(signed)
    assert not isinstance(entry, Refusal), entry
    return entry


def revocation_of(name: str, last_seq: int, last_serial: int = 9) -> tuple[Revocation, RevocationStatement]:
    body = Revocation("node", FastSigner(name).public_key, last_seq, last_serial, "stolen", WALL_MS)
    return body, sign_revocation(ADMIN, MESH, body)


def revocation_by(author: str, name: str, last_seq: int) -> Signed:
    key, body = revocation_record(*revocation_of(name, last_seq))
    return immutable(author, "revocation", body, key=key)


def machine(config: RecordsConfig | None = None, name: str = "n0") -> RecordMachine:
    trust = trust_of(NAMES)
    return RecordMachine(trust, FastSigner(name), SeededEntropy(), config, court=AnyBody(trust))


def events(effects) -> list[object]:  # type: ignore[no-untyped-def]
    return [effect.event for effect in effects if isinstance(effect, Notify)]


STATUS = make_key("status", fast_id("n0"))
