"""Papers: who may write and end which, checked before they are kept; the key table pinned; the matrix of removals."""

from __future__ import annotations

import itertools

import pytest

from protocols.changes.secrets import SecretRemoval, sign_paper
from protocols.envelope import Signed, decode, digest, encode, sign
from protocols.keys import peer_id
from protocols.records.credentials import grant_record
from protocols.records.key_table import BODY_MAX_BYTES, KEY_TABLE, PAPER_MS, make_key
from protocols.records.papers import PAPERS, Ended, Ending, Paper, end_paper
from protocols.records.record import Record
from protocols.refusal import Refusal
from protocols.state.pins import pins_of
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from tests.support.protocols.paper_world import (
    MESH,
    W,
    author_of,
    carried,
    granted,
    paper,
    replace_struct,
    revoked,
    rule,
    world,
)
from tests.support.protocols.trust_world import DAY_MS, WALL_MS, signer

PINNED_TABLE = {
    # prefix: kind, who writes, who ends it, what pins it, its life in days, its ttl in days
    "certificate": ("immutable", "joined", "never", "", 0, 0),
    "admission": ("immutable", "joined", "never", "", 0, 0),
    "revocation": ("immutable", "joined", "never", "", 0, 0),
    "grant": ("immutable", "joined", "never", "", 0, 0),
    "release": ("immutable", "member", "never", "", 0, 0),
    "change": ("immutable", "member", "author", "change", 90, 0),
    "evidence": ("immutable", "member", "author", "configuration", 90, 0),
    "approval": ("immutable", "member", "never", "change", 90, 0),
    "secret": ("immutable", "member", "author", "version", 0, 0),
    "resealed": ("immutable", "member", "never", "", 0, 0),
    "decision": ("immutable", "member", "never", "", 0, 0),
    "status": ("owned", "owner", "owner", "", 0, 0),
    "address": ("owned", "owner", "owner", "", 0, 0),
    "floor": ("owned", "owner", "never", "", 0, 0),
    "prepared": ("owned", "owner", "owner", "", 0, 30),
    "verdict": ("owned", "owner", "owner", "", 0, 30),
    "timeout": ("owned", "owner", "owner", "", 0, 30),
    "audit": ("owned", "owner", "never", "", 0, 400),
    "equivocation": ("immutable", "member", "never", "", 0, 0),
    "health": ("ephemeral", "owner", "never", "", 0, 0),
    "load": ("ephemeral", "owner", "never", "", 0, 0),
    "challenge": ("ephemeral", "owner", "never", "", 0, 0),
    "site": ("owned", "owner", "owner", "", 0, 0),
}


def test_the_table_is_as_it_was_agreed() -> None:
    table = {
        key_rule.prefix: (
            key_rule.kind, key_rule.writer, key_rule.ends, key_rule.pinned_by, key_rule.life_ms // DAY_MS,
            key_rule.ttl_max_ms // DAY_MS,
        )
        for key_rule in KEY_TABLE
    }  # fmt: skip
    assert table == PINNED_TABLE


@pytest.mark.parametrize("kind", PAPERS)
def test_a_paper_of_its_author_is_kept_whoever_carries_it(kind: str) -> None:
    for carrier in ("n1", "n2"):
        assert rule(world().offer(carried(carrier, *paper(kind, author_of(kind))), WALL_MS)) == "merged"


@pytest.mark.parametrize("kind", PAPERS)
def test_who_has_no_right_just_there_writes_no_paper(kind: str) -> None:
    near = {"change": ("staging", "other", "viewer", "approver"), "secret": ("staging", "other", "viewer", "approver"),
            "approval": ("author", "staging", "other", "viewer"), "evidence": ("viewer", "approver")}  # fmt: skip
    for name in (*near[kind], "nobody"):
        assert rule(world().offer(carried("n1", *paper(kind, signer(name))), WALL_MS)) == "paper.not-allowed", name


def test_a_member_signs_evidence_and_no_other_paper() -> None:
    for kind in PAPERS:
        text = rule(world().offer(carried("n2", *paper(kind, signer("n1"))), WALL_MS))
        assert text == ("merged" if kind == "evidence" else "paper.not-allowed")


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("wound", ["random", "flipped", "subject", "later", "over"])
def test_a_paper_is_checked_before_it_is_kept(kind: str, wound: str) -> None:
    at_ms = {"later": WALL_MS + DAY_MS, "over": WALL_MS - PAPER_MS - 1}.get(wound, WALL_MS)
    key, body = paper(kind, author_of(kind), at_ms=at_ms)
    prefix, *parts = key[1:].split("/")
    if wound == "random":
        body = bytes(range(256)) * 4
    elif wound == "flipped":
        body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
    elif wound == "subject":
        parts[0] = "blog" if kind in {"change", "secret"} else digest(b"else").hex()
    text = rule(world().offer(carried("n1", make_key(prefix, *parts[:-1], digest(body).hex()), body), WALL_MS))
    if (kind, wound) == ("secret", "over"):
        assert text == "merged", "a secret has no end of its own"
        return
    allowed = {
        "random": {f"{kind}.malformed", "evidence.malformed"},
        "flipped": {f"{kind}.malformed", "evidence.malformed", "evidence.signature"},
        "subject": {"records.key"},
        "later": {"paper.ahead"},
        "over": {"records.expired"},
    }
    assert text in allowed[wound]


