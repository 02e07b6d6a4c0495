"""What nodes sign during a rollout: that they prepared a change, how a stage goes, and that it takes too long.

Statements are exhibits of commands: every voter judges the same bytes. They are bound to the era, the rollout and the
`opened` count of the stage, so one from another stage is invalid by construction. Not here: what they add up to
(analysis.py), and how a node comes to its verdict (health.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols.chain.decision import Voter
from protocols.envelope import DIGEST_BYTES, DecodeError, Signed, decode, sign, verify
from protocols.keys import peer_id
from protocols.machine import PeerId, Signer, Verifier
from protocols.refusal import Refusal

STATEMENT_DOMAIN = "freehold/rollout-statement/1"
STATEMENT_MAX_BYTES = 2048
LATENCY_BUCKETS = 20
"""Bucket 0 counts latencies under 1 ms, bucket b those in [2^(b-1), 2^b) ms; the last starts at 262 seconds."""
COUNT_MAX = 1 << 48

ENGINE_PATTERN = re.compile("python|native|mixed-[0-9a-f]{8}")
"""No honest node serves this much in one stage; larger numbers would only slow the arithmetic."""

VerdictWord = Literal["pass", "fail", "pending"]


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """Requests, those that failed, and their latencies in log2 buckets (empty, or LATENCY_BUCKETS long).

    `engine` is what served them: "python", which alone served in the first release; "native"; or "mixed-" and eight hex
    digits that are equal where the same apps were served by the same engines. Latencies are compared within one engine.
    """

    requests: int = 0
    errors: int = 0
    buckets: tuple[int, ...] = ()
    engine: str = "python"

    def sound(self) -> bool:
        """Return whether the numbers can be true together."""
        return ENGINE_PATTERN.fullmatch(self.engine) is not None and (
            0 <= self.errors <= self.requests <= COUNT_MAX
            and len(self.buckets) in (0, LATENCY_BUCKETS)
            and all(0 <= count <= COUNT_MAX for count in self.buckets)
            and sum(self.buckets) <= self.requests
        )


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The signer fetched, verified and compiled `change`, holds the `base` release's bytes, and ran the smoke checks.

    `smoke` is "absent" where the release has none; a failed smoke check makes no statement.
    """

    change: bytes
    base: bytes
    smoke: Literal["passed", "absent"]


class HealthVerdict(msgspec.Struct, frozen=True, tag="verdict"):
    """How the stage goes on the signer, its `sequence`-th word on it: the highest counts, and a fail is final.

    `candidate` and `base` count what each served here since the stage opened; a cohort node's `base` is what it served
    in as long a time before. `smoke_runs` counts replays of the smoke checks against the candidate, all passed.
    `taken` is false while the node only waits its turn or is outside the cohort: losing it says nothing of the
    candidate. `leaving` is the word of one that stops before it took the candidate: nobody need wait for it. Of one that
    took the candidate it means nothing, and releases that do not know it read a verdict that is pending.
    """

    era: bytes
    rollout: bytes
    opened: int
    sequence: int
    verdict: VerdictWord
    healthy_ms: int
    candidate: Counts
    base: Counts
    smoke_runs: int
    taken: bool = True
    reason: str = ""
    leaving: bool = False


class TimeoutVote(msgspec.Struct, frozen=True, tag="timeout"):
    """A voter saw no progress of the stage for longer than its deadline, by its own monotonic clock."""

    era: bytes
    rollout: bytes
    opened: int
    voter: Voter


class Vanished(msgspec.Struct, frozen=True, tag="vanished"):
    """A voter has not seen `node`, which took the candidate in this stage, for longer than the healthy deadline."""

    era: bytes
    rollout: bytes
    opened: int
    voter: Voter
    node: PeerId


Statement = Prepared | HealthVerdict | TimeoutVote | Vanished


@dataclass(frozen=True, slots=True)
class Said:
    """A statement whose signature by the node's own key verified."""

    node: PeerId
    statement: Statement


def state_it(signer: Signer, mesh: bytes, statement: Statement) -> Signed:
    """Sign a statement with the node's key."""
    return sign(signer, STATEMENT_DOMAIN, mesh, statement)


def open_statement(verifier: Verifier, mesh: bytes, signed: Signed) -> Said | Refusal:
    """Verify a statement and check its bounds; whether its signer matters is the reader's question."""
    if len(signed.payload) > STATEMENT_MAX_BYTES:
        return Refusal("statement.too-large", f"a statement has at most {STATEMENT_MAX_BYTES} bytes")
    if not verify(verifier, STATEMENT_DOMAIN, mesh, signed):
        return Refusal("statement.signature", "the statement's signature does not verify in this mesh")
    try:
        statement: Statement = decode(signed.payload, Statement, STATEMENT_MAX_BYTES)
    except DecodeError as error:
        return Refusal("statement.malformed", str(error))
    if not _sound(statement):
        return Refusal("statement.malformed", "a digest or a number is out of bounds")
    return Said(peer_id(signed.key), statement)


def _sound(statement: Statement) -> bool:
    match statement:
        case Prepared(change, base):
            return len(change) == DIGEST_BYTES and len(base) in (0, DIGEST_BYTES)
        case HealthVerdict() as said:
            return (
                len(said.era) == DIGEST_BYTES
                and len(said.rollout) == DIGEST_BYTES
                and all(0 <= n <= COUNT_MAX for n in (said.opened, said.sequence, said.healthy_ms, said.smoke_runs))
                and said.candidate.sound()
                and said.base.sound()
            )
        case TimeoutVote(era, rollout, opened) | Vanished(era, rollout, opened):
            return len(era) == DIGEST_BYTES and len(rollout) == DIGEST_BYTES and 0 <= opened <= COUNT_MAX
