"""`freehold trust add|list|remove`: let the jobs of a CI platform in by the identity tokens that it makes for them.

No secret is stored at the platform. A trust gets a part of your own rights, as a token does, and hands them on to one job at a
time, for an hour at most. Not here: what a token must say (node/oidc), and the job's side (ci exchange).
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.exchange import TrustLine
from cli.access.principals import everyday_key, principal_of
from cli.commands.principals.token import AGENT_ROLES, give, shared
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import table
from cli.text.units import duration_ms, in_words
from protocols.api_models import NodeView
from protocols.api_outward import TrustBody, TrustView
from protocols.changes.change import valid_name
from protocols.trust.grants import Role

GITHUB = "https://token.actions.githubusercontent.com"
_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


@command("add", examples=(
    "freehold trust add github --repository-id 123456 --owner-id 789 --ref refs/heads/main --project hello",
    "freehold trust add ann --repository-id 123456 --owner-id 789 --actor-id 4711 --project hello",
    "freehold trust add forge --issuer https://forge.example.org/api/actions --subject repo:web/hello:ref:refs/heads/main",
    "freehold trust add github --repository-id 123456 --owner-id 789 --ref refs/heads/main --role deployer --env staging",
))  # fmt: skip
@click.argument("name")
@click.option("--issuer", default=GITHUB, show_default=True, help="Whose tokens, exactly as they say it themselves.")
@click.option("--repository-id", help="The number of the repository: its name can be registered again by others.")
@click.option("--owner-id", help="The number of its owner.")
@click.option("--actor-id", help="The number of your account there: only jobs that you started, which count as yours.")
@click.option("--ref", help="The branch or tag, whole: refs/heads/main.")
@click.option("--subject", default="", help="What the token's subject is; * stands for one part of it.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="What else it must say. May repeat.")
@click.option("--role", "roles", multiple=True, type=click.Choice(AGENT_ROLES),
              help="What its jobs may do; by default propose. May repeat.")  # fmt: skip
@click.option("--project", "projects", multiple=True, help="Only this project; by default all of yours. May repeat.")
@click.option("--env", "environments", multiple=True, help="Only this environment. May repeat.")
@click.option(
    "--expires",
    default="90d",
    show_default=True,
    metavar="DURATION",
    help="How long jobs come in; at most until your own grant ends.",
)
@click.option("--jwks", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The issuer's keys (a JWK Set), if the node is not to read them from the issuer.")  # fmt: skip
@click.option("--private", is_flag=True, help="Allow an issuer in this network; only on the node's machine.")
@_CONTEXT
def add(output: Output, *, name: str, issuer: str, repository_id: str | None, owner_id: str | None,
        actor_id: str | None, ref: str | None, subject: str, claims: tuple[str, ...], roles: tuple[Role, ...],
        projects: tuple[str, ...], environments: tuple[str, ...], expires: str, jwks: Path | None, private: bool,
        context_name: str | None) -> None:  # fmt: skip
    """Let in CI jobs whose tokens say what these options name. They get a part of your own rights.

    Jobs of pull requests are never let in. Prints the text for the platform's variable FREEHOLD_TRUST; it is no secret.
    """
    _, context = contexts.current_context(context_name)
    if not valid_name(name):
        raise UsageError("a trust's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold trust add github")
    wanted = _claims(claims, {
        "repository_id": repository_id, "repository_owner_id": owner_id, "actor_id": actor_id, "ref": ref,
    })  # fmt: skip
    pinned = jwks.read_text() if jwks is not None else ""
    signer = everyday_key(context)

    async def conversation(client: NodeClient) -> tuple[TrustView, TrustLine]:
        mine = await principal_of(client, signer.public_key)
        if mine.problem or not mine.chains:
            raise CommandError(
                f"your key has no grant to share: {mine.problem or 'an admin key gives none away'}",
                next_step="freehold token list", kind="grant.none",
            )  # fmt: skip
        held, grant = shared(mine, name, roles, projects, environments, duration_ms(expires))
        line = await _line(client)
        body = TrustBody(name, issuer, subject, wanted, pinned, private)
        answer = await client.send(TrustView, "/v1/trusts", body)
        try:
            await give(
                client, signer, mine.chain_of(held), msgspec.structs.replace(grant, key=bytes.fromhex(answer.key))
            )
        except BaseException:
            await client.delete(f"/v1/trusts/{name}")
            raise
        trusts = await client.read(tuple[TrustView, ...], "/v1/trusts")
        return next(trust for trust in trusts if trust.name == name), line

    new_trust, line = talk(context, conversation)
    output.result({**asdict(new_trust), "variable": "FREEHOLD_TRUST", "text": line.text()}, line.text())
    output.note(
        f"jobs that fit may {', '.join(new_trust.roles)} in {', '.join(new_trust.projects)} / "
        f"{', '.join(new_trust.environments)} for an hour each, "
        f"until {in_words(new_trust.expires_ms - time.time_ns() // 1_000_000)} from now"
    )
    output.hint("put the text into the platform's variable FREEHOLD_TRUST, then: freehold ci init github --oidc")


@command("list", examples=("freehold trust list", "freehold trust list --json"))
@_CONTEXT
def show(output: Output, *, context_name: str | None) -> None:
    """List this node's trusts, what their tokens must say, and what their jobs get."""
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[tuple[TrustView, ...], str]:
        found_trusts = await client.read(tuple[TrustView, ...], "/v1/trusts")
        return found_trusts, (await _line(client)).text() if found_trusts else ""

    trusts, text = talk(context, conversation)
    now_ms = time.time_ns() // 1_000_000
    rows = [
        (trust.name, trust.issuer, ", ".join([*filter(None, [trust.subject]), *(f"{k}={v}" for k, v in trust.claims.items())]),
         trust.problem or f"{', '.join(trust.roles)} in {', '.join(trust.projects)} / {', '.join(trust.environments)}",
         in_words(trust.expires_ms - now_ms) if trust.expires_ms else "-")
        for trust in trusts
    ]  # fmt: skip
    value = {"trusts": msgspec.to_builtins(trusts), "variable": "FREEHOLD_TRUST", "text": text}
    output.result(value, table(("NAME", "ISSUER", "TOKENS THAT SAY", "JOBS MAY", "FOR"), rows))
    if trusts:
        output.note(f"FREEHOLD_TRUST={text}")
    else:
        output.note("this node trusts no issuer")


