"""A mandate is good once, for one node and one act, in these minutes, and in the life of the node that it reached."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from node.errors import NotDoneError
from node.serving.data_custody import DataCustody
from protocols.changes.mandates import MANDATE_AHEAD_MS, MANDATE_DOMAIN, MANDATE_LIFETIME_MS, DataMandate, sign_mandate
from protocols.envelope import Signed, decode, encode
from protocols.machine import Now, PeerId
from protocols.state.commands import RECOVERY
from protocols.trust.cosigning import Cosigned, cosign
from tests.support.protocols.trust_world import VERIFIER, WALL_MS, signer

MESH, ME, LANE = b"m" * 32, PeerId("me"), ("shop", "prod")
MANDATE = DataMandate("export", *LANE, ME, b"n" * 16, WALL_MS)


def custody(
    started_ms: int = WALL_MS - MANDATE_AHEAD_MS, *, threshold: int = 1, **core: Any
) -> tuple[DataCustody, list[int]]:
    """A node that holds the lane's data, begun then; and its clock, which is at the mandate's moment."""
    clock = [started_ms]
    lane = SimpleNamespace(data_node=ME)
    state = SimpleNamespace(
        admins=(signer("admin").public_key, signer("second").public_key, RECOVERY + signer("paper").public_key),
        threshold=threshold, lane=lambda *_: lane,
    )  # fmt: skip
    trust = SimpleNamespace(verifier=VERIFIER, mesh=MESH)
    data_custody = DataCustody(
        SimpleNamespace(node=ME, state=state, trust=trust, **core),  # type: ignore[arg-type]
        SimpleNamespace(place=Path("unused")),  # type: ignore[arg-type]
        lambda: Now(0, clock[0]),
    )
    clock[0] = WALL_MS
    return data_custody, clock


def signed(mandate: DataMandate = MANDATE, by: str = "admin") -> bytes:
    return encode(sign_mandate(signer(by), MESH, mandate))  # type: ignore[arg-type]


def refusal(data_custody: DataCustody, data: bytes, act: Any = "export", lane: tuple[str, str] = LANE) -> str:
    with pytest.raises(NotDoneError) as refused:
        data_custody.check(data, act, lane)
    return refused.value.refusal.rule


def test_a_mandate_is_good_once_also_after_the_node_started_again() -> None:
    data_custody, _ = custody()
    assert data_custody.check(signed(), "export", LANE) == MANDATE
    assert refusal(data_custody, signed()) == "data.mandate"
    again, _ = custody(started_ms=WALL_MS + 1)
    assert refusal(again, signed()) == "data.mandate", "what an earlier life took is not known any more"
    again, _ = custody(started_ms=WALL_MS - MANDATE_AHEAD_MS + 1)
    assert refusal(again, signed()) == "data.mandate", "an earlier life may have taken one that was dated ahead"
    fresh, _ = custody()
    assert fresh.check(signed(), "export", LANE) == MANDATE, "signed in this life"


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"act": "thaw"}, "data.mandate"), ({"project": "blog"}, "data.mandate"), ({"nonce": b"n"}, "data.malformed"),
        ({"environment": "staging"}, "data.mandate"), ({"node": PeerId("other")}, "data.mandate"),
        ({"listing": b"l" * 32}, "data.mandate"),
        ({"at_ms": WALL_MS - MANDATE_LIFETIME_MS - 1}, "data.expired"),
        ({"at_ms": WALL_MS + MANDATE_AHEAD_MS + 1}, "data.expired"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mandate_for_anything_else_is_refused(changed: dict[str, Any], rule: str) -> None:
    data_custody, _ = custody()
    assert refusal(data_custody, signed(replace(MANDATE, **changed))) == rule


@pytest.mark.parametrize("by", ["paper", "somebody", "me"])
def test_only_an_admin_signs_one_and_a_recovery_key_is_none(by: str) -> None:
    data_custody, _ = custody()
    assert refusal(data_custody, signed(by=by)) == "command.not-allowed"


@pytest.mark.parametrize(
    ("more", "taken"),
    [(["second"], True), (["somebody", "second"], True), ([], False), (["admin"], False), (["paper"], False),
     (["somebody"], False)],
    ids=["another admin", "a stranger beside", "nobody", "the same again", "a recovery key", "a stranger"],
)  # fmt: skip
def test_a_mesh_that_asks_for_two_admins_asks_for_them_here_too(more: list[str], taken: bool) -> None:
    data_custody, _ = custody(threshold=2)
    paper: Cosigned = sign_mandate(signer("admin"), MESH, MANDATE)  # type: ignore[arg-type]
    for name in more:
        paper = cosign(signer(name), MANDATE_DOMAIN, MESH, paper)
    if taken:
        assert data_custody.check(encode(paper), "export", LANE) == MANDATE
    else:
        assert refusal(data_custody, encode(paper)) == "command.not-allowed"


def test_what_another_release_signed_with_one_key_is_read_as_before() -> None:
    paper = sign_mandate(signer("admin"), MESH, MANDATE)  # type: ignore[arg-type]
    alone = encode(Signed(paper.payload, paper.key, paper.signature))
    data_custody, _ = custody()
    assert data_custody.check(alone, "export", LANE) == MANDATE
    both = encode(cosign(signer("second"), MANDATE_DOMAIN, MESH, paper))
    assert decode(both, Signed) == decode(alone, Signed), (
        "and a release that knows one signature reads the first of two"
    )
