"""A fleet of chain machines in one world: hosts, their clients, the faults that belong to chains, and an operator.

The chain runs here alone, over a tiny state machine, which makes it quick enough for many seeds; the composed node runs
in simulation/mesh/fleet.py. The operator does what a person would after the faults: replace lost stores through the chain
while a majority lives, and reset it when none does. Not here: judging (checkers.py), and what a run is (run.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

from protocols.chain.acceptor import founding_effects, load_acceptor
from protocols.chain.ballots import Proposal
from protocols.chain.chain import Chain
from protocols.chain.context import ChainSetup, Stored
from protocols.chain.decision import RESET_DOMAIN, Reset, ResetTo, Voter
from protocols.chain.fence import FENCE_TABLE, is_same_boot, newest_fence
from protocols.chain.messages import Booted, Outcome, Quarantined, Read, ReadDone, Submit, SubmitReset
from protocols.chain.pacing import ChainTimes
from protocols.chain.quorum import boot_quorum, majority
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import peer_id
from protocols.machine import Effect, Machine, PeerId, Persist, Store
from protocols.refusal import Refusal
from simulation.chain.checkers import ChainChecker, ClientChecker, ClientOperation
from simulation.chain.liars import ForgetfulChain
from simulation.chain.plan import ChainPlan
from simulation.chain.toy_state import Add, CounterMachine, SetTarget, SetToyRules, counter
from simulation.world.clock import WALL_START_MS
from simulation.world.entropy import stream
from simulation.world.faults import Fault, Faults
from simulation.world.world import Boot, Host, World

NAMES = ("a", "b", "c")
NARROW = "c"
RULES_VERSION = 2
TIMES = ChainTimes(retry_max_ms=4_000, submit_ms=8_000, gossip_ms=2_000, ready_ms=2_000, growth_ms=4_000)
"""Timers scaled for runs of a minute; those bound by the network's delay are as in production."""
MakeChain = Callable[[ChainSetup, Stored], Chain]


