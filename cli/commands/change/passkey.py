"""`freehold passkey add|list|remove`: let a passkey approve in your name. Your sealed key grants it, at the terminal.

A passkey's approval shows that its person was there and was verified, which a key file on the same machine does not.
Not here: approving with one (`freehold approve --passkey`).
"""

from __future__ import annotations

import base64
import time

import click
import msgspec

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.passkeys import (
    GrantScope,
    StoredPasskey,
    approving_grant,
    forget_passkey,
    grant_passkey,
    known_passkeys,
    require_passkey_rules,
    require_unknown,
    store_passkey,
    unpadded,
)
from cli.access.principals import (
    Principal,
    approver_key_name,
    principal_of,
    principals_of,
    revoke_grants,
    talk_as,
)
from cli.access.prompts import unlock
from cli.change.evidence import SPKI_PREFIX
from cli.console.ask import ask_in_browser
from cli.console.serving import PORT, origin_of
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.units import duration_ms, in_words
from protocols.changes.change import valid_name
from protocols.changes.passkeys import POINT_BYTES, describe, read_passkey
from protocols.envelope import Signed
from protocols.refusal import Refusal

RP_ID = "localhost"
CREDENTIAL_MAX_BYTES = 1023
_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


class Created(msgspec.Struct, frozen=True):
    """What the page says of a new credential: its id in base64url, the public key's DER in base64url."""

    credential: str
    spki: str


@command("add", examples=("freehold passkey add", "freehold passkey add --name phone --expires 90d"))
@click.option("--name", default="", help="What it is called; by default after the context.")
@click.option(
    "--expires",
    default="365d",
    show_default=True,
    metavar="DURATION",
    help="How long it may approve; at most until your own grant ends.",
)
@click.option("--port", type=click.IntRange(1024, 65535), default=PORT, show_default=True,
              help="Port of the page on localhost; the passkey approves from that port only.")  # fmt: skip
@_CONTEXT
def add(output: Output, name: str, expires: str, port: int, context_name: str | None) -> None:
    """Make a passkey in this machine's browser and let it approve in your name. Needs your passphrase."""
    where, context = contexts.current_context(context_name)
    name, span_ms = name or f"{where}-passkey", duration_ms(expires)
    if not valid_name(name):
        raise UsageError("a name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold passkey add --name phone")
    require_unknown(name)
    sealed = approver_key_name(context)
    person = contexts.public_key(sealed)

    async def allowed(client: NodeClient) -> tuple[tuple[Signed, ...], GrantScope]:
        await require_passkey_rules(client)
        return await approving_grant(
            client, person, admin=sealed == context.admin and person in (await client.state()).admins
        )

    chain, gives = talk(context, allowed)
    question = {"kind": "create", "rp": RP_ID, "name": name, "mesh": where, "user": user_handle(person)}
    stored_passkey = ask_in_browser(
        output, port, question, Created, lambda said: _stored(context, person, port, said), purpose="make the passkey"
    )
    signer = unlock(sealed, f"let the passkey {stored_passkey.id.hex()[:12]} approve in your name")
    grant = talk_as(
        context, signer,
        lambda client: grant_passkey(client, signer, chain, gives, key=stored_passkey.id, name=name, span_ms=span_ms),
    )  # fmt: skip
    store_passkey(name, stored_passkey)
    left = in_words(grant.expires_ms - time.time_ns() // 1_000_000)
    output.result(
        {
            "name": name,
            "key": stored_passkey.id.hex(),
            "origins": list(stored_passkey.origins),
            "expires_ms": grant.expires_ms,
        },
        f"passkey {name} {stored_passkey.id.hex()[:16]} approves in your name for {left}",
    )
    output.hint("freehold approve CHANGE --passkey")


def user_handle(person: bytes) -> str:
    """The user handle of a passkey: the beginning of the person's public key, so that a second one replaces none."""
    return base64.urlsafe_b64encode(person[:16]).rstrip(b"=").decode()


def _stored(context: contexts.Context, person: bytes, port: int, said: Created) -> StoredPasskey:
    spki, credential = (unpadded(text) for text in (said.spki, said.credential))
    if not spki.startswith(SPKI_PREFIX) or len(spki) != len(SPKI_PREFIX) + POINT_BYTES:
        raise CommandError(
            "the authenticator made no P-256 key (ES256)", next_step="use another authenticator", kind="passkey.curve"
        )
    if not 0 < len(credential) <= CREDENTIAL_MAX_BYTES:
        raise CommandError("the credential has no id", next_step="use another authenticator", kind="passkey.malformed")
    description = describe(person, spki[len(SPKI_PREFIX) :], RP_ID, (origin_of(port),))
    read = read_passkey(description)
    if isinstance(read, Refusal):
        raise CommandError(read.detail, next_step="freehold passkey add", kind=read.rule)
    return StoredPasskey(context.mesh, said.credential, description)


@command("list", examples=("freehold passkey list", "freehold passkey list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List the passkeys that are known here, and whether they count."""
    _, context = contexts.current_context(context_name)
    known = known_passkeys(context)

    async def conversation(client: NodeClient) -> list[Principal]:
        return [await principal_of(client, stored_passkey.id) for stored_passkey in known]

    rows = list(zip(known, talk(context, conversation), strict=True))
    lines = [
        f"{key.id.hex()[:12]}  {principal.name or '?'}  from {', '.join(key.origins)}  {principal.problem or 'counts'}"
        for key, principal in rows
    ]
    told = [
        {"key": key.id.hex(), "name": principal.name, "origins": key.origins, "projects": principal.projects,
         "environments": principal.environments, "expires_ms": principal.expires_ms, "problem": principal.problem}
        for key, principal in rows
    ]  # fmt: skip
    output.result({"passkeys": told}, "\n".join(lines or ["no passkey is known here"]))
    output.hint("freehold passkey remove NAME" if rows else "freehold passkey add")


@command("remove", examples=("freehold passkey remove phone", 'freehold passkey remove phone -m "lost it"'))
@click.argument("name")
@click.option("-m", "--message", default="", help="Why; kept with the revocation.")
@_CONTEXT
def remove(output: Output, name: str, message: str, context_name: str | None) -> None:
    """Take a passkey's right to approve away, everywhere, for good. Needs your passphrase."""
    _, context = contexts.current_context(context_name)
    sealed = approver_key_name(context)
    person = contexts.public_key(sealed).hex()

    async def conversation(client: NodeClient) -> Principal:
        mine = [
            principal
            for principal in await principals_of(client)
            if person in principal.lineage and principal.key != person and principal.chains
        ]
        principals = [
            principal
            for principal in mine
            if name in {principal.name, principal.key} and principal.every_verb == ("approve",)
        ]
        if len(principals) != 1:
            what = f"{len(principals)} passkeys of yours are called {name!r}"
            raise UsageError(what, next_step="freehold passkey list, then name the key", kind="no-such-passkey")
        return principals[0]

    chosen_principal = talk(context, conversation)
    signer = unlock(sealed, f"end the passkey {chosen_principal.name}")
    filed = talk_as(context, signer, lambda client: revoke_grants(client, signer, chosen_principal, message))
    forget_passkey(context, bytes.fromhex(chosen_principal.key))
    output.result(
        {"name": chosen_principal.name, "key": chosen_principal.key, "revocation": filed},
        f"passkey {chosen_principal.name} approves nothing more",
    )


@click.group("passkey", cls=Group)
def passkey() -> None:
    """Make and list passkeys, which approve with a touch."""


for _one in (add, show, remove):
    passkey.add_command(_one)
