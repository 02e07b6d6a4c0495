"""`freehold mesh admins list|add|remove|sign`: whose signatures decide about the mesh, and how many of them it takes.

Every change is a plan first, and one signed command; where more than one signature is asked for it goes as a line of
text from admin to admin. Not here: the keys themselves (key.py), and what admins decide.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.contexts import Context
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.access.statements import add_signature, read_statement, write_statement
from cli.errors import UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import table
from cli.text.units import counted
from cli.views.watch import VOTERS_DECIDE
from protocols.state.commands import (
    COMMAND_ID_BYTES,
    RECOVERY,
    Command,
    SetAdmins,
    SignedCommand,
    admin_keys,
    recovery_keys,
    sign_command,
)
from protocols.state.governance import RECOVERY_RULES
from protocols.state.model import MeshState
from protocols.trust.genesis import ADMINS_MAX

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking; the passphrase is asked for all the same.")
_THRESHOLD = click.option(
    "--threshold", type=click.IntRange(1, ADMINS_MAX), default=None, help="How many must sign from then on."
)
_KEY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class AdminsPlan:
    """The admins now and after, and what somebody should know before they sign it."""

    before: tuple[bytes, ...]
    after: tuple[bytes, ...]
    threshold_before: int
    threshold: int

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan for people."""
        rows = [f"  + {_shown(key)}" for key in self.after if key not in self.before]
        rows += [f"  - {_shown(key)}" for key in self.before if key not in self.after]
        rows += [f"    {_shown(key)}" for key in self.after if key in self.before]
        signed = f"{self.threshold} of {counted(len(admin_keys(self.after)), 'admin key')} must sign from then on"
        was = f" (now {self.threshold_before} of {len(admin_keys(self.before))})"
        return (*rows, f"  {signed}{was}", *(f"  beware: {warning}" for warning in self.warnings))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the plan makes easier to lose, or to take."""
        texts: list[str] = []
        own, recovery = admin_keys(self.after), recovery_keys(self.after)
        if self.threshold == 1 and len(own) > 1:
            texts.append("any one of these keys decides alone; --threshold 2 asks for two")
        if self.threshold == len(own) and not recovery:
            texts.append(
                "with one key lost nobody administers the mesh any more; keep one on paper for that: freehold key paper, "
                "then freehold mesh admins add KEY --recovery"
            )
        if len(recovery) >= self.threshold:
            texts.append("the recovery keys alone can name other admins: keep them where nobody finds them together")
        if self.threshold < self.threshold_before:
            texts.append(f"fewer signatures than before: {self.threshold} where it was {self.threshold_before}")
        return tuple(texts)


def _shown(key: bytes) -> str:
    return f"{key[len(RECOVERY) :].hex()}  for recovery alone" if recovery_keys((key,)) else key.hex()


def plan_of(state: MeshState, added: Sequence[bytes], removed: Sequence[bytes], threshold: int | None) -> AdminsPlan:
    """Return the plan of a change of the admins; a recovery key has RECOVERY before it, and none is both.

    Raises UsageError for one that could not be decided.
    """
    if recovery_keys(added) and state.rules_version < RECOVERY_RULES:
        raise UsageError(
            f"a recovery key needs rules {RECOVERY_RULES}; the mesh judges by {state.rules_version}",
            next_step="freehold mesh rules --raise", kind="rules.recovery",
        )  # fmt: skip
    already = [key for key in added if key in state.admins]
    strangers = [key for key in removed if key not in state.admins]
    if already or strangers:
        what = f"{_shown(already[0])[:12]} is an admin key already" if already else ""
        what = what or f"{strangers[0].hex()[:12]} is no admin key of this mesh"
        raise UsageError(what, next_step="freehold mesh admins list", kind="admins")
    twins = {RECOVERY + key for key in admin_keys(added)} | set(recovery_keys(added))
    after = tuple(sorted({*state.admins, *added} - {*removed, *twins}))
    own = admin_keys(after)
    wanted = threshold if threshold is not None else min(state.threshold, len(own))
    if not own or len(after) > ADMINS_MAX or not 0 < wanted <= len(own):
        raise UsageError(
            f"{wanted} of {len(own)} keys cannot sign: a mesh has 1 to {ADMINS_MAX} admins, and asks for at most all",
            next_step="freehold mesh admins list", kind="admins",
        )  # fmt: skip
    if after == state.admins and wanted == state.threshold:
        raise UsageError("that changes nothing", next_step="freehold mesh admins list", kind="admins")
    return AdminsPlan(state.admins, after, state.threshold, wanted)


def key_named(text: str, admins: Sequence[bytes] = ()) -> bytes:
    """Return the key that 64 hex digits spell, or of the admins the one that begins so. Raises UsageError."""
    if _KEY.fullmatch(text):
        return bytes.fromhex(text)
    found_admins = [key for key in admins if len(text) >= 8 and key.hex().startswith(text)]
    if len(found_admins) != 1:
        raise UsageError(
            "a key is 64 hexadecimal digits" + (", or the first 8 or more of one that is an admin's" if admins else ""),
            next_step="freehold mesh admins list; a new one: freehold key create NAME", kind="admins",
        )  # fmt: skip
    return found_admins[0]


@command("list", examples=("freehold mesh admins list", "freehold mesh admins list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List the admin keys, and how many of them must sign."""
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    mine = _mine(context)
    own, recovery = admin_keys(state.admins), recovery_keys(state.admins)
    rows = [(key.hex(), "yours" if key == mine else "") for key in own]
    rows += [(key.hex(), "for recovery alone" + ("; yours" if key == mine else "")) for key in recovery]
    value = {
        "admins": [{"key": key.hex(), "yours": key == mine} for key in own],
        "recovery": [{"key": key.hex(), "yours": key == mine} for key in recovery], "threshold": state.threshold,
    }  # fmt: skip
    output.result(value, f"{table(('KEY', ''), rows)}\n{state.threshold} of {len(own)} must sign")
    output.hint("freehold key create NAME, then freehold mesh admins add KEY")


