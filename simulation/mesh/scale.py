"""How cost and convergence grow with the fleet: whole nodes, real timers, links of 10 to 100 ms, in virtual time.

Each measure runs on a grown fleet and counts what its own family of messages costs, encoded but without framing, so that
idle traffic of the others does not blur it. Not here: CPU time (benchmarks/), and the plot (scale_plot.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.chain.messages import ChainMessage, EntryStored
from protocols.envelope import encode
from protocols.liveness import Belief, BeliefChanged, LivenessMessage
from protocols.machine import PeerId
from protocols.records.gossip import RecordMessage, RecordsMerged
from protocols.records.key_table import make_key
from protocols.records.sync import Synced, SyncMessage, SyncRecords
from protocols.state.commands import CreateProject
from simulation.mesh.fleet import Fleet
from simulation.world.world import Host

SETTLE_MS = 3_000
"""From the start of all nodes at once until all know all."""
GROWN_MS = 100_000
IDLE_MS = 60_000
LOSS = 0.2
LOSSY_MS = 300_000
"""Five minutes at 20 % loss: about 24,000 pings among 32 nodes."""
BODY_BYTES = 256
PUSHES = 32
DECISIONS = 16
DIVERGED = 50
"""Records that each half writes while the fleet is cut in two."""
CUT_MS = 60_000
STEP_MS = 10
STARTED_MAX = 100
"""Messages of records that a start may cost a node: every node's certificate is new to all others."""

Family = tuple[type, ...]
MEMBERSHIP: Family = LivenessMessage.__args__
RECORDS: Family = RecordMessage.__args__
CHAIN: Family = ChainMessage.__args__
SYNC: Family = (*SyncMessage.__args__, SyncRecords)


