"""Operations on this node's webhooks, for whoever owns its machine or administers the mesh.

Not here: what webhooks are told and how it is delivered (node/webhooks).
"""

from __future__ import annotations

from node.api.callers.scope import Place, may
from node.api.operations import Call, Operation, Parameter
from node.api.problems import NOT_ALLOWED, ProblemError
from node.control import Control
from node.webhooks.formats import secret_text
from node.webhooks.model import HookFile, Webhook
from protocols.api_outward import (
    WEBHOOK_NAME,
    DeliveryView,
    WebhookBody,
    WebhookSecretView,
    WebhookTestView,
    WebhookView,
)

_HOOK = (Parameter("webhook", {"type": "string", "pattern": WEBHOOK_NAME}, "the webhook's name", "path"),)


DELIVERIES_SHOWN = 20


async def webhooks(call: Call) -> tuple[WebhookView, ...]:
    """List this node's webhooks with their newest messages."""
    control = owned(call)
    return tuple(_view(file) for _, file in sorted(control.webhooks.files.items()))


async def add_webhook(call: Call) -> WebhookSecretView:
    """Begin to tell an address what happens; the answer holds the secret of its signatures, once."""
    control = owned(call)
    body: WebhookBody = call.body
    require_here(call, private=body.private)
    wanted = Webhook(
        name=body.name, url=body.url, secret=b"", format=body.format, events=body.events, projects=body.projects,
        environments=body.environments, private=body.private, author=call.principal,
    )  # fmt: skip
    return WebhookSecretView(body.name, secret_text(await control.webhooks.add(wanted)))


async def remove_webhook(call: Call) -> None:
    """Tell an address no more; what it was still to be told is forgotten."""
    await owned(call).webhooks.remove(call.path["webhook"])


async def test_webhook(call: Call) -> WebhookTestView:
    """Send one message now, once, and say how that ended. Success turns on a webhook whose receiver was gone."""
    attempt = await owned(call).webhooks.test(call.path["webhook"])
    return WebhookTestView(attempt.delivered, attempt.result)


def owned(call: Call) -> Control:
    """Return the node of a caller who may say whom it speaks to. Raises ProblemError 403."""
    if not (call.scope.everything or (call.scope.whole and may(call.scope, "admin", Place()))):
        raise ProblemError(
            403, NOT_ALLOWED, "this key may not", "this is for who owns the node's machine or administers the mesh",
            "run it on the node's machine, or ask an admin",
        )  # fmt: skip
    control: Control = call.node
    return control


def require_here(call: Call, *, private: bool) -> None:
    """Raise ProblemError 403 where addresses of the machine's network are named from elsewhere."""
    if private and not call.principal.startswith("socket:"):
        raise ProblemError(
            403, "address.private", "only from here",
            "addresses of this machine's network are named on the machine itself", "run it there",
        )  # fmt: skip


def _view(file: HookFile) -> WebhookView:
    hook = file.hook
    waiting = [
        DeliveryView(
            undelivered.message.id,
            undelivered.message.kind,
            False,
            False,
            undelivered.attempts,
            undelivered.next_ms,
            undelivered.last,
        )
        for undelivered in file.pending
    ]
    ended = [
        DeliveryView(handled.id, handled.kind, True, handled.delivered, handled.attempts, handled.at_ms, handled.result)
        for handled in reversed(file.ended)
    ]
    return WebhookView(
        name=hook.name, url=hook.url, format=hook.format, events=hook.events, projects=hook.projects,
        environments=hook.environments, private=hook.private, author=hook.author, added_ms=hook.added_ms, off=file.off,
        waiting=len(waiting), given_up=sum(not handled.delivered for handled in file.ended),
        deliveries=(*waiting[:DELIVERIES_SHOWN], *ended[:DELIVERIES_SHOWN]),
    )  # fmt: skip


HOOK_OPERATIONS: tuple[Operation, ...] = (
    Operation("webhooks", "GET", "/v1/webhooks", "This node's webhooks", webhooks, answer=tuple[WebhookView, ...]),
    Operation(
        "add_webhook", "POST", "/v1/webhooks", "Tell an address what happens", add_webhook, "write", WebhookBody,
        body_max_bytes=64 * 1024, answer=WebhookSecretView,
    ),
    Operation(
        "remove_webhook", "DELETE", "/v1/webhooks/{webhook}", "Tell an address no more", remove_webhook, "write",
        status=204, parameters=_HOOK,
    ),
    Operation(
        "test_webhook", "POST", "/v1/webhooks/{webhook}/test", "Send one message now", test_webhook, "write",
        answer=WebhookTestView, parameters=_HOOK,
    ),
)  # fmt: skip
