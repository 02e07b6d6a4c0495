"""`freehold approve|reject CHANGE`: a person says yes or no, with a sealed key opened at the terminal, or with a passkey.

No flag, variable, socket or tool stands in for the passphrase: whoever merely runs as this user cannot approve. What is
signed is the change's digest, shown as the diff it is. Not here: whose approval counts (the voters judge it).
"""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass

import click
import msgspec
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import NodeClient, RefusedError, talk
from cli.access.contexts import Context
from cli.access.passkeys import Touched, known_passkeys
from cli.access.principals import approver_key_name, talk_as, unlock_approver
from cli.change.propose import resolve_change
from cli.change.review import Review, change_at, release_at, review_change, review_text
from cli.console.ask import ask_in_browser
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.units import duration_ms, in_words
from cli.views.lane_status import held_by, step_for
from cli.views.papers import papers_text
from cli.views.watch import LOOK_EVERY_S, VOTERS_DECIDE
from protocols.api_models import ApprovalBody, ChangeView, MissingView, PapersView, RecordView, StartView
from protocols.changes.approvals import (
    COMMENT_MAX_CHARACTERS,
    Approval,
    approval_statement,
    read_approval,
    sign_approval,
)
from protocols.changes.demands import PASSKEY_RULES
from protocols.envelope import digest
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.state.commands import REASON_MAX, Exhibits, WithdrawApproval
from protocols.state.gate import gate_of

EXPIRES_DEFAULT = "24h"
ANSWER_WAIT_S = 5.0
"""How long an approval that completes a change waits to tell what the voters said to its start."""

BEFORE_AN_ANSWER = ("approval.", "start.new")
_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


@command("approve", examples=("freehold approve 3f9a12", 'freehold approve 3f9a12 --expires 2h -m "read the diff"'))
@click.argument("change")
@click.option("--expires", default=EXPIRES_DEFAULT, show_default=True, metavar="DURATION",
              help="How long it may start a rollout; policy has a limit.")  # fmt: skip
@click.option("-m", "--message", default="", help="Kept with the approval.")
@click.option("--passkey", "by_passkey", is_flag=True, help="Sign with a touch, in this machine's browser.")
@_CONTEXT
def approve(
    output: Output, change: str, expires: str, message: str, by_passkey: bool, context_name: str | None
) -> None:
    """Show a change's diff, then sign it with your sealed key or a passkey.

    The key needs your passphrase at a terminal; the passkey needs you at its authenticator.
    """
    _, context = contexts.current_context(context_name)
    span_ms = duration_ms(expires)
    if len(message) > COMMENT_MAX_CHARACTERS:
        raise UsageError(f"a message has at most {COMMENT_MAX_CHARACTERS} characters", next_step="shorten it")
    shown = talk(context, lambda client: _prepare(client, context, change, span_ms))
    output.note(shown.text)
    if by_passkey:
        outcome = _touched(output, context, shown, span_ms, message)
        filed = talk(context, lambda client: _file(client, shown, outcome))
    else:
        signer = unlock_approver(context, f"approve {shown.id[:12]} for {in_words(span_ms)}")
        outcome = _signed(context, signer, shown, span_ms, message)
        filed = talk_as(context, signer, lambda client: _file(client, shown, outcome))
    answer = {"change": shown.id, **asdict(filed), "diff": builtins_of(shown.review)}
    output.result(answer, f"change {shown.id[:12]} is approved for {in_words(span_ms)}")
    for missing in filed.missing:
        output.note(f"still missing: {missing.rule}: {missing.detail}")
    start = filed.start
    held = start is not None and bool(held_by(start)) and not filed.missing
    if start is not None and held:
        output.note(f"the start waits: {start.rule}: {start.detail}")
    step = (step_for(start.rule, shown.id) if start is not None and held else "") or "freehold status"
    output.hint(step if start is not None else f"freehold deploy --change {shown.id[:12]}")


@dataclass(frozen=True, slots=True)
class ReviewedChange:
    """A change as the approver saw it before signing."""

    id: str
    project: str
    environment: str
    text: str
    review: Review


class FiledApproval(msgspec.Struct, frozen=True):
    """An approval that was filed: what the change still needs, and its start, if one was handed over."""

    approver: str
    expires_ms: int
    missing: tuple[MissingView, ...]
    start: StartView | None


async def _prepare(client: NodeClient, context: Context, text: str, span_ms: int) -> ReviewedChange:
    view = await resolve_change(client, text)
    change, _ = await change_at(client, view.id)
    review = await review_change(client, view.id)
    papers = await client.read(PapersView, f"/v1/changes/{view.id}/papers")
    gate = gate_of(await client.state(), change.environment, await release_at(client, change.release))
    if span_ms > gate.approval_max_ms:
        limit = in_words(gate.approval_max_ms, at_least=True)
        raise UsageError(
            f"policy lets an approval last {limit} at most", next_step=f"freehold approve {text} --expires 1h"
        )
    mine = [contexts.public_key(name).hex() for name in (context.key, approver_key_name(context)) if name]
    if any(key in {papers.author.key, *papers.author.lineage} for key in mine):
        raise RefusedError(
            "approval.by-author",
            "you, or an agent of yours, proposed this; the author and the author's agents do not count",
            "ask another person with the role approver",
        )
    text = "\n".join([review_text(review), "", "papers", *papers_text(papers)])
    return ReviewedChange(view.id, change.project, change.environment, text, review)


@dataclass(frozen=True, slots=True)
class Given:
    """An approval as signed, and what it says; `approval.key` is the key or the passkey that signed."""

    approval: Approval
    envelope: bytes


