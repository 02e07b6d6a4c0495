"""Scenarios as text: commands to a fleet, and under each the fleet's full reply in virtual time.

A transcript is its own input: lines that start with `> ` are commands, `#` lines are comments, all else is what the fleet
answered. `replay` runs the commands again and returns the whole text, so a difference in behaviour is a difference in
the file. Not here: the fleet (fleet.py), how notices read (transcript.py), and the transcripts (tests/scenarios/).

Source of the form: data-driven tests as etcd's raft library and CockroachDB keep them.
"""

from __future__ import annotations

import copy
import itertools
import shlex
from collections.abc import Callable
from typing import Any

from protocols.changes.change import Plan, Route, Stage
from protocols.changes.demands import SOLO, TEAM
from protocols.machine import Digest, Store
from protocols.state.commands import (
    Abort,
    Action,
    ClaimRoutes,
    CreateEnvironment,
    CreateProject,
    Promote,
    Resume,
    Rollback,
)
from simulation.mesh.fleet import DAY_MS, Fleet, FleetConfig
from simulation.mesh.transcript import Telling, TranscriptNames
from simulation.mesh.workshop import Script
from simulation.world.disk import StoreState
from simulation.world.world import Host

PROMPT = "> "
OUTCOME_MAX_MS = 40_000
"""A client's wait (ChainTimes.submit_ms) and a little more: a command is always answered."""
SETTLE_MS = 3_000
FASTEST_MS, STEP_MS, SPREAD_MS = 15, 17, 80
"""Links take 15 to 94 ms, neighbours in the list of pairs differing enough to be told apart."""
GROWN_MS = 90_000
"""By then three confirmed nodes have been up for the minute that growth asks for."""
UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
SCRIPTS = {
    "well": Script(),
    "crashing": Script(crash_ms=3_000),
    "failing": Script(error_ppm=200_000),
    "broken": Script(smoke="failed"),
    "quiet": Script(requests_per_s=0),
}
PLANS = {
    "halves": Plan((Stage("1"), Stage("100%"))),
    "approved": Plan((Stage("1", approve=True), Stage("100%"))),
    "slow": Plan((Stage("1", min_healthy_ms=3_600_000), Stage("100%")), healthy_deadline_ms=7_200_000,
                 progress_deadline_ms=7_200_000),
}  # fmt: skip
POLICIES = {"solo": SOLO, "team": TEAM}

Arguments = list[str]


