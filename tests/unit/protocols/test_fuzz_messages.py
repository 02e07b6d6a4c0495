"""Bytes and messages from anybody: a clear rejection or a value, never an exception, in bounded memory and time.

Three rings: arbitrary and damaged bytes meet every decoder; messages of every wire type with any contents, rightly
signed where they carry signatures, meet a whole node from peers of every standing; papers that travel as text (DSSE,
invite lines, keys) meet their readers.
"""

from __future__ import annotations

import ast
import contextlib
import re
import tracemalloc
from pathlib import Path
from time import process_time
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.chain.acceptor import AcceptorRecord
from protocols.chain.ballots import STORE_ID_BYTES
from protocols.chain.decision import Decision, Entry, ResetTo
from protocols.chain.messages import Accepted, Contradiction, Fetch
from protocols.changes.approvals import Approval, read_approval, sign_approval
from protocols.changes.change import Release
from protocols.changes.demands import Policy
from protocols.changes.effective import Effective
from protocols.changes.evidence import open_envelope, read_evidence
from protocols.changes.secrets import Resealed, SecretPaper, SecretRemoval
from protocols.changes.statements import Statement
from protocols.core import CoreMessage, decode_message
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.machine import PeerId, Received, Reject, Send, Tick
from protocols.records.audit import AuditEntry
from protocols.records.floors import FloorVector
from protocols.records.key_table import ParsedKey, make_key, parse_key
from protocols.records.papers import Ended, Ending
from protocols.records.sites import ChallengeAnswer, SiteCertificate
from protocols.records.store import EquivocationProof
from protocols.refusal import Refusal
from protocols.rollout.orders import WorkObserved
from protocols.state.commands import Command, SignedCommand
from protocols.state.model import MeshState
from protocols.trust.cosigning import Cosigned
from protocols.trust.genesis import Genesis, decode_genesis
from protocols.trust.invites import Bundle, InviteLine, read_line, write_line
from protocols.trust.revocations import RevocationStatement
from protocols.trust.store import Standing
from protocols.trust.upgrades import UpgradePaper
from simulation.mesh.fleet import Fleet
from tests.support.protocols.message_forge import SIGNABLE, Forge, damage

MESSAGES: tuple[type, ...] = tuple(
    kind for union in get_args(CoreMessage) for kind in (get_args(union) or (union,))
)  # fmt: skip
UNIONS: dict[str, Any] = {
    "Entry": Entry, "SecretPaper": SecretPaper, "Statement": Statement,
    "tuple[Signed, ...]": tuple[Signed, ...], "tuple[int, bytes]": tuple[int, bytes],
}  # fmt: skip
STORED: tuple[Any, ...] = (
    Accepted, AcceptorRecord, AuditEntry, Bundle, Command, Contradiction, Decision, Effective, Ended, Ending,
    EquivocationProof, Resealed, SecretRemoval,
    FloorVector, Genesis, MeshState, Policy, Release, ResetTo, RevocationStatement, Signed, SignedCommand,
    Cosigned, UpgradePaper, ChallengeAnswer, SiteCertificate,
    *UNIONS.values(),
)  # fmt: skip
READ_AS_TEXT = ("_Line",)
"""Decoded only behind a reader of text that is fuzzed below."""
WOUNDS = ("change", "cut", "insert", "bomb")
RULE = re.compile(r"[a-z]+(-[a-z]+)*\.[a-z0-9-]+(\.[a-z0-9-]+)*")
EFFECTS_MAX = 300
"""One message makes a node say at most a few things to each of its peers."""
SENT_BYTES_MAX = 4 << 20
"""What one message of a stranger may draw: an answer of catch-up or sync is a bounded batch."""
QUICK = settings(max_examples=12, suppress_health_check=list(HealthCheck))


def fleet_of_three() -> Fleet:
    """n1 and n2 are members, n3 was invited; n4 is nobody."""
    fleet = Fleet(("n1", "n2", "n3", "n4"), seed=9)
    for name in ("n1", "n2", "n3"):
        fleet.certify(name)
        fleet.hosts[name].start()
    fleet.world.run_until(3_000)
    fleet.outcome(fleet.confirm("n2", "n1"))
    fleet.world.run_until(6_000)
    return fleet


SAMPLE = fleet_of_three()
FORGE = Forge(
    SAMPLE.mesh,
    [SAMPLE.admin, *SAMPLE.signers.values()],
    [*SAMPLE.peers.values(), make_key("status", SAMPLE.peers["n2"]), "shop", "prod"],
    [
        SAMPLE.mesh,
        SAMPLE.core("n1").chain.position.digest,
        SAMPLE.core("n1").chain.store_id,
        SAMPLE.signers["n2"].public_key,
        SAMPLE.admin.public_key,
        SAMPLE.core("n2").records.store.trie.root(),
        b"s" * STORE_ID_BYTES,
        b"",
    ],
)


