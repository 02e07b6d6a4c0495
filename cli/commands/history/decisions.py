"""`freehold decisions`: what the mesh decided, by whom, and the numbers that decided it.

Not here: the signed records behind one project's state (`freehold why`), and writes through the API (`audit`).
"""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import talk
from cli.frame import command
from cli.text.output import Output
from cli.text.table import short
from cli.text.times import moment
from protocols.api_models import DecisionView


@command("decisions", examples=("freehold decisions", "freehold decisions --project guestbook --env production",
                                "freehold decisions --limit 5 --json"))  # fmt: skip
@click.option("--project", default="", help="Only this project.")
@click.option("--env", "environment", default="", help="Only this environment.")
@click.option("--limit", type=click.IntRange(1, 2000), default=20, show_default=True, help="How many, newest first.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
def decisions(output: Output, project: str, environment: str, limit: int, context_name: str | None) -> None:
    """List decisions, newest first.

    Each has its number in the chain, who signed for it (or that health or an admission gave the authority), the voters
    whose signatures make it final, and for a rollout what each node had measured.
    """
    _, context = contexts.current_context(context_name)
    found_decisions = talk(
        context,
        lambda client: client.read(
            tuple[DecisionView, ...], "/v1/decisions", project=project, environment=environment, limit=limit
        ),
    )
    lines = [line for decision in found_decisions for line in _described(decision)]
    output.result({"decisions": found_decisions}, "\n".join(lines) or "nothing was decided yet")


def _described(one: DecisionView) -> list[str]:
    where = "/".join(part for part in (one.project, one.environment) if part)
    subject = one.subject
    about = short(subject) if subject.startswith("12D3Koo") else subject[:12]
    signed = [name or key[:12] for name, key in zip(one.names, one.signers, strict=True)]
    signers = ", ".join(signed) or _authority(one)
    what = " ".join(part for part in (where, about) if part)
    lines = [f"{one.slot:>5}  {moment(one.at_ms)}  {one.action:<18} {what}"]
    lines.append(f"       by {signers}; certified by {', '.join(short(node) for node in one.voters) or 'the admins'}")
    if one.reason:
        lines.append(f"       {one.reason}")
    lines += [
        f"       {short(number.node)}  {number.verdict}  {number.requests} requests, {number.errors} errors, "
        f"healthy {number.healthy_ms / 1000:.1f} s  {number.reason}".rstrip()
        for number in one.numbers
    ]
    return lines


def _authority(one: DecisionView) -> str:
    return {"confirm_node": "an invite", "reconfigure": "the policy", "reset": "the admins"}.get(one.action, "health")
