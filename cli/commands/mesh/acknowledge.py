"""`freehold mesh acknowledge`: say that a reset of the mesh was looked into, which ends the warning about it.

Not here: the reset itself (membership.py).
"""

from __future__ import annotations

import time

import click
import msgspec

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import require_admin, talk_as, unlock_admin
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from cli.text.times import moment
from protocols.api_upkeep import AcknowledgementBody, AcknowledgementView
from protocols.envelope import encode
from protocols.trust.acknowledgements import NOTE_MAX, Acknowledgement, sign_acknowledgement

PATH = "/v1/resets/acknowledgement"


class Looked(AcknowledgementView, frozen=True):
    """Who looked into the newest reset of the mesh, as the node says."""

    @property
    def words(self) -> str:
        """The whole of it in a line."""
        who = self.name or f"the key {self.by[:8]}"
        times = "once" if self.resets == 1 else f"{self.resets} times"
        note = f": {self.note}" if self.note else ""
        return f"this mesh was reset {times}; {who} acknowledged it at {moment(self.at_ms)}{note}"


@command("acknowledge", examples=('freehold mesh acknowledge -m "compared with the deploy log, nothing is missing"',
                                  "freehold mesh acknowledge --show --json"))  # fmt: skip
@click.option("-m", "--message", default="", help="What you found; shown with your name.")
@click.option("--show", is_flag=True, help="Only show who acknowledged the newest reset.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def acknowledge(output: Output, *, message: str, show: bool, context_name: str | None, yes: bool) -> None:
    """End the warning about a reset of the mesh, after you compared what runs with what should. Needs the admin key.

    Your name, the time and the message stay with it on every node. A further reset warns anew.
    """
    if len(message) > NOTE_MAX:
        raise UsageError(f"a message has at most {NOTE_MAX} characters", next_step="shorten it")
    _, context = contexts.current_context(context_name)
    if not show:
        require_admin(context, "acknowledge the reset")
    found_looked = talk(context, _look)
    if show or found_looked.by:
        text = (
            found_looked.words
            if found_looked.by
            else "nobody acknowledged a reset"
            if found_looked.resets
            else "it was never reset"
        )
        output.result(msgspec.to_builtins(found_looked), text)
        output.hint(
            "freehold mesh acknowledge" if found_looked.resets and not found_looked.by else "freehold decisions"
        )
        return
    if not found_looked.resets:
        raise UsageError(
            "this mesh was never reset: there is nothing to acknowledge", next_step="freehold doctor", kind="no-reset"
        )
    output.note("This ends the warning about the reset of the mesh, on every node:")
    output.note("  what the lost voters decided among themselves stays abandoned; nothing is undone")
    output.note("  your name and message stay with it; a further reset warns anew")
    confirm(output, "Did you compare what runs with what should?", yes)
    admin = unlock_admin(context, "acknowledge the reset")
    said = Acknowledgement(found_looked.resets, bytes.fromhex(found_looked.era), time.time_ns() // 1_000_000, message)

    async def hand(client: NodeClient) -> Looked:
        paper = encode(sign_acknowledgement(admin, await client.mesh(), said))
        return await client.send(Looked, PATH, AcknowledgementBody(paper))

    looked = talk_as(context, admin, hand)
    output.result(msgspec.to_builtins(looked), looked.words)
    output.hint("freehold doctor")


async def _look(client: NodeClient) -> Looked:
    return await client.read(Looked, PATH)
