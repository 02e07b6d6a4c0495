"""What the hostile member tries: the cells of the trust model by name. Not: the world they are tried in (hostile.py)."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from protocols.changes.approvals import read_approval
from protocols.changes.change import Analysis, Plan, Stage
from protocols.changes.demands import Demands
from protocols.changes.secrets import Resealed, SecretRemoval, sign_paper
from protocols.changes.statements import LATENCY_BUCKETS, Counts, HealthVerdict, Prepared, state_it
from protocols.envelope import Signed, digest, encode, sign
from protocols.machine import Now, PeerConnected, PeerId, Received, Reject, Send
from protocols.records.audit import entry_key
from protocols.records.credentials import grant_record
from protocols.records.gossip import ANNOUNCED_MAX, Announce, AnnouncedRecord, RecordMachine
from protocols.records.key_table import PAPER_MS, make_key
from protocols.records.papers import Ended
from protocols.records.quotas import RecordLimits
from protocols.records.store import OfferOutcome
from protocols.records.sync import SyncAnswer, SyncMachine, SyncRecords, _Session
from protocols.records.trie import leaf_of
from protocols.refusal import Refusal
from protocols.rollout.conductor import Conductor
from protocols.rollout.orders import RolloutStatement, StatementsHeld
from protocols.state import analysis, placement
from protocols.state.model import ConfirmedNode, Deployed, Environment, OpenStage, Rollout
from protocols.state.policy import Gate, Subject, Vouched, approvals_refusal
from protocols.trust import invites
from protocols.trust.grants import GRANT_DOMAIN, Grant, rights_of_any
from simulation.world.entropy import SeededEntropy

DAY_MS = 86_400_000
LIAR = "liar"


def _any(w: Any) -> Any:
    return w.source.choice([held for held in w.papers if held.stands and not held.pinned and held.kind != "approval"])


def _carrier_ends(w: Any, cell: str) -> None:
    w.attempt(cell, w.end(_any(w), LIAR, LIAR))


def _stranger_ends(w: Any, cell: str) -> None:
    held = _any(w)
    by = w.source.choice(
        [name for name in ("beside", "staging", "other", "viewer", "approver", "admin") if name != held.author]
    )
    w.attempt(cell, w.end(held, by, LIAR))


def _unsaid_end(w: Any, cell: str) -> None:
    w.attempt(cell, w.carry(LIAR, _any(w).key, b"", tombstone=True))


def _approval_ended(w: Any, cell: str) -> None:
    held = next(held for held in w.papers if held.kind == "approval")
    w.attempt(cell, w.end(held, "approver", LIAR))


def _end_replayed(w: Any, cell: str) -> None:
    """The author's word about one paper, carried to another of the same author."""
    mine = [held for held in w.papers if held.author == "author" and held.stands and held.kind != "approval"]
    entry, other = (w.file("change", "author", "n1"), w.file("change", "author", "n1")) if len(mine) < 2 else mine[:2]
    w.attempt(cell, w.end(entry, "author", LIAR, key=other.key))


def _removal_misread(w: Any, cell: str) -> None:
    held = w.file("secret", "author", "n1")
    other = w.source.choice(("version", "environment"))
    environment, version = ("prod", bytes(32)) if other == "version" else ("staging", digest(held.body))
    removal = SecretRemoval("shop", environment, "db", (version,), w.wall_ms)
    ended = encode(Ended(held.body, sign_paper(w.signer("author"), w.mesh, removal)))
    w.attempt(cell, w.carry(LIAR, held.key, ended, tombstone=True))


def _pinned_ended(w: Any, cell: str) -> None:
    held = w.file("secret", "author", "n1")
    held.pinned = True
    w.pins |= {bytes(digest(held.body))}
    w.settle()
    w.attempt(cell, w.end(held, "author", LIAR))


def _near_miss(w: Any, cell: str) -> None:
    kind = w.source.choice(("change", "approval", "secret"))
    by = w.source.choice(("staging", "other", "viewer", "nobody", LIAR, "author" if kind == "approval" else "approver"))
    w.attempt(cell, w.carry(LIAR, *w.paper(kind, by)))


def _noise(w: Any, cell: str) -> None:
    body = w.source.randbytes(w.source.randrange(1, 200))
    parts = {"change": ("shop",), "evidence": ("x",), "approval": ("x",), "secret": ("shop", "prod", "db")}
    kind = w.source.choice(sorted(parts))
    w.attempt(cell, w.carry(LIAR, make_key(kind, *parts[kind], digest(body).hex()), body))


