"""The trust table, records: who may write, replace and end a record of each kind. Positions x kinds x operations.

The expectation of each row is pinned in words of its own, not read from the key table that is under test.
"""

from __future__ import annotations

import itertools

import pytest

from protocols.changes.secrets import Box, Resealed
from protocols.envelope import Signed, digest, encode
from protocols.records.credentials import certificate_record, grant_record, revocation_record
from protocols.records.key_table import KEY_TABLE, RULE_OF_PREFIX, make_key
from protocols.records.papers import PAPERS, Ending, end_paper
from protocols.records.record import Record, sign_record
from protocols.records.store import EquivocationProof, RecordStore
from protocols.trust.certificates import issue
from protocols.trust.revocations import Revocation, sign_revocation
from tests.support.protocols.paper_world import MESH, author_of, carried, granted, paper, rule, world
from tests.support.protocols.trust_world import WALL_MS, node_id, signer

NODES = ("n1", "n2", "n3", "joined", "gone", "stranger", "admin", "author")
"""n1 to n3 are members, `joined` has a certificate alone, `gone` was revoked; the last two are keys of people."""

OWN = {
    # A node's own words: the parts behind the node, and whether the node may take them back.
    "status": ((), True), "address": ((), True), "floor": ((), False), "prepared": (("c",), True),
    "verdict": (("r", "1"), True), "timeout": (("r", "1"), True), "audit": (("1",), False), "health": (("web",), False),
    "load": ((), False), "site": (("ab" * 16,), True),
    "challenge": (("token",), False),
}  # fmt: skip
PAPER_WRITERS = {
    # Who of the people and nodes may sign each paper about shop in prod.
    "change": {"author", "beside", "admin"}, "secret": {"author", "beside", "admin"}, "approval": {"approver", "admin"},
    "evidence": {"author", "beside", "admin", "n1", "n2", "joined", "staging", "other"},
}  # fmt: skip
SIGNERS = (
    "author", "beside", "approver", "staging", "other", "viewer", "admin", "n1", "n2", "joined", "gone", "stranger",
)  # fmt: skip
CARRIED_BY = {"n1": "", "n2": "", "n3": "", "joined": "records.unconfirmed", "gone": "records.revoked",
              "stranger": "records.unknown-author", "author": "records.unknown-author"}  # fmt: skip
"""Why a node may not carry what members carry; nothing: it may."""


def furnished() -> RecordStore:
    held = world()
    for number, name in enumerate(("joined", "gone"), 4):
        signed = issue(
            signer("admin"), MESH, node_id(name), roles=("worker",), labels=(), serial=number, wall_ms=WALL_MS
        )
        held.trust.learn_certificate(signed, WALL_MS)
    held.trust.learn_revocation(
        sign_revocation(signer("admin"), MESH, Revocation("node", signer("gone").public_key, -1, -1, "lost", WALL_MS))
    )
    return held


def said(by: str, key: str, *, body: bytes = b"word", tombstone: bool = False, seq: int = 1) -> Signed:
    """A node's word under a key, written by anybody."""
    row = RULE_OF_PREFIX[key.split("/")[1]]
    record = Record(
        key, row.kind, seq, (WALL_MS + seq) << 16, ttl_ms=row.ttl_max_ms, body=b"" if tombstone else body,
        tombstone=tombstone,
    )  # fmt: skip
    return sign_record(signer(by), MESH, record)


def why_not(writer: str, owner: str) -> str:
    if writer == "gone":
        return "records.revoked"
    if writer in {"stranger", "admin", "author"}:
        return "records.unknown-author"
    return "" if writer == owner else "records.not-owner"


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("operation", ["write", "replace", "end"])
def test_a_nodes_word_is_its_own_to_write_to_replace_and_to_end(kind: str, operation: str) -> None:
    parts, ends = OWN[kind]
    for writer, owner in itertools.product(NODES, ("n1", "joined")):
        held = furnished()
        key = make_key(kind, str(node_id(owner)), *parts)
        if operation != "write":
            assert rule(held.offer(said(owner, key), WALL_MS)) == "merged"
        signed = said(writer, key, body=b"other", tombstone=operation == "end", seq=2)
        refused = "records.tombstone" if operation == "end" and not ends else why_not(writer, owner)
        assert rule(held.offer(signed, WALL_MS)) == (refused or "merged"), (writer, owner)
        held_now = held.entries.get(key) or held.ephemeral.get(key)
        assert (held_now is not None and held_now.signed == signed) is not bool(refused), (writer, owner)


