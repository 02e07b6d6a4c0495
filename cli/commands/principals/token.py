"""`freehold token create|list|revoke`: keys and bearer tokens for agents, with narrower rights than yours and an end.

A token is a key of its own and a grant signed by your everyday key: never broader than yours, never with `approve` or
`admin`. It gets a context of its own, so `FREEHOLD_CONTEXT=NAME freehold mcp` acts as the agent. With `--bearer` it is
one text for clients that cannot sign, shown once and kept nowhere: it looks and proposes. Not here: people
(`freehold mesh invite --kind principal`).
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import cast

import click
import msgspec

from cli.access import contexts, half_made
from cli.access.client import NodeClient, talk
from cli.access.contexts import Contexts
from cli.access.members import members_of
from cli.access.principals import Principal, everyday_key, principal_of, principals_of, revoke_grants
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.foreign import builtins_of
from cli.text.output import Output
from cli.text.table import table
from cli.text.units import duration_ms, in_words
from protocols.api_models import NodeView, RightsView
from protocols.changes.change import valid_name
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import SEED_BYTES, Ed25519Signer
from protocols.trust.bearer import BEARER_VERBS, SECRET_BYTES, make_token, signer_of
from protocols.trust.grants import (
    ALL_ROLES,
    ANY,
    GRANT_DOMAIN,
    ROLES_NEVER_FOR_AGENTS,
    VERBS_OF_ROLE,
    Grant,
    Role,
    Verb,
)

NONCE_BYTES = 16
KEY_EXPIRES, BEARER_EXPIRES = "7d", "24h"
BEARER_ROLES: tuple[Role, ...] = ("viewer", "proposer")
AGENT_ROLES: tuple[Role, ...] = tuple(role for role in ALL_ROLES if role not in ROLES_NEVER_FOR_AGENTS)
_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


@command("create", examples=("freehold token create bot", "freehold token create watcher --role viewer --expires 12h",
                             "freehold token create bot --project guestbook --env staging",
                             "freehold token create reader --bearer --expires 1h",
                             "freehold token create ci --role deployer --runner --expires 90d"))  # fmt: skip
@click.argument("name")
@click.option("--role", "roles", multiple=True, type=click.Choice(AGENT_ROLES),
              help="What it may do; by default propose, if you may. May repeat.")  # fmt: skip
@click.option("--project", "projects", multiple=True, help="Only this project; by default all of yours. May repeat.")
@click.option(
    "--env", "environments", multiple=True, help="Only this environment; by default all of yours. May repeat."
)
@click.option(
    "--expires", default="", metavar="DURATION",
    help=f"How long it works; at most until your own grant ends. By default {KEY_EXPIRES}, with --bearer {BEARER_EXPIRES}.",
)  # fmt: skip
@click.option("--bearer", is_flag=True, help="A text to send as 'Authorization: Bearer': it looks and proposes.")
@click.option(
    "--runner", is_flag=True, help="A text for the variable FREEHOLD_TOKEN of a CI runner; it signs as this key."
)
@_CONTEXT
def create(output: Output, *, name: str, roles: tuple[Role, ...], projects: tuple[str, ...],
           environments: tuple[str, ...], expires: str, bearer: bool, runner: bool,
           context_name: str | None) -> None:  # fmt: skip
    """Make a key for an agent, with a part of your own rights."""
    where, context = contexts.current_context(context_name)
    own = f"{where}-{name}"
    _check(name, own, roles, bearer=bearer, runner=runner)
    expires = expires or (BEARER_EXPIRES if bearer else KEY_EXPIRES)
    signer = everyday_key(context)
    mine = talk(context, lambda client: principal_of(client, signer.public_key))
    if mine.problem or not mine.chains:
        raise CommandError(
            f"your key has no grant to share: {mine.problem or 'an admin key gives none away'}",
            next_step="freehold token list",
            kind="grant.none",
        )
    held, grant = shared(mine, name, () if bearer else roles, projects, environments, duration_ms(expires))
    if bearer:
        _create_bearer(output, context, signer, mine.chain_of(held), _for_bearer(held, grant, roles))
        return
    if runner:
        _create_runner(output, context, signer, mine.chain_of(held), grant)
        return
    note = _note(own)
    agent = _agent(note, own)

    async def conversation(client: NodeClient) -> list[str]:
        state = await client.state()
        chain = mine.chain_of(held)
        await give(client, signer, chain, msgspec.structs.replace(grant, key=agent.public_key))
        projects, environments = (
            {project.name for project in state.projects},
            {environment.name for environment in state.environments},
        )
        unknown = [f"project {project}" for project in grant.projects if project not in {ANY, *projects}]
        return unknown + [
            f"environment {environment}"
            for environment in grant.environments
            if environment not in {ANY, *environments}
        ]

    try:
        unknown = talk(context, conversation)
    except BaseException:
        half_made.discard(note)
        raise
    known = contexts.read_contexts()
    added = msgspec.structs.replace(context, key=own, admin="")
    contexts.write_contexts(Contexts(known.current, {**known.contexts, own: added}))
    note.unlink()
    output.result(
        {"name": name, "context": own, "key": agent.public_key.hex(), "key_file": str(contexts.key_path(own)),
         "roles": list(grant.roles), "projects": list(grant.projects), "environments": list(grant.environments),
         "expires_ms": grant.expires_ms},
        f"token {name}: {', '.join(grant.roles)} in {', '.join(grant.projects)} / {', '.join(grant.environments)}, "
        f"for {in_words(grant.expires_ms - time.time_ns() // 1_000_000)}\nkey file {contexts.key_path(own)}",
    )  # fmt: skip
    for named in unknown:
        output.warn(f"the mesh has no {named} yet: the token is for one of that name when it is made")
    output.hint(f"FREEHOLD_CONTEXT={own} freehold mcp")


def _note(own: str) -> Path:
    """Where a token's key is noted until its context is kept."""
    return contexts.home_folder() / f"token-{own}.json"


