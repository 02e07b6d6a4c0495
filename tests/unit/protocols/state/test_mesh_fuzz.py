"""Damaged commands and exhibits: a refusal or a state, never an exception, and nothing decided that was not signed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.changes.change import Change, Release
from protocols.changes.demands import Demands, EvidenceDemand, Policy
from protocols.changes.statements import Statement
from protocols.envelope import DecodeError, decode, digest, encode, signing_bytes
from protocols.refusal import Refusal
from protocols.state.apply import apply
from protocols.state.commands import COMMAND_DOMAIN, Command, Signature, SignedCommand, Start
from protocols.state.model import MeshState
from tests.support.protocols.mesh_world import MeshWorld, Shown, node_id, signer
from tests.support.protocols.trust_world import DAY_MS

POLICY = Policy("team", Demands(1, ("approver",), (EvidenceDemand("test", DAY_MS),)))
WORLD = MeshWorld(POLICY).furnish()
RELEASE = WORLD.release(1, author="dev")
CHANGE = WORLD.change(RELEASE, author="dev")
SHOWN = WORLD.case_for(
    CHANGE,
    RELEASE,
    author="dev",
    grants=(WORLD.grant("dev", "deployer"), WORLD.grant("ann", "approver")),
    approvals=(WORLD.approval("ann", CHANGE),),
    evidence=(WORLD.evidence("dev"),),
)
ACTION = Start(digest(encode(CHANGE)), tuple(sorted(node_id(name) for name in WORLD.nodes)))
KINDS = ("change", "release", "grants", "approvals", "evidence", "statements")


def judged(shown: Shown, payload: bytes | None = None) -> MeshState | Refusal:
    if payload is None:
        payload = encode(Command(b"i" * 16, ACTION, "shop", "prod", 0))
    dev = signer("dev")
    signature = Signature(dev.public_key, dev.sign(signing_bytes(COMMAND_DOMAIN, WORLD.mesh, payload)))
    command = SignedCommand(payload, (signature,), shown.exhibits)
    return apply(WORLD.state, command, shown.material, WORLD.at_ms, WORLD.rules)


def replaced(kind: str, which: int, data: bytes) -> Shown:
    """The good exhibits with one of them replaced by other bytes, named by their own digest."""
    named = SHOWN.fields[kind]
    old = named if isinstance(named, bytes) else named[which % len(named)]
    fields: dict[str, Any] = dict(SHOWN.fields)
    fields[kind] = digest(data) if isinstance(named, bytes) else tuple(digest(data) if n == old else n for n in named)
    material = {name: item for name, item in SHOWN.material.items() if name != old}
    return Shown(fields, {**material, digest(data): data})


def original(kind: str, which: int) -> bytes:
    named = SHOWN.fields[kind]
    return SHOWN.material[named if isinstance(named, bytes) else named[which % len(named)]]


def test_the_undamaged_start_is_decided() -> None:
    answer = judged(SHOWN)
    assert isinstance(answer, MeshState), answer


@given(st.sampled_from(KINDS), st.integers(0, 2), st.data())
def test_one_flipped_bit_in_any_exhibit_is_refused(kind: str, which: int, data: st.DataObject) -> None:
    good = original(kind, which)
    place = data.draw(st.integers(0, len(good) - 1))
    bit = data.draw(st.integers(0, 7))
    bad = good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :]
    answer = judged(replaced(kind, which, bad))
    spare = kind == "statements"  # enough other nodes may have prepared
    harmless = kind in ("approvals", "evidence")  # JSON leaves some freedom around what is signed
    assert isinstance(answer, Refusal) or spare or harmless


@given(st.sampled_from(KINDS), st.integers(0, 2), st.binary(max_size=300))
def test_arbitrary_bytes_as_an_exhibit_are_refused(kind: str, which: int, data: bytes) -> None:
    assert isinstance(judged(replaced(kind, which, data)), Refusal)


@given(st.binary(max_size=200))
def test_arbitrary_signed_payloads_are_refused(payload: bytes) -> None:
    assert isinstance(judged(SHOWN, payload), Refusal)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_but_newly_signed_command_never_raises(place: int, value: int) -> None:
    payload = encode(Command(b"i" * 16, ACTION, "shop", "prod", 0))
    place %= len(payload)
    answer = judged(SHOWN, payload[:place] + bytes([value]) + payload[place + 1 :])
    assert isinstance(answer, Refusal | MeshState)


@pytest.mark.parametrize("kind", [Change, Release, Command, SignedCommand, MeshState, Statement, Policy])
@given(data=st.binary(max_size=300))
def test_every_decoder_takes_arbitrary_bytes(kind: Any, data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert decode(data, kind) is not None
