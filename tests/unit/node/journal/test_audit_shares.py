"""Who pays for a node's audit log: shares, the operators' reserve, refusals told together, and 400 ordinary days."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from node.journal.audit import STARTER, Audit, AuditedPaper, links_of, read_links
from node.journal.audit_backlog import Backlog
from node.journal.audit_shares import PRINCIPAL_SHARE, WINDOW_MAX_MS, WINDOW_MIN_MS, WINDOWS_MAX, CallerShares, Refusals
from protocols.changes.evidence import EvidenceRun, attest
from protocols.envelope import digest
from protocols.machine import Notify, Now, Tick
from protocols.records.audit import KEPT_MS, chain_faults
from protocols.records.gossip import RecordMachine
from protocols.records.key_table import DAY_MS, make_key
from protocols.records.quotas import Payer, RecordLimits
from protocols.refusal import Refusal
from protocols.trust.certificates import issue
from simulation.mesh.hostile import HONEST, WALL_START_MS, HostileRun
from simulation.world.entropy import SeededEntropy


class Log:
    """The audit log of n1 over its real record machine, under a clock of the test's own."""

    def __init__(self, folder: Path, limits: RecordLimits | None = None) -> None:
        self.world = HostileRun(1, Random(1))
        self.wall_ms, self.serial = WALL_START_MS, 10
        self.behind: dict[bytes, bytes] = {}
        trust = self.world.stores["n1"].trust
        self.machine = RecordMachine(trust, self.world.signer("n1"), SeededEntropy(Random(2)))
        for entry in self.world.stores["n1"].entries.values():
            self.machine.store.restore(entry.signed, WALL_START_MS)
        if limits is not None:
            self.machine.store.limits = limits
        dossiers = SimpleNamespace(
            rights=lambda _key, _ms: Refusal("grant.none", "none"), payer=lambda key: self.behind.get(key, key),
        )  # fmt: skip
        core = SimpleNamespace(
            node=self.world.node("n1"), trust=trust, records=self.machine, dossiers=dossiers,
        )  # fmt: skip
        self.core = cast(Any, core)
        self.heard: list[Any] = []
        self.audit = Audit(
            self.core, self.world.signer("n1"), self.post, lambda: Now(self.wall_ms - WALL_START_MS, self.wall_ms),
            Backlog(folder), forgetful=False,
        )  # fmt: skip
        self.deliver()

    def post(self, event: Any) -> bool:
        effects = self.machine.handle(event, Now(self.wall_ms - WALL_START_MS, self.wall_ms))
        self.heard += [effect.event for effect in effects if isinstance(effect, Notify)]
        return True

    def deliver(self) -> None:
        while self.heard:
            self.audit.hear(self.heard.pop(0))

    def key(self, name: str) -> str:
        return str(self.world.signer(name).public_key.hex())

    def note(self, by: str, verb: str, result: str = "done", *, caller: str = "", refused: bool = False) -> None:
        signer = self.world.signer(by).public_key
        paper = AuditedPaper(verb, "shop/prod " + "ab" * 32, digest(verb.encode()), (signer,))
        self.audit.note(caller or self.key(by), paper, result, "0123456789abcdef", refused=refused)
        self.deliver()

    def entries(self) -> list[Any]:
        return [entry for _, entry in read_links(links_of(self.core))]

    def renew(self) -> None:
        self.serial += 1
        for name in HONEST:
            signed = issue(
                self.world.signer("admin"), self.world.mesh, self.world.node(name), roles=("worker",), labels=(),
                serial=self.serial, wall_ms=self.wall_ms,
            )  # fmt: skip
            self.core.trust.learn_certificate(signed, self.wall_ms)


def test_keys_that_a_principal_makes_have_one_share_with_it_also_after_a_restart(tmp_path: Path) -> None:
    log = Log(tmp_path, RecordLimits(node_audit_max=16))
    author, *bots = (log.world.signer(name).public_key for name in ("author", "bot", "bot2"))
    log.behind = dict.fromkeys(bots, author)
    for number in range(int(16 * PRINCIPAL_SHARE)):
        assert log.audit.refusal(log.key(("author", "bot", "bot2")[number % 3])) is None
        log.note(("author", "bot", "bot2")[number % 3], "start")
    for again in (False, True):
        if again:
            log.audit._go_on()
        refused = [log.audit.refusal(log.key(name)) for name in ("author", "bot", "bot2")]
        assert [refusal.rule for refusal in refused if refusal is not None] == ["quota.audit-principal"] * 3
        assert log.audit.refusal(log.key("beside")) is None, "another principal still has its own"