@pytest.mark.parametrize("kind", PAPERS)
def test_a_paper_is_written_by_who_has_the_right_there_and_carried_by_any_member(kind: str) -> None:
    for by, carrier in itertools.product(SIGNERS, CARRIED_BY):
        key, body = paper(kind, signer(by))
        text = rule(furnished().offer(carried(carrier, key, body), WALL_MS))
        may = by in PAPER_WRITERS[kind]
        if CARRIED_BY[carrier]:
            assert text == CARRIED_BY[carrier], (by, carrier)
        else:
            assert (text == "merged") is may, (by, carrier, text)
            assert may or text in {"paper.not-allowed", "paper.author-revoked"}, (by, carrier, text)


@pytest.mark.parametrize("kind", PAPERS)
def test_no_paper_is_replaced_by_other_bytes_not_even_by_its_author(kind: str) -> None:
    for by, carrier in itertools.product(SIGNERS, ("n1", "n2")):
        held = furnished()
        key, body = paper(kind, author_of(kind))
        assert rule(held.offer(carried("n1", key, body), WALL_MS)) == "merged"
        _, other = paper(kind, signer(by), 2)
        assert rule(held.offer(carried(carrier, key, other, seq=9), WALL_MS)) == "records.digest"
        assert held.entries[key].record.body == body


@pytest.mark.parametrize("kind", PAPERS)
def test_a_paper_is_ended_by_its_author_alone(kind: str) -> None:
    for by, carrier in itertools.product(SIGNERS, CARRIED_BY):
        held = furnished()
        key, body = paper(kind, author_of(kind))
        held.offer(carried("n1", key, body), WALL_MS)
        statement = end_paper(signer(by), MESH, Ending(key, WALL_MS), body)
        text = rule(held.offer(carried(carrier, key, statement, tombstone=True), WALL_MS))
        ended = kind != "approval" and by == "author" and not CARRIED_BY[carrier]
        assert held.entries[key].record.tombstone is ended, (by, carrier, text)


TRUST_ACTS = ("certificate", "grant", "grant below", "revoke node", "revoke person", "revoke grant")
MAY_ACT = {
    "admin": {"certificate", "grant", "revoke node", "revoke person", "revoke grant"},
    "author": {"grant below", "revoke grant"},  # its own grant: it gives part of it on, and gives it back
    "n2": {"revoke node"},  # a node that leaves
}


def trust_record(act: str, by: str) -> tuple[str, bytes]:
    """Key and body of what `by` says about n2, about the person `author`, or about a newcomer."""
    if act == "certificate":
        new = node_id("new")
        signed = issue(signer(by), MESH, new, roles=("worker",), labels=(), serial=9, wall_ms=WALL_MS)
        return certificate_record(new, signed)
    upper = granted("author", "deployer", "shop", "prod")
    if act == "grant":
        return grant_record(signer("new").public_key, (granted("new", "viewer", "shop", "prod", by=by),))
    if act == "grant below":
        link = granted("new", "deployer", "shop", "prod", by=by, parent=digest(upper.payload))
        return grant_record(signer("new").public_key, (upper, link))
    kind, subject = {
        "revoke node": ("node", signer("n2").public_key),
        "revoke person": ("principal", signer("author").public_key),
        "revoke grant": ("grant", digest(upper.payload)),
    }[act]
    chain = (upper,) if act == "revoke grant" and by != "admin" else ()
    revocation = Revocation(kind, subject, -1, -1, "", WALL_MS)  # type: ignore[arg-type]
    return revocation_record(revocation, sign_revocation(signer(by), MESH, revocation, chain))