def _unused(w: Any, cell: str) -> None:
    body = w.source.randbytes(50)
    prefix, parts = w.source.choice((("release", ("shop",)), ("decision", ("e", "1"))))
    w.attempt(cell, w.carry(LIAR, make_key(prefix, *parts, digest(body).hex()), body))


def _forged(w: Any, cell: str) -> None:
    _, body = w.paper("change", "author")
    position = len(body) - 20
    body = body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]
    w.attempt(cell, w.carry(LIAR, make_key("change", "shop", digest(body).hex()), body))


def _misplaced(w: Any, cell: str) -> None:
    kind = w.source.choice(("change", "evidence"))
    _, body = w.paper(kind, "author")
    w.attempt(cell, w.carry(LIAR, make_key(kind, "blog", digest(body).hex()), body))


def _ahead(w: Any, cell: str) -> None:
    w.attempt(cell, w.carry(LIAR, *w.paper("change", "author", w.wall_ms + DAY_MS)))


def _over(w: Any, cell: str) -> None:
    w.attempt(cell, w.carry(LIAR, *w.paper("change", "author", w.wall_ms - PAPER_MS - 1)))


def _box_hidden(w: Any, cell: str) -> None:
    """A box that opens for nobody would hide the good one."""
    wrong = w.source.choice((replace(w.box(), wrapped=b"w"), replace(w.box(), node=w.node("n2"))))
    body = encode(Resealed(b"s" * 32, wrong))
    w.attempt(cell, w.carry(LIAR, make_key("resealed", (b"s" * 32).hex(), w.node("n1"), digest(body).hex()), body))


def _audit_ended(w: Any, cell: str) -> None:
    key = entry_key(w.node(LIAR), 1)
    w.attempt(cell, w.carry(LIAR, key, b"", kind="owned", ttl_ms=DAY_MS, tombstone=True))


def _others_status(w: Any, cell: str) -> None:
    w.attempt(cell, w.carry(LIAR, make_key("status", w.node("n1")), b"down", kind="owned"))


def _grant_by_nobody(w: Any, cell: str) -> None:
    signed = w.grant("nobody", "deployer", "shop", "prod", by=w.source.choice((LIAR, "author")))
    w.attempt(cell, w.carry(LIAR, *grant_record(w.signer("nobody").public_key, (signed,))))


def _link(w: Any, cell: str, **fields: Any) -> None:
    upper = w.chains["staging"]
    values = {
        "key": w.signer("sub").public_key, "kind": "person", "name": "sub", "roles": ("deployer",),
        "projects": ("shop",), "environments": ("staging",), "expires_ms": w.wall_ms + DAY_MS, "nonce": b"s" * 16,
        "parent": digest(upper[0].payload),
    }  # fmt: skip
    link = sign(w.signer("staging"), GRANT_DOMAIN, w.mesh, Grant(**(values | fields)))
    w.attempt(cell, w.carry(LIAR, *grant_record(w.signer("sub").public_key, (*upper, link))))


def _broader(w: Any, cell: str) -> None:
    _link(w, cell, **w.source.choice(({"environments": ("prod",)}, {"projects": ("blog",)}, {"projects": ("*",)})))


def _agent_approves(w: Any, cell: str) -> None:
    grant = Grant(
        w.signer("bot2").public_key, "agent", "bot", ("approver",), ("shop",), ("prod",), w.wall_ms + DAY_MS, b"b" * 16
    )
    signed = sign(w.signer("admin"), GRANT_DOMAIN, w.mesh, grant)
    w.attempt(cell, w.carry(LIAR, *grant_record(w.signer("bot2").public_key, (signed,))))


def _false_revocation(w: Any, cell: str) -> None:
    entry = w.revoke("principal", w.signer("author").public_key, w.source.choice((LIAR, "beside", "n2")))
    w.must(cell, "merged" not in entry, "somebody without the right revoked a principal")


def _long_invite(w: Any, cell: str) -> None:
    lasts_ms = w.source.choice((2, 30, 365)) * DAY_MS
    key = w.signer("invite").public_key
    new_invite = invites.Invite(w.mesh, key, "node", ("worker",), (), 1, w.wall_ms, w.wall_ms + lasts_ms)
    signed = sign(w.signer("admin"), invites.INVITE_DOMAIN, w.mesh, new_invite)
    invite = invites.open_invite(w.keys, w.mesh, (w.signer("admin").public_key,), signed)
    w.must(cell, isinstance(invite, Refusal), "an invite lives longer than a day")