def _approval(key: bytes, shown: ReviewedChange, span_ms: int, comment: str) -> Approval:
    named, now_ms = Digest(bytes.fromhex(shown.id)), time.time_ns() // 1_000_000
    return Approval(key, named, shown.project, shown.environment, now_ms, now_ms + span_ms, comment)


def _signed(context: Context, signer: Ed25519Signer, shown: ReviewedChange, span_ms: int, comment: str) -> Given:
    approval = _approval(signer.public_key, shown, span_ms, comment)
    return Given(approval, sign_approval(signer, bytes.fromhex(context.mesh), approval))


def _touched(output: Output, context: Context, shown: ReviewedChange, span_ms: int, comment: str) -> Given:
    """Have the person approve in the browser: what the page shows and what it signs come from the same bytes."""
    known = known_passkeys(context)
    if not known:
        raise CommandError("no passkey of yours is known here", next_step="freehold passkey add", kind="no-passkey")
    origin = known[0].origins[0]
    usable = {stored_passkey.credential: stored_passkey for stored_passkey in known if origin in stored_passkey.origins}
    statement = approval_statement(bytes.fromhex(context.mesh), _approval(b"", shown, span_ms, comment))
    question = {"kind": "approve", "rp": "localhost", "credentials": sorted(usable), "text": shown.text,
                "statement": base64.b64encode(statement).decode()}  # fmt: skip
    port = int(origin.rpartition(":")[2])

    def take(said: Touched) -> Given:
        stored_passkey = usable.get(said.credential)
        if stored_passkey is None:
            raise CommandError("that passkey is not known here", next_step="freehold passkey add", kind="no-passkey")
        envelope = said.envelope(stored_passkey, statement)
        read = read_approval(Ed25519Verifier(), bytes.fromhex(context.mesh), envelope)
        if isinstance(read, Refusal):
            raise RefusedError(read.rule, read.detail, "freehold passkey list")
        return Given(read, envelope)

    return ask_in_browser(output, port, question, Touched, take, purpose=f"approve {shown.id[:12]} with a touch")


async def _file(client: NodeClient, shown: ReviewedChange, given: Given) -> FiledApproval:
    key = given.approval.key.hex()
    await client.send(RecordView, "/v1/approvals", ApprovalBody(given.envelope))
    papers = await client.read(PapersView, f"/v1/changes/{shown.id}/papers")
    mine = next((approval for approval in papers.approvals if approval.key == key), None)
    if mine is not None and mine.problem:
        rule, _, detail = mine.problem.partition(": ")
        raise RefusedError(rule, detail, "freehold changes")
    start = await _start_after(client, shown.id, complete=not papers.missing)
    return FiledApproval(key, given.approval.expires_ms, papers.missing, start)


async def _start_after(client: NodeClient, change: str, *, complete: bool) -> StartView | None:
    """Return the start that the node holds; of a change that is complete now, once the voters have answered it, or soon."""
    give_up_s = time.monotonic() + (ANSWER_WAIT_S if complete else 0)
    while True:
        start = (await client.read(ChangeView, f"/v1/changes/{change}")).start
        unanswered = start is not None and start.outcome == "waiting" and start.rule.startswith(BEFORE_AN_ANSWER)
        if not unanswered or time.monotonic() > give_up_s:
            return start
        await asyncio.sleep(LOOK_EVERY_S)


async def _touches(client: NodeClient, change: str, person: bytes) -> tuple[bytes, ...]:
    """Return what this person's passkeys approved of a change: their key takes it back with its own."""
    if (await client.state()).rules_version < PASSKEY_RULES:
        return ()
    papers, mesh = await client.read(PapersView, f"/v1/changes/{change}/papers"), await client.mesh()
    envelopes = [approval.envelope for approval in papers.approvals if approval.by_passkey]
    envelopes = []
    for envelope in envelopes:
        read = read_approval(Ed25519Verifier(), mesh, envelope)
        if not isinstance(read, Refusal) and read.person == person:
            envelopes.append(envelope)
    return tuple(envelopes)


@command("reject", examples=('freehold reject 3f9a12 -m "it opens the network"',))
@click.argument("change")
@click.option("-m", "--message", required=True, help="Why; kept with the decision.")
@_CONTEXT
def reject(output: Output, change: str, message: str, context_name: str | None) -> None:
    """Reject a change, or take an approval back: your key's approval of it never counts again.

    A rollout of it that needed your approval pauses. Needs your passphrase at a terminal.
    """
    if len(message) > REASON_MAX:
        raise UsageError(f"a reason has at most {REASON_MAX} characters", next_step="shorten it")
    _, context = contexts.current_context(context_name)
    view = talk(context, lambda client: resolve_change(client, change))
    signer = unlock_approver(context, f"reject {view.id[:12]}")

    async def conversation(client: NodeClient) -> int:
        touched = await _touches(client, view.id, signer.public_key)
        return await client.decide(
            signer, WithdrawApproval(bytes.fromhex(view.id), message),
            project=view.project, environment=view.environment, next_step="freehold changes",
            exhibits=Exhibits(approvals=tuple(bytes(digest(entry)) for entry in touched)), material=touched,
        )  # fmt: skip

    output.live(VOTERS_DECIDE)
    slot = talk_as(context, signer, conversation)
    output.result(
        {"change": view.id, "slot": slot, "reason": message},
        f"change {view.id[:12]} is rejected (decision {slot})",
    )
    output.hint("freehold changes")
