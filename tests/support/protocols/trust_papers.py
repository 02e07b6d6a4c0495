"""Papers of trust as the tests of it make them: admissions, and what a store says to them."""

from __future__ import annotations

from protocols.envelope import DecodeError, decode
from protocols.refusal import Refusal
from protocols.trust.admission import JoinPapers, admit
from protocols.trust.invites import (
    Bundle,
    Invite,
    JoinRequest,
)
from protocols.trust.store import TrustStore
from tests.support.protocols.trust_world import VERIFIER, WALL_MS, World, node_id, now, signer

WORLD = World()

FOUNDER = node_id("founder")


def rule(answer: object) -> str:
    assert isinstance(answer, Refusal), answer
    assert answer.detail
    return answer.rule


def admitted(trust: TrustStore, papers: JoinPapers, wall_ms: int = WALL_MS, by: str = "founder") -> Bundle:
    bundle = ask(trust, papers, wall_ms, by)
    assert isinstance(bundle, Bundle), bundle
    return bundle


def ask(trust: TrustStore, papers: JoinPapers, wall_ms: int = WALL_MS, by: str = "founder") -> Bundle | Refusal:
    """Ask to be admitted as what the papers say, with the key they name."""
    try:
        kind, key = decode(papers.invite.payload, Invite).kind, decode(papers.join.payload, JoinRequest).key
    except DecodeError:
        kind, key = "node", b""
    return admit(trust, signer(by), VERIFIER, papers, now(wall_ms=wall_ms), kind=kind, key=key)
