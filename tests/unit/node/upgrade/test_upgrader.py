"""Whose word an upgrade follows, when a node may stop for it, how the conductor goes on; its peers are stood in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from node.upgrade import upgrader
from node.upgrade.releases_here import Chosen, Failed, ReleaseError, ReleasesHere, Trial
from node.upgrade.upgrader import GATE, REFUSED, NotTakenError, Upgrader, UpgradeStanding
from protocols.envelope import digest
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.machine import PeerId
from protocols.trust.cosigning import Cosigned, cosign
from protocols.trust.upgrades import UPGRADE_DOMAIN, UpgradePaper, Wheel, sign_upgrade

ADMIN, OTHER = Ed25519Signer(b"a" * 32), Ed25519Signer(b"o" * 32)
MESH, NOW_MS = b"m" * 32, 1_000_000_000_000
ME, TWO, THREE, WORKER = (peer_id(Ed25519Signer(bytes([n]) * 32).public_key) for n in range(1, 5))
START = UpgradePaper("start", NOW_MS, "0.2.0", (Wheel("freehold-0.2.0-py3-none-any.whl", b"d" * 32),), 30)
PAPER = sign_upgrade(ADMIN, MESH, START)
ORDER = digest(PAPER.payload)


def word(action: Any, order: bytes = ORDER, by: Ed25519Signer = ADMIN, at_ms: int = NOW_MS) -> Cosigned:
    return sign_upgrade(by, MESH, UpgradePaper(action, at_ms, order=order))


class Node:
    """An upgrader of a node that votes with two others; `peers` is how they stand."""

    def __init__(self, folder: Path, trial: str = "") -> None:
        self.admitted: list[PeerId] = [TWO, THREE, WORKER]
        self.lanes: list[Any] = []
        voters = [SimpleNamespace(node=peer_id) for peer_id in (ME, TWO, THREE)]
        self.state = SimpleNamespace(
            admins=(ADMIN.public_key,), threshold=1, lanes=self.lanes, voters=voters,
            nodes=[SimpleNamespace(node=peer_id) for peer_id in (ME, TWO, THREE, WORKER)],
        )  # fmt: skip
        self.chain = SimpleNamespace(speaking=True, stalled="", muted="")
        core = SimpleNamespace(
            node=ME, state=self.state, chain=self.chain, hello=SimpleNamespace(admitted=lambda: tuple(self.admitted)),
            trust=SimpleNamespace(verifier=Ed25519Verifier(), mesh=MESH),
        )  # fmt: skip
        self.held, self.fetched, self.relaunched = True, [], []  # type: ignore[var-annotated]
        self.now_ms = NOW_MS
        self.lane = ("site", "production")
        self.serves = True
        workloads = SimpleNamespace(running={self.lane: object()}, serves=lambda _lane, _role: self.serves, alive=True)
        self.workloads = workloads
        artifacts = SimpleNamespace(has=lambda _digest: self.held, path=lambda one: folder / one.hex())

        async def ensure(one: bytes) -> None:
            self.fetched.append(one)

        self.folder = folder
        self.make: Callable[[], Upgrader] = lambda: Upgrader(
            core, SimpleNamespace(serve=lambda *_: None), artifacts, ensure, workloads,  # type: ignore[arg-type]
            folder=folder, version="0.1.0", trial=trial, clock=lambda: SimpleNamespace(wall_ms=self.now_ms),  # type: ignore[arg-type, return-value]
            relaunch=lambda: self.relaunched.append(True),
        )  # fmt: skip
        self.upgrader = self.make()
        self.peers: dict[PeerId, UpgradeStanding | None] = dict.fromkeys((TWO, THREE, WORKER), UpgradeStanding("0.1.0"))
        self.asked: list[tuple[PeerId, Any]] = []
        self.answer = UpgradeStanding("0.1.0")

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def ask(_self: Upgrader, node: PeerId, question: Any, _timeout_s: float) -> UpgradeStanding:
            if isinstance(question, upgrader.Look):
                upgrade_standing = self.peers[node]
                if upgrade_standing is None:
                    raise TimeoutError
                return upgrade_standing
            self.asked.append((node, question))
            return self.answer

        monkeypatch.setattr(Upgrader, "_ask", ask)

    async def step(self) -> None:
        conducted = self.upgrader._conducted
        assert conducted is not None
        try:
            await self.upgrader._step(conducted, START)
        except NotTakenError as error:
            self.upgrader._end("failed", error.detail)

    @property
    def phase(self) -> str:
        conducted = self.upgrader._conducted
        return conducted.phase if conducted is not None else "none"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    new_node = Node(tmp_path)
    new_node.stand_in(monkeypatch)
    return new_node


async def refusal(doing: Any) -> NotTakenError:
    with pytest.raises(NotTakenError) as raised:
        await doing
    return raised.value


async def test_only_an_admins_paper_begins_and_only_what_is_here_and_fits(node: Node) -> None:
    assert (await refusal(node.upgrader.hand(sign_upgrade(OTHER, MESH, START)))).rule == "upgrade.paper"
    node.held = False
    assert "upload them first" in (await refusal(node.upgrader.hand(PAPER))).detail
    node.held, node.peers[TWO] = True, UpgradeStanding("0.0.9")
    skipping = sign_upgrade(ADMIN, MESH, replace(START, version="0.3.0"))
    assert "next to" in (await refusal(node.upgrader.hand(skipping))).detail
    assert node.phase == "none"
    node.peers[TWO] = UpgradeStanding("0.1.9")
    await node.upgrader.hand(PAPER)
    assert node.phase == "running"
    assert node.make()._conducted == node.upgrader._conducted, "its own restart ends nothing"
    assert "conducts an upgrade already" in (await refusal(node.upgrader.hand(PAPER))).detail


async def test_as_many_admins_begin_one_and_go_on_as_the_mesh_asks_for_and_any_one_stops_it(node: Node) -> None:
    def both(paper: Cosigned) -> Cosigned:
        return cosign(OTHER, UPGRADE_DOMAIN, MESH, paper)

    node.state.admins, node.state.threshold = (ADMIN.public_key, OTHER.public_key), 2
    assert "1 of 2 admins" in (await refusal(node.upgrader.hand(PAPER))).detail
    assert "1 of 2 admins" in (await refusal(node.upgrader.take_up(PAPER))).detail, "whoever brings it"
    await node.upgrader.hand(both(PAPER))
    assert node.phase == "running"
    await node.upgrader.hand(word("pause"))
    assert node.phase == "paused"
    assert "1 of 2 admins" in (await refusal(node.upgrader.hand(word("resume")))).detail
    await node.upgrader.hand(both(word("resume", by=ADMIN)))
    assert node.phase == "running"
    await node.step()
    assert node.asked[-1][1].paper == both(PAPER), "each node judges it by both signatures"
    node.state.admins = (ADMIN.public_key, Ed25519Signer(b"n" * 32).public_key)
    with pytest.raises(NotTakenError, match="1 of 2 admins"):
        node.upgrader._open(both(PAPER))  # one who signed was removed meanwhile


async def test_an_admins_later_word_counts_for_that_order_alone(node: Node) -> None:
    await node.upgrader.hand(PAPER)
    assert (await refusal(node.upgrader.hand(word("pause", b"x" * 32)))).rule == REFUSED
    assert (await refusal(node.upgrader.hand(word("pause", by=OTHER)))).rule == "upgrade.paper"
    assert (await refusal(node.upgrader.hand(word("resume")))).detail == "the upgrade is running"
    await node.upgrader.hand(word("pause"))
    assert node.phase == "paused"
    await node.upgrader.hand(word("resume"))
    assert node.phase == "running"
    await node.upgrader.hand(word("abort"))
    assert node.phase == "aborted"
    assert (await refusal(node.upgrader.hand(word("resume")))).rule == REFUSED


async def test_an_old_word_that_a_member_brings_again_ends_no_pause(node: Node) -> None:
    await node.upgrader.hand(PAPER)
    await node.upgrader.hand(word("pause", at_ms=NOW_MS + 1))
    first = word("resume", at_ms=NOW_MS + 2)
    node.upgrader._take_word(first)
    await node.upgrader.hand(word("pause", at_ms=NOW_MS + 3))
    with pytest.raises(NotTakenError, match="something newer"):
        node.upgrader._take_word(first)
    with pytest.raises(NotTakenError, match="something newer"):
        node.make()._take_word(first)
    assert node.phase == "paused"
    node.upgrader._take_word(word("resume", at_ms=NOW_MS + 4))
    assert node.phase == "running"
    node.upgrader._take_word(word("abort", at_ms=NOW_MS))  # to stop is never too old
    assert node.phase == "aborted"


async def test_a_word_reaches_the_node_that_conducts_and_an_abort_the_one_on_trial(node: Node) -> None:
    node.peers[TWO] = UpgradeStanding("0.1.0", conducted=upgrader.Conducted(PAPER, "running"))
    node.peers[WORKER] = UpgradeStanding("0.2.0", trial=True)
    await node.upgrader.hand(word("abort"))
    assert [peer_id for peer_id, _ in node.asked] == [TWO, WORKER]
    node.answer = UpgradeStanding("0.1.0", rule=REFUSED, detail="no")
    assert (await refusal(node.upgrader.hand(word("pause")))).detail == "no"


async def test_nodes_begin_in_turn_and_only_while_all_is_well(node: Node) -> None:
    await node.upgrader.hand(PAPER)
    for gone in (TWO, WORKER):
        upgrade_standing, node.peers[gone] = node.peers[gone], None
        await node.step()
        assert not node.asked, f"nobody begins while {gone} does not answer"
        node.peers[gone] = upgrade_standing
    node.admitted.remove(THREE)
    await node.step()
    assert not node.asked, "a voter is not reached"
    node.admitted.append(THREE)
    node.lanes.append(SimpleNamespace(project="site", environment="production", rollout=object()))
    await node.step()
    assert "a rollout of site" in node.upgrader.waits_for
    node.lanes.clear()
    order = []
    for _ in range(3):
        await node.step()
        taking, _ = node.asked[-1]
        order.append(taking)
        await node.step()
        assert len(node.asked) == len(order), "the next one waits"
        node.peers[taking] = UpgradeStanding("0.2.0", trial=True)
        await node.step()
        assert len(node.asked) == len(order), "it is on trial"
        node.peers[taking] = UpgradeStanding("0.2.0")
    assert order[0] == WORKER, "who does not vote begins"
    assert set(order) == {WORKER, TWO, THREE}
    again = node.make()
    assert again._conducted is not None


async def test_a_node_that_went_back_or_refuses_or_stays_away_ends_the_upgrade(node: Node) -> None:
    await node.upgrader.hand(PAPER)
    node.answer = UpgradeStanding("0.1.0", rule=REFUSED, detail="it has no room")
    await node.step()
    assert node.phase == "failed"
    assert "it has no room" in node.upgrader._conducted.why  # type: ignore[union-attr]

    await node.upgrader.hand(PAPER)
    node.answer = UpgradeStanding("0.1.0", rule=GATE, detail="a moment")
    await node.step()
    assert node.phase == "running", "it may begin later"
    node.answer = UpgradeStanding("0.1.0")
    await node.step()
    node.peers[WORKER] = UpgradeStanding("0.1.0", failed=Failed("0.2.0", "ff" * 32, "of another order"))
    await node.step()
    assert node.phase == "running"
    node.peers[WORKER] = UpgradeStanding("0.1.0", failed=Failed("0.2.0", ORDER.hex(), "it hung"))
    await node.step()
    assert node.phase == "failed"
    assert "it hung" in node.upgrader._conducted.why  # type: ignore[union-attr]

    node.peers[WORKER] = UpgradeStanding("0.1.0")
    await node.upgrader.hand(PAPER)
    await node.step()
    node.peers[WORKER] = None
    node.now_ms += int((upgrader.BACK_WITHIN_S + 31) * 1000)
    await node.step()
    assert node.phase == "failed"
    assert "did not come back" in node.upgrader._conducted.why  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["voter gone", "silent", "rollout", "older", "went back", "bytes", "no daemon"])
async def test_a_node_takes_up_only_what_it_may_and_only_when_it_may(
    node: Node, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    paper, rule = PAPER, GATE
    match case:
        case "voter gone":
            node.admitted.remove(TWO)
        case "silent":
            node.chain.speaking = False
        case "rollout":
            node.lanes.append(SimpleNamespace(project="site", environment="production", rollout=object()))
        case "older":
            paper, rule = sign_upgrade(ADMIN, MESH, replace(START, version="0.0.9")), REFUSED
        case "went back":
            ReleasesHere(node.folder).write(Chosen(failed=Failed("0.2.0", ORDER.hex(), "why")))
            rule = REFUSED
        case "bytes":

            def prepare(*_: object) -> str:
                raise ReleaseError("no wheel")

            monkeypatch.setattr(ReleasesHere, "prepare", prepare)
            rule = REFUSED
        case _:
            node.upgrader._relaunch = None
            rule = REFUSED
    assert (await refusal(node.upgrader.take_up(paper))).rule == rule
    assert ReleasesHere(node.folder).read().trial is None
    assert node.relaunched == []


async def test_what_is_taken_up_is_on_trial_before_the_node_stops(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReleasesHere, "prepare", lambda *_: "0.2.0-x")
    monkeypatch.setattr(upgrader, "LOOK_EVERY_S", 0.0)
    await node.upgrader.take_up(PAPER)
    assert node.fetched == [b"d" * 32]
    trial = ReleasesHere(node.folder).read().trial
    assert trial == Trial("0.2.0-x", "0.2.0", ORDER.hex(), 30, ("site/production",))
    assert (await refusal(node.upgrader.take_up(PAPER))).rule == GATE, "once"


@pytest.mark.parametrize(
    ("ill", "word"),
    [
        ({"stalled": "x"}, "follow the chain"), ({"speaking": False}, "does not vote yet"),
        ({"muted": "its disk is full"}, "disk"),
        ({"muted": upgrader.ON_TRIAL, "speaking": False}, ""), ({}, ""),
    ],
    ids=["stalled", "silent", "full", "held back by the trial", "well"],
)  # fmt: skip
def test_what_is_no_health(node: Node, ill: dict[str, Any], word: str) -> None:
    vars(node.chain).update(ill)
    trial = Trial("0.2.0-x", "0.2.0", ORDER.hex(), 30, ("site/production", "gone/production"))
    text = node.upgrader._illness(trial)
    assert word in text
    assert bool(text) == bool(word)
    if not word:
        node.serves = False
        assert "does not serve site" in node.upgrader._illness(trial)
        node.serves = True
        node.admitted[:] = [WORKER]
        assert "no other voter" in node.upgrader._illness(trial)
        node.workloads.alive = False
        assert "no worker" in node.upgrader._illness(trial)


async def test_a_release_on_trial_with_changed_stores_does_not_vote_and_is_kept_once_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, trial="0.2.0-x")
    monkeypatch.setattr(upgrader, "LOOK_EVERY_S", 0.5)
    here = ReleasesHere(tmp_path)
    here.path("0.2.0-x").mkdir(parents=True)
    here.write(Chosen(trial=Trial("0.2.0-x", "0.2.0", ORDER.hex(), 1), failed=Failed("0.2.0", "", "")))
    assert node.upgrader.hold == "", "its schema is as it was"
    upgrader.copy_folder(tmp_path).mkdir()
    assert node.upgrader.hold == upgrader.ON_TRIAL
    await node.upgrader._judge()
    assert here.read() == Chosen("0.2.0-x", "0.2.0")
    assert node.upgrader.hold == ""
    assert not upgrader.copy_folder(tmp_path).exists()
