"""The composed core: what arrives is judged by its sender's standing, what leaves by the receiver's and our own."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from protocols.chain.messages import Head, Ready
from protocols.changes.statements import Prepared, state_it
from protocols.core import FAMILY_OF, CoreMessage, decode_message
from protocols.envelope import DecodeError, digest, encode
from protocols.liveness import LivePing
from protocols.machine import Broadcast, Digest, Disconnect, Notify, PeerConnected, PeerId, Received, Reject, Send, Tick
from protocols.records.credentials import revocation_record
from protocols.records.gossip import Publish, PublishRefused, RecordsForgotten, RecordsVoided
from protocols.rollout.orders import ChangeProposed, PreparationDone, RolloutStatement
from protocols.state.commands import CreateEnvironment, CreateProject
from protocols.state.model import MeshState
from protocols.trust.hello import ChainHead, Echo, Hello, Refused
from protocols.trust.revocations import Revocation, sign_revocation
from protocols.trust.store import Standing
from simulation.mesh.fleet import Fleet
from simulation.world.clock import WALL_START_MS


def grown(names: tuple[str, ...] = ("n1", "n2", "n3"), confirmed: int = 3) -> Fleet:
    """A fleet whose hosts are linked; the first `confirmed` are members."""
    fleet = Fleet(names, seed=4)
    for name in names:
        fleet.certify(name)
        fleet.hosts[name].start()
    fleet.world.run_until(3_000)
    for name in names[1:confirmed]:
        assert fleet.outcome(fleet.confirm(name, names[0])) is not None
    fleet.world.run_until(8_000)
    return fleet


def hand_over(fleet: Fleet, name: str, sender: str, message: Any) -> list[Any]:
    host = fleet.hosts[name]
    return fleet.core(name).handle(Received(fleet.peers[sender], message), host.clock.now(fleet.world.now_ms))


def sent(fleet: Fleet, *kinds: type) -> list[tuple[str, str]]:
    """Watch who sends messages of this kind to whom, from now on."""
    seen: list[tuple[str, str]] = []

    def watch(near: PeerId, far: PeerId, message: Any) -> None:
        if isinstance(message, kinds):
            seen.append((fleet.name_of[near], fleet.name_of[far]))

    fleet.world.network.send_watchers.append(watch)
    return seen


def test_every_message_has_a_family_and_bytes_that_are_none_are_refused() -> None:
    kinds = {kind for union in get_args(CoreMessage) for kind in (get_args(union) or (union,))}
    assert kinds == set(FAMILY_OF)
    with pytest.raises(DecodeError):
        decode_message(b"\x00")
    assert decode_message(encode(LivePing(1))) == LivePing(1)


def test_a_message_of_no_family_is_rejected_with_the_peer_named() -> None:
    fleet = grown()
    assert hand_over(fleet, "n1", "n2", object()) == [Reject(fleet.peers["n2"], "core.unknown-message")]


def test_a_peer_that_is_not_admitted_may_say_hello_and_nothing_else() -> None:
    fleet = Fleet(("n1", "n2"), seed=1)
    fleet.certify("n1")
    fleet.hosts["n1"].start()
    effects = hand_over(fleet, "n1", "n2", LivePing(1))
    assert [type(effect) for effect in effects] == [Reject]
    assert effects[0].rule == "hello.not-connected"


def test_an_invited_node_reads_the_chain_but_takes_no_part_in_it() -> None:
    fleet = grown(confirmed=2)
    core = fleet.core("n1")
    newcomer = fleet.peers["n3"]
    assert core.hello.standing(newcomer) is Standing.JOINED
    statement = core.chain._growing.statement()
    (refused,) = hand_over(fleet, "n1", "n3", Ready(statement))
    assert (refused.peer, refused.rule) == (newcomer, "core.not-allowed")
    answers = hand_over(fleet, "n1", "n3", Head(fleet.core("n2").chain.ledger.position))
    assert not any(isinstance(answer, Reject) for answer in answers)
    assert fleet.core("n3").chain.position == core.chain.position


def test_an_invited_node_does_not_even_try_to_take_part() -> None:
    fleet = grown(confirmed=2)
    tried = sent(fleet, Ready, RolloutStatement)
    core = fleet.core("n3")
    statement = RolloutStatement(
        state_it(fleet.signers["n3"], fleet.mesh, Prepared(b"c" * 32, b"", "absent")),
    )
    assert core._readers(statement) == []
    fleet.world.run_until(60_000)
    assert [pair for pair in tried if pair[0] == "n3"] == []
    assert fleet.world.rejects == {}


def test_news_of_rollouts_go_to_members_only() -> None:
    fleet = grown(confirmed=2)
    statement = RolloutStatement(state_it(fleet.signers["n1"], fleet.mesh, Prepared(b"c" * 32, b"", "absent")))
    assert fleet.core("n1")._readers(statement) == [fleet.peers["n2"]]


def test_nothing_but_hello_leaves_for_a_peer_that_is_not_admitted() -> None:
    fleet = grown()
    fleet.world.run_until(80_000)
    assert len(fleet.core("n1").chain.voters) == 3
    before = dict(fleet.world.rejects)
    host = fleet.hosts["n3"]
    host.crash("reboot")
    host.start(runtime_folder_kept=False)
    fleet.world.run_until(fleet.world.now_ms + 1)
    assert not fleet.core("n3").chain.speaking, "it must read what it may have forgotten"
    fleet.world.run_until(fleet.world.now_ms + 5_000)
    assert fleet.core("n3").chain.speaking
    assert dict(fleet.world.rejects) == before, "its boot read did not reach anybody before its hello"


def test_who_founded_and_who_was_certified_by_hand_publish_their_certificates() -> None:
    fleet = grown()
    fleet.world.run_until(60_000)
    for _, core in fleet.cores():
        subjects = {
            e.parsed.parts[0] for e in core.records.store.entries.values() if e.parsed.rule.prefix == "certificate"
        }
        assert subjects == set(fleet.peers.values())


def test_a_newcomer_shows_the_whole_trail_of_its_admission() -> None:
    fleet = Fleet(("n1", "n2"), seed=2)
    fleet.certify("n1")
    fleet.hosts["n1"].start()
    fleet.world.run_until(1_000)
    fleet.join("n2", fleet.invite("door", 1, "n1"), "door", "n1")
    fleet.world.run_until(40_000)
    for _, core in fleet.cores():
        prefixes = sorted(e.parsed.rule.prefix for e in core.records.store.entries.values())
        assert prefixes.count("admission") == 1
        assert prefixes.count("certificate") == 2
    assert fleet.core("n1").hello.standing(fleet.peers["n2"]) is Standing.MEMBER
    assert sorted(node.invite_use for node in fleet.core("n1").state.nodes) == [-1, 0], "the founder, and use 0"


def test_a_revoked_peer_is_hung_up_on_everywhere_and_its_later_word_does_not_count() -> None:
    fleet = grown()
    fleet.publish("n3", f"/status/{fleet.peers['n3']}", b"fine")
    fleet.world.run_until(10_000)
    fleet.revoke("node", fleet.signers["n3"].public_key, "n1")
    fleet.world.run_until(10_500)
    for name in ("n1", "n2"):
        core = fleet.core(name)
        assert core.hello.standing(fleet.peers["n3"]) is None
        assert f"/status/{fleet.peers['n3']}" not in core.records.store.entries, "above the cutoff"
        assert core.agent.conductor._revoked(fleet.peers["n3"])
    assert fleet.world.rejects["hello.revoked"] >= 2


def test_the_chain_waits_longer_on_a_slow_network_before_it_has_samples_of_its_own() -> None:
    fleet = grown()
    fleet.world.network.faults.delay_min_ms = fleet.world.network.faults.delay_max_ms = 400
    fleet.world.run_until(60_000)
    core = fleet.core("n1")
    assert core.liveness.rtt_high_ms() >= 800
    assert core.chain._at.pacer.network_ms == int(core.liveness.rtt_high_ms())
    assert core.chain._at.pacer.base_ms >= 3_200


def test_a_restart_brings_back_records_chain_and_standing() -> None:
    fleet = grown()
    fleet.publish("n2", f"/status/{fleet.peers['n2']}", b"fine")
    fleet.world.run_until(9_000)
    head = fleet.core("n2").chain.position
    fleet.hosts["n2"].crash("restart")
    fleet.hosts["n2"].start()
    core = fleet.core("n2")
    assert core.chain.position == head
    assert core.trust.standing(core.node, 1_800_000_000_000) is Standing.MEMBER
    assert f"/status/{fleet.peers['n2']}" in core.records.store.entries
    assert isinstance(core.state, MeshState)


def test_a_peer_that_restarts_before_its_old_connection_is_missed_hears_again_what_is_said_once() -> None:
    fleet = grown()
    core, there = fleet.core("n1"), fleet.core("n2")
    change, now = digest(b"change"), fleet.hosts["n1"].clock.now(fleet.world.now_ms)
    for event in (ChangeProposed("shop", "prod", change, b""), PreparationDone(change, True)):
        core.agent.handle(event, now)
    assert core.agent.conductor.prepared_nodes(change) == (core.node,)
    (asked,) = [entry.message for entry in core.handle(PeerConnected(there.node, True), now) if isinstance(entry, Send)]
    papers = there.trust.credentials(there.node)
    hello = Hello(core.trust.mesh, 1, 1, b"new life", b"c" * 16, ChainHead(), papers)
    core.handle(Received(there.node, hello), now)
    effects = core.handle(Received(there.node, Echo(asked.challenge, b"new life")), now)
    said = [
        effect.peer for effect in effects if isinstance(effect, Send) and isinstance(effect.message, RolloutStatement)
    ]
    assert said == [there.node]
    again = core.handle(Received(there.node, hello), now)
    assert not any(isinstance(entry.message, RolloutStatement) for entry in again if isinstance(entry, Send)), (
        "once a life"
    )


def test_a_tick_reaches_the_machines_that_are_due_and_the_next_one_is_known() -> None:
    fleet = grown()
    core = fleet.core("n1")
    now = fleet.hosts["n1"].clock.now(fleet.world.now_ms + 3_000)
    effects = core.handle(Tick(), now)
    assert any(isinstance(effect, Send) and isinstance(effect.message, LivePing) for effect in effects)
    due_ms = core.deadline_ms()
    assert due_ms is not None
    assert due_ms > fleet.world.now_ms


def test_who_is_refused_stops_talking_and_does_not_time_out_later() -> None:
    fleet = grown()
    now = fleet.hosts["n1"].clock.now(fleet.world.now_ms)
    core = fleet.core("n1")
    effects = core.handle(Received(fleet.peers["n2"], Refused("hello.revoked", "you")), now)
    assert any(isinstance(effect, Disconnect) for effect in effects)
    later = fleet.hosts["n1"].clock.now(fleet.world.now_ms + 60_000)
    assert not any(isinstance(entry, Reject) for entry in core.handle(Tick(), later))


def test_who_is_confirmed_hears_what_was_said_once_while_it_was_only_invited() -> None:
    fleet = grown(confirmed=2)
    core, change = fleet.core("n1"), digest(b"change")
    assert core.hello.standing(fleet.peers["n3"]) is Standing.JOINED
    for event in (ChangeProposed("shop", "prod", change, b""), PreparationDone(change, True)):
        said = core.agent.handle(event, fleet.hosts["n1"].clock.now(fleet.world.now_ms))
    assert core._readers(next(entry.message for entry in said if isinstance(entry, Broadcast))) == [fleet.peers["n2"]]
    assert fleet.outcome(fleet.confirm("n3", "n1")) is not None
    fleet.world.run_until(12_000)
    assert core.hello.standing(fleet.peers["n3"]) is Standing.MEMBER
    assert fleet.core("n3").agent.conductor.prepared_nodes(change) == (core.node,)


def in_a_line() -> tuple[Fleet, Digest]:
    """Four members of which each is connected to its neighbours only, and a change that all have prepared."""
    fleet = grown(("n1", "n2", "n3", "n4"), confirmed=4)
    line = list(fleet.peers.values())
    fleet.world.may_connect = lambda near, far: abs(line.index(near.peer) - line.index(far.peer)) == 1
    for place, near in enumerate(line):
        for far in line[place + 2 :]:
            fleet.world.network.disconnect(near, far, "no way there")
    for action in (CreateProject("shop"), CreateEnvironment("prod")):
        outcome = fleet.outcome(fleet.submit("n1", action, "admin"))
        assert outcome is not None
        assert outcome.outcome == "decided"
    fleet.world.run_until(fleet.world.now_ms + 70_000)
    return fleet, fleet.propose("one", "admin", "n1")


def unaware(fleet: Fleet, change: Digest) -> list[str]:
    every = tuple(sorted(fleet.peers.values()))
    return [name for name, core in fleet.cores() if core.agent.conductor.prepared_nodes(change) != every]


def test_what_a_node_says_reaches_nodes_that_it_is_not_connected_to_at_once_and_each_once() -> None:
    fleet, change = in_a_line()
    told = sent(fleet, RolloutStatement)
    fleet.world.run_until(fleet.world.now_ms + 3_000)
    assert unaware(fleet, change) == []
    # Each of four words crosses each of three links.
    assert len(told) == 4 * 3


def test_what_a_node_said_once_reaches_everybody_though_messages_are_lost_and_nobody_says_it_again() -> None:
    fleet, change = in_a_line()
    lost = sent(fleet, RolloutStatement)
    fleet.world.network.faults.loss = 0.5
    fleet.world.run_until(fleet.world.now_ms + 10_000)
    assert lost
    assert unaware(fleet, change) != []
    fleet.world.network.faults.loss = 0.1
    assert fleet.world.run_while(lambda: bool(unaware(fleet, change)), fleet.world.now_ms + 400_000)


def test_in_a_full_mesh_every_word_crosses_every_link_once() -> None:
    fleet = grown()
    for action in (CreateProject("shop"), CreateEnvironment("prod")):
        fleet.outcome(fleet.submit("n1", action, "admin"))
    told = sent(fleet, RolloutStatement)
    change = fleet.propose("one", "admin", "n1")
    fleet.world.run_until(fleet.world.now_ms + 3_000)
    assert unaware(fleet, change) == []
    assert sorted(told) == [(near, far) for near in sorted(fleet.peers) for far in sorted(fleet.peers) if near != far]


def test_the_next_deadline_is_the_earliest_of_all_machines_whatever_moved_them() -> None:
    fleet, _ = in_a_line()
    for host, core in ((fleet.hosts[name], core) for name, core in fleet.cores()):
        fleet.world.after(500, host.receive, Publish("/status/" + core.node, encode({"up": True})))
    for _ in range(400):
        fleet.world.run_until(fleet.world.now_ms + 97)
        for _, core in fleet.cores():
            dues_ms = [due_ms for machine in core._machines if (due_ms := machine.deadline_ms()) is not None]
            assert core.deadline_ms() == min(dues_ms)


def test_whoever_hears_first_of_a_revoked_administrators_revocation_all_end_alike_and_no_node_publishes_another() -> (
    None
):
    fleet = grown(("n1", "n2", "n3", "n4"), confirmed=4)
    world = fleet.world
    fleet.grant("ops", ("admin",), "n1")
    world.run_until(world.now_ms + 2_000)
    refused: list[str] = []
    world.observers.append(
        lambda _, said: refused.append(said.refusal.rule) if isinstance(said, PublishRefused) else None
    )
    ops, chain = fleet.principal("ops"), fleet.grants["ops"]

    def revoke_as_ops(name: str, via: str) -> None:
        revocation = Revocation("node", fleet.signers[name].public_key, -1, -1, "spite", WALL_START_MS + world.now_ms)
        fleet.publish(via, *revocation_record(revocation, sign_revocation(ops, fleet.mesh, revocation, chain)))

    here, there = ([fleet.peers[name] for name in side] for side in (("n1", "n2"), ("n3", "n4")))
    for near, far in itertools.product(here, there):
        world.network.cut[near, far] = world.network.cut[far, near] = world.now_ms
    fleet.revoke("principal", ops.public_key, "n1")
    revoke_as_ops("n2", "n4")
    world.run_until(world.now_ms + 5_000)
    assert fleet.core("n3").trust.standing(fleet.peers["n2"], WALL_START_MS + world.now_ms) is Standing.REVOKED
    world.network.cut.clear()
    world.run_until(world.now_ms + 120_000)
    for _, core in fleet.cores():
        assert core.trust.standing(fleet.peers["n2"], WALL_START_MS + world.now_ms) is Standing.MEMBER
        assert core.hello.admitted() == tuple(sorted(set(fleet.peers.values()) - {core.node}))
    assert len({core.records.store.trie.root() for _, core in fleet.cores()}) == 1
    assert refused == []
    revoke_as_ops("n3", "n2")
    assert refused == ["revocation.by-revoked"]


def test_papers_that_the_records_let_go_are_in_no_dossier_any_more() -> None:
    fleet = grown()
    core = fleet.core("n1")
    forgotten: list[Any] = []
    core.dossiers.voided = forgotten.extend  # type: ignore[method-assign]
    entry = next(iter(core.records.store.entries.values()))
    for event in (RecordsForgotten((entry,)), RecordsVoided((entry,))):
        core._heard(event, Notify(event), fleet.hosts["n1"].clock.now(fleet.world.now_ms), [])
    assert forgotten == [entry, entry]
