"""A hostile member and its neighbours: one run tries every cell of the trust model against a few honest stores.

Honest principals file papers, end some and are revoked; between that the hostile member, a certified node with keys of
its own, and principals with rights elsewhere try what they must never be able to. Every attempt names the cell it is in
and must be refused; at the end every honest store holds the same records, whatever the order they came in, and nothing
that should be there is missing. Signatures are the simulator's. Not here: links, chains and rollouts (run.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from protocols.changes.approvals import Approval, approval_statement, sign_approval
from protocols.changes.change import CHANGE_DOMAIN, Change, Plan, Stage
from protocols.changes.demands import SOLO
from protocols.changes.evidence import EvidenceRun, attest
from protocols.changes.secrets import Box, SealedSecret, sign_paper
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import peer_id
from protocols.records.credentials import grant_record, revocation_record
from protocols.records.key_table import PAPER_MS, make_key
from protocols.records.papers import Ending, end_paper
from protocols.records.record import Record, sign_record
from protocols.records.store import OfferOutcome, RecordStore
from protocols.trust.certificates import issue
from protocols.trust.genesis import Genesis, mesh_id
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from protocols.trust.revocations import Revocation, sign_revocation
from protocols.trust.store import TrustStore
from simulation.chain.run import Result, Verdict
from simulation.mesh.hostile_cells import CELLS
from simulation.mesh.hostile_keys import KEY_CELLS
from simulation.world.authenticator import Authenticator
from simulation.world.clock import WALL_START_MS
from simulation.world.entropy import KeyRing, stream

DAY_MS = 86_400_000
HONEST = ("n1", "n2", "n3")
LIAR = "liar"
STEPS = 24
PAPERS = ("change", "evidence", "approval", "secret")
PRINCIPALS: dict[str, tuple[Role, str, str]] = {
    "author": ("deployer", "shop", "prod"),
    "approver": ("approver", "shop", "prod"),
    "beside": ("deployer", "shop", "prod"),
    "staging": ("deployer", "shop", "staging"),
    "other": ("deployer", "blog", "prod"),
    "viewer": ("viewer", "shop", "prod"),
    "leaver": ("deployer", "shop", "prod"),
}


class ViolationError(Exception):
    """A cell of the trust model did not hold."""

    def __init__(self, cell: str, detail: str) -> None:
        super().__init__(f"{cell}: {detail}")
        self.cell, self.detail = cell, detail


@dataclass
class Held:
    """A paper that was filed: its kind, record key and body, who signed it, and whether it should still be there."""

    kind: str
    key: str
    body: bytes
    author: str
    stands: bool = True
    pinned: bool = False


@dataclass
class HostileRun:
    """The honest stores and all that was said to them. Mutable: one run's state."""

    seed: int
    source: Random
    keys: KeyRing = field(default_factory=KeyRing)
    said: list[Signed] = field(default_factory=list)
    papers: list[Held] = field(default_factory=list)
    pins: frozenset[bytes] = frozenset()
    number: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    """Attempts, by cell."""
    wall_ms: int = WALL_START_MS

    def __post_init__(self) -> None:
        """Found the mesh and grant the principals their rights."""
        founder = peer_id(self.signer("n1").public_key)
        admin = self.signer("admin").public_key
        policy = encode(SOLO)
        self.genesis = encode(Genesis("m", b"n" * 16, (admin,), 1, founder, b"s" * 16, policy, WALL_START_MS - DAY_MS))
        self.mesh = mesh_id(self.genesis)
        self.chains: dict[str, tuple[Signed, ...]] = {
            name: (self.grant(name, *what),) for name, what in PRINCIPALS.items()
        }
        agent = Grant(
            self.signer("agent").public_key, "agent", "bot", ("deployer",), ("shop",), ("prod",), WALL_START_MS + DAY_MS,
            b"a" * 16, parent=digest(self.chains["leaver"][0].payload),
        )  # fmt: skip
        link = sign(self.signer("leaver"), GRANT_DOMAIN, self.mesh, agent)
        self.chains["agent"] = (*self.chains["leaver"], link)
        self.phone = self.passkey("approver")
        self.passkeys = {self.phone.id: (*self.chains["approver"], self.grant_passkey(self.phone, "approver"))}
        self.stores = {name: self.store() for name in HONEST}
        for name, chain in self.chains.items():
            self.spread(self.carry("n1", *grant_record(self.signer(name).public_key, chain)))
        for key, chain in self.passkeys.items():
            self.spread(self.carry("n1", *grant_record(key, chain)))

    def signer(self, name: str) -> Any:
        """The key of a node or a principal."""
        return self.keys.signer(name)

    def node(self, name: str) -> Any:
        """The peer id of a node."""
        return peer_id(self.signer(name).public_key)

    def grant(self, name: str, role: Role, project: str, environment: str, by: str = "admin") -> Signed:
        """A grant, signed by the admin or by whoever should not."""
        new_grant = Grant(
            self.signer(name).public_key, "person", name, (role,), (project,), (environment,), WALL_START_MS + 300 * DAY_MS,
            b"g" * 16,
        )  # fmt: skip
        return sign(self.signer(by), GRANT_DOMAIN, self.mesh, new_grant)

    def passkey(self, person: str, name: str = "phone", **fields: Any) -> Authenticator:
        """A person's authenticator, with one passkey."""
        key = f"{person} {name}"
        return Authenticator(self.signer(person).public_key, self.keys.point(key), self.signer(key).sign, **fields)

    def grant_passkey(self, one: Authenticator, by: str) -> Signed:
        """The link by which a person takes a passkey into their grant."""
        grant = Grant(
            one.id, "person", f"{by}'s phone", ("approver",), ("shop",), ("prod",), WALL_START_MS + 200 * DAY_MS, b"p" * 16,
            parent=digest(self.chains[by][0].payload), verbs=("approve",),
        )  # fmt: skip
        return sign(self.signer(by), GRANT_DOMAIN, self.mesh, grant)

    def touched(self, one: Authenticator, **other: Any) -> tuple[str, bytes]:
        """Key and body of an approval by passkey of a new change; `other` is what is not as it should be."""
        self.number += 1
        name = digest(b"%d" % self.number)
        mesh, environment = other.pop("mesh", self.mesh), other.pop("environment", "prod")
        said = Approval(b"", name, "shop", environment, self.wall_ms, self.wall_ms + DAY_MS)
        body = one.touch(approval_statement(mesh, said), **other)
        return make_key("approval", name.hex(), digest(body).hex()), body

    def store(self) -> RecordStore:
        """An honest node's store that knows the four members."""
        trust = TrustStore(self.keys, self.genesis)
        members = (*HONEST, LIAR)
        for serial, name in enumerate(members, 1):
            signed = issue(
                self.signer("admin"), self.mesh, self.node(name), roles=("worker",), labels=(), serial=serial,
                wall_ms=WALL_START_MS,
            )  # fmt: skip
            trust.learn_certificate(signed, WALL_START_MS)
        trust.chain_decided(trust.admins, 1, [self.node(name) for name in members])
        held = RecordStore(trust)
        held.court.pins = self.pins
        return held

    def carry(self, by: str, key: str, body: bytes, **fields: Any) -> Signed:
        """A record as a node writes it; the hostile one may write anything."""
        self.number += 1
        values: dict[str, Any] = {
            "kind": "immutable",
            "seq": self.number,
            "hlc": self.wall_ms << 16,
            "body": body,
        } | fields
        return sign_record(self.signer(by), self.mesh, Record(key, **values))

    def spread(self, signed: Signed) -> list[str]:
        """Offer a record to every store; return how each took it."""
        self.said.append(signed)
        texts = []
        for store in self.stores.values():
            offered = store.offer(signed, self.wall_ms)
            texts.append(offered.refusal.rule if offered.refusal is not None else offered.outcome.value)
        return texts

    def attempt(self, cell: str, signed: Signed) -> None:
        """Try what must be refused by every store."""
        self.tried[cell] += 1
        texts = self.spread(signed)
        if OfferOutcome.MERGED.value in texts:
            raise ViolationError(cell, "a store took what nobody may write")

    def must(self, cell: str, holds: bool, detail: str) -> None:
        """Judge a cell that is no record."""
        self.tried[cell] += 1
        if not holds:
            raise ViolationError(cell, detail)

    def paper(self, kind: str, by: str, at_ms: int | None = None) -> tuple[str, bytes]:
        """Key and body of a new paper about shop in prod, signed by a key."""
        self.number += 1
        signer, at_ms = self.signer(by), self.wall_ms if at_ms is None else at_ms
        name = digest(b"%d" % self.number)
        if kind == "change":
            body = encode(sign(signer, CHANGE_DOMAIN, self.mesh, self.change(signer.public_key, at_ms)))
            return make_key("change", "shop", digest(body).hex()), body
        if kind == "approval":
            body = sign_approval(signer, self.mesh, Approval(b"", name, "shop", "prod", at_ms, at_ms + DAY_MS))
            return make_key("approval", name.hex(), digest(body).hex()), body
        if kind == "evidence":
            run = EvidenceRun(self.mesh.hex(), "test", "host", at_ms)
            body = attest(signer, run, passed=True, components=(("web", name),), configuration=name)
            return make_key("evidence", name.hex(), digest(body).hex()), body
        secret = SealedSecret("shop", "prod", "db", self.number, at_ms, b"sealed", (self.box(),))
        body = encode(sign_paper(signer, self.mesh, secret))
        return make_key("secret", "shop", "prod", "db", digest(body).hex()), body

    def box(self) -> Box:
        """A sealed data key for n1, of the right sizes."""
        return Box(self.node("n1"), b"e" * 32, b"w" * 48)

    def change(self, author: bytes, at_ms: int) -> Change:
        """A change of shop in prod that differs from every other."""
        self.number += 1
        release = digest(b"release %d" % self.number)
        return Change(
            project="shop", environment="prod", request="r", release=release, base=b"", configuration=release,
            policy=release, author=author, created_ms=at_ms, plan=Plan((Stage("100%"),)),
        )  # fmt: skip

    def end(self, held: Held, by: str, carrier: str, body: bytes | None = None, key: str = "") -> Signed:
        """A tombstone of a paper with a statement of `by`."""
        ended = end_paper(self.signer(by), self.mesh, Ending(key or held.key, self.wall_ms), body or held.body)
        return self.carry(carrier, held.key, ended, tombstone=True)

    def file(self, kind: str, by: str, carrier: str) -> Held:
        """File a paper of somebody who may; an approval by key or by passkey."""
        touched = kind == "approval" and self.source.random() < 0.5
        key, body = self.touched(self.phone) if touched else self.paper(kind, by)
        texts = self.spread(self.carry(carrier, key, body))
        if set(texts) != {OfferOutcome.MERGED.value}:
            raise ViolationError("honest-paper", f"{kind} of {by}: {texts}")
        held = Held(kind, key, body, by)
        self.papers.append(held)
        return held

    def revoke(self, kind: Any, subject: bytes, by: str = "admin") -> list[str]:
        """Spread a revocation."""
        revocation = Revocation(kind, subject, 0, 0, "lost", self.wall_ms)
        return self.spread(
            self.carry("n1", *revocation_record(revocation, sign_revocation(self.signer(by), self.mesh, revocation)))
        )

    def settle(self) -> None:
        """Let every store sweep, and judge what it holds."""
        for store in self.stores.values():
            store.court.pins = self.pins
            store.remove_ended(self.wall_ms)
        for held in self.papers:
            for name, store in self.stores.items():
                entry = store.entries.get(held.key)
                there = entry is not None and not entry.record.tombstone
                if there != held.stands:
                    raise ViolationError("paper-kept" if held.stands else "paper-ended", f"{held.kind} at {name}")

    def judge_orders(self) -> None:
        """Equal inputs keep equal sets: a newcomer that hears everything in another order holds the same."""
        roots = {store.trie.root() for store in self.stores.values()}
        if len(roots) != 1:
            raise ViolationError("equal-sets", "the honest stores differ")
        said = list(self.said)
        self.source.shuffle(said)
        newcomer = self.store()
        for _ in range(3):  # what was refused for its order comes again with anti-entropy
            for signed in said:
                newcomer.offer(signed, self.wall_ms)
        newcomer.remove_ended(self.wall_ms)
        if newcomer.trie.root() not in roots:
            raise ViolationError("equal-sets", "the order of arrival decides what is held")


