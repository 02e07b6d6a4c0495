"""`freehold policy show|set`: what a change needs before it runs; decided by the mesh on the admins' signatures.

An environment has its own policy or the mesh's; a project file can only tighten either. Not here: protected
environments (`freehold env`), and who holds which role (`freehold token`, `freehold mesh invite`).
"""

from __future__ import annotations

import datetime
from typing import Literal, cast

import click
import msgspec

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import require_admin, talk_as, unlock_admin
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.units import duration_ms, in_words
from cli.views.watch import VOTERS_DECIDE
from protocols.changes.demands import (
    Asked,
    Demands,
    EvidenceDemand,
    EvidenceKind,
    FreezeWindow,
    Mode,
    Policy,
    policy_problem,
)
from protocols.state.commands import SetPolicy
from protocols.state.model import MeshState
from protocols.state.policy import PROTECTED

_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")
_ENVIRONMENT = click.option("--env", "environment", default="", help="Of this environment; by default the mesh's.")


@command("show", examples=("freehold policy show", "freehold policy show --env production --json"))
@_ENVIRONMENT
@_CONTEXT
def show(output: Output, environment: str, context_name: str | None) -> None:
    """Show what a change needs here before it may start."""
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    policy, own = policy_of(state, environment)
    where = environment or "the mesh"
    lines = [
        f"{where}: {'its own policy' if own or not environment else 'the policy of the mesh'}",
        *policy_text(policy),
    ]
    protected = next((entry.protected for entry in state.environments if entry.name == environment), False)
    if protected and not own:
        lines += [
            f"  evidence   {_evidence_words(evidence_demand)} (protected environment)"
            for evidence_demand in PROTECTED.evidence
        ]
    value: dict[str, object] = {"environment": environment, "own": own, "protected": protected}
    output.result({**value, "policy": policy_json(policy), "sequence": state.sequence}, "\n".join(lines))


@command("set", examples=(
    "freehold policy set --mode team",
    "freehold policy set --env production --approvals 2 --evidence test:24h --evidence smoke:24h:node",
    'freehold policy set --window "deny 2026-12-24T00:00Z 72h holidays"',
    "freehold policy set --env staging --inherit",
    "freehold policy set --env production --approvals 1 --approval passkey",
    "freehold policy set --voters 5",
))  # fmt: skip
@_ENVIRONMENT
@click.option("--mode", type=click.Choice(["solo", "team"]), help="solo: nobody else approves. team: somebody does.")
@click.option("--approvals", type=click.IntRange(0, 8), help="How many other people must approve.")
@click.option("--approver-role", "roles", multiple=True, type=click.Choice(["approver", "admin"]), help="Who may.")
@click.option("--approval", type=click.Choice(["key", "passkey"]),
              help="passkey: a touch, which shows that the person was there; key: that, or a key's passphrase.")  # fmt: skip
@click.option("--evidence", "evidence", multiple=True, metavar="KIND:AGE[:node]",
              help="test, smoke or build evidence, at most AGE old; `node`: run by a node. Replaces all.")  # fmt: skip
@click.option("--no-evidence", is_flag=True, help="Demand no evidence.")
@click.option("--window", "windows", multiple=True, metavar="'deny|allow START LENGTH [every PERIOD] [REASON]'",
              help="A freeze window; START in ISO 8601 with a zone. Replaces all.")  # fmt: skip
@click.option("--no-windows", is_flag=True, help="No freeze windows.")
@click.option("--approval-max", metavar="DURATION", help="How long an approval may last, at most.")
@click.option("--voters", type=click.Choice(["1", "3", "5", "7"]), help="How many nodes decide, once there are enough.")
@click.option("--inherit", is_flag=True, help="Return the environment to the mesh's policy.")
@_CONTEXT
@click.option("-y", "--yes", is_flag=True, help="Go on without asking; the passphrase is asked for all the same.")
def change(output: Output, *, environment: str, mode: str | None, approvals: int | None, roles: tuple[str, ...],
           approval: str | None, evidence: tuple[str, ...], no_evidence: bool, windows: tuple[str, ...], no_windows: bool,
           approval_max: str | None, voters: str | None, inherit: bool, context_name: str | None,
           yes: bool) -> None:  # fmt: skip
    """Change a policy. Needs the admin key; every proposed change must be proposed again."""
    _, context = contexts.current_context(context_name)
    require_admin(context, f"set the policy of {environment or 'the mesh'}")
    state = talk(context, lambda client: client.state())
    now, _ = policy_of(state, environment)
    if voters and environment:
        raise UsageError("voters decide for the whole mesh", next_step="leave --env out", kind="usage")
    demands = now.demands
    if evidence or no_evidence:
        demands = msgspec.structs.replace(demands, evidence=tuple(evidence_of(text) for text in evidence))
    if windows or no_windows:
        demands = msgspec.structs.replace(demands, windows=tuple(window_of(text) for text in windows))
    if roles or approval:
        how = "passkey" if demands.by_passkey else "key"
        asked = (
            *(dict.fromkeys(roles) or demands.approver_roles),
            *(("passkey",) if (approval or how) == "passkey" else ()),
        )
        demands = msgspec.structs.replace(demands, asked=cast("tuple[Asked, ...]", asked))
    chosen = mode or now.mode
    if approvals is None:
        approvals = 0 if mode == "solo" else max(demands.approvals, 1) if mode == "team" else demands.approvals
    if not approvals and not approval:
        demands = msgspec.structs.replace(demands, asked=demands.approver_roles)  # nothing is given, by whatever
    demands = msgspec.structs.replace(demands, approvals=approvals)
    limit_ms = duration_ms(approval_max) if approval_max else now.approval_max_ms
    policy: Policy | None = Policy(cast("Mode", chosen), demands, limit_ms, int(voters or now.voters_target))
    assert policy is not None
    problem = policy_problem(policy)
    if problem:
        raise UsageError(problem, next_step="freehold policy set --help", kind="policy")
    if inherit:
        if not environment:
            raise UsageError("the mesh's policy has nothing to inherit", next_step="name an environment: --env NAME")
        policy = None
    output.note(f"{environment or 'the mesh'}: the policy becomes")
    for line in policy_text(policy or state.policy):
        output.note(line)
    confirm(output, "Set it?", yes)
    admin = unlock_admin(context, f"set the policy of {environment or 'the mesh'}")

    async def conversation(client: NodeClient) -> int:
        action = SetPolicy(policy, environment)
        return await client.decide(admin, action, expect=state.sequence, next_step="freehold policy show")

    output.live(VOTERS_DECIDE)
    slot = talk_as(context, admin, conversation)
    value = {"environment": environment, "policy": policy_json(policy or state.policy), "slot": slot}
    output.result(value, f"the policy of {environment or 'the mesh'} is set (decision {slot})")
    output.hint("freehold changes: what was proposed under the old policy must be proposed again")