def test_a_principals_share_is_asked_first_and_leaves_the_rest_to_others(tmp_path: Path) -> None:
    log = Log(tmp_path, RecordLimits(node_audit_max=16))
    for number in range(10):
        assert log.audit.refusal(log.key("author")) is None
        log.note("author", f"publish {number}")
    refusal = log.audit.refusal(log.key("author"))
    assert refusal is not None
    assert refusal.rule == "quota.audit-principal"
    assert "10 entries" in refusal.detail
    assert log.audit.refusal(log.key("beside")) is None, "another key of the same project"


def test_the_last_eighth_is_for_operators(tmp_path: Path) -> None:
    log = Log(tmp_path, RecordLimits(node_audit_max=16))
    for number in range(14):
        log.note("author" if number % 2 else "beside", f"publish {number}")
    refused = log.audit.refusal(log.key("approver"))
    assert refused is not None
    assert refused.rule == "quota.audit-operators"
    for operator in (log.key("admin"), "socket:1000", "node", STARTER):
        assert log.audit.refusal(operator) is None
    assert log.audit.full == "", "the node still takes writes down"
    for number in range(2):
        log.note("admin", f"revoke {number}")
    assert "used up by its audit log" in log.audit.full


def test_a_start_that_waited_counts_against_who_signed_it(tmp_path: Path) -> None:
    log = Log(tmp_path, RecordLimits(node_audit_max=16))
    for number in range(10):
        log.note("author", f"start {number}", caller=STARTER)
    assert log.audit.refusal(log.key("author")) is not None


def test_shares_are_known_again_after_a_restart_and_end_with_the_entries(tmp_path: Path) -> None:
    log = Log(tmp_path, RecordLimits(node_audit_max=16))
    for number in range(10):
        log.note("author", f"publish {number}")
    again = Audit(
        log.core, log.world.signer("n1"), log.post, lambda: Now(0, log.wall_ms), Backlog(tmp_path), forgetful=False
    )
    assert again.refusal(log.key("author")) is not None
    log.wall_ms += KEPT_MS
    assert again.refusal(log.key("author")) is None