def _one_label(w: Any, cell: str) -> None:
    env = Environment("prod", (("disk", "ssd"), ("zone", "a")), None, False)
    near = w.source.choice(((("zone", "a"),), (("disk", "ssd"),), (("disk", "hdd"), ("zone", "a"))))
    chosen = placement.selects(env, ConfirmedNode(w.node(LIAR), near, ("worker",), 1))
    w.must(cell, not chosen, "work is placed on a node that lacks a label")


def _drained(w: Any, cell: str) -> None:
    env = Environment("prod", (), None, False)
    for node in (
        ConfirmedNode(w.node(LIAR), (), ("worker",), 1, draining=True),
        ConfirmedNode(w.node(LIAR), (), ("voter",), 1),
    ):
        w.must(cell, not placement.selects(env, node), "work is placed on a node that leaves or is no worker")


# --- passkeys ---------------------------------------------------------------------------------------------------------


def _untouched(**other: Any) -> Callable[[Any, str], None]:
    """An approval by passkey in which one thing is not as an honest browser and authenticator say it."""

    def cell(w: Any, cell: str) -> None:
        w.attempt(
            cell, w.carry(LIAR, *w.touched(w.phone, **{name: w.source.choice(entry) for name, entry in other.items()}))
        )

    return cell


def _replayed(w: Any, cell: str) -> None:
    """A touch for one approval under the statement of another: other change, place, moment or mesh."""
    other = w.source.choice(({}, {"environment": "staging"}, {"mesh": b"o" * 32}))
    asked = base64.b64decode(msgspec.json.decode(w.touched(w.phone, **other)[1])["payload"])
    w.attempt(cell, w.carry(LIAR, *w.touched(w.phone, asked=asked)))


def _foreign_passkey(w: Any, cell: str) -> None:
    """A passkey that nobody granted, also under the name of one that somebody did."""
    other = w.passkey(w.source.choice(("approver", LIAR)), "tablet")
    named = w.source.choice(({}, {"key": w.phone.id}, {"description": w.phone.description, "key": w.phone.id}))
    w.attempt(cell, w.carry(LIAR, *w.touched(other, **named)))


def _granted_wrong(w: Any, cell: str) -> None:
    """A passkey is granted, but for pages of others, or on another curve."""
    fields = w.source.choice(
        ({"origins": ("https://evil.example",)}, {"origins": ("http://localhost:4188", "http://localhost.evil.example")},
         {"rp_id": "example.org", "origins": ("http://example.org",)})
    )  # fmt: skip
    entry = w.passkey("approver", "odd", **fields)
    w.spread(w.carry("n1", *grant_record(entry.id, (*w.chains["approver"], w.grant_passkey(entry, "approver")))))
    w.attempt(cell, w.carry(LIAR, *w.touched(entry)))


def _other_curve(w: Any, cell: str) -> None:
    entry = replace_point(w.passkey("approver", "wide"), w.keys)
    w.spread(w.carry("n1", *grant_record(entry.id, (*w.chains["approver"], w.grant_passkey(entry, "approver")))))
    w.attempt(cell, w.carry(LIAR, *w.touched(entry)))


def replace_point(one: Any, keys: Any) -> Any:
    """The same authenticator with a key of another size than P-256's, which the simulator's verifier knows as well."""
    wide = one.point + bytes(32)
    keys.same(wide, one.point)
    return dataclasses.replace(one, point=wide)


def _judged(w: Any, asked: tuple[Any, ...], body: bytes, chains: Any) -> Any:
    """What the gate's policy says of one approval of a change by `author`."""
    approval = read_approval(w.keys, w.mesh, body)
    if isinstance(approval, Refusal):
        return approval
    admins = (w.signer("admin").public_key,)
    rights = rights_of_any(w.keys, w.mesh, admins, approval.key, chains=chains, at_ms=w.wall_ms)
    change = w.change(w.signer("author").public_key, w.wall_ms)
    subject = Subject(change, approval.change, (), (change.author,))
    wanted = Gate((Demands(1, asked),), 7 * DAY_MS)
    return approvals_refusal(wanted, subject, [Vouched(approval, rights)], (), w.wall_ms)