def _agent(note: Path, own: str) -> Ed25519Signer:
    """Return the token's key: a new one, or that of an attempt that was cut short, which may have its grant already."""
    begun = half_made.read_note(note)
    if begun is not None and contexts.key_path(own).exists():
        return contexts.open_plain(own)
    half_made.discard(note)
    seed = secrets.token_bytes(SEED_BYTES)
    half_made.write_note(note, {own: Ed25519Signer(seed).public_key})
    return contexts.store_plain(own, seed)


def _check(name: str, own: str, roles: tuple[Role, ...], *, bearer: bool, runner: bool) -> None:
    """Raise UsageError where no such token can be made, or `own`, its context here, is taken."""
    if bearer and runner:
        raise UsageError(
            "a runner signs, and a bearer token cannot", next_step=f"freehold token create {name} --runner"
        )
    if bearer and not set(roles) <= set(BEARER_ROLES):
        raise UsageError(
            f"a bearer token may be {' or '.join(BEARER_ROLES)}; to start or roll back takes a key that signs",
            next_step=f"freehold token create {name} --role {roles[0]}", kind="bearer-role",
        )  # fmt: skip
    if not valid_name(name):
        raise UsageError("a token's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold token create bot")
    note, known = _note(own), own in contexts.read_contexts().contexts
    if known:
        note.unlink(missing_ok=True)  # the last step of an earlier attempt was taken
    if known or (contexts.key_path(own).exists() and half_made.read_note(note) is None):
        raise UsageError(f"there is a token {name} already", next_step="choose another name", kind="exists")


async def give(client: NodeClient, signer: Ed25519Signer, chain: tuple[Signed, ...], grant: Grant) -> None:
    """File a grant as the next link of the signer's chain."""
    new_grant = msgspec.structs.replace(grant, parent=bytes(digest(chain[-1].payload)))
    link = sign(signer, GRANT_DOMAIN, await client.mesh(), new_grant)
    await client.publish("grant", grant.key.hex(), encode((*chain, link)))


def _for_bearer(held: RightsView, grant: Grant, roles: tuple[Role, ...]) -> Grant:
    """Return the grant with nothing but what a bearer may hold; it keeps a role of its parent, narrowed to the verbs."""
    asked = {verb for role in (roles or BEARER_ROLES) for verb in VERBS_OF_ROLE[role]}
    verbs = tuple(verb for verb in BEARER_VERBS if verb in asked and verb in held.verbs)
    kept_roles = tuple(role for role in AGENT_ROLES if role in held.roles and set(verbs) <= set(VERBS_OF_ROLE[role]))[
        :1
    ]
    if not kept_roles or ("proposer" in roles and "propose" not in verbs):
        raise UsageError(
            "you do not hold 'propose' yourself, so you cannot give it away",
            next_step="freehold token list: what you hold",
            kind="grant.broader-than-parent",
        )
    return msgspec.structs.replace(grant, roles=kept_roles, verbs=verbs)


