"""Policy: what a mesh asks for before a release may run, and the checks of it as pure functions.

A policy is mesh state, decided by the chain; an environment may have its own; a project file only tightens it. Every
refusal names its rule, what is missing and who can give it. Not here: signatures of approvals (approvals.py) and of
evidence (evidence.py), and the rights behind a key (grants.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocols.envelope import digest_of
from protocols.machine import Digest

APPROVALS_MAX = 8
"""More approvers than a small team has would freeze a mesh for good."""
DEMANDS_MAX = 8
WINDOWS_MAX = 16

EvidenceKind = Literal["test", "smoke", "build"]
ApproverRole = Literal["approver", "admin"]
Mode = Literal["solo", "team"]


class EvidenceDemand(msgspec.Struct, frozen=True, array_like=True):
    """Evidence of `kind`, PASSED and at most `max_age_ms` old; `by_node` refuses what the author ran alone."""

    kind: EvidenceKind
    max_age_ms: int
    by_node: bool = False


class FreezeWindow(msgspec.Struct, frozen=True, array_like=True):
    """A span of time that denies (or alone allows) starting rollouts: `start_ms` (wall), `length_ms`, repeated.

    `every_ms` 0 means once; a week is 604,800,000. Deny beats allow; where any allow window exists, only they allow.
    """

    effect: Literal["deny", "allow"]
    start_ms: int
    length_ms: int
    every_ms: int = 0
    reason: str = ""

    def covers(self, at_ms: int) -> bool:
        """Return whether the window is open at `at_ms` (wall)."""
        since_ms = at_ms - self.start_ms
        if since_ms < 0:
            return False
        return (since_ms % self.every_ms if self.every_ms else since_ms) < self.length_ms


class Demands(msgspec.Struct, frozen=True, array_like=True):
    """What a change needs: others' `approvals` by `approver_roles`, `evidence`, and the open `windows`."""

    approvals: int = 0
    approver_roles: tuple[ApproverRole, ...] = ()
    evidence: tuple[EvidenceDemand, ...] = ()
    windows: tuple[FreezeWindow, ...] = ()


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """The policy of a mesh or an environment; `mode` records what was chosen when it was made.

    `approval_max_ms` bounds how far ahead an approval may expire; `voters_target` is how far the mesh grows by itself.
    """

    mode: Mode
    demands: Demands = Demands()
    approval_max_ms: int = 7 * 86_400_000
    voters_target: int = 3


SOLO = Policy("solo")
TEAM = Policy("team", Demands(approvals=1, approver_roles=("approver", "admin")))


def policy_digest(policy: Policy, demands: Demands) -> Digest:
    """Return what a change names as its policy: the digest of the environment's policy and its release's demands."""
    return digest_of((policy, demands))
