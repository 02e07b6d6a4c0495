"""The line that goes from admin to admin: what it holds, what must still be signed, and damaged ones."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cli.access.cosigning import domain_of, lacking, read_paper, require_enough, write_paper
from cli.commands.mesh.cosign import lines_of
from cli.errors import CommandError, UsageError
from protocols.changes.mandates import DataMandate, sign_mandate
from protocols.keys import Ed25519Signer
from protocols.machine import Digest, PeerId
from protocols.state.model import MeshState
from protocols.trust.cosigning import cosign
from protocols.trust.upgrades import UPGRADE_DOMAIN, UpgradePaper, Wheel, sign_upgrade
from tests.support.protocols.mesh_world import MeshWorld

MESH = Digest(b"m" * 32)
ONE, TWO, THREE = (Ed25519Signer(name * 32) for name in (b"1", b"2", b"3"))
STATE: MeshState = replace(MeshWorld().state, admins=(ONE.public_key, TWO.public_key), threshold=2)
START = UpgradePaper("start", 1_000, "0.2.0", (Wheel("freehold-0.2.0-py3-none-any.whl", b"d" * 32),))
MANDATE = DataMandate("export", "shop", "prod", PeerId("12D3KooWnode"), b"n" * 16, 1_000)


def test_a_paper_comes_out_as_it_went_in_and_names_what_it_is() -> None:
    for paper, said in ((sign_upgrade(ONE, MESH, START), START), (sign_mandate(ONE, MESH, MANDATE), MANDATE)):
        assert read_paper(write_paper(paper) + "\n", MESH) == (paper, said)
    shown = "\n".join(lines_of(sign_upgrade(ONE, MESH, START), START))
    assert "0.2.0" in shown
    assert (b"d" * 32).hex() in shown, "the whole digest: whoever signs compares it"
    assert "export shop in prod" in lines_of(sign_mandate(ONE, MESH, MANDATE), MANDATE)[0]


def test_whoever_signs_second_sees_all_that_the_first_one_wrote() -> None:
    def shown(said: DataMandate | UpgradePaper) -> list[str]:
        paper = sign_mandate(ONE, MESH, said) if isinstance(said, DataMandate) else sign_upgrade(ONE, MESH, said)
        return lines_of(paper, said)[:-1]

    assert "well for 1 s" in shown(replace(START, window_s=1))[-1]
    copied = replace(MANDATE, act="standby", target="12D3KooWtarget", replace=True)
    assert shown(copied) == [
        "data: standby shop in prod on 12D3KooWnode to 12D3KooWtarget in the place of what is there"
    ]
    assert shown(replace(MANDATE, act="import", listing=b"l" * 32))[1].endswith((b"l" * 32).hex())
    assert len(shown(replace(MANDATE, project="shop in dev on x\n\n\n"))) == 1
    assert not any("\n" in line for line in shown(replace(MANDATE, project="shop in dev on x\n")))
    assert len(shown(MANDATE)) == 1


def test_who_signs_first_is_given_the_line_for_the_next_and_a_stop_needs_nobody_else() -> None:
    paper = sign_upgrade(ONE, MESH, START)
    assert lacking(STATE, paper, START) == 1
    with pytest.raises(CommandError) as raised:
        require_enough(STATE, paper, START)
    assert raised.value.kind == "more-signatures"
    line = raised.value.next_step.rpartition(" ")[2]
    assert read_paper(line, MESH) == (paper, START)
    assert lacking(STATE, cosign(THREE, UPGRADE_DOMAIN, MESH, paper), START) == 1, "a stranger counts for nothing"
    require_enough(STATE, cosign(TWO, UPGRADE_DOMAIN, MESH, paper), START)
    require_enough(replace(STATE, threshold=1), paper, START)
    stop = UpgradePaper("abort", 1_000, order=b"o" * 32)
    require_enough(STATE, sign_upgrade(ONE, MESH, stop), stop)


@pytest.mark.parametrize("damage", ["cut", "prefix", "mesh", "domain"])
def test_a_damaged_line_is_told(damage: str) -> None:
    paper = sign_upgrade(ONE, MESH, START)
    line = write_paper(paper)
    line = {"cut": line[:-20], "prefix": line.replace("fhp1.", "fhs1."), "mesh": line}.get(
        damage, write_paper(replace(paper, signature=sign_mandate(ONE, MESH, MANDATE).signature))
    )
    with pytest.raises(UsageError):
        read_paper(line, Digest(b"o" * 32) if damage == "mesh" else MESH)
    assert domain_of(START) != domain_of(MANDATE)