def test_a_chain_does_not_end_before_its_beginning() -> None:
    head = Fetch(SAMPLE.core("n1").chain.position)
    assert decode_message(encode(head)) == head
    for before in (replace(head.position, resets=-1), replace(head.position, slot=-1)):
        with pytest.raises(DecodeError):
            decode_message(encode(Fetch(before)))


# --- bytes meet every decoder -----------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert type(decode_message(data)) in MESSAGES


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: f"{kind.__module__.split('.')[-1]}.{kind.__name__}")
@QUICK
@given(data=st.data(), place=st.integers(0, 4_000), value=st.integers(0, 255), how=st.sampled_from(WOUNDS))
def test_a_message_survives_its_encoding_and_damage_is_noticed_or_harmless(
    kind: type, data: st.DataObject, place: int, value: int, how: str
) -> None:
    message = data.draw(FORGE.any(kind))
    whole = encode(message)
    assert decode_message(whole) == message
    with contextlib.suppress(DecodeError):
        assert type(decode_message(damage(whole, place, value, how))) in MESSAGES


@pytest.mark.parametrize("kind", [*STORED, *(kind for _, kind in SIGNABLE)], ids=str)
@QUICK
@given(data=st.data(), place=st.integers(0, 4_000), value=st.integers(0, 255), how=st.sampled_from(WOUNDS))
def test_every_stored_and_signed_payload_decodes_or_is_refused(
    kind: Any, data: st.DataObject, place: int, value: int, how: str
) -> None:
    whole = encode(data.draw(FORGE.any(kind)))
    assert encode(decode(whole, kind)) == whole
    with contextlib.suppress(DecodeError):
        assert decode(damage(whole, place, value, how), kind) is not None
    with contextlib.suppress(DecodeError):
        assert decode(data.draw(st.binary(max_size=200)), kind) is not None


def decoded_kinds() -> dict[str, str]:
    """Every kind that the sources hand to a decoder, by name, with where."""
    table: dict[str, str] = {}
    for path in sorted(Path("protocols").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
                continue
            place = {"decode": 1, "open_signed": 4}.get(node.func.id)
            if place is not None and len(node.args) > place:
                table[ast.unparse(node.args[place])] = f"{path}:{node.lineno}"
    return {name: where for name, where in table.items() if not name[0].islower() or name.startswith("tuple")}


def test_no_decoder_is_left_out_of_the_fuzzing() -> None:
    fuzzed = (*(kind for _, kind in SIGNABLE), *MESSAGES, *STORED)
    named = {"CoreMessage", *UNIONS, *READ_AS_TEXT, *(getattr(kind, "__name__", "") for kind in fuzzed)}
    missing = {name: where for name, where in decoded_kinds().items() if name not in named}
    assert not missing
    assert len(decoded_kinds()) > 30


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 500_000,
        b"\x81\xa4type" * 100_000,
        b"\xdd\x00\x0f\xff\xff" + b"\xc0" * 1_000_000,
        bytes((1 << 20) + 1),
    ],
    ids=["array", "map", "bytes", "text", "deep arrays", "deep maps", "a million nulls", "too long"],
)
def test_a_length_that_lies_costs_neither_memory_nor_time(bomb: bytes) -> None:
    kinds = [CoreMessage, Genesis, MeshState, Effective, AuditEntry, tuple[Signed, ...]]
    for kind in kinds:  # decoders are made once; what they are made of is not counted
        with contextlib.suppress(DecodeError):
            decode(b"", kind)
    tracemalloc.start()
    began_s = process_time()
    for kind in kinds:
        with pytest.raises(DecodeError):
            decode(bomb, kind)
    took_s, (_, peak) = process_time() - began_s, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert took_s < 2


# --- messages of any content meet a whole node ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: f"{kind.__module__.split('.')[-1]}.{kind.__name__}")
@settings(QUICK, max_examples=3)
@given(data=st.data())
def test_a_node_takes_any_message_from_a_peer_of_any_standing(kind: type, data: st.DataObject) -> None:
    fleet = fleet_of_three()
    core, host = fleet.core("n1"), fleet.hosts["n1"]
    assert core.hello.standing(fleet.peers["n2"]) is Standing.MEMBER
    assert core.hello.standing(fleet.peers["n3"]) is Standing.JOINED
    for name in data.draw(st.lists(st.sampled_from(("n2", "n2", "n2", "n3", "n4")), min_size=4, max_size=8)):
        peer = fleet.peers[name]
        now = host.clock.now(fleet.world.now_ms)
        effects = core.handle(Received(peer, data.draw(FORGE.any(kind))), now)
        assert len(effects) <= EFFECTS_MAX
        assert sum(len(encode(entry.message)) for entry in effects if isinstance(entry, Send)) <= SENT_BYTES_MAX
        for effect in effects:
            if isinstance(effect, Reject):
                assert effect.peer, "a rejection names the peer"
                assert RULE.fullmatch(effect.rule), effect.rule
        fleet.world.now_ms += 10
    core.handle(Tick(), host.clock.now(fleet.world.now_ms + 120_000))
    due_ms = core.deadline_ms()
    assert due_ms is not None, "a node always has something to do next"


