"""What a start that was handed over has come to, for commands that do not wait for its end: never more than is true.

A node judges a start within a moment: whether it started, what it waits for, who can help. Not here: waiting for the end
of a rollout (watch.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cli.access.client import NodeClient
from cli.errors import CommandError, ExitCode
from cli.views.watch import AwaitingApprovalError, RefusedStartError
from protocols.api_models import ChangeView, MissingView, PapersView

JUDGED_WITHIN_S = 5.0
LOOK_EVERY_S = 0.2
NOT_JUDGED = "start.new"
"""The rule of a start that its node has not looked at yet."""

OUTCOMES = {
    ExitCode.AWAITING_APPROVAL: "waiting",
    ExitCode.REFUSED_BY_POLICY: "refused",
    ExitCode.ROLLED_BACK: "rolled-back",
}


@dataclass(frozen=True, slots=True)
class HandedOver:
    """`outcome` is "started" or "waiting": then it waits for `waits_for`, and `missing` are papers of people."""

    outcome: str
    waits_for: MissingView | None = None
    missing: tuple[MissingView, ...] = ()

    @property
    def answer(self) -> dict[str, object]:
        """What a program is told of it."""
        if self.waits_for is None:
            return {"outcome": self.outcome}
        return {"outcome": self.outcome, "waits_for": self.waits_for, "missing": self.missing}


def outcome_of(error: CommandError) -> str:
    """The outcome that an error of a watched start tells."""
    return OUTCOMES.get(error.exit_code, "unknown")


async def handed_over(client: NodeClient, change: str) -> HandedOver:
    """Return what became of the start of a change.

    Raises RefusedStartError for one that was refused for good.
    """
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + JUDGED_WITHIN_S
    while True:
        view = await client.read(ChangeView, f"/v1/changes/{change}")
        start = view.start
        if start is None or start.outcome == "started" or view.state != "proposed":
            return HandedOver("started")
        if start.outcome == "refused":
            raise RefusedStartError(
                f"{start.rule}: {start.detail}", next_step="freehold diff, then deploy again", kind=start.rule,
                answer={"change": change, "environment": view.environment, "outcome": "refused"},
            )  # fmt: skip
        papers = await client.read(PapersView, f"/v1/changes/{change}/papers")
        missing = tuple(missing for missing in papers.missing if missing.rule.startswith("approval."))
        if missing or (start.rule != NOT_JUDGED and not start.rule.startswith("release.")) or loop.time() > ends_s:
            return HandedOver("waiting", MissingView(start.rule, start.detail), missing)
        await asyncio.sleep(LOOK_EVERY_S)


def awaiting(change: str, missing: Sequence[MissingView], answer: Mapping[str, object]) -> AwaitingApprovalError:
    """The error of a start that waits for people: exit code 5, with the change and what it lacks."""
    first = missing[0]
    return AwaitingApprovalError(
        f"{first.rule}: {first.detail}", next_step=f"freehold approve {change[:12]}",
        kind="awaiting-approval", answer=answer,
    )  # fmt: skip
