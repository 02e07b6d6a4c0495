"""What a start that was handed over has come to, for commands that do not wait for its end: never more than is true.

A node judges a start within a moment: whether it started, what it waits for, who can help. Not here: waiting for the end
of a rollout (watch.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

from cli.access.client import NodeClient
from cli.errors import CommandError, ExitCode
from cli.views.watch import AwaitingApprovalError, RefusedStartError

JUDGED_WITHIN_S = 5.0
LOOK_EVERY_S = 0.2
NOT_JUDGED = "start.new"
"""The rule of a start that its node has not looked at yet."""

OUTCOMES = {
    ExitCode.AWAITING_APPROVAL: "waiting",
    ExitCode.REFUSED_BY_POLICY: "refused",
    ExitCode.ROLLED_BACK: "rolled-back",
}


def outcome_of(error: CommandError) -> str:
    """The outcome that an error of a watched start tells."""
    return OUTCOMES.get(error.exit_code, "unknown")


async def handed_over(client: NodeClient, change: str) -> dict[str, Any]:
    """Return `outcome` ("started" or "waiting"), what the start waits for, and what papers of people are missing.

    Raises RefusedStartError for one that was refused for good.
    """
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + JUDGED_WITHIN_S
    while True:
        view = await client.get(f"/v1/changes/{change}")
        start = view["start"]
        if start is None or start["outcome"] == "started" or view["state"] != "proposed":
            return {"outcome": "started"}
        if start["outcome"] == "refused":
            raise RefusedStartError(
                f"{start['rule']}: {start['detail']}", next_step="freehold diff, then deploy again", kind=start["rule"],
                answer={"change": change, "environment": view["environment"], "outcome": "refused"},
            )  # fmt: skip
        papers = await client.get(f"/v1/changes/{change}/papers")
        missing = [one for one in papers["missing"] if one["rule"].startswith("approval.")]
        if (
            missing
            or (start["rule"] != NOT_JUDGED and not start["rule"].startswith("release."))
            or loop.time() > ends_s
        ):
            waits = {"rule": start["rule"], "detail": start["detail"]}
            return {"outcome": "waiting", "waits_for": waits, "missing": missing}
        await asyncio.sleep(LOOK_EVERY_S)


def awaiting(answer: dict[str, Any]) -> AwaitingApprovalError:
    """The error of a start that waits for people: exit code 5, with the change and what it lacks."""
    first = answer["missing"][0]
    return AwaitingApprovalError(
        f"{first['rule']}: {first['detail']}", next_step=f"freehold approve {answer['change'][:12]}",
        kind="awaiting-approval", answer=answer,
    )  # fmt: skip