@dataclass(frozen=True, slots=True)
class Row:
    """One measure at one size: times in ms (empty: none), messages and bytes per node, over `per` of something."""

    measure: str
    nodes: int
    times_ms: tuple[int, ...]
    messages: float
    sent_bytes: float
    per: str

    def share_ms(self, share: float) -> int:
        """The time by which that share of all cases was done."""
        ordered = sorted(self.times_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


@dataclass
class _Meter:
    """Counts messages of some families from `start` on."""

    kinds: Family
    on: bool = False
    messages: int = 0
    sent_bytes: int = 0

    def watch(self, near: PeerId, far: PeerId, message: Any) -> None:
        if self.on and isinstance(message, self.kinds):
            self.messages += 1
            self.sent_bytes += len(encode(message))


@dataclass
class _Heard:
    """Notices of all hosts since the last `clear`, with their times."""

    events: list[tuple[int, str, Any]] = field(default_factory=list)

    def of(self, kind: type) -> Iterator[tuple[int, str, Any]]:
        return (event for event in self.events if isinstance(event[2], kind))


def start(fleet: Fleet) -> tuple[Row, Row]:
    """Start all hosts at once; return what that cost in messages of records, and in all. Raises RuntimeError."""
    of_records, of_all = _Meter(RECORDS, on=True), _Meter((object,), on=True)
    fleet.world.network.send_watchers += [of_records.watch, of_all.watch]
    for name in fleet.hosts:
        fleet.certify(name)
        fleet.hosts[name].start()
    fleet.world.run_until(SETTLE_MS)
    del fleet.world.network.send_watchers[-2:]
    nodes = len(fleet.hosts)
    if any(len(core.trust.nodes()) != nodes for _, core in fleet.cores()):
        raise RuntimeError(f"a fleet of {nodes} did not know itself after {SETTLE_MS} ms")
    metered = (("start, records", of_records), ("start, all messages", of_all))
    records, everything = (
        Row(measure, nodes, (), meter.messages / nodes, meter.sent_bytes / nodes, "start") for measure, meter in metered
    )
    return records, everything


class MeasuredFleet:
    """A grown fleet of `nodes` hosts, measured."""

    def __init__(self, nodes: int, seed: int = 1) -> None:
        """Found it, confirm every node, wait until it has its voters. Raises RuntimeError if it does not grow."""
        self.nodes = nodes
        self.fleet = Fleet([f"n{index + 1}" for index in range(nodes)], seed)
        self.world = self.fleet.world
        self.names = list(self.fleet.hosts)
        self.heard = _Heard()
        self.false_deaths = 0
        """Beliefs of one node that a living one is down."""
        self.started = start(self.fleet)
        """What the start of all nodes at once cost: of their records, and of all families together."""
        for name in self.names[1:]:
            self.fleet.outcome(self.fleet.confirm(name, self.names[0]))
        self.world.run_until(GROWN_MS)
        if len(self.fleet.core(self.names[-1]).chain.voters) != min(3, nodes):
            raise RuntimeError(f"a fleet of {nodes} did not grow its voters")
        self.world.observers.append(self._hear)

    def _hear(self, host: Host, event: Any) -> None:
        self.heard.events.append((self.world.now_ms, host.name, event))

    def _meter(self, kinds: Family, run: Callable[[], None]) -> _Meter:
        meter = _Meter(kinds, on=True)
        self.heard.events.clear()
        self.world.network.send_watchers.append(meter.watch)
        run()
        self.world.network.send_watchers.remove(meter.watch)
        return meter

    def _row(self, measure: str, times: Sequence[int], meter: _Meter, per: str, count: float = 1) -> Row:
        scale = self.nodes * count
        return Row(measure, self.nodes, tuple(times), meter.messages / scale, meter.sent_bytes / scale, per)

    # --- measures -----------------------------------------------------------------------------------------------------

    def membership(self) -> Row:
        """What it costs that everybody knows who is alive, per minute."""
        meter = self._meter(MEMBERSHIP, lambda: self.world.run_until(self.world.now_ms + IDLE_MS))
        return self._row("membership, idle", (), meter, "minute")

    def push(self) -> Row:
        """How soon the others hold a new record."""
        times: list[int] = []

        def run() -> None:
            for number in range(PUSHES):
                name = self.names[number % self.nodes]
                # A node's own word: the papers of people are larger than what is pushed.
                key, body = make_key("address", self.fleet.peers[name]), b"%d" % number * (BODY_BYTES // 2)
                started_ms = self.world.now_ms
                self.heard.events.clear()
                self.fleet.publish(name, key, body)
                self.world.run_until(started_ms + 2_000)
                informed = {
                    who: at_ms - started_ms
                    for at_ms, who, event in self.heard.of(RecordsMerged)
                    if who != name and any(entry.record.key == key for entry in event.entries)
                }
                times.extend(informed.get(who, 2_000) for who in self.names if who != name)

        return self._row("record push", times, self._meter(RECORDS, run), "record", PUSHES)

    def decisions(self) -> Row:
        """How soon a command submitted anywhere is durable everywhere."""
        times: list[int] = []

        def run() -> None:
            for number in range(DECISIONS):
                name = self.names[number * 7 % self.nodes]
                started_ms = self.world.now_ms
                self.heard.events.clear()
                request = self.fleet.submit(name, CreateProject(f"project-{number}"), "admin")
                answer = self.fleet.outcome(request)
                if answer is None or answer.outcome != "decided":
                    raise RuntimeError(f"a lone command was not decided: {answer}")
                self.world.run_until(self.world.now_ms + 2_000)
                stored = {who: at_ms - started_ms for at_ms, who, _ in self.heard.of(EntryStored)}
                times.extend(stored.get(who, 2_000) for who in self.names)

        return self._row("decision, stored everywhere", times, self._meter(CHAIN, run), "decision", DECISIONS)

    def partition(self) -> Row:
        """How soon two halves that wrote apart hold the same again."""
        half = self.nodes // 2
        sides = (self.names[:half], self.names[half:])
        network = self.world.network
        for entry, other in ((0, 1), (1, 0)):
            for near in sides[entry]:
                for far in sides[other]:
                    network.cut[self.fleet.peers[near], self.fleet.peers[far]] = self.world.now_ms
        for number in range(DIVERGED):
            for index, side in enumerate(sides):
                key, body = self.fleet.note(f"halves {number}/{index}")
                self.fleet.publish(side[number % len(side)], key, body)
        self.world.run_until(self.world.now_ms + CUT_MS)
        took: list[int] = []

        def run() -> None:
            started_ms = self.world.now_ms
            network.cut.clear()
            self.world.run_while(self._different, started_ms + 120_000, STEP_MS)
            took.append(self.world.now_ms - started_ms)

        return self._row("anti-entropy after a partition", took, self._meter((*SYNC, *RECORDS), run), "healing")

    def _different(self) -> bool:
        return len({core.records.store.trie.root() for _, core in self.fleet.cores()}) > 1

    def equal_rounds(self) -> int:
        """The rounds that anti-entropy of equal sets takes, the most in two minutes."""
        self.world.run_until(self.world.now_ms + SETTLE_MS)
        self.heard.events.clear()
        self.world.run_until(self.world.now_ms + 120_000)
        sessions = [event for _, _, event in self.heard.of(Synced) if not event.received and not event.sent]
        return max((event.rounds for event in sessions), default=0)

    def death(self) -> Row:
        """How soon every survivor believes a dead node down; nobody else may be believed down."""
        victim = self.names[-1]

        def run() -> None:
            self.fleet.hosts[victim].crash("dead")
            self.world.run_until(self.world.now_ms + 40_000)

        started_ms = self.world.now_ms
        meter = self._meter(MEMBERSHIP, run)
        down = self._believed_down()
        times = [at_ms - started_ms for at_ms, who in down.pop(victim, [])]
        self.false_deaths += sum(len(entry) for entry in down.values())
        name = "a death known" + (f", {LOSS:.0%} loss" if self.world.network.faults.loss else "")
        return self._row(name, times, meter, "death")

    def lossy(self) -> None:
        """Let five minutes pass at 20 % loss, and go on with it; who is believed down then is a false death."""
        self.heard.events.clear()
        self.world.network.faults.loss = LOSS
        self.world.run_until(self.world.now_ms + LOSSY_MS)
        self.false_deaths += sum(len(entry) for entry in self._believed_down().values())

    def _believed_down(self) -> dict[str, list[tuple[int, str]]]:
        document: dict[str, list[tuple[int, str]]] = {}
        for at_ms, who, event in self.heard.of(BeliefChanged):
            if event.belief is Belief.DOWN:
                document.setdefault(self.fleet.name_of[event.peer], []).append((at_ms, who))
        return document


@dataclass(frozen=True, slots=True)
class Scale:
    """All that was measured at one size."""

    nodes: int
    rows: tuple[Row, ...]
    equal_rounds: int
    false_deaths: int


def measure(nodes: int, seed: int = 1) -> Scale:
    """Measure a fleet of one size, from one seed."""
    bench, lossy = MeasuredFleet(nodes, seed), MeasuredFleet(nodes, seed + 1)
    rows = [bench.membership(), bench.push(), bench.decisions(), bench.partition(), *bench.started]
    equal_rounds = bench.equal_rounds()
    rows.append(bench.death())
    lossy.lossy()
    rows.append(lossy.death())
    return Scale(nodes, tuple(rows), equal_rounds, bench.false_deaths + lossy.false_deaths)


def aims(found: Sequence[Scale]) -> list[tuple[str, str, bool]]:
    """What the largest fleet must show: the aim, what was measured, and whether it is met."""
    largest = max(found, key=lambda one: one.nodes)
    push, deaths = largest.rows[1], largest.rows[-2:]
    survivors, started = largest.nodes - 1, largest.rows[4]
    informed_ms, known_ms = push.share_ms(0.99), max(row.share_ms(1.0) for row in deaths)
    knowing = min(len(row.times_ms) for row in deaths)
    return [
        (f"{largest.nodes} nodes: 99 % informed of a record within 250 ms", f"{informed_ms} ms", informed_ms <= 250),
        (
            "a dead node known to all within 25 s, also at 20 % loss",
            f"{known_ms / 1000:.1f} s, {knowing} of {survivors} survivors",
            known_ms <= 25_000 and knowing == survivors,
        ),
        ("no false death in five minutes at 20 % loss", str(largest.false_deaths), largest.false_deaths == 0),
        (
            f"records cost a node at most {STARTED_MAX} messages when {largest.nodes} start at once, each knowing itself",
            f"{started.messages:,.1f}",
            started.messages <= STARTED_MAX,
        ),
        ("anti-entropy of equal sets takes one round", str(largest.equal_rounds), largest.equal_rounds == 1),
    ]


def table(found: Sequence[Scale]) -> list[str]:
    """The measures as a Markdown table."""
    lines = [
        "| measure | nodes | half of all, ms | 99 %, ms | last, ms | messages per node | bytes per node | per |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for number in range(len(found[0].rows)):
        for scale in found:
            row = scale.rows[number]
            times = [f"{row.share_ms(share):,}" for share in (0.5, 0.99, 1.0)] if row.times_ms else ["-"] * 3
            lines.append(
                f"| {row.measure} | {row.nodes} | {' | '.join(times)} | {row.messages:,.1f} | {row.sent_bytes:,.0f} "
                f"| {row.per} |"
            )
    return lines


def report(found: Sequence[Scale], plot: str) -> str:
    """The page about scale: what it must show, all measures, and the plot that lies beside it under that name."""
    sizes = ", ".join(str(scale.nodes) for scale in found)
    lines = [
        "# Scale",
        "",
        f"Written by `python -m simulation --scale {sizes.replace(' ', '')}`: whole nodes under virtual time, the machines'",
        "own timers, links of 10 to 100 ms (uniform, each way), messages in their encoding, without framing.",
        "",
        "| it must show | measured | |",
        "|---|---|---|",
        *(f"| {aim} | {value} | {'met' if met else '**missed**'} |" for aim, value, met in aims(found)),
        "",
        "That 100,000 records with 100 differences reconcile in at most 5 rounds and 150 KiB is measured by `make bench`",
        "(`benchmarks/records.py`), on two stores of that size.",
        "",
        *table(found),
        "",
        f"![Time and bytes per node over the size of the fleet]({plot})",
        "",
        f"- Membership, idle: pings of up to five observers per node and their answers, for {IDLE_MS // 1000} s.",
        f"- Record push: {PUSHES} records of {BODY_BYTES} bytes from different nodes; times are of every other node.",
        f"- Decision: {DECISIONS} commands, one at a time, through different nodes; three voters; times until each node has it",
        "  on disk.",
        f"- Anti-entropy: the fleet is cut in two for {CUT_MS // 1000} s, each half writes {DIVERGED} records; time from",
        "  healing the links until all hold the same, dialling included.",
        f"- Start: all nodes start at once, each holding only its own certificate; messages of {SETTLE_MS // 1000} s. Each",
        "  link costs hellos, heads and a comparison of records besides what new records cost.",
        "- A death: times until each survivor believes it; with loss, after five minutes of it. A false death is any belief",
        "  that a living node is down.",
        "",
        "Per node, nothing but the first exchange of certificates grows with the fleet beyond ten nodes: observers, relays",
        "and sync partners are a fixed few, so the faces hold for a partial overlay. A decision goes to every connected",
        "node, which is what a full mesh costs today.",
    ]
    return "\n".join(lines) + "\n"


__all__ = ["MeasuredFleet", "Row", "Scale", "aims", "measure", "report", "table"]
