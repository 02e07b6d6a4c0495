"""`freehold secret set|list|rm`: values that apps read by name, sealed to the nodes that run them.

The value comes from a prompt without echo or from standard input, never from an argument. Not here: sealing
(cli/access/secrets.py), and development values, which stand in `.freehold/secrets`.
"""

from __future__ import annotations

import getpass
import re
import sys
from pathlib import Path

import click

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.access.principals import everyday_key
from cli.access.prompts import confirm
from cli.access.secrets import remove_versions, rows_of, set_secret
from cli.commands.options import environment_option
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.project.find import find_project
from cli.project.schema import SECRET_NAME
from cli.text.output import Output
from cli.text.table import table
from protocols.api_models import SecretView
from protocols.changes.secrets import VALUE_MAX_BYTES
from runtime.core_dumps import forbid_dumps

_ENVIRONMENT = environment_option("Where it is.")
_PROJECT = click.option("--project", default="", help="The project, if not that of the folder.")
_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")


@command(
    "set",
    examples=("freehold secret set STRIPE_KEY", "pass show stripe | freehold secret set STRIPE_KEY --env staging"),
)
@click.argument("name")
@_ENVIRONMENT
@_PROJECT
@_CONTEXT
def set_one(output: Output, *, name: str, environment: str, project: str, context_name: str | None) -> None:
    """Give a secret a new version; the next deploy uses it.

    Asks for the value without showing it, or reads standard input up to its end (one final line break is not part of it).
    """
    _check_name(name)
    _, context = contexts.current_context(context_name)
    signer, project = everyday_key(context), project or _project_here()
    forbid_dumps()
    value = _value(name)
    place = (project, environment, name)

    async def conversation(client: NodeClient) -> tuple[int, tuple[str, ...]]:
        return await set_secret(client, signer, place, value)

    number, nodes = talk(context, conversation)
    output.result(
        {"project": project, "environment": environment, "name": name, "version": number, "sealed_to": list(nodes)},
        f"{name} version {number}, sealed to {len(nodes)} nodes of {environment}",
    )
    output.hint(f"freehold deploy --env {environment}: running apps keep the version they were deployed with")


@command("list", examples=("freehold secret list", "freehold secret list --env staging --json"))
@click.option("--env", "environment", default="", help="Only this environment.")
@_PROJECT
@_CONTEXT
def show(output: Output, *, environment: str, project: str, context_name: str | None) -> None:
    """List secrets by name and version, who set them and which nodes can open them. Values are never shown."""
    _, context = contexts.current_context(context_name)
    project = project or _project_here()

    async def conversation(client: NodeClient) -> tuple[SecretView, ...]:
        return await rows_of(client, project, environment)

    secrets = talk(context, conversation)
    rows = [
        (
            secret.name,
            secret.environment,
            str(secret.version),
            "yes" if secret.in_use else "",
            secret.author_name or secret.author[:16],
            str(len(secret.sealed_to)),
            _remark(secret),
        )
        for secret in secrets
    ]
    output.result(
        {"secrets": [{field: getattr(secret, field) for field in SecretView.__struct_fields__} for secret in secrets]},
        table(("NAME", "ENVIRONMENT", "VERSION", "IN USE", "SET BY", "NODES", ""), rows),
    )
    if not rows:
        output.note(f"no secret of {project} is set")
        output.hint("freehold secret set NAME")
    rotate = next((secret for secret in secrets if secret.exposed and secret.in_use), None)
    if rotate is not None:
        output.hint(f"freehold secret set {rotate.name} --env {rotate.environment}")


@command("rm", examples=("freehold secret rm STRIPE_KEY --env staging",))
@click.argument("name")
@_ENVIRONMENT
@_PROJECT
@_CONTEXT
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def remove(output: Output, *, name: str, environment: str, project: str, context_name: str | None, yes: bool) -> None:
    """Remove a secret with all its versions.

    It is refused while a release that runs, or is kept for rollback, needs the secret."""
    _check_name(name)
    _, context = contexts.current_context(context_name)
    signer, project = everyday_key(context), project or _project_here()
    place = (project, environment, name)

    async def look(client: NodeClient) -> tuple[SecretView, ...]:
        return tuple(row for row in await rows_of(client, project, environment) if row.name == name)

    secrets = talk(context, look)
    if not secrets:
        raise UsageError(
            f"{project} has no secret {name} in {environment}", next_step="freehold secret list", kind="secret"
        )
    confirm(output, f"Take {name} away from {environment}, {len(secrets)} versions?", yes)

    async def conversation(client: NodeClient) -> None:
        await remove_versions(client, signer, place, secrets)

    talk(context, conversation)
    output.result(
        {
            "project": project,
            "environment": environment,
            "name": name,
            "removed": [secret.version for secret in secrets],
        },
        f"{name} is gone from {environment}",
    )


def _remark(one: SecretView) -> str:
    if one.exposed:
        return f"set it anew: {len(one.exposed)} nodes can open it and may not any more"
    return one.problem or (f"{len(one.lacking)} nodes wait for it" if one.lacking else "")


def _check_name(name: str) -> None:
    if not re.fullmatch(SECRET_NAME.pattern, name):
        raise UsageError(
            f"{name!r} is no secret's name", next_step="write it as STRIPE_KEY: A-Z, 0-9 and _", kind="usage"
        )


def _project_here() -> str:
    return find_project(Path()).project.name


def _value(name: str) -> bytes:
    """Read the value; nothing of it ever reaches an error."""
    if sys.stdin.isatty():
        value = getpass.getpass(f"Value of {name}: ").encode()
    else:
        value = sys.stdin.buffer.read(VALUE_MAX_BYTES + 2).removesuffix(b"\n").removesuffix(b"\r")
    if not value or len(value) > VALUE_MAX_BYTES:
        raise CommandError(
            f"a secret has 1 to {VALUE_MAX_BYTES} bytes", next_step="freehold secret set NAME", kind="secret"
        )
    try:
        value.decode()
    except UnicodeDecodeError:
        raise CommandError("a secret is text (UTF-8)", next_step="encode it, as base64 does", kind="secret") from None
    return value


@click.group("secret", cls=Group)
def secret() -> None:
    """Set, list and take away values that apps read by name."""


for _one in (set_one, show, remove):
    secret.add_command(_one)
