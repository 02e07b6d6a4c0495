"""An upgrade of the daemon as admins sign it, and which release may follow which.

The paper names the wheels by their digests, so no node needs to believe who brings them. An upgrade runs code on every node,
so it takes as many admins as the mesh asks for to begin one or to go on with it, and any one of them to stop it. Not here:
who conducts an upgrade and how a node takes it up (node/upgrade/).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

import msgspec

from protocols.envelope import DecodeError, decode
from protocols.machine import Signer, Verifier
from protocols.trust.cosigning import Cosigned, begin_cosigning, require_admins

UPGRADE_DOMAIN = "freehold/upgrade/1"
PAPER_MAX_BYTES = 16 * 1024
WHEELS_MAX = 32
WHEEL_NAME_MAX = 200
WINDOW_MAX_S = 3_600
GOOD_FOR_MS = 7 * 86_400_000
"""A paper that is older begins nothing: what was signed long ago is not what an admin wants today."""

_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.!+-]*\.whl")

Version = tuple[int, int, int]


class Wheel(msgspec.Struct, frozen=True, array_like=True):
    """One wheel: its file name, which says what it is for, and the SHA-256 of its bytes."""

    name: str
    digest: bytes


class UpgradePaper(msgspec.Struct, frozen=True, tag="upgrade"):
    """What an admin says of one upgrade. `start` names everything; the others name it by the digest of the start's payload.

    `window_s` is how long each node must be healthy before the next one begins. `at_ms` is when it was signed (wall ms).
    """

    action: Literal["start", "pause", "resume", "abort"]
    at_ms: int
    version: str = ""
    wheels: tuple[Wheel, ...] = ()
    window_s: int = 30
    order: bytes = b""


def version_of(text: str) -> Version | None:
    """Return a release's three numbers; None for what is no release of Freehold."""
    answer = _VERSION.fullmatch(text)
    return (int(answer[1]), int(answer[2]), int(answer[3])) if answer else None


def following_problem(old: str, new: str) -> str:
    """Why the release `new` may not take the place of `old` on a node while others still run `old`; "" if it may.

    Neighbours work together: the same minor number, the next one, or the first release of the next major number.
    """
    before, after = version_of(old), version_of(new)
    if before is None or after is None:
        return f"{new if after is None else old} is not a release: three numbers, such as 1.4.0"
    if after <= before:
        return f"{old} runs already; a mesh goes forward only" if after == before else f"{new} is older than {old}"
    same = after[0] == before[0] and after[1] - before[1] <= 1
    next_major = after[0] - before[0] == 1 and after[1] == 0
    if same or next_major:
        return ""
    return f"{new} does not stand next to {old}; go by way of the release between them"


def sign_upgrade(signer: Signer, mesh: bytes, paper: UpgradePaper) -> Cosigned:
    """Sign a paper with an admin's key, as the first."""
    return begin_cosigning(signer, UPGRADE_DOMAIN, mesh, paper)


def admins_needed(paper: UpgradePaper, threshold: int) -> int:
    """Return how many admins sign a paper in a mesh that asks for `threshold` of them: one may stop what several began."""
    return threshold if paper.action in {"start", "resume"} else 1


def open_upgrade(
    verifier: Verifier, mesh: bytes, admins: Collection[bytes], threshold: int, signed: Cosigned, now_ms: int
) -> UpgradePaper:
    """Return what a paper of the admins says. Raises DecodeError for one that is nobody's, malformed, or too old."""
    paper: UpgradePaper = decode(signed.payload, UpgradePaper, PAPER_MAX_BYTES)
    require_admins(verifier, UPGRADE_DOMAIN, mesh, signed, admins, admins_needed(paper, threshold))
    if abs(now_ms - paper.at_ms) > GOOD_FOR_MS:
        raise DecodeError("it was signed over a week ago, or a clock is wrong")
    problem = (
        _start_problem(paper) if paper.action == "start" else "" if len(paper.order) == 32 else "it names no order"
    )
    if problem:
        raise DecodeError(problem)
    return paper


def _start_problem(paper: UpgradePaper) -> str:
    if version_of(paper.version) is None:
        return "its version is not three numbers"
    if not 1 <= len(paper.wheels) <= WHEELS_MAX:
        return f"an upgrade has 1 to {WHEELS_MAX} wheels"
    if any(len(wheel.digest) != 32 for wheel in paper.wheels):
        return "a wheel has no digest"
    names = [wheel.name for wheel in paper.wheels]
    if len(set(names)) != len(names) or any(len(name) > WHEEL_NAME_MAX or not _WHEEL.fullmatch(name) for name in names):
        return "a wheel has no name of its own"
    if not 1 <= paper.window_s <= WINDOW_MAX_S:
        return f"the health window is 1 to {WINDOW_MAX_S} s"
    return ""
