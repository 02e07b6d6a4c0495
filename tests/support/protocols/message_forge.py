"""Any message that decodes, true or false: hypothesis strategies built from the wire types themselves.

Where a type asks for `Signed`, the forge signs: a payload of any signable type, under that type's own domain, by a key
that the mesh knows. So what is fuzzed lies behind the decoder and behind the signature check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from protocols.chain.decision import RESET_DOMAIN, VOTER_READY_DOMAIN, Reset, VoterReady
from protocols.chain.messages import LIFE_DOMAIN, Life
from protocols.changes.change import CHANGE_DOMAIN, Change
from protocols.changes.mandates import MANDATE_DOMAIN, DataMandate
from protocols.changes.statements import STATEMENT_DOMAIN, HealthVerdict, Prepared, TimeoutVote, Vanished
from protocols.envelope import Signed, encode, signing_bytes
from protocols.liveness import ALIVE_DOMAIN, SUSPICION_DOMAIN, Aliveness, Suspicion
from protocols.machine import Signer
from protocols.records.record import RECORD_DOMAIN, Record
from protocols.trust.acknowledgements import ACKNOWLEDGEMENT_DOMAIN, Acknowledgement
from protocols.trust.certificates import CERTIFICATE_DOMAIN, Certificate
from protocols.trust.grants import GRANT_DOMAIN, Grant
from protocols.trust.invites import ADMISSION_DOMAIN, INVITE_DOMAIN, JOIN_DOMAIN, Admission, Invite, JoinRequest
from protocols.trust.revocations import REVOCATION_DOMAIN, Revocation
from protocols.trust.upgrades import UPGRADE_DOMAIN, UpgradePaper

SIGNABLE: tuple[tuple[str, type], ...] = (
    (ACKNOWLEDGEMENT_DOMAIN, Acknowledgement),
    (ADMISSION_DOMAIN, Admission),
    (ALIVE_DOMAIN, Aliveness),
    (CERTIFICATE_DOMAIN, Certificate),
    (MANDATE_DOMAIN, DataMandate),
    (UPGRADE_DOMAIN, UpgradePaper),
    (CHANGE_DOMAIN, Change),
    (GRANT_DOMAIN, Grant),
    (INVITE_DOMAIN, Invite),
    (JOIN_DOMAIN, JoinRequest),
    (LIFE_DOMAIN, Life),
    (RECORD_DOMAIN, Record),
    (RESET_DOMAIN, Reset),
    (REVOCATION_DOMAIN, Revocation),
    (STATEMENT_DOMAIN, HealthVerdict),
    (STATEMENT_DOMAIN, Prepared),
    (STATEMENT_DOMAIN, TimeoutVote),
    (STATEMENT_DOMAIN, Vanished),
    (SUSPICION_DOMAIN, Suspicion),
    (VOTER_READY_DOMAIN, VoterReady),
)

NUMBERS = st.one_of(
    st.integers(0, 8),
    st.sampled_from((-1, 255, 256, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))),
    st.integers(1_799_999_000_000, 1_800_001_000_000),
)
BYTES = st.one_of(st.binary(max_size=40), *(st.binary(min_size=n, max_size=n) for n in (8, 16, 32, 64)))
ITEMS_MAX = 3
DEPTH_MAX = 7


class Forge:
    """Builds strategies; `texts` and `blobs` are true names and digests of the mesh under test, mixed in often."""

    def __init__(self, mesh: bytes, signers: Sequence[Signer], texts: Sequence[str], blobs: Sequence[bytes]) -> None:
        self._mesh, self._signers = mesh, list(signers)
        self._texts = st.one_of(st.sampled_from(list(texts)), st.text(max_size=20))
        self._blobs = st.one_of(st.sampled_from(list(blobs)), BYTES)

    def any(self, kind: Any) -> st.SearchStrategy[Any]:
        """A strategy for values that the decoder of `kind` would take."""
        return self._of(inspect.type_info(kind), 0)

    def signed(self, depth: int = 0) -> st.SearchStrategy[Signed]:
        """Rightly signed payloads of every signable type, and a few wrongly signed ones."""
        payloads = st.sampled_from(SIGNABLE).flatmap(
            lambda pair: st.tuples(st.just(pair[0]), self._of(inspect.type_info(pair[1]), depth + 2))
        )

        def made(pair: tuple[str, Any], signer: Signer, spoil: bool) -> Signed:
            payload = encode(pair[1])
            signature = signer.sign(signing_bytes(pair[0], self._mesh, payload))
            return Signed(payload[:-1] if spoil else payload, signer.public_key, signature)

        return st.builds(made, payloads, st.sampled_from(self._signers), st.sampled_from((False,) * 9 + (True,)))

    def _of(self, kind: inspect.Type, depth: int) -> st.SearchStrategy[Any]:
        match kind:
            case inspect.StructType(cls=cls) if cls is Signed:
                return self.signed(depth) if depth < DEPTH_MAX else st.just(Signed(b"", b"", b""))
            case inspect.StructType(cls=cls, fields=fields):
                parts = {field.name: self._of(field.type, depth + 1) for field in fields}
                return st.builds(cls, **parts)
            case inspect.UnionType(types=types):
                flat = [entry for entry in types if depth < DEPTH_MAX or not isinstance(entry, inspect.StructType)]
                return st.one_of(*(self._of(entry, depth) for entry in flat or types))
            case inspect.VarTupleType(item_type=item):
                return st.lists(self._of(item, depth + 1), max_size=ITEMS_MAX if depth < DEPTH_MAX else 0).map(tuple)
            case inspect.TupleType(item_types=items):
                return st.tuples(*(self._of(item, depth + 1) for item in items))
            case inspect.LiteralType(values=values):
                return st.sampled_from(values)
            case _:
                return self._leaf(kind)

    def _leaf(self, kind: inspect.Type) -> st.SearchStrategy[Any]:
        leaves: dict[type, Callable[[], st.SearchStrategy[Any]]] = {
            inspect.IntType: lambda: _numbers(kind),
            inspect.BytesType: lambda: self._blobs,
            inspect.StrType: lambda: self._texts,
            inspect.BoolType: st.booleans,
            inspect.NoneType: st.none,
        }
        return leaves[type(kind)]()


def _numbers(kind: inspect.Type) -> st.SearchStrategy[int]:
    lowest = kind.ge if isinstance(kind, inspect.IntType) else None
    return NUMBERS if lowest is None else NUMBERS.filter(lambda number: number >= lowest)


def damage(data: bytes, place: int, value: int, how: str) -> bytes:
    """Return encoded bytes with one wound: a byte changed, cut off, doubled, or a length made huge."""
    place %= max(1, len(data))
    match how:
        case "change":
            return data[:place] + bytes((value,)) + data[place + 1 :]
        case "cut":
            return data[:place]
        case "insert":
            return data[:place] + bytes((value,)) + data[place:]
        case _:
            return data[:place] + b"\xdd\xff\xff\xff\xff" + data[place:]


__all__ = ["SIGNABLE", "Forge", "damage"]
