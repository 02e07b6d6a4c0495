"""`freehold key create|use|passphrase|paper|renew`: the keys of a person on this machine, and the grants of those keys.

A passphrase and the letters of a key on paper go from the terminal into the key and nowhere else. Not here: who is an
admin (admins.py), and keys of agents (token.py).
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import click
import msgspec

from cli.access import contexts, half_made
from cli.access.client import NodeClient, talk
from cli.access.contexts import Context, Contexts
from cli.access.ended_rights import as_it_was, givers_of, name_it_had
from cli.access.paper_key import from_paper, on_paper
from cli.access.principals import Principal, principal_of, principals_of, require_admin, talk_as, unlock_admin
from cli.access.prompts import NeedsPersonError, ask_new_passphrase, ask_passphrase, confirm, unlock
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.foreign import plain
from cli.text.output import Output
from cli.text.units import duration_ms, in_words
from protocols.api_models import RightsView
from protocols.changes.change import valid_name
from protocols.envelope import Signed, encode, sign
from protocols.keys import SEED_BYTES, Ed25519Signer
from protocols.state.model import MeshState
from protocols.trust.grants import GRANT_DOMAIN, Grant

SEAL_ENTROPY_BYTES = 28
GRANT_NONCE_BYTES = 16
RENEWED_FOR = "365d"
RENEWED_WITHIN_MS = 86_400_000
"""Who renews twice in a day has renewed once."""


_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking; a passphrase is asked for all the same.")


@command("create", examples=("freehold key create ann-admin", "freehold key create ann-admin --use"))
@click.argument("name")
@click.option("--use", is_flag=True, help="Administer the current context's mesh with it from now on.")
@click.option(
    "--paper", is_flag=True, help="Take the key that is on paper, typed at the terminal, instead of a new one."
)
@_CONTEXT
def create(output: Output, *, name: str, use: bool, paper: bool, context_name: str | None) -> None:
    """Make a key that opens only with a passphrase, and show its public part: an admin adds it to the mesh's."""
    if not valid_name(name):
        raise UsageError("a key's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold key create ann-admin")
    note, source = contexts.home_folder() / f"key-{name}.json", "paper" if paper else ""
    begun = half_made.read_note(note)
    there = contexts.key_path(name).exists()
    if there and (begun is None or begun.about != source):
        here = contexts.public_key(name).hex()
        raise UsageError(f"there is a key {name} already: {here}", next_step="choose another name", kind="key-exists")
    where, context = contexts.current_context(context_name) if use else ("", None)
    signer = unlock(name, "go on with making it") if there else _made(note, name, source)
    if context is not None:
        _administer(where, context, name)
    note.unlink(missing_ok=True)
    public = signer.public_key.hex()
    output.result({"name": name, "key": public, "key_file": str(contexts.key_path(name))}, public)
    output.hint(f"an admin: freehold mesh admins add {public}")


def _made(note: Path, name: str, source: str) -> Ed25519Signer:
    """Note and store a key under a passphrase that is asked for: a new one, or that of the paper."""
    seed = from_paper(ask_passphrase("The 14 groups of the paper: ")) if source else secrets.token_bytes(SEED_BYTES)
    passphrase = ask_new_passphrase(f"the key {name}")
    half_made.write_note(note, {name: Ed25519Signer(seed).public_key}, source)
    return contexts.store_sealed(name, seed, passphrase, secrets.token_bytes(SEAL_ENTROPY_BYTES))


@command("use", examples=("freehold key use ann-admin",))
@click.argument("name")
@_CONTEXT
def use(output: Output, *, name: str, context_name: str | None) -> None:
    """Administer the current context's mesh with another key that is here, from now on."""
    where, context = contexts.current_context(context_name)
    public = contexts.public_key(name).hex()
    if not contexts.is_sealed(name):
        raise UsageError(
            f"{name} opens without a passphrase, and an admin's key never does",
            next_step=f"freehold key passphrase {name}", kind="passphrase",
        )  # fmt: skip
    _administer(where, context, name)
    output.result({"context": where, "name": name, "key": public}, f"{where} is administered with {name} from here")
    output.hint("freehold mesh admins list")


def _administer(where: str, context: Context, name: str) -> None:
    """Keep a key as the one that administers a context's mesh."""
    known = contexts.read_contexts()
    used = msgspec.structs.replace(context, admin=name)
    contexts.write_contexts(Contexts(known.current, {**known.contexts, where: used}))