def _create_bearer(
    output: Output, context: contexts.Context, signer: Ed25519Signer, chain: tuple[Signed, ...], grant: Grant
) -> None:
    async def conversation(client: NodeClient) -> tuple[str, str, NodeView]:
        mesh = await client.mesh()
        token = make_token(mesh, secrets.token_bytes(SECRET_BYTES))
        agent = signer_of(token, mesh)
        assert agent is not None, "it was made for this mesh"
        await give(client, signer, chain, msgspec.structs.replace(grant, key=agent.public_key))
        return token, agent.public_key.hex(), await client.read(NodeView, "/v1/node")

    token, key, node = talk(context, conversation)
    output.result(
        {"name": grant.name, "token": token, "key": key, "roles": list(grant.roles), "verbs": list(grant.verbs),
         "projects": list(grant.projects), "environments": list(grant.environments), "expires_ms": grant.expires_ms,
         "api": node.api},
        token,
    )  # fmt: skip
    output.note(
        f"{grant.name} may {' and '.join(grant.verbs)} in {', '.join(grant.projects)} / {', '.join(grant.environments)} "
        f"for {in_words(grant.expires_ms - time.time_ns() // 1_000_000)}; this text is shown once and kept nowhere"
    )
    if node.api:
        output.hint(
            f"freehold context ca > ca.pem; curl --cacert ca.pem -H 'Authorization: Bearer TOKEN' https://{node.api}/v1/lanes"
        )


def _create_runner(
    output: Output, context: contexts.Context, signer: Ed25519Signer, chain: tuple[Signed, ...], grant: Grant
) -> None:
    seed = secrets.token_bytes(SEED_BYTES)
    key = Ed25519Signer(seed).public_key

    async def conversation(client: NodeClient) -> contexts.RunnerToken:
        served = [member for member in await members_of(client) if member.api and member.standing == "member"]
        served.sort(key=lambda one: one.belief != "self")
        if not served:
            raise CommandError(
                "no node serves its API over HTTPS, so no runner could reach it",
                next_step="freehold node run --api 0.0.0.0:4180",
                kind="no-address",
            )
        await give(client, signer, chain, msgspec.structs.replace(grant, key=key))
        mesh = (await client.mesh()).hex()
        return contexts.RunnerToken(mesh, f"https://{served[0].api}", served[0].api_pin, seed)

    runner_token = talk(context, conversation)
    output.result(
        {
            "name": grant.name,
            "token": runner_token.text(),
            "key": key.hex(),
            "url": runner_token.url,
            "roles": list(grant.roles),
            "projects": list(grant.projects),
            "environments": list(grant.environments),
            "expires_ms": grant.expires_ms,
        },
        runner_token.text(),
    )
    output.note(
        f"{grant.name} may {', '.join(grant.roles)} in {', '.join(grant.projects)} / {', '.join(grant.environments)} "
        f"for {in_words(grant.expires_ms - time.time_ns() // 1_000_000)}; it reaches {runner_token.url}; "
        "shown once and kept nowhere"
    )
    output.hint("put it into the CI's secret FREEHOLD_TOKEN, then: freehold ci init github")


def shared(
    mine: Principal,
    name: str,
    roles: tuple[Role, ...],
    projects: tuple[str, ...],
    environments: tuple[str, ...],
    span_ms: int,
) -> tuple[RightsView, Grant]:
    """Return the first of my grants that covers what is wanted by itself, and the grant. Raises UsageError if none does."""
    refused: list[UsageError] = []
    for held in mine.each:
        try:
            return held, _narrowed(held, name, roles, projects, environments, span_ms)
        except UsageError as error:
            refused.append(error)
    raise refused[0]