class ChainFleet:
    """One world of chains, made from a plan."""

    def __init__(self, plan: ChainPlan, make_chain: MakeChain = Chain, keep_trace: bool = False) -> None:
        self.plan = plan
        self.world = World(plan.seed, plan.links, keep_trace)
        self.mesh = bytes(digest(b"simulated mesh %d" % plan.seed))
        self._make_chain = make_chain
        self._source = stream(plan.seed, "fleet")
        self._signers = {f"n{index}": self.world.keys.signer(f"n{index}") for index in range(plan.host_count)}
        self._peers = {name: peer_id(signer.public_key) for name, signer in self._signers.items()}
        self._admin = self.world.keys.signer("admin")
        self._runtime_copy: dict[str, bytes] = {}
        self.revoked: dict[PeerId, int] = {}
        self._state_machines: dict[str, CounterMachine] = {}
        founders = tuple(
            sorted(Voter(self._peers[f"n{index}"], b"store-%010d" % index) for index in range(plan.founder_count))
        )
        self._founders = founders
        self.checker = ChainChecker(self.world, self.mesh, self.make_state_machine(), self.world.keys)
        self.clients = ClientChecker(lambda command: digest(command) in self.checker.commands)
        self.checker.on_reset.append(self.clients.era_changed)
        if plan.liar:
            self.checker.excused.add(self._peers["n0"])
            self.checker.fork_excused = True
            self.clients.excused = True
        self.world.persist_watchers.append(self._keep_runtime_copy)
        self.world.observers.append(self._answered)
        self.faults = Faults(
            self.world,
            {
                "rollback_both": self._roll_back_both,
                "revoke": self._revoke,
                "view": self._narrow_view,
                "lapse": self._lapse,
                "old_version": self._run_old_version,
                "raise_rules": self._raise_rules,
            },
        )
        self._narrow: set[str] = set()
        self._old: set[str] = set()
        self._operation_count = 0
        for name in self._signers:
            self._add_host(name)

    # --- hosts --------------------------------------------------------------------------------------------------------

    def make_state_machine(self, rules_version: int = RULES_VERSION) -> CounterMachine:
        """Return the state machine every host has alike, but for the rules it knows."""
        return CounterMachine(
            self.mesh,
            self._founders,
            self.world.keys,
            candidates=tuple(sorted(self._peers.values())),
            admins=(self._admin.public_key,),
            target=self.plan.target,
            rules_version=rules_version,
        )

    def _add_host(self, name: str) -> None:
        host = self.world.add_host(name, self._peers[name], self._make_machine)
        for voter in self._founders:
            if voter.node == host.peer:
                for effect in founding_effects(voter.store_id):
                    assert isinstance(effect, Persist)
                    host.disk.apply(effect.store, effect.writes)
                    self._keep_runtime_copy(host, effect)
        self.world.at(0, host.start)

    def _make_machine(self, boot: Boot) -> Machine[Any, Effect]:
        host = boot.host
        if not boot.runtime_folder_kept:
            self._runtime_copy.pop(host.name, None)
        slots = (boot.fence or {}).get(FENCE_TABLE, {})
        same = is_same_boot(self._runtime_copy.get(host.name, b""), slots)
        rules_version = RULES_VERSION - 1 if host.name in self._old else RULES_VERSION
        machine = self._state_machines[host.name] = self.make_state_machine(rules_version)
        if host.name in self._narrow:
            machine.fresh_refusals = {NARROW: Refusal("view.narrow", "this voter's view forbids it")}
        setup = ChainSetup(
            self.mesh, host.peer, boot.boot_nonce, self._signers[host.name], self.world.keys, boot.entropy,
            machine, self.revoked.__contains__, TIMES,
        )  # fmt: skip
        make = ForgetfulChain if host.peer in self.checker.excused else self._make_chain
        chain = make(setup, Stored(boot.vote, boot.fence, same))
        self.world.after(0, host.receive, Booted(), host.boot_count)
        return chain

    def _keep_runtime_copy(self, host: Host, effect: Persist) -> None:
        if effect.store is Store.FENCE:
            self._runtime_copy[host.name] = effect.writes[0].value or b""

    def chain_of(self, host: Host) -> Chain | None:
        """Return the machine a host runs now."""
        machine = host.machine
        return machine if isinstance(machine, Chain) else None

    # --- faults of chains ---------------------------------------------------------------------------------------------

    def _roll_back_both(self, fault: Fault) -> None:
        """Take a whole machine back to a snapshot; never two at once, and never the only voter: stated limits."""
        host = self.world.hosts[fault.hosts[0]]
        for other in self.world.hosts:
            chain = self.chain_of(other)
            if chain is None or (chain.record.recovering and other is not host):
                return
        chain = self.chain_of(host)
        if chain is None or self._was_sole(chain, fault.amount):
            return
        host.crash(fault.kind)
        host.disk.roll_back(Store.VOTE, fault.amount)
        # A snapshot is of one moment: the fence goes back to what the database knows.
        while self._fence_ahead(host) and host.disk.roll_back(Store.FENCE, 1):
            pass
        self.checker.disk_fault(host)
        self.world.after(fault.duration_ms, host.start, False)

    @staticmethod
    def _was_sole(chain: Chain, batch_count: int) -> bool:
        """Whether going back so far may end where there was but one voter, which has nobody to ask: a stated limit."""
        head = chain.position.slot
        slots = range(max(1, head - batch_count), head + 2)
        return head <= batch_count or any(len(chain.ledger.voters_at(slot)) == 1 for slot in slots)

    @staticmethod
    def _fence_ahead(host: Host) -> bool:
        loaded = load_acceptor(host.disk.stores[Store.VOTE].tables)
        fence = newest_fence(host.disk.stores[Store.FENCE].tables.get(FENCE_TABLE, {}))
        return loaded is not None and fence is not None and fence.counter > loaded[0].counter

    def _lapse(self, fault: Fault) -> None:
        """Cut one host off just as another is taken back: what only those two knew is at stake."""
        if len(fault.hosts) < 2:
            return
        self.faults.perform(replace(fault, kind="isolate"))
        self._roll_back_both(replace(fault, hosts=fault.hosts[1:], amount=1 + fault.amount % 6, duration_ms=200))

    def _run_old_version(self, fault: Fault) -> None:
        """Start a host with the release before, for a while: it may not follow once rules were raised."""
        host = self.world.hosts[fault.hosts[0]]
        self._old.add(host.name)
        host.crash(fault.kind)
        host.start()
        self.world.after(fault.duration_ms, self._update, host)

    def _update(self, host: Host) -> None:
        if host.name in self._old:
            self._old.remove(host.name)
            host.crash("updated")
            host.start()

    def update_all(self) -> None:
        """Give every host the newest release."""
        for host in self.world.hosts:
            self._update(host)

    def _raise_rules(self, fault: Fault) -> None:
        """Ask for the rules that the newest release brings."""
        host = self.world.hosts[fault.hosts[0]]
        if host.up:
            self.command(host, encode(SetToyRules(self._next_id(), RULES_VERSION)))

    def _revoke(self, fault: Fault) -> None:
        """Revoke one node; every other hears of it at once. Never so many that no majority of voters is left."""
        host = self.world.hosts[fault.hosts[0]]
        if len(self.revoked) + 1 < majority(self.plan.host_count) and self.plan.host_count > 3:
            self.revoked[host.peer] = self.world.now_ms
            self.checker.revoked[host.peer] = self.world.now_ms

    def _narrow_view(self, fault: Fault) -> None:
        """From now on this host's own view forbids fresh additions to one counter, until the end."""
        host = self.world.hosts[fault.hosts[0]]
        self._narrow.add(host.name)
        machine = self._state_machines.get(host.name)
        if machine is not None:
            machine.fresh_refusals = {NARROW: Refusal("view.narrow", "this voter's view forbids it")}

    # --- clients ------------------------------------------------------------------------------------------------------

    def start_workload(self, end_ms: int) -> None:
        """Let each client do one operation after another, through hosts of its own choice, until `end_ms`."""
        for index in range(self.plan.client_count):
            source = stream(self.plan.seed, f"client/{index}")
            self.world.at(source.randrange(500, 2_000), self._client_step, source, end_ms)

    def _client_step(self, source: random.Random, end_ms: int) -> None:
        if self.world.now_ms >= end_ms:
            return
        host = source.choice(self.world.hosts)
        kind = source.random()
        name = source.choice(NAMES)
        if host.up:
            if kind < 0.25:
                self.read(host, name)
            else:
                chain = self.chain_of(host)
                assert chain is not None
                expect = counter(chain.state, name) if kind > 0.8 else -1
                self.write(host, name, source.randint(1, 9), expect)
        self.world.after(source.randint(50, self.plan.pause_max_ms), self._client_step, source, end_ms)

    def write(self, host: Host, name: str, amount: int, expect: int = -1) -> ClientOperation:
        """Submit one addition through a host."""
        operation_id = self._next_id()
        command = encode(Add(operation_id, name, amount, expect))
        operation = ClientOperation(
            operation_id, "write", host.name, self.world.now_ms, 0, command, name=name, amount=amount
        )  # fmt: skip
        self.clients.invoke(operation)
        host.receive(Submit(operation_id, command), host.boot_count)
        return operation

    def _again(self, operation: ClientOperation) -> None:
        """A client that does not know asks again, through another host, with the same command."""
        host = self._source.choice(self.world.hosts)
        if host.up and not self.faults.healed:
            again = ClientOperation(
                self._next_id(), "write", host.name, self.world.now_ms, 0, operation.command, name="again"
            )
            self.clients.invoke(again)
            again.retry = True
            host.receive(Submit(again.id, again.command), host.boot_count)

    def read(self, host: Host, name: str) -> ClientOperation:
        """Read one counter through a host."""
        operation = ClientOperation(self._next_id(), "read", host.name, self.world.now_ms, 0, name=name)
        self.clients.invoke(operation)
        host.receive(Read(operation.id), host.boot_count)
        return operation

    def command(self, host: Host, command: bytes, material: tuple[bytes, ...] = ()) -> ClientOperation:
        """Submit any other command through a host."""
        operation = ClientOperation(self._next_id(), "write", host.name, self.world.now_ms, 0, command)
        self.clients.invoke(operation)
        host.receive(Submit(operation.id, command, material), host.boot_count)
        return operation

    def _next_id(self) -> bytes:
        self._operation_count += 1
        return b"op-%d" % self._operation_count

    def _answered(self, host: Host, event: Any) -> None:
        match event:
            case Outcome():
                operation = self.clients.take(event.request_id)
                if operation is not None:
                    self.world.counts[f"outcome {event.outcome}"] += 1
                    self.clients.returned(operation, self.world.now_ms, event.outcome, event.slot)
                    if event.outcome == "unknown" and operation.name in NAMES:
                        self.world.after(self._source.randint(1, 2_000), self._again, operation)
            case ReadDone():
                operation = self.clients.take(event.request_id)
                if operation is not None:
                    self.world.counts["reads"] += event.slot >= 0
                    chain = self.chain_of(host)
                    if chain is not None and event.slot >= 0:
                        operation.value = counter(chain.state, operation.name)
                        operation.value_slot = chain.position.slot
                    outcome = "read" if event.slot >= 0 else "unknown"
                    self.clients.returned(operation, self.world.now_ms, outcome, event.slot)
            case Quarantined():
                self.world.counts["quarantines"] += 1
                self.checker.disk_fault(host)
            case _:
                pass

    # --- the operator -------------------------------------------------------------------------------------------------

    def change_target(self, target: int) -> None:
        """Ask for another number of voters."""
        up = [host for host in self.world.hosts if host.up]
        if up:
            self.command(self._source.choice(up), encode(SetTarget(self._next_id(), target)))

    def majority_lost(self) -> bool:
        """Whether no majority of the newest voters can ever speak again with its stores."""
        chains = [chain for host in self.world.hosts if (chain := self.chain_of(host)) is not None]
        newest = max(chains, key=lambda chain: (chain.position.resets, chain.position.slot))
        alive = [
            chain
            for chain in chains
            if Voter(chain.node, chain.store_id) in newest.voters
            and chain.node not in self.revoked
            and chain.store_id not in newest.liars
        ]
        count = len(newest.voters)
        trusted = [chain for chain in alive if not chain.record.recovering]
        if len(trusted) >= majority(count):
            return False
        return len(alive) < majority(count) or len(alive) - 1 < boot_quorum(count)

    def fork_stands(self) -> bool:
        """Whether two hosts hold different entries for one slot of one era."""
        chains = [chain for host in self.world.hosts if (chain := self.chain_of(host)) is not None]
        for entry, other in combinations(chains, 2):
            slot = min(entry.position.slot, other.position.slot)
            same_era = entry.position.era == other.position.era
            if same_era and entry.ledger.digest_at(slot) != other.ledger.digest_at(slot):
                return True
        return False

    def liar_proven(self) -> bool:
        """Whether an honest node holds a proof of a lie."""
        honest = [host for host in self.world.hosts if host.peer not in self.checker.excused]
        return any(chain.liars for host in honest if (chain := self.chain_of(host)) is not None)

    def left_open(self) -> bool:
        """Whether a voter that can speak, and is heard, holds an accepted decision that nobody decided."""
        chains = [chain for host in self.world.hosts if (chain := self.chain_of(host)) is not None]
        heard = [chain for chain in chains if chain.speaking and chain.node not in self.revoked]
        return any(chain.record.accepted_digest for chain in heard)

    def reset(self) -> None:
        """Sign a new era from the newest head, with hosts that are up as voters; proven liars only if there are too few."""
        up = [host for host in self.world.hosts if self.chain_of(host) is not None and host.peer not in self.revoked]
        newest = max(up, key=self._head_key)
        chain = self.chain_of(newest)
        assert chain is not None
        size = 3 if len(up) >= 3 else 1
        told = [proof.statements()[0] for proof in chain.liars.values()]
        lied = {entry.ballot.node if isinstance(entry, Proposal) else entry.node for entry in told}
        up.sort(key=lambda host: host.peer in lied)
        voters = tuple(sorted(self._voter_of(host) for host in up[:size]))
        head = chain.position
        reset = Reset(self.mesh, head.resets + 1, head.slot + 1, head.digest, WALL_START_MS, voters, "majority lost")
        approval: Signed = sign(self._admin, RESET_DOMAIN, self.mesh, reset)
        self.world.counts["resets"] += 1
        newest.receive(SubmitReset(encode(ResetTo(approval.payload, (approval,)))), newest.boot_count)

    def _voter_of(self, host: Host) -> Voter:
        chain = self.chain_of(host)
        assert chain is not None
        return Voter(host.peer, chain.store_id)

    def _head_key(self, host: Host) -> tuple[int, int]:
        chain = self.chain_of(host)
        assert chain is not None
        return chain.position.resets, chain.position.slot
