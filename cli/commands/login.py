"""`freehold login`: this laptop becomes a client of a mesh, with keys of its own.

Not here: machines that join (mesh join), and what the invite is worth (the admin who made it decided that).
"""

from __future__ import annotations

import asyncio
import secrets

import click

from cli.access import contexts as home
from cli.access.contexts import Context
from cli.access.login import Offer, enrol, offer_of, share_with_everyday_key
from cli.access.prompts import ask_new_passphrase
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from protocols.envelope import DecodeError
from protocols.keys import SEED_BYTES
from protocols.trust.invites import read_line

SEAL_ENTROPY_BYTES = 28


@command("login", examples=("freehold login fh1.…", "freehold login fh1.… --name work"))
@click.argument("line")
@click.option("--name", default=None, help="What to call the mesh here; by default after its id.")
def login(output: Output, *, line: str, name: str | None) -> None:
    """Take an operator's invite: make keys here, have the mesh know them, and speak to it from now on.

    The line comes from `freehold mesh invite --kind principal`. Who may approve also gets a key that opens only with a
    passphrase, asked for now.
    """
    try:
        offer = offer_of(read_line(line))
    except DecodeError as error:
        raise UsageError(str(error), next_step="freehold mesh invite --kind principal", kind="invite") from None
    mesh = offer.line.invite.mesh.hex()
    chosen = name or f"mesh-{mesh[:8]}"
    home.require_free_name(chosen)
    everyday, sealed = f"{chosen}-me", f"{chosen}-approver" if offer.needs_sealed_key else ""
    for taken, kind in ((chosen in home.read_contexts().contexts, "mesh"), *((home.key_path(key).exists(), "key")
                        for key in (everyday, sealed) if key)):  # fmt: skip
        if taken:
            raise UsageError(f"a {kind} of {chosen} is here already", next_step="choose another --name", kind="exists")
    passphrase = ask_new_passphrase(f"the key {sealed}") if sealed else ""
    context = _enrolled(offer, mesh, everyday, sealed, passphrase)
    home.write_context(chosen, context)
    output.result(
        {"context": chosen, "mesh": mesh, "url": context.url, "key": everyday, "admin_key": sealed,
         "name": offer.grant.name, "roles": list(offer.grant.roles)},
        f"logged in to {chosen} as {offer.grant.name} ({', '.join(offer.grant.roles)}) at {context.url}",
    )  # fmt: skip
    output.hint("freehold status")


def _enrolled(offer: Offer, mesh: str, everyday: str, sealed: str, passphrase: str) -> Context:
    """Make the keys and have them admitted; on failure no key is left behind, for none was of use."""
    made: list[str] = []
    try:
        me = home.store_plain(everyday, secrets.token_bytes(SEED_BYTES))
        made.append(everyday)
        person = me
        if sealed:
            seed, entropy = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEAL_ENTROPY_BYTES)
            person = home.store_sealed(sealed, seed, passphrase, entropy)
            made.append(sealed)
        url, pin = asyncio.run(enrol(offer, person))
        context = Context(mesh, "", everyday, sealed, url, pin)
        if sealed:
            asyncio.run(share_with_everyday_key(context, offer, person, me.public_key))
    except BaseException:
        for key in made:
            home.key_path(key).unlink(missing_ok=True)
        raise
    return context