def test_records_that_no_release_writes_are_refused_and_a_box_must_be_for_the_node_it_names() -> None:
    for prefix, parts in (("release", ("shop",)), ("decision", ("e", "1")), ("resealed", ("x", str(W_NODE)))):
        key = make_key(prefix, *parts, digest(b"junk").hex())
        assert rule(world().offer(carried("n1", key, b"junk"), WALL_MS)) in {"records.unused", "resealed.malformed"}


W_NODE = peer_id(signer("n2").public_key)
ENDERS = ("author", "approver", "beside", "staging", "other", "viewer", "admin", "nobody", "n1", "n2")
CARRIERS = ("n1", "n2", "n3")
ORDERS = ("paper first", "tombstone first")


@pytest.mark.parametrize(("kind", "order"), list(itertools.product(PAPERS, ORDERS)))
def test_only_its_author_ends_a_paper_and_never_its_carrier(kind: str, order: str) -> None:
    """10 positions x 3 carriers x 4 kinds x 2 orders of arrival: 240 cells."""
    for ender, carrier in itertools.product(ENDERS, CARRIERS):
        held = world()
        key, body = paper(kind, author_of(kind))
        there = carried("n1", key, body)
        ended = carried(carrier, key, end_paper(signer(ender), MESH, Ending(key, WALL_MS), body), tombstone=True)
        first, second = (there, ended) if order == "paper first" else (ended, there)
        results = {signed.payload: rule(held.offer(signed, WALL_MS)) for signed in (first, second)}
        by_author = signer(ender).public_key == author_of(kind).public_key
        may = by_author and kind != "approval"
        refused = "records.tombstone" if kind == "approval" else "records.not-author"
        assert results[ended.payload] == ("merged" if may else refused), (ender, carrier)
        assert held.entries[key].record.tombstone is may


@pytest.mark.parametrize("kind", ["change", "evidence", "secret"])
@pytest.mark.parametrize("wound", ["empty", "other paper", "other key", "unsigned", "longer"])
def test_a_statement_ends_just_the_paper_that_it_names(kind: str, wound: str) -> None:
    held, by = world(), author_of(kind)
    key, body = paper(kind, by)
    held.offer(carried("n1", key, body), WALL_MS)
    other_key, other = paper(kind, by, 2)
    statement = sign(by, "freehold/ending/1", MESH, Ending(other_key if wound == "other key" else key, WALL_MS))
    if wound == "unsigned":
        statement = Signed(statement.payload, statement.key, bytes(64))
    if wound == "longer":
        statement = sign(by, "freehold/ending/1", MESH, Ending(key, WALL_MS, "x" * 301))
    ended = b"" if wound == "empty" else encode(Ended(other if wound == "other paper" else body, statement))
    assert rule(held.offer(carried("n1", key, ended, tombstone=True), WALL_MS)).startswith("records.")
    assert not held.entries[key].record.tombstone


def test_the_removal_of_a_secret_ends_the_versions_it_names_and_no_others() -> None:
    held, by = world(), signer("author")
    pair, two = (paper("secret", by, number) for number in (1, 2))
    for key, body in (pair, two):
        held.offer(carried("n1", key, body), WALL_MS)
    named = SecretRemoval("shop", "prod", "db", (digest(pair[1]),), WALL_MS)
    for removal, key, body, expected in (
        (named, *two, "records.ending"),
        (replace_struct(named, environment="staging"), *pair, "records.ending"),
        (named, *pair, "merged"),
    ):
        ended = encode(Ended(body, sign_paper(by, MESH, removal)))
        assert rule(held.offer(carried("n2", key, ended, tombstone=True), WALL_MS)) == expected


@pytest.mark.parametrize("kind", ["change", "evidence", "secret"])
def test_what_a_decision_names_is_not_ended_by_its_author_by_revocation_or_by_age(kind: str) -> None:
    held, by = world(), author_of(kind)
    key, body = paper(kind, by)
    ended = carried("n1", key, end_paper(by, MESH, Ending(key, WALL_MS), body), tombstone=True)
    held.offer(carried("n1", key, body), WALL_MS)
    pins = held._papers[key].pins
    held.court.pins = frozenset(pins)
    assert rule(held.offer(ended, WALL_MS)) == "records.pinned"
    held.trust.learn_revocation(revoked("principal", by.public_key))
    late = WALL_MS + 2 * PAPER_MS
    assert held.remove_ended(late) == []
    again = world()
    again.court.pins = frozenset(pins)
    assert rule(again.offer(carried("n1", key, body), late)) == "merged"
    held.court.pins = frozenset()
    assert [entry.record.key for entry in held.remove_ended(late)] == [key]


