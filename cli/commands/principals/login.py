"""`freehold login`: this laptop becomes a client of a mesh, with keys of its own.

Not here: machines that join (mesh join), and what the invite is worth (the admin who made it decided that).
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import click
import msgspec

from cli.access import contexts, half_made
from cli.access.client import RefusedError
from cli.access.contexts import Context
from cli.access.login import Offer, enrol, offer_of, share_with_everyday_key
from cli.access.prompts import ask_new_passphrase, unlock
from cli.errors import UsageError
from cli.frame import command
from cli.text.output import Output
from protocols.envelope import DecodeError, digest
from protocols.keys import SEED_BYTES, Ed25519Signer
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
    contexts.require_free_name(chosen)
    everyday, sealed = f"{chosen}-me", f"{chosen}-approver" if offer.needs_sealed_key else ""
    note = contexts.home_folder() / f"login-{chosen}.json"
    begun = half_made.read_note(note)
    known = chosen in contexts.read_contexts().contexts
    if known:
        note.unlink(missing_ok=True)  # the last step of an earlier login was taken
    elif begun is not None and begun.about != _named(offer):
        half_made.discard(note)
        begun = None
    for taken, kind in ((known, "mesh"), *((contexts.key_path(key).exists(), "key")
                        for key in (everyday, sealed) if key and begun is None)):  # fmt: skip
        if taken:
            raise UsageError(f"a {kind} of {chosen} is here already", next_step="choose another --name", kind="exists")
    me, person = _keys(note, offer, everyday, sealed)
    context = _enrolled(note, offer, Context(mesh, "", everyday, sealed), me, person)
    contexts.write_context(chosen, context)
    note.unlink()
    output.result(
        {"context": chosen, "mesh": mesh, "url": context.url, "key": everyday, "admin_key": sealed,
         "name": offer.grant.name, "roles": list(offer.grant.roles)},
        f"logged in to {chosen} as {offer.grant.name} ({', '.join(offer.grant.roles)}) at {context.url}",
    )  # fmt: skip
    output.hint("freehold status")


def _named(offer: Offer) -> str:
    return digest(offer.line.signed.payload).hex()


def _keys(note: Path, offer: Offer, everyday: str, sealed: str) -> tuple[Ed25519Signer, Ed25519Signer]:
    """Return the everyday key and the one to be admitted: new ones, or those of an attempt that was cut short."""
    seeds = {name: secrets.token_bytes(SEED_BYTES) for name in (everyday, sealed) if name}
    if half_made.read_note(note) is not None and all(contexts.key_path(name).exists() for name in seeds):
        me = contexts.open_plain(everyday)
        return me, unlock(sealed, "go on with the login") if sealed else me
    half_made.discard(note)
    passphrase = ask_new_passphrase(f"the key {sealed}") if sealed else ""
    publics = {name: Ed25519Signer(seed).public_key for name, seed in seeds.items()}
    half_made.write_note(note, publics, _named(offer))
    me = contexts.store_plain(everyday, seeds[everyday])
    if not sealed:
        return me, me
    return me, contexts.store_sealed(sealed, seeds[sealed], passphrase, secrets.token_bytes(SEAL_ENTROPY_BYTES))


def _enrolled(note: Path, offer: Offer, context: Context, me: Ed25519Signer, person: Ed25519Signer) -> Context:
    """Have the key admitted. It is kept unless a node refused it: a use of the invite may be spent on it already."""
    try:
        url, pin = asyncio.run(enrol(offer, person))
    except RefusedError:
        half_made.discard(note)
        raise
    context = msgspec.structs.replace(context, url=url, pin=pin)
    if person is not me:
        asyncio.run(share_with_everyday_key(context, offer, person, me.public_key))
    return context
