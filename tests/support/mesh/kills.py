"""Kills nodes of a mesh with SIGKILL at random moments, while it is written to, called, and changes releases.

Three judgements: what was acknowledged is on every node afterwards; all chains are one, and every certificate in it
verifies; no app was answered by a release that the answering node's chain did not allow at that time. Not here: any
test, and damage to disks.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cli.access.client import NodeClient
from cli.errors import CommandError
from node.membership.found import read_identity
from protocols.chain.decision import Decided, Entry
from protocols.chain.ledger import CHAIN_TABLE, ENTRY_MAX_BYTES, Judged, Ledger
from protocols.changes.statements import HealthVerdict
from protocols.envelope import decode
from protocols.keys import Ed25519Verifier
from protocols.machine import PeerId
from protocols.state.apply import MeshMachine
from protocols.state.exhibits import Rules
from protocols.state.freshness import View
from protocols.state.model import MeshState
from protocols.trust.genesis import Genesis, mesh_id
from tests.support.mesh.durable import ENVIRONMENT, Site, call, client_of, ingress_of
from tests.support.mesh.nodes import Machine, until

APP = "site"
HOST = "site.test"
VISIT_EVERY_S = 0.03
WRITE_EVERY_S = 0.05
LOOK_EVERY_S = 0.15
PROJECTS_MAX = 200
ENVIRONMENTS = 8
SWITCH_WITHIN_S = 20.0
"""How long workers may go on with what was right before a decision: the other release is loaded first."""

HEALED_WITHIN_S = 90.0
ROLLOUT_EVERY_CYCLES = 3
POWER_CUT_SHARE = 1 / 3
"""In so many cycles the workers die with their daemons; else they serve on, and the next daemon adopts them."""


@dataclass(frozen=True)
class Visit:
    """One answer of an app: which node, when (monotonic), and the release that gave it."""

    node: int
    began_s: float
    ended_s: float
    release: str


@dataclass
class Tally:
    """What a run did."""

    cycles: int = 0
    kills: int = 0
    power_cuts: int = 0
    written: int = 0
    unknown: int = 0
    visits: int = 0
    unanswered: int = 0
    rollouts: int = 0
    slots: int = 0
    releases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.cycles} cycles, {self.kills} kills ({self.power_cuts} with the workers), "
            f"{self.written} acknowledged writes ({self.unknown} that were not), "
            f"{self.slots} decisions, {self.rollouts} rollouts begun, {self.releases} releases seen, {self.visits} visits, "
            f"{self.unanswered} of them unanswered, statuses {dict(sorted(self.statuses.items()))}"
        )


class Killing:
    """One run, driven by a seed. The moments of processes are their own, so a seed repeats what is done, not what happens."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.tally = Tally()
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._visits: list[Visit] = []
        self._seen: list[list[tuple[float, int]]] = [[] for _ in site.machines]
        """For each node, when (monotonic) it was seen to hold how many decisions."""
        self._addresses = [ingress_of(machine) for machine in site.machines]
        self._problems: list[str] = []
        self._number = 0

    def run(self, cycles: int) -> Tally:
        """Kill for so many cycles, judging after each; then see that the mesh still changes releases."""
        threads = [threading.Thread(target=self._guarded, args=(self._write,))]
        for index in range(len(self.site.machines)):
            threads.append(threading.Thread(target=self._guarded, args=(self._visit, index)))
            threads.append(threading.Thread(target=self._guarded, args=(self._look, index)))
        for thread in threads:
            thread.start()
        try:
            for number in range(cycles):
                if number % ROLLOUT_EVERY_CYCLES == 0:
                    self._begin_rollout(f"text {number}")
                self._cycle()
                self.tally.cycles += 1
                assert not self._problems, self._problems
            self._finish_rollout()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        assert not self._problems, self._problems
        self.tally.written = self.site.acknowledged.count
        self._judge_visits()
        return self.tally

    # --- what goes on meanwhile ---------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # told by the thread that judges
            self._problems.append(f"{getattr(work, '__name__', work)}: {error!r}")

    def _write(self) -> None:
        dice = random.Random(self._dice.random())

        async def forever() -> None:
            while not self._stop.is_set():
                machine = dice.choice(self.site.machines)
                try:
                    async with client_of(machine) as client:
                        await self._write_one(client, dice)
                except CommandError:
                    self.tally.unknown += 1
                await asyncio.sleep(WRITE_EVERY_S)

        asyncio.run(forever())

    async def _write_one(self, client: NodeClient, dice: random.Random) -> None:
        self._number += 1
        acknowledged_writes = self.site.acknowledged
        match dice.randrange(4):
            case 0 if len(acknowledged_writes.projects) < PROJECTS_MAX:
                await self.site.write_project(client, f"p{self._number}")
            case 1:
                await self.site.write_environment(client, f"e{self._number % ENVIRONMENTS}")
            case _:
                await self.site.write_secret(client, APP, f"KEY_{self._number}", b"a value")

    def _visit(self, index: int) -> None:
        while not self._stop.wait(VISIT_EVERY_S):
            began_s = time.monotonic()
            status, release, _ = call(self._addresses[index], HOST, "/config?key=TEXT")
            ended_s = time.monotonic()
            self.tally.visits += 1
            self.tally.statuses[status] += 1
            if status == 0:
                self.tally.unanswered += 1
            if release:
                self._visits.append(Visit(index, began_s, ended_s, release))

    def _look(self, index: int) -> None:
        machine = self.site.machines[index]
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                slot = machine.status()["slot"]
            except (OSError, StopIteration):
                continue
            self._seen[index].append((time.monotonic(), slot))

    def _begin_rollout(self, text: str) -> None:
        """Propose a release through some node and hand over its start; the kill comes while it is on its way."""
        machine = self._dice.choice(self.site.machines)

        async def conversation(client: NodeClient) -> None:
            proposal = await self.site.propose(
                client, APP, "services", text, stages='["1", "100%"]', smoke="/config?key=TEXT"
            )
            await self.site.start(client, proposal, supersede=True)

        try:
            self.site.ask(machine, conversation)
            self.tally.rollouts += 1
        except CommandError:
            self.tally.unknown += 1

    def _finish_rollout(self) -> None:
        self.site.deploy(
            self.site.machines[0],
            APP,
            "services",
            "the last",
            HEALED_WITHIN_S,
            smoke="/config?key=TEXT",
            supersede=True,
        )
        self.tally.rollouts += 1

    # --- a cycle ------------------------------------------------------------------------------------------------------

    def _cycle(self) -> None:
        dice = self._dice
        machines = list(self.site.machines)
        dice.shuffle(machines)
        victims = machines[: dice.choice((1, 1, 1, 2, 2, 3))]
        time.sleep(dice.uniform(0.1, 1.5))
        whole = dice.random() < POWER_CUT_SHARE
        for victim in victims:
            victim.kill()
            self.tally.kills += 1
            if whole:
                victim.kill_workers()
                self.tally.power_cuts += 1
            time.sleep(dice.choice((0, 0, dice.uniform(0, 0.5))))
        time.sleep(dice.uniform(0, 1.0))
        dice.shuffle(victims)
        starting = [threading.Thread(target=self._guarded, args=(victim.start,)) for victim in victims]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        self._see_healed()

    def _see_healed(self) -> None:
        """Every node has all that was acknowledged, all hold one chain, and each serves what its chain says."""
        left: list[list[str]] = []

        def whole() -> bool:
            # What is asked for now may be acknowledged a moment ago: it must come, not be there at once.
            left[:] = [self.site.missing(machine, APP) for machine in self.site.machines]
            return not any(left)

        try:
            until(whole, HEALED_WITHIN_S, "every node to have what was acknowledged")
        except AssertionError as error:
            raise AssertionError(f"{error}: {[missing[:5] for missing in left]}") from None
        for index, machine in enumerate(self.site.machines):
            assert machine.status()["quarantined"] == ""
            self._see_serving(index)

    def _see_serving(self, index: int) -> None:
        machine, answered = self.site.machines[index], (0, "", "")

        def rightly() -> bool:
            nonlocal answered
            before = self.site.ask(machine, lambda client: client.state())
            answered = call(self._addresses[index], HOST, "/config?key=TEXT")
            after = self.site.ask(machine, lambda client: client.state())
            return answered[0] == 200 and answered[1] in allowed(before) | allowed(after)

        try:
            until(rightly, HEALED_WITHIN_S, f"{machine.folder.name} to serve what its chain says")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._addresses[index]} answers {answered}, {machine.status()}") from None

    # --- judging ------------------------------------------------------------------------------------------------------

    def _judge_visits(self) -> None:
        """Hold every answer against what the node's chain allowed, from a while before it to just after it."""
        chains = [states_of(machine) for machine in self.site.machines]
        shortest = min(len(chain) for chain in chains)
        assert all(chain[:shortest] == chains[0][:shortest] for chain in chains), "two chains"
        states = max(chains, key=len)
        self.tally.slots = len(states) - 1
        releases = [allowed(state) for state in states]
        for visit in self._visits:
            seen = self._seen[visit.node]
            first = max((slot for at_s, slot in seen if at_s <= visit.began_s - SWITCH_WITHIN_S), default=0)
            last = min((slot for at_s, slot in seen if at_s >= visit.ended_s), default=len(states) - 1)
            right = set().union(*releases[first : last + 1])
            assert visit.release in right, (
                f"node {visit.node} answered with {visit.release} between slots {first} and {last}"
            )
        self.tally.releases = len({visit.release for visit in self._visits})