def test_a_tombstone_of_what_became_pinned_gives_way_and_the_paper_comes_back() -> None:
    held, by = world(), signer("author")
    key, body = paper("change", by)
    held.offer(carried("n1", key, end_paper(by, MESH, Ending(key, WALL_MS), body), tombstone=True), WALL_MS)
    assert rule(held.offer(carried("n2", key, body), WALL_MS)) == "outdated"
    held.court.pins = frozenset(held._papers[key].pins)
    assert rule(held.offer(carried("n2", key, body), WALL_MS)) == "merged"


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("what", ["key", "grant"])
def test_revoking_the_author_or_its_grant_ends_its_papers_and_no_others(kind: str, what: str) -> None:
    held, by = world(), author_of(kind)
    key, body = paper(kind, by)
    held.offer(carried("n1", key, body), WALL_MS)
    beside = paper("change", signer("beside"), 7)
    held.offer(carried("n1", *beside), WALL_MS)
    role: Role = "approver" if kind == "approval" else "deployer"
    name = "approver" if kind == "approval" else "author"
    subject = by.public_key if what == "key" else digest(granted(name, role, "shop", "prod").payload)
    held.trust.learn_revocation(revoked("principal" if what == "key" else "grant", subject))
    assert [entry.record.key for entry in held.remove_ended(WALL_MS)] == [key]
    assert rule(held.offer(carried("n2", key, body), WALL_MS)) == "paper.author-revoked"
    assert beside[0] in held.entries


def test_revoking_an_upper_link_ends_the_papers_of_the_agents_below_it() -> None:
    held = world()
    upper = granted("author", "deployer", "shop", "prod")
    agent = signer("agent")
    link = sign(
        signer("author"), GRANT_DOMAIN, MESH,
        Grant(agent.public_key, "agent", "bot", ("deployer",), ("shop",), ("prod",), WALL_MS + DAY_MS, b"a" * 16,
              parent=digest(upper.payload)),
    )  # fmt: skip
    held.offer(carried("n1", *grant_record(agent.public_key, (upper, link))), WALL_MS)
    key, body = paper("change", agent)
    assert rule(held.offer(carried("n1", key, body), WALL_MS)) == "merged"
    held.trust.learn_revocation(revoked("grant", digest(upper.payload)))
    assert key in {entry.record.key for entry in held.remove_ended(WALL_MS)}


@pytest.mark.parametrize("kind", ["change", "evidence", "approval"])
def test_a_life_is_a_function_of_what_was_signed_and_ends_everywhere_alike(kind: str) -> None:
    held, by = world(), author_of(kind)
    key, body = paper(kind, by)
    held.offer(carried("n1", key, body), WALL_MS)
    ends_ms = held._papers[key].ends_ms
    assert ends_ms == WALL_MS + (DAY_MS if kind == "approval" else PAPER_MS)
    assert held.remove_ended(ends_ms - 1) == []
    assert rule(world().offer(carried("n2", key, body), ends_ms)) == "records.expired"
    assert [entry.record.key for entry in held.remove_ended(ends_ms)] == [key]


def test_a_node_that_starts_again_knows_its_papers_and_drops_the_tombstones_of_the_release_before() -> None:
    held, by = world(), signer("author")
    key, body = paper("change", by)
    whole = carried("n1", key, body)
    assert held.restore(whole, WALL_MS) is not None
    assert isinstance(held._papers[key], Paper)
    assert world().restore(carried("n2", key, b"", tombstone=True), WALL_MS) is None
    assert rule(world().offer(carried("n2", key, b"", tombstone=True), WALL_MS)) == "records.tombstone"


def test_a_paper_longer_than_a_body_is_refused_by_the_function_that_the_api_calls() -> None:
    court = world().court
    answer = court.verify("evidence", ("a" * 64, "b" * 64), bytes(BODY_MAX_BYTES + 1), WALL_MS)
    assert isinstance(answer, Refusal)
    assert answer.rule == "paper.too-large"
    key, body = paper("evidence", signer("n1"))
    assert isinstance(court.verify("evidence", key.split("/")[2:], body, WALL_MS), Paper)


def test_what_the_chain_pins_are_changes_configurations_and_secrets_of_what_is_kept() -> None:
    assert pins_of(W.state) == frozenset()


def test_the_same_records_in_any_order_leave_the_same_set() -> None:
    """Papers, true and false tombstones: equal inputs keep equal sets whatever the order of arrival."""
    by = signer("author")
    key, body = paper("change", by)
    mine = carried("n2", key, end_paper(by, MESH, Ending(key, WALL_MS), body), tombstone=True, seq=2)
    forged = carried("n3", key, end_paper(signer("beside"), MESH, Ending(key, WALL_MS), body), tombstone=True, seq=3)
    again = carried("n3", key, body, seq=4)
    roots = set()
    for order in itertools.permutations((carried("n1", key, body), mine, forged, again)):
        held = world()
        for signed in order:
            held.offer(signed, WALL_MS)
        roots.add(held.trie.root())
        assert decode(held.entries[key].signed.payload, Record).tombstone
    assert len(roots) == 1