def test_every_rejection_in_the_source_names_a_peer_and_a_rule() -> None:
    calls = 0
    for path in sorted(Path("protocols").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Reject"
            if not named or not isinstance(node, ast.Call):
                continue
            calls += 1
            assert len(node.args) >= 2, f"{path}:{node.lineno} names no peer or no rule"
            rule = node.args[1]
            if isinstance(rule, ast.Constant):
                assert RULE.fullmatch(str(rule.value)), f"{path}:{node.lineno}: {rule.value}"
    assert calls > 40


# --- papers that travel as text ---------------------------------------------------------------------------------------

CHANGE = digest(b"change")
APPROVAL = sign_approval(SAMPLE.admin, SAMPLE.mesh, Approval(b"", CHANGE, "shop", "prod", 1, 2))
INVITE = SAMPLE.invite("door", 1, "n1")
LINE = write_line(b"k" * 32, INVITE.signed, INVITE.addresses)


@given(st.integers(0, 4_000), st.integers(0, 255), st.sampled_from(WOUNDS))
def test_a_damaged_approval_or_evidence_is_refused_with_its_rule_or_says_the_same(
    place: int, value: int, how: str
) -> None:
    verifier = SAMPLE.world.keys
    whole = read_approval(verifier, SAMPLE.mesh, APPROVAL)
    assert not isinstance(whole, Refusal)
    data = damage(APPROVAL, place, value, how)
    read = read_approval(verifier, SAMPLE.mesh, data)
    assert read == whole or (isinstance(read, Refusal) and RULE.fullmatch(read.rule))
    evidence = read_evidence(verifier, SAMPLE.mesh, data)
    assert isinstance(evidence, Refusal), "an approval is no evidence"


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_arbitrary_bytes_are_no_envelope(data: bytes) -> None:
    assert isinstance(open_envelope(SAMPLE.world.keys, data), Refusal)


def test_an_envelope_that_nests_without_end_is_refused() -> None:
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b'{"payload":"' + b"A" * 200_000 + b'"}'):
        assert isinstance(open_envelope(SAMPLE.world.keys, data), Refusal)


@given(st.integers(0, 4_000), st.characters(), st.sampled_from(("change", "cut", "insert")))
def test_a_damaged_invite_line_is_refused_or_is_the_same_line(place: int, letter: str, how: str) -> None:
    whole = read_line(LINE)
    place %= len(LINE)
    parts = {"change": letter + LINE[place + 1 :], "cut": "", "insert": letter + LINE[place:]}
    with contextlib.suppress(DecodeError):
        assert read_line(LINE[:place] + parts[how]) == whole


@given(st.one_of(st.text(max_size=400), st.text(max_size=200).map("fh1.".__add__)))
def test_arbitrary_text_is_no_invite_line(text: str) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(read_line(text), InviteLine)


@given(st.one_of(st.text(max_size=400), st.lists(st.text(max_size=70), max_size=6).map(lambda p: "/" + "/".join(p))))
def test_any_text_is_a_key_of_the_table_or_refused(text: str) -> None:
    parsed = parse_key(text)
    if isinstance(parsed, ParsedKey):
        assert make_key(parsed.rule.prefix, *parsed.parts) == text
    else:
        assert RULE.fullmatch(parsed.rule)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_genesis(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_genesis(data)


@given(FORGE.any(Genesis))
def test_a_genesis_of_any_content_is_taken_or_refused(genesis: Genesis) -> None:
    with contextlib.suppress(DecodeError):
        assert decode_genesis(encode(genesis)) == genesis


def test_reports_of_work_that_nobody_asked_for_change_nothing() -> None:
    fleet = fleet_of_three()
    now = fleet.hosts["n1"].clock.now(fleet.world.now_ms)
    assert fleet.core("n1").handle(WorkObserved("shop", "prod", digest(b"x"), ready=True, crashes=9), now) == []
    assert fleet.core("n1").handle(Received(PeerId("nobody"), object()), now) != []