@command("add", examples=("freehold mesh admins add 5f0c… --threshold 2", "freehold mesh admins add 5f0c… --recovery"))
@click.argument("key")
@click.option("--recovery", is_flag=True, help="It may sign the next set of admins, and nothing else.")
@_THRESHOLD
@_CONTEXT
@_YES
def add(output: Output, key: str, recovery: bool, threshold: int | None, context_name: str | None, yes: bool) -> None:
    """Make a key an admin's. Who holds it makes it: freehold key create NAME, or freehold key paper.

    With --recovery it is kept for the day on which the others are lost; one that is an admin's becomes that alone.
    """
    _change(output, context_name, yes, added=key, recovery=recovery, threshold=threshold)


@command("remove", examples=("freehold mesh admins remove 5f0c2d11",))
@click.argument("key")
@_THRESHOLD
@_CONTEXT
@_YES
def remove(output: Output, key: str, threshold: int | None, context_name: str | None, yes: bool) -> None:
    """Take a key out of the admins: what was decided stays, and grants that it signed end until `key renew`."""
    _change(output, context_name, yes, removed=key, threshold=threshold)


def _change(output: Output, context_name: str | None, yes: bool, *, added: str = "", removed: str = "",
            recovery: bool = False, threshold: int | None) -> None:  # fmt: skip
    _, context = contexts.current_context(context_name)
    require_admin(context, "change the admins")
    state = talk(context, lambda client: client.state())
    new = (RECOVERY if recovery else b"") + key_named(added) if added else b""
    gone = key_named(removed, (*admin_keys(state.admins), *recovery_keys(state.admins))) if removed else b""
    gone = RECOVERY + gone if gone in recovery_keys(state.admins) else gone
    plan = plan_of(state, [new] if new else [], [gone] if gone else [], threshold)
    _agree(output, plan, yes)
    admin = unlock_admin(context, "change the admins")
    mesh = talk(context, lambda client: client.mesh())
    wanted = Command(
        secrets.token_bytes(COMMAND_ID_BYTES), SetAdmins(plan.after, plan.threshold), expect=state.sequence
    )
    _go_on(output, context, admin.public_key, sign_command([admin], mesh, wanted), state)


@command("sign", examples=("freehold mesh admins sign fhs1.…",))
@click.argument("statement")
@_CONTEXT
@_YES
def sign(output: Output, statement: str, context_name: str | None, yes: bool) -> None:
    """Add your signature to a change of the admins that another admin began; the last one needed has it decided."""
    _, context = contexts.current_context(context_name)
    require_admin(context, "sign a change of the admins")

    async def look(client: NodeClient) -> tuple[MeshState, bytes]:
        return await client.state(), await client.mesh()

    state, mesh = talk(context, look)
    signed, wanted, action = read_statement(statement, mesh)
    if wanted.expect != state.sequence:
        raise UsageError(
            "the mesh has moved since the statement was made", next_step="freehold mesh admins add KEY, anew",
            kind="moved",
        )  # fmt: skip
    _agree(output, AdminsPlan(state.admins, action.admins, state.threshold, action.threshold), yes)
    admin = unlock_admin(context, "sign a change of the admins")
    _go_on(output, context, admin.public_key, add_signature(signed, mesh, admin), state)


def _agree(output: Output, plan: AdminsPlan, yes: bool) -> None:
    output.note("The admins of the mesh:")
    for line in plan.lines:
        output.note(line)
    confirm(output, "Sign it?", yes)


def _go_on(output: Output, context: Context, key: bytes, signed: SignedCommand, state: MeshState) -> None:
    """Have the command decided if enough have signed, else hand it to the next admin."""
    able = {*admin_keys(state.admins), *recovery_keys(state.admins)}
    count = len({signature.key for signature in signed.signatures} & able)
    lacking = max(0, state.threshold - count)
    text = write_statement(signed) if lacking else ""
    if key not in able:
        raise UsageError(
            "your key is no admin key of this mesh", next_step="freehold mesh admins list", kind="no-admin-key"
        )
    if lacking:
        value = {"outcome": "signed", "signatures": count, "lacking": lacking, "statement": text, "slot": 0}
        output.result(value, text)
        output.hint(f"{counted(lacking, 'admin')} more: freehold mesh admins sign STATEMENT")
        return
    output.live(VOTERS_DECIDE)
    slot = talk(context, lambda client: client.decide_signed(signed, next_step="freehold mesh admins list"))
    value = {"outcome": "decided", "signatures": count, "lacking": 0, "statement": "", "slot": slot}
    output.result(value, f"decided (decision {slot})")
    output.hint("freehold mesh admins list")


def _mine(context: Context) -> bytes:
    try:
        return contexts.public_key(context.admin) if context.admin else b""
    except UsageError:
        return b""


@click.group("admins", cls=Group)
def admins() -> None:
    """Show and change whose signatures decide about the mesh."""


for _one in (show, add, remove, sign):
    admins.add_command(_one)