@command("remove", examples=("freehold trust remove github",))
@click.argument("name")
@_CONTEXT
def remove(output: Output, *, name: str, context_name: str | None) -> None:
    """Remove a trust: no more jobs come in by it.

    What jobs hold ends within the hour; to end that too, revoke the trust's grant."""
    _, context = contexts.current_context(context_name)
    talk(context, lambda client: client.delete(f"/v1/trusts/{name}"))
    output.result({"name": name, "removed": True}, f"trust {name} is removed")
    output.hint(f"freehold token revoke {name}, which also ends what its jobs hold now")


def _claims(given: tuple[str, ...], named: dict[str, str | None]) -> dict[str, str]:
    items = {name: value for name, value in named.items() if value}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise UsageError(f"{text!r} is no claim", next_step="--claim environment=production", kind="usage")
        items[name] = value
    return items


async def _line(client: NodeClient) -> TrustLine:
    """Where jobs go: this node's HTTPS API, which keeps the trust. Raises CommandError where it has none."""
    node = await client.read(NodeView, "/v1/node")
    if not node.api:
        raise CommandError(
            "this node does not serve its API over HTTPS, so no job could reach it",
            next_step="freehold node run --api 0.0.0.0:4180", kind="no-address",
        )  # fmt: skip
    return TrustLine((await client.mesh()).hex(), f"https://{node.api}", node.api_pin)


@click.group("trust", cls=Group)
def trust() -> None:
    """Let CI jobs in by their platform's identity tokens."""


for _one in (add, show, remove):
    trust.add_command(_one)
