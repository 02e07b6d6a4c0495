"""What one run of the chain fleet is, as data: drawn from the seed, and taken apart again by the minimiser."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulation.world.entropy import stream
from simulation.world.faults import GENERIC_KINDS, Fault, draw
from simulation.world.network import LinkFaults

SAFETY_MS = (8_000, 40_000)
HOST_COUNTS = (1, 3, 3, 3, 4, 5, 5, 7)
FAULTS_MAX = 28
KINDS = (*GENERIC_KINDS, "revoke", "view", "lapse", "old_version", "raise_rules")
LIAR_SHARE = 0.08
RIFTS_MAX = 6
DESTRUCTIVE = ("disk_loss", "rollback_database", "rollback_both", "lapse")


@dataclass(frozen=True)
class ChainPlan:
    """One run. `founder_count` voters found the chain, which then wants `target` of them."""

    seed: int
    host_count: int
    founder_count: int
    target: int
    client_count: int
    pause_max_ms: int
    safety_ms: int
    delay_max_ms: int
    loss: float
    duplication: float
    reordering: float
    faults: tuple[Fault, ...]
    liar: bool = False
    """Whether the first host's voter lies."""

    @property
    def links(self) -> LinkFaults:
        """A fresh set of link faults; the world changes it when it heals."""
        return LinkFaults(5, self.delay_max_ms, self.loss, self.duplication, self.reordering)

    def with_faults(self, faults: tuple[Fault, ...]) -> ChainPlan:
        """The same run with other faults."""
        return replace(self, faults=faults)


def chain_plan(
    seed: int,
    kinds: tuple[str, ...] = KINDS,
    delay_max_ms: int | None = None,
    voters: int | None = None,
    liar: bool = False,
) -> ChainPlan:
    """Draw the run of a seed; a hunt for one bug may ask for its own faults and links."""
    source = stream(seed, "plan")
    host_count = source.choice(HOST_COUNTS)
    founder_count = max(count for count in (1, 3, 5, 7) if count <= source.randint(1, host_count))
    target = source.choice([count for count in (1, 3, 5, 7) if founder_count <= count <= max(host_count, 1)] or [1])
    if voters is not None:
        host_count = founder_count = target = voters
    safety_ms = source.randrange(*SAFETY_MS)
    lossy = source.random()
    faults = draw(source, host_count, safety_ms, source.randint(0, FAULTS_MAX), kinds)
    # Lost stores end a chain until an operator resets it; most runs have few, so that they are about something else.
    spared = source.choice((0, 1, 1, 2, 3, FAULTS_MAX)) if kinds is KINDS else FAULTS_MAX
    lost = [fault for fault in faults if fault.kind in DESTRUCTIVE][spared:]
    has_liar = liar or (voters is None and stream(seed, "liar").random() < LIAR_SHARE and founder_count >= 3)
    if has_liar:
        faults += _rifts(seed, host_count, safety_ms)
    return ChainPlan(
        seed=seed,
        host_count=host_count,
        founder_count=founder_count,
        target=target,
        client_count=source.randint(1, 4),
        pause_max_ms=source.choice((200, 800, 2_000)),
        safety_ms=safety_ms,
        delay_max_ms=source.choice((10, 30, 100, 500)) if delay_max_ms is None else delay_max_ms,
        loss=source.choice((0.0, 0.02, 0.2)) if lossy < 0.7 else 0.0,
        duplication=source.choice((0.0, 0.05)),
        reordering=source.choice((0.0, 0.1)),
        faults=tuple(fault for fault in faults if fault not in lost),
        liar=has_liar,
    )


def _rifts(seed: int, host_count: int, safety_ms: int) -> tuple[Fault, ...]:
    """Draw rifts between honest hosts that all still hear the liar: it can tell each side something else."""
    source = stream(seed, "rifts")
    return tuple(
        Fault(
            at_ms=source.randrange(1, safety_ms),
            kind="rift",
            hosts=tuple(range(1, host_count)),
            duration_ms=source.choice((200, 1_000, 4_000)),
            amount=1,
        )
        for _ in range(source.randint(1, RIFTS_MAX))
    )
