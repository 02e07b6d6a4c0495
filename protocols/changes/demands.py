"""The shape of policies: what a mesh, an environment or a release asks for before a change may run.

A policy is mesh state, decided by the chain on the admins' signatures; an environment may have its own; a project file
only tightens it. Not here: the checks (policy.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocols.chain.decision import VOTER_COUNTS

APPROVALS_MAX = 8
"""More approvers than a small team has would freeze a mesh for good."""
DEMANDS_MAX = 8
WINDOWS_MAX = 16
WINDOW_REASON_MAX = 200
APPROVAL_MAX_MS = 90 * 86_400_000

EvidenceKind = Literal["test", "smoke", "build"]
ApproverRole = Literal["approver", "admin"]
Asked = Literal["approver", "admin", "passkey"]
APPROVER_ROLES: tuple[ApproverRole, ...] = ("approver", "admin")
PASSKEY_RULES = 3
"""The feature level from which passkeys approve and policies may ask for them."""

Mode = Literal["solo", "team", "dev"]


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
    """What a change needs: others' `approvals`, what is `asked` of each approver, `evidence`, and the open `windows`.

    `asked` names the roles that count (none: either), and "passkey" where a key file's approval does not count.
    """

    approvals: int = 0
    asked: tuple[Asked, ...] = ()
    evidence: tuple[EvidenceDemand, ...] = ()
    windows: tuple[FreezeWindow, ...] = ()

    @property
    def approver_roles(self) -> tuple[ApproverRole, ...]:
        """The roles of which an approver holds one; none: either."""
        return tuple(role for role in APPROVER_ROLES if role in self.asked)

    @property
    def by_passkey(self) -> bool:
        """Whether each approval is given with a passkey."""
        return "passkey" in self.asked


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """The policy of a mesh or an environment; `mode` records what was chosen when it was made.

    `dev` is solo in the mesh of one that `freehold dev` founds: it alone runs releases from source, and it stays alone.
    `approval_max_ms` bounds how far ahead an approval may expire; `voters_target` is how far the mesh grows by itself.
    """

    mode: Mode
    demands: Demands = Demands()
    approval_max_ms: int = 7 * 86_400_000
    voters_target: int = 3


SOLO = Policy("solo")
DEV = Policy("dev", voters_target=1)
TEAM = Policy("team", Demands(approvals=1, asked=("approver", "admin")))


def policy_problem(policy: Policy) -> str | None:
    """Return which bound a policy breaks, or None."""
    problem = demands_problem(policy.demands)
    if problem:
        return problem
    if not 0 < policy.approval_max_ms <= APPROVAL_MAX_MS:
        return f"an approval lasts at most {APPROVAL_MAX_MS // 86_400_000} days"
    if policy.voters_target not in VOTER_COUNTS:
        return f"the voters' target is one of {VOTER_COUNTS}"
    if policy.mode == "dev" and policy.voters_target != 1:
        return "the mesh of freehold dev has one voter"
    if policy.mode == "team" and not policy.demands.approvals:
        return "a team policy asks for at least one approval; the mode without any is solo"
    return None


def demands_problem(demands: Demands) -> str | None:
    """Return which bound the demands break, or None."""
    if not 0 <= demands.approvals <= APPROVALS_MAX:
        return f"at most {APPROVALS_MAX} approvals can be asked for"
    if demands.by_passkey and not demands.approvals:
        return "a passkey is how an approval is given; ask for at least one approval with it"
    if len(demands.evidence) > DEMANDS_MAX or any(demand.max_age_ms <= 0 for demand in demands.evidence):
        return f"at most {DEMANDS_MAX} kinds of evidence, each with a maximum age"
    if len(demands.windows) > WINDOWS_MAX:
        return f"at most {WINDOWS_MAX} freeze windows"
    for window in demands.windows:
        if window.length_ms <= 0 or window.every_ms < 0 or len(window.reason) > WINDOW_REASON_MAX:
            return "a freeze window has a length, a period of 0 or more, and a short reason"
    return None
