"""What tests of the chain ask of a net: the rules it rejected by, what was sent, ballots and proposals by name."""

from __future__ import annotations

from typing import Any

from protocols.chain.ballots import Ballot
from protocols.chain.decision import (
    RESET_DOMAIN,
    Reset,
    ResetTo,
    Voter,
)
from protocols.envelope import sign
from tests.support.protocols.chain_net import ChainNet


def rules(net: ChainNet, name: str) -> list[str]:
    return [reject.rule for reject in net.nodes[name].rejects]


def sent(net: ChainNet, kind: type) -> list[Any]:
    return [message for _, _, message in net.sent if isinstance(message, kind)]


def ballot_of(net: ChainNet, name: str, round_: int = 9) -> Ballot:
    return Ballot(round_, net.nodes[name].peer, b"bootbootb"[:8])


def reset_entry(net: ChainNet, name: str, *, number: int = 1, slot: int | None = None, by: Any = None) -> ResetTo:
    chain = net[name]
    position = chain.position.slot + 1 if slot is None else slot
    voters = (Voter(net.nodes[name].peer, chain.store_id),)
    reset = Reset(net.mesh, number, position, chain.ledger.digest_at(position - 1), 1_800_000_000_000, voters, "lost")
    signed = sign(by or net.admin, RESET_DOMAIN, net.mesh, reset)
    return ResetTo(signed.payload, (signed,))