def _key_file_for_passkey(w: Any, cell: str) -> None:
    honest = _judged(w, ("passkey",), w.touched(w.phone)[1], [w.passkeys[w.phone.id]])
    w.must(cell, not isinstance(honest, Refusal), "a granted passkey does not approve")
    entry = _judged(w, ("approver", "passkey"), w.paper("approval", "approver")[1], [w.chains["approver"]])
    w.must(cell, isinstance(entry, Refusal), "a key file approves where policy asks for a passkey")


def _anothers_passkey(w: Any, cell: str) -> None:
    """A second approver grants the first one's passkey, to count as two people or to take it over."""
    upper = w.grant("second", "approver", "shop", "prod")
    w.chains["second"] = (upper,)
    chain = (upper, w.grant_passkey(w.phone, "second"))
    entry = _judged(w, ("passkey",), w.touched(w.phone)[1], [chain])
    w.must(cell, isinstance(entry, Refusal), "a passkey counts for somebody who is not its person")
    del w.chains["second"]


# --- counts -----------------------------------------------------------------------------------------------------------


def _counts(requests: int, errors: int, bucket: int = 5) -> Counts:
    buckets = [0] * LATENCY_BUCKETS
    buckets[bucket] = requests
    return Counts(requests, errors, tuple(buckets))


def _verdict(candidate: Counts, base: Counts, word: Any = "pass") -> HealthVerdict:
    return HealthVerdict(b"e" * 32, b"r" * 32, 1, 1, word, 9999, candidate, base, 0, True, "")


def _rollout(cohort: int, outside: int) -> Rollout:
    order = tuple(PeerId(f"c{number}") for number in range(cohort + outside))
    empty = digest(b"")
    deployed = Deployed(empty, empty, empty, (), (), (), False, 0, 0, (), "", b"k" * 32, 1)
    stages = (OpenStage(cohort, 1000, 0, False), OpenStage(cohort + outside, 1000, 0, False))
    plan = Plan((Stage("100%"),), analysis=Analysis())
    return Rollout(empty, deployed, plan, order, stages, 0, 1, 0, 0)


