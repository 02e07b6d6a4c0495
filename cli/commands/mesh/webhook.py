"""`freehold webhook add|list|remove|test`: addresses that a node tells what happens, such as an approval that waits.

A webhook belongs to the node that is asked; that node tells, as long as it is up. Not here: delivering (node/webhooks).
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import click
import msgspec
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import talk
from cli.errors import CommandError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import table
from cli.text.units import in_words
from protocols.api_outward import (
    WEBHOOK_FORMATS,
    WEBHOOK_KINDS,
    WebhookBody,
    WebhookFormat,
    WebhookKind,
    WebhookSecretView,
    WebhookTestView,
    WebhookView,
)

_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


@command("add", examples=("freehold webhook add ops https://hooks.example.org/freehold",
                          "freehold webhook add phone https://ntfy.example.org/mesh --format ntfy --event approval.needed",
                          "freehold webhook add local http://192.168.1.9:9000/hook --private"))  # fmt: skip
@click.argument("name")
@click.argument("url")
@click.option("--event", "events", multiple=True, type=click.Choice(WEBHOOK_KINDS), metavar="KIND",
              help=f"Only this: {', '.join(WEBHOOK_KINDS)}. May repeat.")  # fmt: skip
@click.option("--project", "projects", multiple=True, help="Only this project, and nothing about nodes. May repeat.")
@click.option("--env", "environments", multiple=True, help="Only this environment. May repeat.")
@click.option("--format", "kind", type=click.Choice(WEBHOOK_FORMATS), default="json", show_default=True,
              help="Signed JSON, or the text that Slack or ntfy shows.")  # fmt: skip
@click.option("--private", is_flag=True, help="Allow http and addresses of this network; only on the node's machine.")
@_CONTEXT
def add(output: Output, *, name: str, url: str, events: tuple[WebhookKind, ...], projects: tuple[str, ...],
        environments: tuple[str, ...], kind: WebhookFormat, private: bool, context_name: str | None) -> None:  # fmt: skip
    """Have this node tell an address what happens. The secret that its messages are signed with is shown once.

    Signatures are those of Standard Webhooks. A message that fails is sent again for three days.
    """
    _, context = contexts.current_context(context_name)
    body = WebhookBody(name, url, kind, events, projects, environments, private)
    webhook_secret = talk(context, lambda client: client.send(WebhookSecretView, "/v1/webhooks", body))
    output.result(asdict(webhook_secret), f"webhook {name}\nsecret {webhook_secret.secret}")
    output.hint(f"freehold webhook test {name}")


@command("list", examples=("freehold webhook list", "freehold webhook list --json"))
@_CONTEXT
def show(output: Output, *, context_name: str | None) -> None:
    """List this node's webhooks, and how their newest messages ended."""
    _, context = contexts.current_context(context_name)
    webhooks = talk(context, lambda client: client.read(tuple[WebhookView, ...], "/v1/webhooks"))
    rows = [
        (
            webhook.name,
            _host(webhook.url),
            webhook.format,
            ", ".join(webhook.events) or "all",
            str(webhook.waiting),
            str(webhook.given_up),
            f"off: {webhook.off}" if webhook.off else _last(webhook),
        )
        for webhook in webhooks
    ]
    text = table(("NAME", "ADDRESS", "FORMAT", "EVENTS", "WAITING", "GIVEN UP", "LAST"), rows)
    output.result({"webhooks": msgspec.to_builtins(webhooks)}, text)
    if not webhooks:
        output.note("this node has no webhooks")
        output.hint("freehold webhook add NAME URL")


@command("remove", examples=("freehold webhook remove ops",))
@click.argument("name")
@_CONTEXT
def remove(output: Output, *, name: str, context_name: str | None) -> None:
    """Remove a webhook. Messages that wait for its address are forgotten."""
    _, context = contexts.current_context(context_name)
    talk(context, lambda client: client.delete(f"/v1/webhooks/{name}"))
    output.result({"name": name, "removed": True}, f"webhook {name} is removed")


@command("test", examples=("freehold webhook test ops",))
@click.argument("name")
@_CONTEXT
def test(output: Output, *, name: str, context_name: str | None) -> None:
    """Send one message now and say how that ended; turns a webhook on again whose receiver was gone."""
    _, context = contexts.current_context(context_name)
    ended = talk(context, lambda client: client.send(WebhookTestView, f"/v1/webhooks/{name}/test"))
    if not ended.delivered:
        raise CommandError(
            f"the webhook {name} did not deliver: {ended.result}", next_step="freehold webhook list",
            kind="webhook.failed",
        )  # fmt: skip
    output.result({"name": name, **asdict(ended)}, f"delivered: {ended.result}")


def _host(url: str) -> str:
    """The part of an address that is no secret: chats put theirs into the path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _last(one: WebhookView) -> str:
    if not one.deliveries:
        return "-"
    last = one.deliveries[0]
    if not last.ended:
        return f"{last.kind} is tried again ({last.result})" if last.attempts else f"{last.kind} waits"
    ago = in_words(max(0, time.time_ns() // 1_000_000 - last.at_ms))
    return f"{last.kind}, {'delivered' if last.delivered else 'given up'} {ago} ago"


@click.group("webhook", cls=Group)
def webhook() -> None:
    """Have this node tell others what happens."""


for _one in (add, show, remove, test):
    webhook.add_command(_one)
