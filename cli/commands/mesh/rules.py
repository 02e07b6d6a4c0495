"""`freehold mesh rules`: by which version of its rules the mesh judges, and how to raise it. Not here: the rules."""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import require_admin, talk_as, unlock_admin
from cli.access.prompts import confirm
from cli.frame import command
from cli.text.output import Output
from cli.views.watch import VOTERS_DECIDE
from protocols.state.commands import SetRules
from protocols.state.governance import RULES_VERSION

SAYS = {
    1: "the rules of the first release",
    2: "no single node outside a rollout's cohort turns its analysis, none of three or more inside makes it pass;"
    " latencies are compared within one serving engine; a node that said goodbye before it took a candidate is not waited for",
    3: "a passkey may approve, which shows that the person was there; a policy may ask for one",
    4: "nodes get certificates for the names of routes, and share them, their keys sealed;"
    " a key may be kept for recovery: it signs the next set of admins and nothing else;"
    " an environment may let apps that ask for it reach private networks",
}


@command("rules", examples=("freehold mesh rules", "freehold mesh rules --raise"))
@click.option("--raise", "raised", is_flag=True, help="Judge by the newest rules from now on. There is no way back.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking; the passphrase is asked for all the same.")
def rules(output: Output, *, raised: bool, context_name: str | None, yes: bool) -> None:
    """Show the version of the rules by which the mesh judges, or raise it.

    A version adds to those before it. Raise it once every node runs a release that knows it: an older node follows
    no decision from then on.
    """
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    newer = range(state.rules_version + 1, RULES_VERSION + 1)
    lines = [f"rules {state.rules_version}", *(f"  {version} adds: {SAYS[version]}" for version in newer)]
    if not raised or not newer:
        output.result({"rules": state.rules_version, "supported": RULES_VERSION, "slot": 0}, "\n".join(lines))
        if newer and not raised:
            output.hint("freehold mesh rules --raise")
        return
    require_admin(context, "raise the rules")
    for line in lines:
        output.note(line)
    output.note("A node of an older release follows no decision after this one. There is no way back.")
    confirm(output, f"Judge by rules {RULES_VERSION} from now on?", yes)
    admin = unlock_admin(context, "raise the rules")

    async def conversation(client: NodeClient) -> int:
        expect = (await client.state()).sequence
        return await client.decide(admin, SetRules(RULES_VERSION), expect=expect, next_step="freehold mesh rules")

    output.live(VOTERS_DECIDE)
    slot = talk_as(context, admin, conversation)
    value = {"rules": RULES_VERSION, "supported": RULES_VERSION, "slot": slot}
    output.result(value, f"the mesh judges by rules {RULES_VERSION} (decision {slot})")
