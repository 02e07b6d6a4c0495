"""A paper that several admins sign one after the other: one line of text that goes from hand to hand.

Nobody who carries it can change it: each signature covers the whole paper. Not here: commands, which are decided
(statements.py), and handing a paper over.
"""

from __future__ import annotations

from cli.access.pasted import pasted_bytes, pasted_line
from cli.errors import CommandError, UsageError
from protocols.changes.mandates import MANDATE_DOMAIN, DataMandate
from protocols.envelope import DecodeError, decode, encode
from protocols.keys import Ed25519Verifier
from protocols.state.model import MeshState
from protocols.trust.cosigning import Cosigned, every_signature_holds
from protocols.trust.upgrades import UPGRADE_DOMAIN, UpgradePaper, admins_needed

PREFIX = "fhp1."
TEXT_MAX_CHARACTERS = 32_768
STEP = "ask for the line again"


def write_paper(paper: Cosigned) -> str:
    """Return the line."""
    return pasted_line(PREFIX, encode(paper))


def read_paper(text: str, mesh: bytes) -> tuple[Cosigned, UpgradePaper | DataMandate]:
    """Return what a line holds, its signatures verified. Raises UsageError."""
    try:
        data = pasted_bytes(text, PREFIX, TEXT_MAX_CHARACTERS)
        if data is None:
            raise UsageError(f"a paper begins {PREFIX}", next_step=STEP, kind="paper")
        paper: Cosigned = decode(data, Cosigned)
        said: UpgradePaper | DataMandate = decode(paper.payload, UpgradePaper | DataMandate)
    except (DecodeError, ValueError):
        raise UsageError("the paper is damaged or cut off", next_step=STEP, kind="paper") from None
    if not every_signature_holds(Ed25519Verifier(), domain_of(said), mesh, paper):
        raise UsageError("a signature of the paper is not good in this mesh", next_step=STEP, kind="paper")
    return paper, said


def domain_of(said: UpgradePaper | DataMandate) -> str:
    """What signatures of such a paper are for."""
    return UPGRADE_DOMAIN if isinstance(said, UpgradePaper) else MANDATE_DOMAIN


def lacking(state: MeshState, paper: Cosigned, said: UpgradePaper | DataMandate) -> int:
    """How many admins of now must still sign a paper."""
    needed = admins_needed(said, state.threshold) if isinstance(said, UpgradePaper) else state.threshold
    return max(0, needed - len(paper.keys & frozenset(state.admins)))


def require_enough(state: MeshState, paper: Cosigned, said: UpgradePaper | DataMandate) -> None:
    """Raise CommandError, which holds the line for the next admin, unless enough of them signed it."""
    more = lacking(state, paper, said)
    if more:
        raise CommandError(
            f"you signed it, and nothing is done yet: {more} of the {state.threshold} admins that this mesh asks for must "
            "sign, too",
            next_step=f"another admin: freehold mesh cosign {write_paper(paper)}", kind="more-signatures",
        )  # fmt: skip
