"""Problem details (RFC 9457): every error the API answers has a stable `type`, a human sentence and the next step.

A problem never carries what it was given back to the caller beyond a name or a number, and never an exception's text
that it did not expect. Not here: which errors there are in the protocols (their `Refusal.rule` becomes the type's
last part).
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from node.errors import NotDoneError, NotNowError
from node.membership.leave import NOT_DRAINED, VOTES
from protocols.refusal import Refusal

PROBLEM_TYPE_PREFIX = "urn:freehold:problem:"
CONTENT_TYPE = "application/problem+json"

FIELDS_OF_STATUS = {
    401: {"WWW-Authenticate": 'Bearer realm="freehold", Signature realm="freehold"'},
    429: {"Retry-After": "60"},
    503: {"Retry-After": "1"},
}
"""What clients that know HTTP alone do next."""

NOT_ALLOWED = "caller.not-allowed"
"""The rule of a call by a key that has grants, none of which allows it."""

TITLES = {"node.busy": "the node is busy", VOTES: "this node votes", NOT_DRAINED: "still serving"}
"""Of what this node refuses by a rule of its own."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error. `rule` repeats the last part of `type`; `next` is what to do now."""

    type: str
    title: str
    status: int
    detail: str
    next: str = ""
    rule: str = ""


class ProblemError(Exception):
    """Ends a request with a problem; nothing was changed unless the detail says so."""

    def __init__(
        self, status: int, rule: str, title: str, detail: str, next_step: str = "", *, retry_after_s: int = 0
    ) -> None:
        """Take the HTTP status, a stable dotted rule, a title that is the same every time, and this time's detail.

        `retry_after_s` says when to come again, where the status alone says too little.
        """
        super().__init__(detail)
        self.fields = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
        self.problem = Problem(PROBLEM_TYPE_PREFIX + rule, title, status, detail, next_step, rule)


def not_found(what: str, name: str, next_step: str = "") -> ProblemError:
    """A named thing that this node does not know."""
    return ProblemError(
        404, f"{what}.unknown", f"no such {what}", f"this node knows no {what} {name[:80]!r}", next_step
    )


def invalid(detail: str, next_step: str = "") -> ProblemError:
    """A request that cannot be read as what it should be."""
    return ProblemError(400, "request.invalid", "the request is not valid", detail, next_step)


def unreadable(detail: str, next_step: str = "") -> ProblemError:
    """A well-formed request whose content (an encoded paper, a key) is not what it should be."""
    return ProblemError(422, "request.unreadable", "the content cannot be read", detail, next_step)


def refused(refusal: Refusal, next_step: str = "") -> ProblemError:
    """A rule of the mesh says no: 403 where rights are missing, 409 where the world has moved on, else 422."""
    rule = refusal.rule
    if rule.endswith(".malformed"):
        status = 422
    elif rule.startswith("quota."):
        status = 429
    elif rule.startswith(
        ("command.not-allowed", "command.unsigned", "grant", "approval", "evidence", "window", "change.a")
    ):
        status = 403
    elif rule.endswith(("-moved", ".expect", ".under-way", ".duplicate", ".frozen")) or rule.startswith("rollout."):
        status = 409
    else:
        status = 422
    return ProblemError(status, rule, "refused by the rules of the mesh", refusal.detail, next_step)


def token_refused(detail: str) -> ProblemError:
    """Something that no token may do, whatever its grant says."""
    step = "sign the request with a key (RFC 9421): freehold token create NAME"
    return ProblemError(403, "caller.bearer", "a token may not", detail, step)


def problem_of(error: NotDoneError) -> ProblemError:
    """What the API answers when a part of the node refused what a handler asked of it."""
    title = TITLES.get(error.refusal.rule)
    if title is None:
        return refused(error.refusal, error.advice)
    status = 503 if isinstance(error, NotNowError) else 409
    return ProblemError(status, error.refusal.rule, title, error.refusal.detail, error.advice)


def response(problem: Problem, headers: dict[str, str] | None = None) -> web.Response:
    """The HTTP answer of a problem."""
    fields = FIELDS_OF_STATUS.get(problem.status, {}) | (headers or {})
    return web.Response(
        status=problem.status, body=msgspec.json.encode(problem), content_type=CONTENT_TYPE, headers=fields
    )