@pytest.mark.parametrize("act", TRUST_ACTS)
def test_trust_is_given_and_taken_by_who_may_and_never_ended_by_a_tombstone(act: str) -> None:
    for by in ("admin", "author", "beside", "approver", "viewer", "n1", "n2", "joined", "gone", "stranger"):
        for carrier in ("n1", "joined", "stranger"):
            held = furnished()
            key, body = trust_record(act, by)
            text = rule(held.offer(carried(carrier, key, body), WALL_MS))
            may = act in MAY_ACT.get(by, ())
            if act == "revoke person" and by == "author":
                continue  # a person may give itself up; the row is in test_trust.py
            waits = act == "certificate" and not may and carrier != "stranger"
            assert (text == "merged") is (may or waits), (by, carrier, text)
            if waits:
                assert held.trust.certificate(node_id("new")) is None, (
                    "kept until its issuer is known, and not believed"
                )
            for ender in ("n1", "stranger"):
                gone = carried(ender, key, b"", tombstone=True, seq=5)
                assert rule(held.offer(gone, WALL_MS)) == "records.tombstone"


def unsigned_kinds() -> dict[str, tuple[str, bytes, str]]:
    """Kinds that no principal signs: a record of each, and why even a member may not write it."""
    box = Resealed(b"s" * 32, Box(node_id("n3"), b"e" * 32, b"w" * 48))
    signed, other = (said("n2", make_key("status", str(node_id("n2"))), body=body) for body in (b"a", b"b"))
    proof, resealed = encode(EquivocationProof(signed, other)), encode(box)
    return {
        "release": (make_key("release", "shop", digest(b"x").hex()), b"x", "records.unused"),
        "decision": (make_key("decision", "e", "1", digest(b"x").hex()), b"x", "records.unused"),
        "resealed": (
            make_key("resealed", (b"s" * 32).hex(), str(node_id("n3")), digest(resealed).hex()), resealed, "",
        ),
        "equivocation": (make_key("equivocation", str(node_id("n2")), digest(proof).hex()), proof, ""),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["release", "decision", "resealed", "equivocation"])
def test_what_members_alone_write_is_written_by_members_alone_and_never_ended(kind: str) -> None:
    for carrier, why in CARRIED_BY.items():
        held = furnished()
        key, body, never = unsigned_kinds()[kind]
        text = rule(held.offer(carried(carrier, key, body), WALL_MS))
        assert text == (why or never or "merged"), carrier
        assert rule(held.offer(carried("n2", key, b"", tombstone=True, seq=5), WALL_MS)) == "records.tombstone"
    key, body, _ = unsigned_kinds()["equivocation"]
    forged = make_key("equivocation", str(node_id("n3")), digest(body).hex())
    assert rule(furnished().offer(carried("n1", forged, body), WALL_MS)) == "records.proof", "another node is blamed"


def test_every_kind_is_in_the_matrix_and_its_cells_are_counted() -> None:
    here = {*OWN, *PAPERS, "certificate", "grant", "revocation", "admission", *unsigned_kinds()}
    assert here == {row.prefix for row in KEY_TABLE}
    words = len(OWN) * 3 * len(NODES) * 2
    papers = len(PAPERS) * (2 * len(SIGNERS) * len(CARRIED_BY) + len(SIGNERS) * 2)
    trust = len(TRUST_ACTS) * 10 * 3 * 3
    others = 4 * len(CARRIED_BY) * 2
    assert words + papers + trust + others >= 400, (words, papers, trust, others)


def test_a_revoked_member_keeps_what_it_said_before_its_cutoff_and_says_nothing_more() -> None:
    held = world()
    key = make_key("status", str(node_id("n2")))
    assert rule(held.offer(said("n2", key, seq=4), WALL_MS)) == "merged"
    held.trust.learn_revocation(
        sign_revocation(signer("admin"), MESH, Revocation("node", signer("n2").public_key, 4, 9, "lost", WALL_MS))
    )
    assert held.void_revoked(WALL_MS) == []
    assert rule(held.offer(said("n2", key, seq=5, body=b"more"), WALL_MS)) == "records.revoked"