def allowed(state: MeshState) -> set[str]:
    """The releases of the app that may answer at this point of the chain."""
    lane = state.lane(APP, ENVIRONMENT)
    if lane is None:
        return set()
    candidate = {lane.rollout.candidate.release.hex()} if lane.rollout is not None else set()
    return candidate | ({lane.base.release.hex()} if lane.base is not None else set())


class _Outside(View):
    """A view of nothing: what was decided is judged without it."""

    def revoked(self, key: bytes) -> bool:
        return False

    def admitted(self, principal: bytes, invite_key: bytes) -> bool:
        return True

    def alive(self, node: PeerId) -> bool:
        return True

    def verdicts(self, rollout: bytes, opened: int) -> Mapping[PeerId, HealthVerdict]:
        return {}


def states_of(machine: Machine) -> list[MeshState]:
    """The state after each slot of the chain on a node's disk, every certificate and decision checked anew."""
    genesis = read_identity(machine.data).genesis
    mesh, verifier = mesh_id(genesis), Ed25519Verifier()
    rules = MeshMachine(decode(genesis, Genesis), Rules(verifier, mesh), _Outside())
    ledger = Ledger(mesh, rules, verifier)
    states: list[MeshState] = [ledger.state]
    with sqlite3.connect(f"file:{machine.data / 'vote.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT value FROM entries WHERE table_name = ? ORDER BY key", (CHAIN_TABLE,)
        ).fetchall()
    database.close()
    for (row,) in rows:
        entry: Entry = decode(row, Entry, ENTRY_MAX_BYTES)
        assert isinstance(entry, Decided)
        judged = ledger.check(entry)
        assert isinstance(judged, Judged), judged
        ledger.append(entry, judged)
        states.append(ledger.state)
    return states