@command(
    "passphrase",
    examples=("freehold key passphrase", "freehold key passphrase home-me", "freehold key passphrase home-me --remove"),
)
@click.argument("name", required=False)
@click.option("--remove", "removed", is_flag=True, help="Keep an everyday key without one. An admin's key keeps one.")
@_CONTEXT
@_YES
def passphrase(output: Output, *, name: str | None, removed: bool, context_name: str | None, yes: bool) -> None:
    """Change, set or remove the passphrase of a key here; by default of the admin key. The key stays what it is."""
    context = contexts.known_context(context_name)
    named = name or (context.admin or context.key if context is not None else "")
    if not named:
        raise UsageError("which key?", next_step="freehold key passphrase NAME", kind="no-key")
    sealed = contexts.is_sealed(named)
    if removed and (not sealed or named in {context.admin for context in contexts.read_contexts().contexts.values()}):
        what = "an admin's key always opens with a passphrase" if sealed else f"{named} has no passphrase"
        raise UsageError(what, next_step=f"freehold key passphrase {named}", kind="passphrase")
    if removed:
        output.note(f"Whoever runs as this user, an agent among them, can then act with {named}.")
        confirm(output, f"Keep {named} without a passphrase?", yes)
    before = ask_passphrase(f"The passphrase of {named}, as it is: ") if sealed else None
    seed = contexts.seed_of(named, before)
    after = None if removed else ask_new_passphrase(f"the key {named}")
    contexts.change_passphrase(named, Ed25519Signer(seed), seed, after, secrets.token_bytes(SEAL_ENTROPY_BYTES))
    how = "without a passphrase" if removed else "under the new passphrase"
    output.result({"name": named, "sealed": not removed}, f"{named} is kept {how}")
    output.note("Copies made before, in a backup say, still open as they did.")


@command("paper", examples=("freehold key paper",))
def paper(output: Output) -> None:
    """Make a key on paper, for the day all others are lost: shown once at the terminal, kept nowhere."""
    if not output.is_interactive:
        raise NeedsPersonError(
            "this shows a key to write down, once", next_step="run the same command on a terminal", kind="needs-person"
        )
    seed = secrets.token_bytes(SEED_BYTES)
    text = on_paper(seed)
    public = Ed25519Signer(seed).public_key.hex()
    output.note("Write this down on paper, by hand, and keep it where you keep what must not burn:")
    output.note(f"  {text}")
    if from_paper(ask_passphrase("Type all 14 groups from the paper, to see that they are right: ")) != seed:
        raise CommandError("those are another key's", next_step="freehold key paper, anew", kind="paper")
    output.result({"key": public}, public)
    output.hint(
        f"freehold mesh admins add {public} --recovery; when all else is lost: freehold key create NAME --paper --use"
    )


@command("renew", examples=("freehold key renew", "freehold key renew ann --for 90d"))
@click.argument("who", required=False)
@click.option(
    "--for", "span", default=RENEWED_FOR, show_default=True, metavar="DURATION", help="For how long from now."
)
@_CONTEXT
@_YES
def renew(output: Output, *, who: str | None, span: str, context_name: str | None, yes: bool) -> None:
    """Give a key its rights for another year, by an admin's signature: the same rights, the same key.

    By default your own everyday key; WHO is a name or a key of freehold token list. What ended with its time, or with
    the admin who gave it, is given anew, too.
    """
    _, context = contexts.current_context(context_name)
    require_admin(context, "renew a grant")
    mine = contexts.public_key(context.key).hex() if context.key else ""
    (found_principal, mesh), state = talk(context, lambda client: _with_state(client, who or mine))
    own_admin = contexts.public_key(context.admin) if found_principal.key == mine else b""
    principal = as_it_was(found_principal, mesh, state.admins, own_admin=own_admin)
    until_ms = time.time_ns() // 1_000_000 + duration_ms(span)
    held = _to_renew(principal, until_ms)
    if principal.kind != "person" or not any(rights.roles for rights in principal.each):
        raise UsageError(
            f"{principal.name or who or 'your everyday key'} has no grant of a person to renew",
            next_step="an agent's key is made anew: freehold token create NAME", kind="grant.none",
        )  # fmt: skip
    same_person = _is_same_person(principal, contexts.public_key(context.admin))
    if not held:
        latest_ms = max(rights.expires_ms for rights in principal.each)
        value = {"name": principal.name, "key": principal.key, "expires_ms": latest_ms, "grants": 0}
        output.result(value, f"{principal.name} has this already for {in_words(duration_ms(span))}")
        return
    output.note(f"The key {principal.key}:")
    if principal is not found_principal:
        givers = ", ".join(giver.hex() for giver in givers_of(found_principal, mesh))
        output.note(f"  What ended was given by {givers}. Go on only if that was an admin of yours: a node could lie.")
    for rights in held:
        output.note(
            f"  {principal.name}: {', '.join(rights.roles)} in {','.join(rights.projects)} / {','.join(rights.environments)}"
        )
    confirm(output, f"Renew this for {in_words(duration_ms(span))}?", yes)
    admin = unlock_admin(context, "renew a grant")
    chains = [(_again(admin, mesh, principal, entry, until_ms, same_person=same_person),) for entry in held]

    async def file(client: NodeClient) -> None:
        for chain in chains:
            await client.publish("grant", principal.key, encode(chain))

    talk_as(context, admin, file)
    value = {"name": principal.name, "key": principal.key, "expires_ms": until_ms, "grants": len(chains)}
    output.result(value, f"{principal.name} is renewed for {in_words(duration_ms(span))}")