def policy_of(state: MeshState, environment: str) -> tuple[Policy, bool]:
    """Return the policy that holds and whether it is the environment's own. Raises UsageError."""
    if not environment:
        return state.policy, True
    found_environment = next((entry for entry in state.environments if entry.name == environment), None)
    if found_environment is None:
        raise UsageError(
            f"there is no environment {environment!r}", next_step="freehold env list", kind="no-environment"
        )
    return (found_environment.policy, True) if found_environment.policy is not None else (state.policy, False)


def policy_text(policy: Policy) -> list[str]:
    """A policy for people."""
    demands: Demands = policy.demands
    who = " or ".join(demands.approver_roles or ("approver",))
    mode = "dev: solo, in the mesh of one that freehold dev made" if policy.mode == "dev" else policy.mode
    lines = [f"  mode       {mode}"]
    lines.append(f"  approvals  {demands.approvals}, by {who}, other than the author"
                 f"{', with a passkey' if demands.by_passkey else ''}" if demands.approvals else
                 "  approvals  none needed")  # fmt: skip
    lines.append(f"  approval   lasts {in_words(policy.approval_max_ms)} at most")
    lines += [f"  evidence   {_evidence_words(demand)}" for demand in demands.evidence]
    lines += [f"  window     {_window_words(window)}" for window in demands.windows]
    return lines


def policy_json(policy: Policy) -> dict[str, object]:
    """A policy for programs."""
    demands = policy.demands
    return {
        "mode": policy.mode,
        "approvals": demands.approvals,
        "approver_roles": list(demands.approver_roles),
        "approval": "passkey" if demands.by_passkey else "key",
        "approval_max_ms": policy.approval_max_ms,
        "voters_target": policy.voters_target,
        "evidence": [
            {"kind": demand.kind, "max_age_ms": demand.max_age_ms, "by_node": demand.by_node} for demand in demands.evidence
        ],
        "windows": [
            {"effect": window.effect, "start_ms": window.start_ms, "length_ms": window.length_ms, "every_ms": window.every_ms,
             "reason": window.reason}
            for window in demands.windows
        ],
    }  # fmt: skip


def evidence_of(text: str) -> EvidenceDemand:
    """Read KIND:AGE[:node]. Raises UsageError."""
    kind, _, rest = text.partition(":")
    age, _, by = rest.partition(":")
    if kind not in {"test", "smoke", "build"} or by not in {"", "node"}:
        raise UsageError(f"{text!r} is not KIND:AGE[:node]", next_step="write for example smoke:24h:node", kind="usage")
    return EvidenceDemand(cast("EvidenceKind", kind), duration_ms(age), by == "node")


def window_of(text: str) -> FreezeWindow:
    """Read 'deny|allow START LENGTH [every PERIOD] [REASON]'. Raises UsageError."""
    words = text.split()
    example = 'write for example "deny 2026-12-24T00:00Z 72h holidays"'
    if len(words) < 3 or words[0] not in {"deny", "allow"}:
        raise UsageError(f"{text!r} is no window", next_step=example, kind="usage")
    try:
        start = datetime.datetime.fromisoformat(words[1])
    except ValueError:
        raise UsageError(f"{words[1]!r} is no time in ISO 8601", next_step=example, kind="usage") from None
    if start.tzinfo is None:
        raise UsageError(f"{words[1]!r} names no time zone", next_step=example, kind="usage")
    length_ms, rest, every_ms = duration_ms(words[2]), words[3:], 0
    if len(rest) >= 2 and rest[0] == "every":
        every_ms, rest = duration_ms(rest[1]), rest[2:]
    effect = cast("Literal['deny', 'allow']", words[0])
    return FreezeWindow(effect, int(start.timestamp() * 1000), length_ms, every_ms, " ".join(rest))


def _evidence_words(one: EvidenceDemand) -> str:
    return f"{one.kind}, PASSED, at most {in_words(one.max_age_ms)} old{', run by a node' if one.by_node else ''}"


def _window_words(one: FreezeWindow) -> str:
    start = datetime.datetime.fromtimestamp(one.start_ms / 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    every = f" every {in_words(one.every_ms)}" if one.every_ms else ""
    return f"{one.effect} {start} for {in_words(one.length_ms)}{every} {one.reason}".rstrip()


@click.group("policy", cls=Group)
def policy() -> None:
    """Show and set what a change needs before it runs."""


for _one in (show, change):
    policy.add_command(_one)