def _lie(w: Any) -> Counts:
    requests = w.source.choice((0, 1, 20, 1000, 1 << 20, 1 << 40))
    return _counts(
        requests, w.source.choice((0, requests // 2, requests)), w.source.choice((0, 5, LATENCY_BUCKETS - 1))
    )


GOOD, MILD, SLOW = _counts(1000, 1), _counts(1000, 25), _counts(1000, 1, 9)
WRECKED = _counts(1000, 400)


def _lie_outside(w: Any, cell: str) -> None:
    rollout = _rollout(w.source.choice((1, 2, 3)), w.source.choice((1, 2, 3, 4)))
    candidate, expected = w.source.choice(((GOOD, analysis.StageOutcome.PASS), (WRECKED, analysis.StageOutcome.FAIL),
                                           (SLOW, analysis.StageOutcome.FAIL)))  # fmt: skip
    past = w.source.choice((GOOD, GOOD, Counts())) if len(rollout.order) - len(rollout.cohort) > 3 else GOOD
    said = {node: _verdict(candidate, past if node in rollout.cohort else GOOD) for node in rollout.order}
    for lie in [_lie(w) for _ in range(6)] + [_counts(1 << 40, 1 << 40), _counts(1 << 40, 0, 0)]:
        said[rollout.order[-1]] = _verdict(lie, lie)
        assessment = analysis.assess(rollout, said, 10**12)
        w.must(cell, assessment.outcome is expected, f"one node outside the cohort turned it: {assessment.reason}")


def _lie_inside(w: Any, cell: str) -> None:
    rollout = _rollout(3, 4)
    candidate, past = w.source.choice(((WRECKED, GOOD), (MILD, GOOD), (SLOW, GOOD), (WRECKED, Counts())))
    said = {node: _verdict(candidate, past if node in rollout.cohort else GOOD) for node in rollout.order}
    for lie in [_lie(w) for _ in range(6)] + [_counts(1 << 40, 0)]:
        said[rollout.cohort[0]] = _verdict(lie, GOOD)
        assessment = analysis.assess(rollout, said, 10**12)
        w.must(cell, assessment.outcome is not analysis.StageOutcome.PASS, "one node of the cohort made it pass")


# --- what a peer sends ------------------------------------------------------------------------------------------------


def _syncing(w: Any) -> tuple[SyncMachine, PeerId, Now]:
    trust, me, peer = w.stores["n1"].trust, w.signer("n1"), w.node(LIAR)
    entropy = SeededEntropy(w.source)
    machine = SyncMachine(RecordMachine(trust, me, entropy), trust, me, entropy)
    now = Now(0, w.wall_ms)
    machine.handle(PeerConnected(peer, True), now)
    return machine, peer, now


def _refused(effects: Any) -> bool:
    return any(isinstance(effect, Reject) for effect in effects)


def _unasked(w: Any, cell: str) -> None:
    machine, peer, now = _syncing(w)
    machine._expected[peer] = {b"i" * 16}
    signed = w.carry(LIAR, make_key("status", w.node(LIAR)), b"up", kind="owned")
    w.must(
        cell, _refused(machine.handle(Received(peer, SyncRecords((signed,))), now)), "took a record nobody asked for"
    )


def _other_leaf(w: Any, cell: str) -> None:
    machine, peer, now = _syncing(w)
    signed = w.carry(LIAR, make_key("status", w.node(LIAR)), b"up", kind="owned")
    asked = 0 if leaf_of(make_key("status", w.node(LIAR))) else 1
    machine._session = _Session(peer, 0, asked=(asked,), open_leaves=[asked])
    answer = SyncAnswer((signed,), (), False)
    w.must(cell, _refused(machine.handle(Received(peer, answer), now)), "took a record of a leaf nobody asked for")


def _greedy(w: Any, cell: str) -> None:
    me, peer = w.signer("n1"), w.node(LIAR)
    conductor = Conductor(w.node("n1"), w.mesh, me, w.keys)
    said = state_it(me, w.mesh, Prepared(b"c" * 32, b"b" * 32, "passed"))
    conductor.hear(w.node("n1"), RolloutStatement(said), Now(0, 0))
    answers = [conductor.answer(peer, StatementsHeld(b""), (), Now(number, 0)) for number in range(100)]
    drawn = sum(not _refused(answer) for answer in answers)
    w.must(cell, drawn <= 10, f"one peer drew {drawn} answers in a tenth of a second")


def _taken(w: Any, limits: RecordLimits, said: list[Signed]) -> list[bool]:
    """How a store of its own, with these limits, takes what is said."""
    store = w.store()
    for name, chain in w.chains.items():
        store.offer(w.carry("n1", *grant_record(w.signer(name).public_key, chain)), w.wall_ms)
    store.limits = limits
    return [store.offer(signed, w.wall_ms + 60_000).outcome is OfferOutcome.MERGED for signed in said]


def _hoard(w: Any, cell: str) -> None:
    """One key files papers without end, through whichever node; its neighbour's still find room."""
    said = [
        w.carry(w.source.choice((LIAR, "n1")), *w.paper("change", "author", w.wall_ms + number)) for number in range(4)
    ]
    other = w.carry(LIAR, *w.paper("change", "beside"))
    answers = _taken(w, RecordLimits(principal_papers_max=3), [*said, other])
    w.must(cell, answers == [True] * 3 + [False, True], f"a key's share of three papers: {answers}")


def _hoarding_node(w: Any, cell: str) -> None:
    """A member writes its own audit and its own words without end; its neighbour's still find room."""
    fields = {"kind": "owned", "ttl_ms": DAY_MS}

    def written(by: str, number: int) -> Signed:
        keys = entry_key(w.node(by), number), make_key("prepared", w.node(by), f"c{number}")
        return w.carry(by, w.source.choice(keys) if by == LIAR else keys[0], b"x", **fields)  # type: ignore[no-any-return]

    said = [*(written(LIAR, number) for number in range(1, 9)), written("n2", 1)]
    answers = _taken(w, RecordLimits(node_audit_max=3, node_words_max=3), said)
    w.must(cell, sum(answers[:-1]) <= 6 and answers[-1], f"a node's share of three entries and three words: {answers}")


def _wordy(w: Any, cell: str) -> None:
    """A member says few things, each a long one; its neighbour's word of the same length still finds room."""
    fields = {"kind": "owned", "ttl_ms": DAY_MS}

    def said(by: str, number: int) -> Signed:
        return w.carry(by, make_key("prepared", w.node(by), f"c{number}"), bytes(2_000), **fields)  # type: ignore[no-any-return]

    answers = _taken(
        w, RecordLimits(node_words_bytes_max=6_000), [*(said(LIAR, number) for number in range(4)), said("n2", 0)]
    )
    w.must(cell, answers == [True, True, False, False, True], f"a node's share of 6,000 bytes of words: {answers}")


def _announcing(w: Any, cell: str) -> None:
    """A member announces its records without end; what its neighbour wrote is fetched from it all the same."""
    machine = RecordMachine(w.stores["n1"].trust, w.signer("n1"), SeededEntropy(w.source))
    peer, now, asked = w.node(LIAR), Now(0, w.wall_ms), []
    machine.handle(PeerConnected(peer, True), now)

    def announce(by: str, numbers: range) -> list[str]:
        named = tuple(
            AnnouncedRecord(make_key("prepared", w.node(by), f"c{number}"), 1, bytes(32)) for number in numbers
        )
        sent = machine.handle(Received(peer, Announce(named)), now)
        return [key for effect in sent if isinstance(effect, Send) for key in effect.message.keys]

    burst = machine.config.author_burst
    for start in range(0, 2 * burst, ANNOUNCED_MAX):
        asked += announce(LIAR, range(start, start + ANNOUNCED_MAX))
    beside = announce("n2", range(1))
    w.must(
        cell, len(asked) == burst and len(beside) == 1, f"fetched {len(asked)} at once, and {len(beside)} of another's"
    )


def _filled(w: Any, cell: str) -> None:
    """The store is full of papers; each node's audit has its reserve, and nobody else's word takes it."""
    said = [w.carry(LIAR, *w.paper("change", "author", w.wall_ms + number)) for number in range(3)]
    own = w.carry("n2", entry_key(w.node("n2"), 1), b"x", kind="owned", ttl_ms=DAY_MS)
    answers = _taken(w, RecordLimits(records_max=len(w.chains) + 2), [*said, own])
    w.must(cell, answers == [True, True, False, True], f"a full store: {answers}")


CELLS: dict[str, Callable[[Any, str], None]] = {
    "carrier-ends": _carrier_ends,
    "stranger-ends": _stranger_ends,
    "unsaid-end": _unsaid_end,
    "approval-ended": _approval_ended,
    "end-replayed": _end_replayed,
    "removal-misread": _removal_misread,
    "pinned-ended": _pinned_ended,
    "near-miss": _near_miss,
    "noise": _noise,
    "unused-kind": _unused,
    "forged": _forged,
    "misplaced": _misplaced,
    "ahead": _ahead,
    "over": _over,
    "box-hidden": _box_hidden,
    "audit-ended": _audit_ended,
    "others-status": _others_status,
    "grant-by-nobody": _grant_by_nobody,
    "broader-grant": _broader,
    "agent-approves": _agent_approves,
    "false-revocation": _false_revocation,
    "long-invite": _long_invite,
    "one-label": _one_label,
    "drained": _drained,
    "passkey-type": _untouched(type=("webauthn.create", "payment.get", "")),
    "passkey-replayed": _replayed,
    "passkey-origin": _untouched(
        origin=("http://localhost:4189", "https://localhost:4188", "http://localhost", "http://localhost:4188.evil.net")
    ),
    "passkey-framed": _untouched(crossOrigin=(True,)),
    "passkey-topped": _untouched(topOrigin=("http://localhost:4188", "https://evil.example")),
    "passkey-rp": _untouched(rp_id=("localhost.evil.example", "evil.example")),
    "passkey-person": _untouched(flags=(0x00, 0x01, 0x04)),
    "passkey-mesh": _untouched(mesh=(b"o" * 32,)),
    "passkey-place": _untouched(environment=("staging",)),
    "passkey-signature": _untouched(signature=(b"", bytes(64))),
    "passkey-foreign": _foreign_passkey,
    "passkey-granted-wrong": _granted_wrong,
    "passkey-curve": _other_curve,
    "passkey-asked": _key_file_for_passkey,
    "passkey-anothers": _anothers_passkey,
    "lie-outside": _lie_outside,
    "lie-inside": _lie_inside,
    "unasked": _unasked,
    "other-leaf": _other_leaf,
    "greedy": _greedy,
    "hoard": _hoard,
    "hoarding-node": _hoarding_node,
    "wordy": _wordy,
    "announcing": _announcing,
    "filled": _filled,
}
"""By name; a run tries each at least once."""