def _to_renew(principal: Principal, until_ms: int) -> list[RightsView]:
    """The different rights of a key that end before then: once each, however many grants give them, itself a renewal."""
    different: dict[tuple[tuple[str, ...], ...], RightsView] = {}
    for rights in principal.each:
        said = (rights.roles, rights.verbs, rights.projects, rights.environments)
        if rights.roles and (said not in different or different[said].expires_ms < rights.expires_ms):
            different[said] = rights
    return [rights for rights in different.values() if rights.expires_ms < until_ms - RENEWED_WITHIN_MS]


async def _with_state(client: NodeClient, who: str) -> tuple[tuple[Principal, bytes], MeshState]:
    return await _found(client, who), await client.state()


async def _found(client: NodeClient, who: str) -> tuple[Principal, bytes]:
    mesh = await client.mesh()
    if len(who) == 64:
        return await principal_of(client, bytes.fromhex(who)), mesh
    principals = [
        principal
        for principal in await principals_of(client)
        if who in {name_it_had(principal, mesh), principal.key[: max(8, len(who))]}
    ]
    if len(principals) != 1:
        what = f"{len(principals)} keys are called {who!r}" if principals else f"no key is called {who!r}"
        raise UsageError(what, next_step="freehold token list, then name the key", kind="no-such-key")
    return principals[0], mesh


def _is_same_person(one: Principal, admin_key: bytes) -> bool:
    """Return whether the key and this admin's count as one person; a renewal must not make two of them.

    Raises UsageError where another key stands behind it: a grant straight from this admin would forget that.
    """
    behind = {bytes.fromhex(text) for text in one.lineage} - {bytes.fromhex(one.key)}
    others = sorted(key.hex()[:12] for key in behind - {admin_key})
    if others:
        raise UsageError(
            f"{one.name} counts as one person with {', '.join(others)}, whose grant it comes from",
            next_step="freehold token list, then let whoever holds that key renew it",
            kind="grant.lineage",
        )
    return admin_key in behind


def _again(
    admin: Ed25519Signer, mesh: bytes, one: Principal, held: RightsView, until_ms: int, *, same_person: bool
) -> Signed:
    """The same rights as one grant gives, to the same key, straight from an admin."""
    grant = msgspec.convert(
        {
            "key": bytes.fromhex(one.key), "kind": one.kind, "name": plain(one.name), "roles": held.roles,
            "projects": plain(held.projects), "environments": plain(held.environments), "expires_ms": until_ms,
            "nonce": secrets.token_bytes(GRANT_NONCE_BYTES), "verbs": held.verbs, "same_person": same_person,
        },
        Grant, strict=False,
    )  # fmt: skip
    return sign(admin, GRANT_DOMAIN, mesh, grant)


@click.group("key", cls=Group)
def key() -> None:
    """Look after the keys that act from here."""


for _one in (create, use, passphrase, paper, renew):
    key.add_command(_one)