def hostile_run(seed: int) -> Result:
    """Run one seed to its end, or to the first cell that does not hold."""
    result = Result(seed, Verdict.CLEAN)
    try:
        world = HostileRun(seed, stream(seed, "hostile"))
        _run(world)
        result.events = world.tried.total()
        result.digest = digest(b"".join(signed.payload for signed in world.said)).hex()[:16]
        result.counts = world.tried
    except ViolationError as error:
        result.verdict, result.invariant, result.detail = Verdict.SAFETY, error.cell, error.detail
    return result


def _run(world: HostileRun) -> None:
    source = world.source
    for kind in PAPERS:
        world.file(kind, "approver" if kind == "approval" else "author", source.choice((*HONEST, LIAR)))
    order = [*CELLS.items(), *KEY_CELLS.items()]
    source.shuffle(order)
    for step in range(max(STEPS, len(order))):
        name, cell = order[step % len(order)]
        kind = source.choice(PAPERS)
        if source.random() < 0.5:
            world.file(
                kind, "approver" if kind == "approval" else source.choice(("author", "beside")), source.choice(HONEST)
            )
        cell(world, name)
        _honest_end(world)
    leaving = [world.file(kind, "leaver", "n2") for kind in ("change", "evidence", "secret")]
    agents = [world.file(kind, "agent", "n3") for kind in ("change", "evidence")]
    world.settle()
    what = source.choice(("principal", "grant"))
    subject = world.signer("leaver").public_key if what == "principal" else digest(world.chains["leaver"][0].payload)
    world.revoke(what, subject)
    for held in (*leaving, *agents):
        held.stands = False
    world.settle()
    world.attempt("revoked-author", world.carry("n1", *world.paper("change", source.choice(("leaver", "agent")))))
    world.judge_orders()
    world.wall_ms += PAPER_MS + 1
    for held in world.papers:
        held.stands = held.stands and held.kind == "secret"
    world.settle()


def _honest_end(world: HostileRun) -> None:
    """Now and then an author takes a paper back, by whichever carrier."""
    standing = [held for held in world.papers if held.stands and not held.pinned and held.kind != "approval"]
    if len(standing) < 6:
        return
    held = world.source.choice(standing)
    texts = world.spread(world.end(held, held.author, world.source.choice((*HONEST, LIAR))))
    if set(texts) != {OfferOutcome.MERGED.value}:
        raise ViolationError("honest-end", f"{held.kind}: {texts}")
    held.stands = False