class Play:
    """One run of one transcript."""

    def __init__(self) -> None:
        self.fleet = Fleet(["n1"])
        self._names = TranscriptNames({}, {})
        self._telling = Telling(self._names)
        self._extra: list[str] = []
        self._changes: dict[str, Digest] = {}
        self._lines: dict[str, Any] = {}
        self._snapshots: dict[str, dict[Store, StoreState]] = {}
        self._asked: list[bytes] = []
        self._rejects: dict[str, int] = {}
        self._verbs: dict[str, Callable[[Arguments, dict[str, str]], None]] = {
            name.removeprefix("do_").replace("_", "-"): getattr(self, name) for name in dir(self) if name[:3] == "do_"
        }

    def command(self, line: str) -> list[str]:
        """Run one command; return its reply. Raises ValueError for one that does not exist."""
        together = [part.strip() for part in line.split("&&")]
        for part in together:
            words = shlex.split(part)
            options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            verb = self._verbs.get(words[0])
            if verb is None:
                raise ValueError(f"no such command: {part}")
            try:
                verb([word for word in words[1:] if "=" not in word], options)
            except LookupError as error:
                self._extra.append(f"{'':10}  not possible: {error}")
        world = self.fleet.world
        world.run_while(
            lambda: any(digest not in self.fleet.outcomes for digest in self._asked), world.now_ms + OUTCOME_MAX_MS
        )
        self._asked = []
        rejected = {rule: n - self._rejects.get(rule, 0) for rule, n in sorted(world.rejects.items())}
        self._rejects = dict(world.rejects)
        told = [f"{'':10}  rejected: {rule} x{count}" for rule, count in rejected.items() if count]
        reply = [*self._telling.take(), *told, *self._extra]
        self._extra = []
        return reply

    # --- the mesh -----------------------------------------------------------------------------------------------------

    def do_mesh(self, names: Arguments, options: dict[str, str]) -> None:
        """Found a mesh on the first host; certify, start and confirm the others; wait until it has grown."""
        spare = options.get("newcomers", "")
        members = [name for name in names if name not in spare.split(",")]
        config = FleetConfig(policy=POLICIES[options.get("policy", "solo")], founder=names[0])
        self.fleet = fleet = Fleet(names, int(options.get("seed", "1")), config)
        self._names = TranscriptNames(fleet.name_of, fleet.changes)
        self._telling = Telling(self._names)
        self._fix_delays()
        for name in members:
            fleet.certify(name)
            fleet.hosts[name].start()
        fleet.world.run_until(SETTLE_MS)
        for name in members[1:]:
            fleet.outcome(fleet.confirm(name, names[0]))
        for action in (CreateProject("shop"), CreateProject("blog"), CreateEnvironment("prod")):
            fleet.outcome(fleet.submit(names[0], action, "admin"))
        if len(members) > 1:
            fleet.world.run_until(GROWN_MS)
        fleet.world.observers.append(self._hear)
        self.do_show([], {})

    def _fix_delays(self) -> None:
        """Give each link its own, lasting delay: transcripts then change where behaviour does."""
        peers = list(self.fleet.peers.values())
        for number, (near, far) in enumerate(itertools.combinations(peers, 2)):
            delay_ms = FASTEST_MS + number * STEP_MS % SPREAD_MS
            self.fleet.world.network.link_delay_ms.update({(near, far): delay_ms, (far, near): delay_ms})

    def do_show(self, names: Arguments, options: dict[str, str]) -> None:
        """Where each node's chain ends, who votes, what each lane is and what runs."""
        for name, host in self.fleet.hosts.items():
            if names and name not in names:
                continue
            try:
                core = self.fleet.core(name)
            except LookupError:
                self._extra.append(f"{'':10}  {name}: {'not a member' if host.up else 'down'}")
                continue
            chain, state = core.chain, core.state
            parts = [f"head {chain.position.slot}", f"voters {self._names.voters(chain.voters)}"]
            if chain.position.resets:
                parts.append(f"resets {chain.position.resets}, unsafe")
            if not chain.speaking:
                parts.append("does not vote")
            for lane in state.lanes:
                where = f"{lane.project}/{lane.environment}"
                running = core.agent.running(lane.project, lane.environment)
                base = self._names.change(lane.base.change) if lane.base else "none"
                phase = "idle"
                if lane.rollout is not None:
                    phase = f"paused ({lane.rollout.paused})" if lane.rollout.paused else "running"
                    phase += f" {self._names.change(lane.rollout.candidate.change)}, stage {lane.rollout.stage}"
                serves = f"{self._names.change(running[0])} as {running[1]}" if running else "nothing"
                parts.append(f"{where} {phase}, base {base}, serves {serves}")
            self._extra.append(f"{'':10}  {name}: {'; '.join(parts)}")

    def do_wait(self, arguments: Arguments, options: dict[str, str]) -> None:
        """Let time pass: `wait 30s`."""
        self.fleet.world.run_until(self.fleet.world.now_ms + duration_ms(arguments[0]))

    def do_certify(self, names: Arguments, options: dict[str, str]) -> None:
        """An admin certifies a host by hand, and it starts."""
        for name in names:
            self.fleet.certify(name)
            self.fleet.hosts[name].start()

    def do_confirm(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`confirm n4 on=n1`: the admin asks the chain to confirm a node."""
        self._asked += [self.fleet.confirm(name, options["on"]) for name in arguments]

    def do_invite(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`invite KEY uses=1 on=n1`: the admin makes an invite line."""
        self._lines[arguments[0]] = self.fleet.invite(arguments[0], int(options.get("uses", "1")), options["on"])

    def do_join(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`join n2 with=KEY via=n1`: a new host starts with the line."""
        self.fleet.join(arguments[0], self._lines[options["with"]], options["with"], options["via"])

    def do_voters(self, names: Arguments, options: dict[str, str]) -> None:
        """`voters n1 n2 n4 on=n1`: the admin names the voters."""
        self._asked.append(self.fleet.replace_voters(options["on"], names))

    def do_reset(self, names: Arguments, options: dict[str, str]) -> None:
        """`reset n1 on=n1`: the admins start a new era with these voters."""
        self.fleet.reset(options["on"], names)

    def do_revoke(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`revoke node n4 on=n1` or `revoke principal bob on=n1`."""
        kind, name = arguments
        if kind == "node":
            self.fleet.revoke("node", self.fleet.signers[name].public_key, options["on"])
        else:
            self.fleet.revoke("principal", self.fleet.principal(name).public_key, options["on"])

    def do_grant(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`grant bob proposer deployer on=n1`."""
        name, *roles = arguments
        self.fleet.grant(name, tuple(roles), options["on"])  # type: ignore[arg-type]

    # --- faults -------------------------------------------------------------------------------------------------------

    def do_partition(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`partition n1,n2 n3`: groups that do not hear each other."""
        groups = [[self.fleet.peers[name] for name in group.split(",")] for group in arguments]
        network = self.fleet.world.network
        for index, group in enumerate(groups):
            others = [peer for number, other in enumerate(groups) if number != index for peer in other]
            for near in group:
                network.cut.update({(near, far): self.fleet.world.now_ms for far in others})

    def do_heal(self, arguments: Arguments, options: dict[str, str]) -> None:
        """End every partition."""
        self.fleet.world.network.cut.clear()

    def do_stop(self, names: Arguments, options: dict[str, str]) -> None:
        """Switch hosts off."""
        for name in names:
            self.fleet.hosts[name].crash("stopped")

    def do_boot(self, names: Arguments, options: dict[str, str]) -> None:
        """Start hosts after a reboot of their operating systems."""
        for name in names:
            self.fleet.hosts[name].start(runtime_folder_kept=False)

    def do_restart(self, names: Arguments, options: dict[str, str]) -> None:
        """Restart the process alone; the operating system stays up."""
        for name in names:
            self.fleet.hosts[name].crash("restart")
            self.fleet.hosts[name].start()

    def do_lose_disk(self, names: Arguments, options: dict[str, str]) -> None:
        """Give hosts empty disks; their keys and certificates are kept elsewhere."""
        for name in names:
            self.fleet.hosts[name].crash("disk lost")
            for store in Store:
                self.fleet.hosts[name].disk.lose(store)
            self.fleet.hosts[name].start(runtime_folder_kept=False)

    def do_snapshot(self, names: Arguments, options: dict[str, str]) -> None:
        """Take a snapshot of a host's whole disk."""
        for name in names:
            self._snapshots[name] = copy.deepcopy(self.fleet.hosts[name].disk.stores)

    def do_restore(self, names: Arguments, options: dict[str, str]) -> None:
        """Boot a host from its snapshot; `only=vote` restores one store and leaves the rest."""
        for name in names:
            host = self.fleet.hosts[name]
            host.crash("restore")
            for store, state in copy.deepcopy(self._snapshots[name]).items():
                if options.get("only", store.value) == store.value:
                    host.disk.stores[store] = state
            host.start(runtime_folder_kept="only" in options)

    def do_clock(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`clock n3 1h` sets one wall clock ahead; `clock all 31d` lets calendar time pass for everybody."""
        name, ahead = arguments
        for host in self.fleet.hosts.values():
            if name in ("all", host.name):
                host.clock.jump(duration_ms(ahead))

    # --- records ------------------------------------------------------------------------------------------------------

    def do_write(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`write n2 TEXT`: a node writes evidence, a record that may be removed."""
        name, text = arguments
        self.fleet.publish(name, *self.fleet.note(text))

    def do_remove(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`remove n2 TEXT`: a node writes the tombstone of that record."""
        name, text = arguments
        self.fleet.end_note(text, name)

    def do_records(self, texts: Arguments, options: dict[str, str]) -> None:
        """Which nodes hold these records, and whether all nodes hold the same."""
        cores = self.fleet.cores()
        for text in texts:
            held = {name: core.records.store.entries.get(self.fleet.note(text)[0]) for name, core in cores}
            says = [f"{name} {'a tombstone' if e.record.tombstone else 'yes'}" if e else f"{name} no"
                    for name, e in held.items()]  # fmt: skip
            self._extra.append(f"{'':10}  {text}: {', '.join(says)}")
        equal = len({core.records.store.trie.root() for _, core in cores}) == 1
        self._extra.append(f"{'':10}  sets are {'equal' if equal else 'different'}")

    # --- the change path ----------------------------------------------------------------------------------------------

    def do_propose(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`propose blue by=bob on=n1 [script=crashing] [plan=halves] [project=shop]`."""
        lane = (options.get("project", "shop"), "prod")
        script, plan = SCRIPTS[options.get("script", "well")], PLANS[options.get("plan", "halves")]
        change = self.fleet.propose(arguments[0], options["by"], options["on"], lane, script, plan)
        self._changes[arguments[0]] = change

    def do_approve(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`approve blue by=ann on=n1`."""
        self.fleet.approve(self._changes[arguments[0]], options["by"], options["on"])

    def do_start(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`start blue by=bob on=n1 [supersede=yes]`."""
        change = self._changes[arguments[0]]
        self._asked.append(self.fleet.start(change, options["by"], options["on"], supersede="supersede" in options))

    def do_deploy(self, arguments: Arguments, options: dict[str, str]) -> None:
        """Propose, start and wait for the end, told in short."""
        fleet, by, via = self.fleet, options.get("by", "admin"), options.get("on", "n1")
        self.fleet.world.observers.remove(self._hear)
        self.do_propose(arguments, {**options, "by": by, "on": via})
        fleet.world.run_until(fleet.world.now_ms + SETTLE_MS)
        self.do_start(arguments, {"by": by, "on": via})
        fleet.world.run_until(fleet.world.now_ms + GROWN_MS)
        self.fleet.world.observers.append(self._hear)
        self.do_show([via], {})

    def do_promote(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`promote by=ann on=n1`: a person takes the stage that waits for one further."""
        core = self.fleet.core(options["on"])
        lane = core.state.lane("shop", "prod")
        assert lane is not None
        assert lane.rollout is not None
        statements = core.agent.conductor.statements(lane.rollout.id, lane.rollout.opened)
        self._lane(Promote(lane.rollout.id, lane.rollout.stage), options, statements)

    def do_abort(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`abort by=bob on=n1`."""
        self._lane(Abort(self._rollout(options), "an operator says so"), options)

    def do_resume(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`resume by=bob on=n1`."""
        self._lane(Resume(self._rollout(options)), options)

    def do_rollback(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`rollback blue by=bob on=n1`: return to an earlier change, at once."""
        self._lane(Rollback(self._changes[arguments[0]], "it was better"), options)

    def do_claim(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`claim shop example.org/cart by=admin on=n1`."""
        project, *routes = arguments
        claimed = tuple(Route(*_host_and_path(route)) for route in routes)
        self._lane(ClaimRoutes(claimed), {**options, "project": project})

    def do_create_project(self, arguments: Arguments, options: dict[str, str]) -> None:
        """`create-project NAME by=admin on=n1`."""
        self._asked.append(self.fleet.submit(options["on"], CreateProject(arguments[0]), options["by"]))

    def _lane(self, action: Action, options: dict[str, str], statements: tuple[bytes, ...] = ()) -> None:
        lane = (options.get("project", "shop"), "prod")
        shown = self.fleet.exhibit(statements)
        self._asked.append(self.fleet.submit(options["on"], action, options["by"], lane=lane, shown=shown))

    def _rollout(self, options: dict[str, str]) -> Digest:
        lane = self.fleet.core(options["on"]).state.lane("shop", "prod")
        assert lane is not None
        assert lane.rollout is not None, "no rollout is under way"
        return lane.rollout.id

    def _hear(self, host: Host, event: Any) -> None:
        self._telling.hear(self.fleet.world.now_ms, host.name, event)


def replay(text: str) -> str:
    """Run the commands of a transcript; return it with the replies of this run."""
    play, out = Play(), []
    for line in text.splitlines():
        if line.startswith(PROMPT):
            out += ["", line, *play.command(line.removeprefix(PROMPT))]
        elif line.startswith("#"):
            out += [line] if not out or out[-1].startswith("#") else ["", line]
    return "\n".join(out) + "\n"


def duration_ms(text: str) -> int:
    """Read "30s", "5m", "1h" or "31d". Raises ValueError."""
    number = text.rstrip("msdh")
    unit = text[len(number) :]
    if unit not in UNITS_MS:
        raise ValueError(f"not a duration: {text}")
    return int(number) * UNITS_MS[unit]


def _host_and_path(route: str) -> tuple[str, str]:
    host, slash, path = route.partition("/")
    return host, slash + path if slash else "/"
