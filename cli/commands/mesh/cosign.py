"""`freehold mesh cosign`: one more admin's signature under an upgrade, or under what is to be done with an app's data.

Not here: the change of the admins themselves (admins.py), and what is begun with one signature (upgrade.py, data_files.py).
"""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.cosigning import domain_of, lacking, read_paper, write_paper
from cli.access.principals import require_admin, talk_as, unlock_admin
from cli.access.prompts import confirm
from cli.errors import UsageError
from cli.frame import command
from cli.text.foreign import one_line
from cli.text.output import Output
from cli.text.table import short
from cli.text.times import moment
from cli.text.units import counted
from protocols.api_data import MandateBody
from protocols.api_upkeep import UpgradeBody, UpgradeView
from protocols.changes.mandates import DataMandate
from protocols.envelope import encode
from protocols.state.model import MeshState
from protocols.trust.cosigning import Cosigned, cosign
from protocols.trust.upgrades import UpgradePaper

FOR_FILES = {"export": "--to FOLDER", "import": "FOLDER"}
"""Acts that only who has the files can go on with."""


@command("cosign", examples=("freehold mesh cosign fhp1.…",))
@click.argument("paper")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking; the passphrase is asked for all the same.")
def cosign_paper(output: Output, paper: str, context_name: str | None, yes: bool) -> None:
    """Sign what another admin began: an upgrade, or an export, import, freeze, thaw or standby of an app's data.

    The last signature that is needed has it done; an export or import goes on where the folder is.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, "sign what another admin began")

    async def look(client: NodeClient) -> tuple[MeshState, bytes]:
        return await client.state(), await client.mesh()

    state, mesh = talk(context, look)
    begun, said = read_paper(paper, mesh)
    for line in lines_of(begun, said):
        output.note(line)
    confirm(output, "Sign it?", yes)
    admin = unlock_admin(context, "sign what another admin began")
    if admin.public_key not in state.admins:
        raise UsageError(
            "your key is no admin key of this mesh", next_step="freehold mesh admins list", kind="no-admin-key"
        )
    signed = cosign(admin, domain_of(said), mesh, begun)
    more = lacking(state, signed, said)
    is_elsewhere = isinstance(said, DataMandate) and said.act in FOR_FILES
    is_done = not more and not is_elsewhere
    if is_done:
        talk_as(context, admin, lambda client: _hand_over(client, signed, said))
    text = "" if is_done else write_paper(signed)
    value = {
        "outcome": "done" if is_done else "signed", "signatures": len(signed.keys), "lacking": more, "paper": text,
    }  # fmt: skip
    output.result(value, text or f"signed by {counted(len(signed.keys), 'admin')}, and handed over")
    output.hint(_following(said, more))


def _following(said: UpgradePaper | DataMandate, more: int) -> str:
    """What comes next, after a signature behind which so many are lacking."""
    if more:
        return f"{counted(more, 'admin')} more: freehold mesh cosign PAPER"
    if isinstance(said, UpgradePaper):
        return "freehold mesh upgrade plan"
    if said.act in FOR_FILES:
        return f"freehold data {said.act} {said.project} {FOR_FILES[said.act]} --mandate PAPER --env {said.environment}"
    return "freehold data list"


def lines_of(paper: Cosigned, said: UpgradePaper | DataMandate) -> list[str]:
    """What somebody should know before signing."""
    signed = ", ".join(short(key.hex()) for key in sorted(paper.keys))
    if isinstance(said, UpgradePaper):
        starts, order = said.action == "start", said.order.hex()[:16]
        what = [
            f"upgrade: start {said.version or order}, which runs these wheels on every node:" if starts
            else f"upgrade: {said.action} the one of order {order}",
            *(f"  {wheel.digest.hex()}  {wheel.name}" for wheel in said.wheels),
            *([f"  each node is to be well for {said.window_s} s before the next one begins"] if starts else []),
        ]  # fmt: skip
    else:
        beside = (f" to {said.target}" if said.target else "") + " in the place of what is there" * said.replace
        what = [f"data: {said.act} {said.project} in {said.environment} on {said.node}{beside}"]
        what += [f"  of the files that are listed in {said.listing.hex()}"] if said.listing else []
    return [*map(one_line, what), f"signed by {signed}, made {moment(said.at_ms)}"]


async def _hand_over(client: NodeClient, signed: Cosigned, said: UpgradePaper | DataMandate) -> None:
    if isinstance(said, UpgradePaper):
        await client.send(UpgradeView, "/v1/upgrade", UpgradeBody(encode(signed)))
    else:
        path = f"/v1/data/{said.project}/{said.environment}/{said.act}"
        await client.post_nothing(path, MandateBody(encode(signed)))
