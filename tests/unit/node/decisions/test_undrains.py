"""A drain for a time: what is kept, when it is handed over, and what it never undoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.decisions import undrains
from node.decisions.undrains import FILE_NAME, LATE_MS, UNDECIDED_MS, Undrains
from node.errors import NotDoneError, NotNowError
from protocols.api_upkeep import DRAIN_MAX_MS
from protocols.chain.messages import EntryStored, Outcome
from protocols.envelope import decode, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.machine import Now, PeerId
from protocols.state.commands import Action, Command, CreateProject, DrainNode, SignedCommand, sign_command
from protocols.state.model import MeshState
from tests.support.protocols.mesh_world import MeshWorld
from tests.support.protocols.trust_world import WALL_MS, signer

HOUR_MS = 3_600_000
STRANGER = Ed25519Signer(b"z" * 32)


class House:
    """A node with a real state, a chain of payloads, and a chain that answers as it is told."""

    def __init__(self, folder: Path) -> None:
        self.world = MeshWorld().furnish()
        self.folder, self.payloads, self.era = folder, [b""], b"era"
        self.wall_ms, self.mono_ms, self.told = WALL_MS, 0, 0
        self.answer, self.submitted = "decided", []  # type: ignore[var-annotated]
        self.node = self.world.state.nodes[-1].node
        self.count = 0
        self.start()

    def start(self) -> None:
        self.undrains = Undrains(self.core(), self, Ed25519Verifier(), self.now, self.folder, self.tell)  # type: ignore[arg-type]

    def core(self) -> Any:
        house = self

        class Core:
            trust = SimpleNamespace(mesh=house.world.mesh)

            @property
            def state(self) -> MeshState:
                return house.world.state

            @property
            def chain(self) -> Any:
                position = SimpleNamespace(slot=len(house.payloads) - 1, era=house.era)
                return SimpleNamespace(position=position, ledger=SimpleNamespace(entry=house.payloads.__getitem__))

        return Core()

    def now(self) -> Now:
        return Now(self.mono_ms, self.wall_ms)

    def tell(self) -> None:
        self.told += 1

    def signed(self, action: Action, by: Ed25519Signer | None = None) -> bytes:
        self.count += 1
        command = Command(b"drain" + self.count.to_bytes(11, "big"), action)
        return encode(sign_command([by or signer("admin")], self.world.mesh, command))

    def pair(self, by: Ed25519Signer | None = None) -> tuple[bytes, bytes]:
        return self.signed(DrainNode(self.node), by), self.signed(DrainNode(self.node, False), by)

    def keep(self, span_ms: int = HOUR_MS) -> bytes:
        drain, undrain = self.pair()
        self.undrains.keep(drain, undrain, (), self.wall_ms + span_ms)
        return drain

    def decide(self, data: bytes) -> None:
        payload = decode(data, SignedCommand).payload
        after = self.world.govern(decode(payload, Command).action, self.world.admin)
        assert isinstance(after, MeshState)
        self.payloads.append(payload)
        self.undrains.hear(EntryStored.__new__(EntryStored))

    async def submit(self, command: bytes, _material: tuple[bytes, ...]) -> Outcome:
        self.submitted.append(command)
        if self.answer == "decided":
            self.decide(command)
        return Outcome(b"", self.answer, 1, "node.unknown" if self.answer == "refused" else "", "no")  # type: ignore[arg-type]

    @property
    def draining(self) -> bool:
        return next(node for node in self.world.state.nodes if node.node == self.node).draining

    async def runs(self, until: Callable[[], bool] = lambda: False, within_s: float = 0.3) -> None:
        """Let it run until something is so, or for a moment to see that nothing is."""
        task = asyncio.ensure_future(self.undrains.run())
        for _ in range(int(within_s / 0.01)):
            await asyncio.sleep(0.01)
            if until():
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def file(self) -> Path:
        return self.folder / FILE_NAME


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(undrains, "payload_of", lambda payload: payload)
    monkeypatch.setattr(undrains, "LOOK_EVERY_S", 0.01)
    return House(tmp_path)


async def test_a_drained_node_is_undrained_when_its_time_is_over_and_not_before(house: House) -> None:
    house.decide(house.keep())
    house.wall_ms += HOUR_MS - 1
    await house.runs()
    assert house.draining
    assert house.submitted == []
    assert dict(house.undrains.promised()) == {house.node: WALL_MS + HOUR_MS}
    assert house.told == 1, "the others are told once"
    house.wall_ms += 1
    await house.runs(lambda: not house.file.exists(), 5)
    assert not house.draining
    assert not house.file.exists()
    assert len(house.submitted) == 1


async def test_it_outlives_the_process_and_is_late_rather_than_never(house: House) -> None:
    house.decide(house.keep())
    house.start()
    house.wall_ms += 5 * HOUR_MS
    await house.runs(lambda: not house.draining, 5)
    assert not house.draining


@pytest.mark.parametrize("then", [[False], [False, True], [True]], ids=["undrained", "drained for good", "again"])
async def test_who_is_drained_or_undrained_by_another_decision_meanwhile_is_left_alone(
    house: House, then: list[bool]
) -> None:
    house.decide(house.keep())
    for draining in then:
        house.decide(house.signed(DrainNode(house.node, draining)))
    house.wall_ms += HOUR_MS
    await house.runs(lambda: not house.file.exists(), 5)
    assert house.submitted == []
    assert house.draining is then[-1]
    assert not house.file.exists()


async def test_a_decision_about_another_node_changes_nothing(house: House) -> None:
    house.decide(house.keep())
    other = next(node.node for node in house.world.state.nodes if node.node != house.node)
    house.decide(house.signed(DrainNode(other)))
    house.decide(house.signed(CreateProject("elsewhere")))
    house.wall_ms += HOUR_MS
    await house.runs(lambda: not house.draining, 5)
    assert not house.draining


async def test_a_drain_that_is_not_decided_yet_is_waited_for_and_then_forgotten(house: House) -> None:
    house.keep()
    house.wall_ms += HOUR_MS + UNDECIDED_MS - 1
    await house.runs()
    assert house.file.exists()
    assert house.submitted == []
    house.wall_ms += 1
    await house.runs(lambda: not house.file.exists(), 5)
    assert not house.file.exists()
    assert house.submitted == []


async def test_the_later_of_two_for_one_node_counts(house: House) -> None:
    house.decide(house.keep(HOUR_MS))
    house.decide(house.keep(3 * HOUR_MS))
    house.wall_ms += 2 * HOUR_MS
    await house.runs()
    assert house.draining
    house.wall_ms += HOUR_MS
    await house.runs(lambda: not house.draining, 5)
    assert not house.draining


async def test_what_voters_refuse_is_tried_again_and_told_with_the_verb(house: House) -> None:
    house.decide(house.keep())
    house.wall_ms += HOUR_MS
    house.answer = "refused"
    await house.runs(lambda: bool(house.submitted), 5)
    assert house.undrains.concerns() == [], "a moment is no concern"
    house.wall_ms += LATE_MS + 1
    (said,) = house.undrains.concerns()
    assert "freehold node undrain " in said
    house.answer, house.mono_ms = "decided", undrains.AGAIN_MS
    await house.runs(lambda: not house.draining, 5)
    assert house.undrains.concerns() == []


def test_who_asks_again_because_the_answer_was_lost_changes_nothing(house: House) -> None:
    drain, undrain = house.pair()
    house.undrains.keep(drain, undrain, (), house.wall_ms + HOUR_MS)
    house.decide(drain)
    house.undrains.keep(drain, undrain, (), house.wall_ms + HOUR_MS)
    assert len(house.undrains.promised()) == 1


@pytest.mark.parametrize(
    ("span_ms", "rule"), [(0, "drain.span"), (-HOUR_MS, "drain.span"), (DRAIN_MAX_MS + 1, "drain.span")], ids=str
)
def test_a_span_has_bounds(house: House, span_ms: int, rule: str) -> None:
    with pytest.raises(NotDoneError) as refused:
        house.keep(span_ms)
    assert refused.value.refusal.rule == rule
    assert not house.file.exists()
    house.keep(DRAIN_MAX_MS)


def test_only_a_drain_and_the_undrain_of_one_node_by_an_admin_are_kept(house: House) -> None:
    drain, undrain = house.pair()
    other = next(node.node for node in house.world.state.nodes if node.node != house.node)
    unknown = PeerId("12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q")
    wrong = {
        "twice the drain": (drain, drain), "the wrong way round": (undrain, drain),
        "of another node": (drain, house.signed(DrainNode(other, False))),
        "another command": (drain, house.signed(CreateProject("x"))), "no command": (drain, b"\xc1"),
        "a stranger's": house.pair(STRANGER), "a stranger's undrain": (drain, house.pair(STRANGER)[1]),
        "of nobody": (house.signed(DrainNode(unknown)), house.signed(DrainNode(unknown, False))),
    }  # fmt: skip
    for what, (first, second) in wrong.items():
        with pytest.raises(NotDoneError) as refused:
            house.undrains.keep(first, second, (), house.wall_ms + HOUR_MS)
        assert refused.value.refusal.rule.count("."), what
        assert not house.file.exists(), what
    house.undrains.keep(drain, undrain, (), house.wall_ms + HOUR_MS)


def test_a_full_disk_is_said_and_nothing_is_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(undrains, "write_private", full)
    with pytest.raises(NotNowError, match="No space left"):
        house.keep()
    assert house.undrains.promised() == ()


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x91\x96\xa1n"], ids=["empty", "no value", "cut"])
def test_a_damaged_file_keeps_no_node_from_starting(house: House, damage: bytes) -> None:
    house.file.write_bytes(damage)
    house.start()
    house.decide(house.keep())
    assert len(house.undrains.promised()) == 1
