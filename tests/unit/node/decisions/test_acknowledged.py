"""An acknowledged reset: whose word counts, of which reset, on which node, and what outlives the process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.decisions.acknowledged import FILE_NAME, Acknowledged
from node.errors import NotDoneError, NotNowError
from node.mesh.presence import NodeStatus, body_of
from protocols.chain.messages import EraChanged
from protocols.envelope import Signed, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.machine import PeerId
from protocols.records.key_table import make_key
from protocols.state.commands import RECOVERY
from protocols.trust.acknowledgements import NOTE_MAX, Acknowledgement, sign_acknowledgement

MESH, ERA, OTHER_ERA = b"m" * 32, b"e" * 32, b"f" * 32
ADMIN, STRANGER, PAPER = (Ed25519Signer(bytes([n]) * 32) for n in (1, 2, 3))
HERE, THERE = (PeerId(peer_id(Ed25519Signer(bytes([n]) * 32).public_key)) for n in (4, 5))


def a_core(resets: int = 1, era: bytes = ERA) -> Any:
    state = SimpleNamespace(
        resets=resets, era=era, admins=(ADMIN.public_key, RECOVERY + PAPER.public_key),
        nodes=(SimpleNamespace(node=HERE), SimpleNamespace(node=THERE)),
    )  # fmt: skip
    records = SimpleNamespace(store=SimpleNamespace(entries={}))
    trust = SimpleNamespace(verifier=Ed25519Verifier(), mesh=MESH)
    return SimpleNamespace(node=HERE, state=state, records=records, trust=trust)


def made(core: Any, folder: Path) -> tuple[Acknowledged, list[bool]]:
    told: list[bool] = []
    return Acknowledged(core, folder, lambda: told.append(True)), told


def paper(
    *, by: Ed25519Signer = ADMIN, mesh: bytes = MESH, resets: int = 1, era: bytes = ERA, note: str = ""
) -> Signed:
    return sign_acknowledgement(by, mesh, Acknowledgement(resets, era, 5, note))


def passed_on(core: Any, signed: Signed) -> None:
    body = body_of(NodeStatus("two", "0.1.0", acknowledged=signed))
    entry = SimpleNamespace(record=SimpleNamespace(body=body))
    core.records.store.entries[make_key("status", THERE)] = entry


def test_an_admins_word_on_the_newest_reset_ends_the_wait_and_outlives_the_process(tmp_path: Path) -> None:
    core = a_core()
    known, told = made(core, tmp_path)
    assert known.open
    known.take(paper(note="compared"))
    assert not known.open
    assert told == [True]
    again, _ = made(core, tmp_path)
    assert again.newest == (ADMIN.public_key, Acknowledgement(1, ERA, 5, "compared"))


@pytest.mark.parametrize(
    ("signed", "rule"),
    [
        (paper(by=STRANGER), "acknowledgement.admin"), (paper(by=PAPER), "acknowledgement.admin"),
        (paper(era=OTHER_ERA), "acknowledgement.other"), (paper(resets=2), "acknowledgement.other"),
        (paper(resets=0), "acknowledgement.other"), (paper(mesh=b"x" * 32), "acknowledgement.signature"),
        (Signed(paper().payload, ADMIN.public_key, bytes(64)), "acknowledgement.signature"),
        (paper(note="x" * (NOTE_MAX + 1)), "acknowledgement.note"),
    ],
    ids=["stranger", "recovery key", "another era", "next reset", "no reset", "another mesh", "unsigned", "long note"],
)  # fmt: skip
def test_another_word_is_refused_by_its_rule_and_the_wait_goes_on(tmp_path: Path, signed: Signed, rule: str) -> None:
    known, told = made(a_core(), tmp_path)
    with pytest.raises(NotDoneError) as refused:
        known.take(signed)
    assert refused.value.refusal.rule == rule
    assert known.open
    assert told == []
    assert not (tmp_path / FILE_NAME).exists()


def test_without_a_reset_there_is_nothing_to_say(tmp_path: Path) -> None:
    known, _ = made(a_core(resets=0), tmp_path)
    assert not known.open
    with pytest.raises(NotDoneError, match="never reset"):
        known.take(paper(resets=0))


def test_a_further_reset_warns_anew(tmp_path: Path) -> None:
    core = a_core()
    known, _ = made(core, tmp_path)
    known.take(paper())
    core.state.resets, core.state.era = 2, OTHER_ERA
    assert known.open


def test_another_node_passes_it_on_once_the_reset_is_known_here_too(tmp_path: Path) -> None:
    core = a_core(resets=0, era=MESH)
    known, told = made(core, tmp_path)
    passed_on(core, paper())
    known.hear(EraChanged(ERA, 3))
    assert told == []
    core.state.resets, core.state.era = 1, ERA
    known.hear(EraChanged(ERA, 3))
    assert not known.open
    assert told == [True]


def test_a_lying_node_ends_no_warning(tmp_path: Path) -> None:
    core = a_core()
    known, _ = made(core, tmp_path)
    passed_on(core, paper(by=STRANGER))
    known.hear(EraChanged(ERA, 3))
    assert known.open


def test_a_full_disk_is_said_and_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node.decisions.acknowledged.write_private", full)
    known, told = made(a_core(), tmp_path)
    with pytest.raises(NotNowError, match="No space left"):
        known.take(paper())
    assert known.open
    assert told == []


@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", encode(paper())[:-3], bytes(5_000)], ids=["empty", "bad", "cut", "long"]
)
def test_a_damaged_file_is_no_word(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    known, _ = made(a_core(), tmp_path)
    assert known.open
    known.take(paper())
    assert not known.open


def test_it_never_makes_the_rest_of_a_status_record_unreadable() -> None:
    names = tuple("x" * 250 + str(n) for n in range(15))
    long = NodeStatus("two", "0.1.0", ingress_names=names, acknowledged=paper(note="y" * NOTE_MAX))
    assert body_of(long) == encode(NodeStatus("two", "0.1.0", ingress_names=names))
