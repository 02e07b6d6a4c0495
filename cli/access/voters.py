"""The next set of voters, worked out before anybody is asked: who goes, who comes, and the readiness that proves it.

A set has 1, 3, 5 or 7 voters, and more than half of a new one must have said that they are ready. Not here: whether
the chain allows it (the voters judge again), and growth, which needs nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from cli.access.client import NodeClient
from cli.errors import CommandError
from cli.text.table import short
from protocols.api_models import VoterView
from protocols.chain.decision import VOTER_COUNTS, Voter
from protocols.envelope import digest
from protocols.machine import PeerId
from protocols.state.commands import Exhibits, Reconfigure


@dataclass(frozen=True, slots=True)
class VoterStore:
    """One row of /v1/voters: a store that votes, or whose node says it could. `ready` is its signed statement."""

    voter: Voter
    votes: bool
    ready: bytes


@dataclass(frozen=True, slots=True)
class NewVoters:
    """A reconfiguration and the statements it rests on; `added` and `removed` are for the plan."""

    voters: tuple[Voter, ...]
    statements: tuple[bytes, ...]
    added: tuple[PeerId, ...]
    removed: tuple[PeerId, ...]

    @property
    def action(self) -> Reconfigure:
        """The command."""
        return Reconfigure(self.voters)

    @property
    def exhibits(self) -> Exhibits:
        """What the command shows."""
        return Exhibits(statements=tuple(bytes(digest(statement)) for statement in self.statements))


async def stores_of(client: NodeClient) -> tuple[VoterStore, ...]:
    """Return every store that votes or could."""
    return tuple(
        VoterStore(Voter(PeerId(row.node), bytes.fromhex(row.store)), row.voter, row.ready)
        for row in await client.read(tuple[VoterView, ...], "/v1/voters")
    )


def without(stores: tuple[VoterStore, ...], node: PeerId) -> NewVoters:
    """Return the voters once `node` is none: a ready node takes its place, else the set shrinks. Raises CommandError."""
    voter_stores = [store for store in stores if store.votes and store.voter.node != node]
    names = {store.voter.node for store in voter_stores}
    spare = [store for store in stores if not store.votes and store.ready and store.voter.node not in {*names, node}]
    if spare:
        return _proven(stores, [*voter_stores, spare[0]])
    ready_first = sorted(voter_stores, key=lambda one: not one.ready)
    size = max((count for count in VOTER_COUNTS if count <= len(voter_stores)), default=0)
    if not size:
        raise CommandError(
            "it is the only voter, and no other node is ready to be one",
            next_step="let another node join and run for a minute: freehold mesh invite",
            kind="last-voter",
        )
    return _proven(stores, ready_first[:size])


def replacing(stores: tuple[VoterStore, ...], old: PeerId, new: PeerId) -> NewVoters:
    """Return the voters with `new` in the place of `old`, or with the new store of the same node. Raises CommandError."""
    voter_stores = [store for store in stores if store.votes and store.voter.node != old]
    if len(voter_stores) == sum(store.votes for store in stores):
        raise CommandError(f"{short(old)} is no voter", next_step="freehold mesh voters", kind="no-voter")
    coming = [store for store in stores if not store.votes and store.ready and store.voter.node == new]
    if not coming:
        raise CommandError(
            f"{short(new)} has not said to the asked node that it is ready to vote",
            next_step="wait ten seconds and try again, or ask another voter's node",
            kind="not-ready",
        )
    return _proven(stores, [*voter_stores, coming[0]])


def _proven(before: tuple[VoterStore, ...], chosen: list[VoterStore]) -> NewVoters:
    ready = [voter_store for voter_store in chosen if voter_store.ready]
    if len(ready) <= len(chosen) // 2:
        raise CommandError(
            f"{len(ready)} of the {len(chosen)} new voters have said to the asked node that they are ready; "
            "more than half must",
            next_step="wait ten seconds and try again, or ask another voter's node",
            kind="not-ready",
        )
    old = [voter_store.voter for voter_store in before if voter_store.votes]
    new = sorted(voter_store.voter for voter_store in chosen)
    return NewVoters(
        tuple(new),
        tuple(voter_store.ready for voter_store in ready),
        tuple(voter.node for voter in new if voter not in old),
        tuple(voter.node for voter in old if voter not in new),
    )