def test_refused_calls_make_one_entry_and_one_more_that_counts_the_rest(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for number in range(50):
        log.wall_ms += 100
        log.note("author", "submit", "caller.not-allowed" if number % 2 else "command.expect", refused=True)
    log.note("beside", "submit", "caller.not-allowed", refused=True)
    assert [(entry.caller, entry.result, entry.count) for entry in log.entries()] == [
        (log.key("author"), "command.expect", 1), (log.key("beside"), "caller.not-allowed", 1),
    ]  # fmt: skip
    log.note("author", "publish change")
    assert len(log.entries()) == 3, "what is done has an entry of its own at once"
    first_ms = WALL_START_MS + 200
    log.wall_ms = WALL_START_MS + 100 + WINDOW_MIN_MS
    log.note("beside", "publish change")
    told = [entry for entry in log.entries() if entry.count > 1]
    assert [(entry.caller, entry.verb, entry.count, entry.first_ms, entry.result) for entry in told] == [
        (log.key("author"), "refused calls", 49, first_ms, "caller.not-allowed, command.expect")
    ]
    assert chain_faults(log.core.trust.verifier, log.world.mesh, links_of(log.core), log.wall_ms) == ()


def test_a_start_that_waits_or_a_caller_that_left_is_not_told_together(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for result in ("waiting approval.missing", "caller.left", "node.failed", "begun"):
        log.note("author", "start", result)
    assert [entry.result for entry in log.entries()] == [
        "waiting approval.missing", "caller.left", "node.failed", "begun",
    ]  # fmt: skip


def test_whoever_goes_on_is_told_of_ever_less_often() -> None:
    refusals, entries = Refusals(), 0
    for wall_ms in range(WALL_START_MS, WALL_START_MS + 30 * DAY_MS, 10_000):
        entries += len(refusals.due(wall_ms))
        entries += refusals.alone("key", "caller.not-allowed", wall_ms)
    assert entries <= 45, "a month of a call every ten seconds"
    assert refusals.due(WALL_START_MS + 32 * DAY_MS)[0].last_ms < WALL_START_MS + 30 * DAY_MS
    refusals.due(WALL_START_MS + 32 * DAY_MS + WINDOW_MAX_MS)
    assert refusals.alone("key", "caller.not-allowed", WALL_START_MS + 34 * DAY_MS), "a quiet window ends it"


def test_the_windows_are_bounded() -> None:
    refusals = Refusals()
    for number in range(WINDOWS_MAX + 3):
        refusals.alone(f"key {number}", "x", WALL_START_MS)
        refusals.alone(f"key {number}", "x", WALL_START_MS)
    assert [told.caller for told in refusals.due(WALL_START_MS)] == ["key 0", "key 1", "key 2"]


def test_caller_shares_forget_what_expired() -> None:
    shares = CallerShares()
    shares.add("a", WALL_START_MS)
    shares.add("a", WALL_START_MS + 1)
    assert [shares.of("a", WALL_START_MS + KEPT_MS + late) for late in (-1, 0, 1)] == [2, 1, 0]


LEAVES = {"put_artifact": 3, "publish change": 1, "start": 2}
"""What a deploy of one app that was built anew leaves in the log, as a real node shows (tests/e2e/api/test_audit.py)."""

DEPLOYS_A_DAY = 20
SCALE = 10
"""A tenth of the deploys, against a tenth of every share."""

PAPER_DAYS = 95
"""Papers live for 90 days: after these they are as many as they will ever be."""


def deploy(log: Log, day: int) -> None:
    """Three uploads, a change, two pieces of evidence, an approval, a start, and how it ended."""
    for _ in range(LEAVES["put_artifact"]):
        log.note("author", "put_artifact")
    for kind in ("change", "evidence", "evidence", "approval"):
        by = "approver" if kind == "approval" else "author"
        if day < PAPER_DAYS:
            key, body = long_evidence(log) if kind == "evidence" else log.world.paper(kind, by, log.wall_ms)
            assert log.machine.store.quota_problem(key, body) is None
            offered = log.machine.store.offer(log.world.carry("n1", key, body, hlc=log.wall_ms << 16), log.wall_ms)
            assert offered.refusal is None, (day, offered.refusal)
        log.note(by, f"publish {kind}")
    log.note("author", "start")
    log.note("author", "start", caller=STARTER)


def parts_used(log: Log) -> dict[str, float]:
    """How much of each share is used up."""
    store, quotas = log.machine.store, log.machine.store.quotas
    entries_max = PRINCIPAL_SHARE * store.limits.node_audit_max
    used = {
        "node": log.audit.fullness,
        "store": len(store.entries) / store.limits.records_max,
        "audit of one principal": log.audit._shares.of(log.key("author"), log.wall_ms) / entries_max,
    }
    for payer in (Payer("principal", log.key("author")), Payer("project", "shop")):
        (count, size_bytes), (most, most_bytes) = quotas.held(payer), quotas.most(payer.budget)
        used |= {f"{payer.budget} records": count / most, f"{payer.budget} bytes": size_bytes / most_bytes}
    return used


def test_400_days_of_20_deploys_a_day_through_one_node_stay_under_half_of_every_share(tmp_path: Path) -> None:
    whole = asdict(RecordLimits())
    log = Log(
        tmp_path, RecordLimits(**{name: most // SCALE for name, most in whole.items() if not name.endswith("_ms")})
    )
    most: dict[str, float] = {}
    for day in range(410):
        log.wall_ms = WALL_START_MS + day * DAY_MS
        if day % 10 == 0:
            log.renew()
        for _ in range(DEPLOYS_A_DAY // SCALE):
            log.wall_ms += 60_000
            deploy(log, day)
        if day % SCALE == 0:
            log.note("viewer", "submit", "caller.not-allowed", refused=True)
        log.post(Tick())
        log.deliver()
        most = {what: max(most.get(what, 0.0), part) for what, part in parts_used(log).items()}
    assert max(most.values()) < 0.7, most
    assert 0.4 < most["node"] < 0.5, most
    assert most["store"] < 0.5


def long_evidence(log: Log) -> tuple[str, bytes]:
    """As a test's run has it: a log of 3,000 characters."""
    log.world.number += 1
    name = digest(b"%d" % log.world.number)
    run = EvidenceRun(log.world.mesh.hex(), "test", "host", log.wall_ms, {}, "passed " * 430)
    body = attest(log.world.signer("author"), run, passed=True, components=(("web", name),), configuration=name)
    return make_key("evidence", name.hex(), digest(body).hex()), body
