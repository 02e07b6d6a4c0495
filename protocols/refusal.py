"""Why something signed was not believed: one value with a stable rule name and a human sentence.

Returned, never raised: a refusal is an ordinary outcome of judging outside input. Not here: the `Reject` effect, which
also names the peer that sent the input.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """`rule` is a stable dotted name such as "grant.broader-than-parent"; `detail` is one sentence for a person."""

    rule: str
    detail: str = ""
