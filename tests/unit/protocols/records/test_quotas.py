"""Shares of the record store: who pays, what gives way, what others cannot fill. Signatures are the simulator's."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from protocols.envelope import Signed, digest, encode, sign
from protocols.records.audit import entry_key
from protocols.records.credentials import grant_record
from protocols.records.key_table import DAY_MS, KEY_TABLE, make_key
from protocols.records.quotas import REFUSED_FOR_MS, REFUSED_MAX, Payer, RecordLimits, budget_of
from protocols.records.store import OfferOutcome, RecordStore
from simulation.mesh.hostile import LIAR, WALL_START_MS, HostileRun

KINDS = ("change", "evidence", "secret")


def world(seed: int = 1, **limits: int) -> HostileRun:
    hostile_run = HostileRun(seed, Random(seed))
    for store in hostile_run.stores.values():
        store.limits = RecordLimits(**limits)
    return hostile_run


def papers(w: HostileRun, by: str, count: int, kinds: tuple[str, ...] = KINDS) -> list[Signed]:
    """So many papers of a key, each signed a second after the one before, carried by whichever node."""
    records = []
    for number in range(count):
        key, body = w.paper(kinds[number % len(kinds)], by, w.wall_ms + 1_000 * number)
        records.append(w.carry(w.source.choice(("n1", "n2", "n3", LIAR)), key, body))
    return records


def rule(store: RecordStore, signed: Signed, wall_ms: int = WALL_START_MS) -> str:
    offered = store.offer(signed, wall_ms)
    return offered.refusal.rule if offered.refusal is not None else offered.outcome.value


def held(store: RecordStore, signed: Signed) -> bool:
    return any(entry.signed == signed for entry in store.entries.values())


def test_every_row_of_the_key_table_has_a_payer() -> None:
    budgets = {row.prefix: budget_of(row) for row in KEY_TABLE}
    assert {prefix for prefix, budget in budgets.items() if budget == "trust"} == {
        "certificate", "admission", "revocation", "grant",
    }  # fmt: skip
    assert {prefix for prefix, budget in budgets.items() if budget == "moments"} == {"challenge", "health", "load"}
    assert budgets["audit"] == "audit"


def test_papers_are_paid_for_by_who_signed_them_whichever_node_carries_them() -> None:
    w = world(principal_papers_max=4)
    store = w.stores["n1"]
    mine = papers(w, "author", 5)
    assert [rule(store, signed) for signed in mine] == ["merged"] * 4 + ["quota.principal"]
    theirs = papers(w, "beside", 1)
    assert rule(store, theirs[0]) == "merged", "another key of the same project is not charged"
    assert rule(store, w.carry("n1", make_key("status", w.node("n1")), b"up", kind="owned")) == "merged"
    detail = w.stores["n2"].quotas.refusal(Payer("principal", "ab")).detail
    assert "the key that signed this has used up its share: 4 records" in detail


def test_the_oldest_papers_of_a_key_stay_whatever_the_order_in_which_they_come() -> None:
    for seed in range(12):
        w = world(seed, principal_papers_max=5)
        said = papers(w, "author", 9)
        orders = [w.source.sample(said, len(said)) for _ in w.stores]
        for store, order in zip(w.stores.values(), orders, strict=True):
            for signed in order:
                store.offer(signed, w.wall_ms + DAY_MS)
            assert [held(store, signed) for signed in said] == [True] * 5 + [False] * 4
            assert store.quotas.held(Payer("principal", w.signer("author").public_key.hex()))[0] == 5
        assert len({store.trie.root() for store in w.stores.values()}) == 1


def test_shares_of_bytes_end_in_equal_sets_once_the_nodes_have_talked() -> None:
    for seed in range(12):
        w = world(seed, principal_papers_max=6, principal_bytes_max=3_000)
        said = [paper for by in ("author", "beside") for paper in papers(w, by, 8)]
        for store in w.stores.values():
            for signed in w.source.sample(said, len(said)):
                store.offer(signed, w.wall_ms + DAY_MS)
        at_ms = w.wall_ms + DAY_MS
        for _ in range(6):  # as anti-entropy does, later than what was refused is remembered
            at_ms += REFUSED_FOR_MS
            for mine in w.stores.values():
                for other in w.stores.values():
                    for entry in list(other.entries.values()):
                        mine.offer(entry.signed, at_ms)
        assert len({store.trie.root() for store in w.stores.values()}) == 1, seed
        for store in w.stores.values():
            count, size_bytes = store.quotas.held(Payer("principal", w.signer("author").public_key.hex()))
            assert 0 < count <= 6
            assert 0 < size_bytes <= 3_000


def test_what_a_decision_pins_never_gives_way_and_always_finds_room() -> None:
    w = world(principal_papers_max=2)
    store = w.stores["n1"]
    old, middle, new, pinned = papers(w, "author", 4, ("secret",))
    store.court.pins = frozenset({bytes(digest(body_of(new)))})
    assert [rule(store, signed) for signed in (middle, new, old)] == ["merged"] * 3
    assert [held(store, signed) for signed in (old, middle, new)] == [True, False, True], (
        "the later one is pinned and stays"
    )
    assert rule(store, pinned) == "quota.principal"
    store.court.pins |= {bytes(digest(body_of(pinned)))}
    store.quotas.reconsider()
    assert rule(store, pinned) == "merged"


def body_of(signed: Signed) -> bytes:
    from protocols.records.record import Entry, read_record

    entry = read_record(signed)
    assert isinstance(entry, Entry)
    return entry.record.body


def test_a_project_pays_for_all_keys_but_the_admins_and_no_key_pushes_out_anothers_paper() -> None:
    w = world(project_papers_max=3)
    store = w.stores["n1"]
    for paper in (*papers(w, "author", 2, ("change",)), *papers(w, "beside", 1, ("change",))):
        assert rule(store, paper) == "merged"
    for by in ("author", "beside"):
        problem = store.quota_problem(*w.paper("change", by))
        assert problem is not None
        assert (problem.rule, "project shop" in problem.detail) == ("quota.project", True)
    assert store.quota_problem(*w.paper("change", "admin")) is None, "an operator's word finds room"
    assert store.quota_problem(*other_change(w)) is None, "and so does another project's"
    held_before = set(store.entries)
    backdated = w.carry("n1", *w.paper("change", "beside", WALL_START_MS - DAY_MS))
    assert rule(store, backdated) == "merged"
    assert held_before < set(store.entries), "what was gossiped displaces nothing of another key, whatever its date"


def other_change(w: HostileRun) -> tuple[str, bytes]:
    from protocols.changes.change import CHANGE_DOMAIN

    signer = w.signer("other")
    change = replace(w.change(signer.public_key, w.wall_ms), project="blog")
    body = encode(sign(signer, CHANGE_DOMAIN, w.mesh, change))
    return make_key("change", "blog", digest(body).hex()), body


def test_an_admin_made_later_still_frees_what_it_was_charged_for() -> None:
    w = world()
    store = w.stores["n1"]
    for paper in papers(w, "author", 2, ("change",)):
        store.offer(paper, WALL_START_MS)
    key = w.signer("author").public_key
    store.trust.chain_decided((*store.trust.admins, key), 1, [w.node("n1")])
    assert key in store.trust.every_admin()
    for entry in [entry for entry in store.entries.values() if entry.parsed.rule.prefix == "change"]:
        store.remove(entry)
    assert store.quotas.held(Payer("project", "shop")) == (0, 0)
    assert store.quotas.held(Payer("principal", key.hex())) == (0, 0)


def audit(w: HostileRun, by: str, number: int) -> Signed:
    return w.carry(by, entry_key(w.node(by), number), b"entry", kind="owned", ttl_ms=DAY_MS)


def test_a_node_pays_for_its_own_audit_and_its_own_words_and_for_nobody_elses() -> None:
    w = world(node_audit_max=2, node_words_max=2)
    store = w.stores["n1"]
    assert [rule(store, audit(w, LIAR, number)) for number in (1, 2, 3)] == ["merged", "merged", "quota.audit"]
    assert rule(store, audit(w, "n2", 1)) == "merged"
    boxes = [
        w.carry(LIAR, make_key("prepared", w.node(LIAR), f"c{index}"), b"x", kind="owned", ttl_ms=9)
        for index in range(3)
    ]
    assert [rule(store, box) for box in boxes] == ["merged", "merged", "quota.words"]
    assert rule(store, papers(w, "author", 1)[0]) == "merged"


def test_the_bytes_of_a_nodes_words_have_an_end_of_their_own_and_its_audit_goes_on() -> None:
    w = world(node_words_bytes_max=10_000)
    store = w.stores["n1"]

    def words(by: str, name: str, size: int) -> Signed:
        return w.carry(by, make_key("prepared", w.node(by), name), b"x" * size, kind="owned", ttl_ms=DAY_MS)

    assert [rule(store, words(LIAR, name, 4_000)) for name in ("c1", "c2", "c3")] == ["merged", "merged", "quota.words"]
    assert rule(store, words(LIAR, "c4", 100)) == "merged", "what fits is taken"
    assert rule(store, words(LIAR, "c1", 4_500)) == "merged", "a new version takes the place of the one before"
    assert rule(store, words("n2", "c1", 4_000)) == "merged"
    assert rule(store, audit(w, LIAR, 1)) == "merged"
    assert RecordLimits().node_words_bytes_max < RecordLimits().node_bytes_max


def test_in_a_store_that_others_have_filled_each_node_and_each_admin_has_a_reserve_and_nobody_else() -> None:
    w = world(reserve_max=2)
    store = w.stores["n1"]
    store.limits = RecordLimits(records_max=len(store.entries) + 3, reserve_max=2)
    assert [rule(store, paper) for paper in papers(w, "author", 4, ("change",))] == ["merged"] * 3 + ["records.full"]
    assert [rule(store, audit(w, "n2", number)) for number in (1, 2, 3)] == ["merged", "merged", "records.full"]
    assert rule(store, audit(w, "n3", 1)) == "merged", "a reserve of its own"
    assert [rule(store, paper) for paper in papers(w, "admin", 3, ("change",))] == ["merged", "merged", "records.full"]
    late = w.carry(LIAR, make_key("prepared", w.node(LIAR), "c"), b"x", kind="owned", ttl_ms=9)
    assert rule(store, late) == "records.full"
    more = grant_record(w.signer("new").public_key, (w.grant("new", "viewer", "shop", "prod"),))
    assert rule(store, w.carry("n1", *more)) == "merged", "rights and their ends always find room"


def test_one_nodes_health_and_one_nodes_clock_leave_room_for_the_others() -> None:
    w = world(node_moments_max=2, node_parked_max=2)
    store = w.stores["n1"]

    def health(by: str, app: str) -> Signed:
        return w.carry(by, make_key("health", w.node(by), app), b"x", kind="ephemeral", ttl_ms=9_000)

    assert [rule(store, health(LIAR, text)) for text in "abc"] == ["merged", "merged", "quota.moments"]
    assert rule(store, health("n2", "a")) == "merged"
    ahead = [w.carry(LIAR, make_key("status", w.node(LIAR)), b"%d" % index, kind="owned", hlc=WALL_START_MS + DAY_MS << 16)
             for index in range(3)]  # fmt: skip
    assert [rule(store, signed) for signed in ahead] == ["parked", "parked", "records.ahead"]
    assert rule(store, ahead[0]) == "parked", "the same one twice takes one place"
    other = w.carry("n2", make_key("status", w.node("n2")), b"x", kind="owned", hlc=WALL_START_MS + DAY_MS << 16)
    assert rule(store, other) == "parked"
    assert len(store.release_parked(WALL_START_MS + DAY_MS)) == 3
    assert (
        rule(
            store, w.carry(LIAR, make_key("status", w.node(LIAR)), b"y", kind="owned", hlc=WALL_START_MS + DAY_MS << 16)
        )
        == "parked"
    )


def test_what_a_quota_refused_is_not_looked_at_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world(principal_papers_max=1)
    store = w.stores["n1"]
    first, second = papers(w, "author", 2)
    assert [rule(store, signed) for signed in (first, second)] == ["merged", "quota.principal"]
    looked: list[Any] = []
    check = store.court.check
    monkeypatch.setattr(store.court, "check", lambda entry, wall_ms: looked.append(entry) or check(entry, wall_ms))
    assert rule(store, second, WALL_START_MS + REFUSED_FOR_MS - 1) == "quota.again"
    assert looked == []
    assert rule(store, second, WALL_START_MS + REFUSED_FOR_MS) == "quota.principal"
    store.quotas.reconsider()
    assert rule(store, second, WALL_START_MS + REFUSED_FOR_MS) == "quota.principal"
    assert len(looked) == 2
    entry = store.offer(second, WALL_START_MS).entry
    assert entry is not None
    for number in range(REFUSED_MAX + 1):
        store.quotas.remember(altered_entry(entry, number), WALL_START_MS)
    assert len(store.quotas._refused) == REFUSED_MAX


def altered_entry(entry: Any, number: int) -> Any:
    import dataclasses

    return dataclasses.replace(entry, digest=digest(b"%d" % number))


def test_what_gave_way_is_remembered_and_comes_back_when_room_is_made() -> None:
    w = world(principal_papers_max=1)
    store = w.stores["n1"]
    first, second = papers(w, "author", 2, ("secret",))
    assert rule(store, second) == "merged"
    offered = store.offer(first, WALL_START_MS)
    assert [gone.signed for gone in offered.gave_way] == [second]
    assert rule(store, second) == "quota.again"
    w.revoke("principal", w.signer("author").public_key)
    assert store.remove_ended(WALL_START_MS), "its author is revoked"
    assert rule(store, second) == "paper.author-revoked"


def test_the_api_refuses_before_it_files_and_never_makes_an_older_paper_give_way() -> None:
    w = world(principal_papers_max=2)
    store = w.stores["n1"]
    later = papers(w, "author", 2, ("change",))
    for signed in later:
        store.offer(signed, WALL_START_MS)
    key, body = w.paper("change", "author", WALL_START_MS - 1_000)
    problem = store.quota_problem(key, body)
    assert problem is not None
    assert problem.rule == "quota.principal"
    assert store.quota_problem(*w.paper("change", "beside")) is None
    assert store.quota_problem(make_key("status", w.node("n1")), b"up") is None
    assert store.offer(w.carry("n1", key, body), WALL_START_MS).outcome is OfferOutcome.MERGED, (
        "gossip keeps the total order"
    )
    assert [held(store, entry) for entry in later] == [True, False]


def test_restored_papers_are_charged_again() -> None:
    w = world()
    store = w.stores["n1"]
    said = papers(w, "author", 3)
    for signed in said:
        store.offer(signed, WALL_START_MS)
    fresh = w.store()
    for entry in store.entries.values():
        fresh.restore(entry.signed, WALL_START_MS)
    payer = Payer("principal", w.signer("author").public_key.hex())
    assert fresh.quotas.held(payer) == store.quotas.held(payer) != (0, 0)