def _narrowed(
    mine: RightsView, name: str, roles: tuple[Role, ...], projects: tuple[str, ...], environments: tuple[str, ...],
    span_ms: int,
) -> Grant:  # fmt: skip
    """Return the grant without key and parent. Raises UsageError where it would be broader than `mine`."""
    default: Role = "proposer" if "proposer" in mine.roles else "viewer"
    wanted = tuple(role for role in AGENT_ROLES if role in (roles or (default,)))
    expires_ms = time.time_ns() // 1_000_000 + span_ms
    verbs: tuple[Verb, ...] = ()
    if wanted == ("viewer",) and "viewer" not in mine.roles and "view" in mine.verbs:
        # Whoever may do more may also look: the grant keeps a role of its parent and is narrowed to the one verb.
        wanted, verbs = tuple(role for role in AGENT_ROLES if role in mine.roles)[:1], ("view",)
    broader: list[str] = [role for role in wanted if role not in mine.roles]
    broader += [project for project in projects if "*" not in mine.projects and project not in mine.projects]
    broader += [
        environment
        for environment in environments
        if "*" not in mine.environments and environment not in mine.environments
    ]
    if broader:
        raise UsageError(
            f"you do not hold {broader[0]!r} yourself, so you cannot give it away",
            next_step="freehold token list: what you hold",
            kind="grant.broader-than-parent",
        )
    if expires_ms > mine.expires_ms:
        left = in_words(mine.expires_ms - expires_ms + span_ms, at_least=True)
        raise UsageError(
            f"your own grant ends in {left}", next_step="choose a shorter --expires", kind="grant.broader-than-parent"
        )
    return Grant(
        key=b"", kind="agent", name=name, roles=wanted, projects=projects or mine.projects,
        environments=environments or mine.environments, expires_ms=expires_ms,
        nonce=secrets.token_bytes(NONCE_BYTES), verbs=verbs,
    )  # fmt: skip


@command("list", examples=("freehold token list", "freehold token list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List every key with a grant: people and agents, what they may do, and until when."""
    _, context = contexts.current_context(context_name)
    principals = talk(context, principals_of)
    mine = contexts.public_key(context.key).hex() if context.key else ""
    now_ms = time.time_ns() // 1_000_000
    rows = [
        (principal.name or "-", principal.kind or "-", _may(principal, held), _scope(held),
         in_words(held.expires_ms - now_ms) if held.expires_ms else "-",
         "you" if principal.key == mine else "yours" if mine in principal.lineage else "", principal.key[:12])
        for principal in principals
        for held in principal.each
    ]  # fmt: skip
    value = [
        {key: field for key, field in builtins_of(principal).items() if key != "chains"}
        | {"yours": mine in principal.lineage}
        for principal in principals
    ]
    output.result({"principals": value}, table(("NAME", "KIND", "ROLES", "WHERE", "FOR", "", "KEY"), rows))


def _may(one: Principal, held: RightsView) -> str:
    """The roles; what remains of them where the grant narrows them."""
    if one.problem:
        return one.problem.partition(":")[0]
    everything = {verb for role in held.roles for verb in VERBS_OF_ROLE[cast("Role", role)]}
    return ", ".join(held.roles) if set(held.verbs) == everything else f"{', '.join(held.verbs)} only"


def _scope(one: RightsView) -> str:
    return f"{','.join(one.projects)} / {','.join(one.environments)}" if one.projects else "-"


@command("revoke", examples=("freehold token revoke bot", 'freehold token revoke bot -m "lost laptop"'))
@click.argument("name")
@click.option("-m", "--message", default="", help="Why; kept with the revocation.")
@_CONTEXT
def revoke(output: Output, name: str, message: str, context_name: str | None) -> None:
    """Take a token's rights away, everywhere, for good; every node hears it within seconds."""
    where, context = contexts.current_context(context_name)
    signer = everyday_key(context)
    principal = talk(context, lambda client: _find(client, name, signer.public_key.hex()))
    statement = talk(context, lambda client: revoke_grants(client, signer, principal, message))
    own = f"{where}-{name}"
    known = contexts.read_contexts()
    if own in known.contexts and contexts.public_key(own).hex() == principal.key:
        contexts.key_path(own).unlink()
        rest = {key: value for key, value in known.contexts.items() if key != own}
        contexts.write_contexts(Contexts(known.current, rest))
    output.result(
        {"name": principal.name, "key": principal.key, "revocation": statement}, f"token {principal.name} is revoked"
    )


async def _find(client: NodeClient, name: str, mine: str) -> Principal:
    known = [
        principal
        for principal in await principals_of(client)
        if principal.key != mine and mine in principal.lineage and principal.chains
    ]
    principals = [
        principal
        for principal in known
        if name in {principal.name, principal.key} or (len(name) >= 8 and principal.key.startswith(name))
    ]
    if len(principals) != 1:
        what = (
            f"{len(principals)} tokens of yours are called {name!r}"
            if principals
            else f"you gave no token called {name!r}"
        )
        raise UsageError(what, next_step="freehold token list, then name the key", kind="no-such-token")
    return principals[0]


@click.group("token", cls=Group)
def token() -> None:
    """Make, list and revoke keys for agents."""


for _one in (create, show, revoke):
    token.add_command(_one)
