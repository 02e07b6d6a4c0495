"""Operations as data: one table from which come the routes, the validation and the OpenAPI 3.1 document.

An operation names its method and path, what it reads (query parameters, a body type), what it answers, and the verb its
caller needs. Bodies are msgspec Structs, so that the schema in the document is the type that is decoded. Not here: what
an operation does (the handlers), and who the caller is (callers.py).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, Protocol, cast

import msgspec
from aiohttp import web

from node.api.callers.scope import NOTHING, Scope
from node.api.problems import CONTENT_TYPE, Problem, invalid, not_found
from protocols.keys import Ed25519Signer

Handler = Callable[["Call"], Awaitable[Any]]
Access = Literal["open", "known", "signed", "read", "write"]
"""`open`: anybody who reaches the address; `known`: the socket, or any key that signs; `signed`: a key that signs, known
or not; `read`: any principal; `write`: a principal, with an idempotency key."""


WELL_KNOWN = "/.well-known/oauth-protected-resource"
"""Where RFC 9728 has clients look for how to be let in."""

PAGE_ITEMS = 100
PAGE_ITEMS_MAX = 2_000
CURSOR_MAX_CHARS = 640
COMMON_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 503)
EVENT = {
    "type": "object",
    "description": "each event of the stream",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
}
ABOUT = """Digests and keys are lower-case hex, times are wall milliseconds, binary values are base64.

A change goes in eight calls: PUT /v1/artifacts/{digest} for each component; POST /v1/drafts with kind change, which
answers with the bytes to sign and the review; POST /v1/changes with the signature; where the policy asks for it a person
approves; POST /v1/drafts with kind routes, once for each project, and with kind start; POST
/v1/drafts/{draft}/signature for each; GET /v1/lanes/{project}/{environment} or GET /v1/events until it runs.

Errors are problem details (RFC 9457): `rule` is stable, `next` says what to do."""
SIGNING = """HTTP message signatures (RFC 9421) with Ed25519. Cover "@method", "@target-uri", "freehold-node" and, with a
body, "content-digest" (sha-256). The field Freehold-Node is the id of the node that is asked, as `node` of GET /v1/node
says, or the SHA-256 of its public key in hex. Parameters: created, keyid (the public key in hex or base64), nonce. Good
once, for two minutes. On the Unix socket the system says who calls."""
IDEMPOTENCY_KEY = {"type": "string", "minLength": 8, "maxLength": 64, "pattern": "^[A-Za-z0-9_-]+$"}


@dataclass(frozen=True)
class Parameter:
    """One query or path parameter: a JSON-schema fragment and a sentence."""

    name: str
    schema: Mapping[str, Any]
    text: str
    place: Literal["query", "path"] = "query"


@dataclass(frozen=True)
class Operation:
    """One method on one path. `body` and `answer` are Struct types, `bytes` for octets, or None.

    A body of octets is handed over as an Upload, while it arrives; it must have the digest in the path. `stream` says that
    the answer is server-sent events: always, or `asked` by a parameter `follow`. `paged` adds `limit` and `cursor`, and the
    handler answers with a Page. `media` is the content type of an answer that is made elsewhere. `statuses` are the problems
    it may answer beside the common ones. After one that is `final` the node's word counts nowhere: its audit entry is
    there before it begins. `bearer` says that a token may write this; what only reads, it may read anyway. `carried` says that
    what is handed over proves its own author's right: whoever may look may bring it. `empty_status` is another status of
    success, without a body.
    """

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    handler: Handler
    access: Access = "read"
    body: Any = None
    body_max_bytes: int = 1 << 20
    answer: Any = None
    status: int = 200
    parameters: Sequence[Parameter] = ()
    stream: Literal["", "always", "asked"] = ""
    paged: bool = False
    media: str = ""
    statuses: Sequence[int] = field(default_factory=tuple)
    final: bool = False
    bearer: bool = False
    carried: bool = False
    empty_status: int = 0

    @property
    def takes_tokens(self) -> bool:
        """Whether a bearer token may be shown for it: nothing that needs a signature is among these."""
        return self.bearer if self.access == "write" else self.access != "signed"


@dataclass(frozen=True)
class Page:
    """Some items of a list; `cursor` leads to the next ones, empty at the end."""

    items: tuple[Any, ...]
    cursor: str = ""


def page(items: Sequence[Any], key: Callable[[Any], str], query: Mapping[str, Any], *, ascending: bool = False) -> Page:
    """Cut a page from `items`, in descending order of `key` unless `ascending`: a text of one item alone, never its place.

    What is added while somebody pages comes before the cursor or after it, so nothing is shown twice or left out.
    """
    after, limit = query.get("cursor", ""), query.get("limit", PAGE_ITEMS)
    left = [item for item in items if not after or (key(item) > after if ascending else key(item) < after)]
    return Page(tuple(left[:limit]), key(left[limit - 1]) if len(left) > limit else "")


class Upload:
    """A body of octets as it arrives, in pieces: iterate over it once. Raises ProblemError if it is too large or slow."""

    def __init__(self, pieces: AsyncIterator[bytes], digest: bytes) -> None:
        """Take the pieces and the digest that the path names."""
        self.pieces = pieces
        self.digest = digest


@dataclass(frozen=True)
class Call:
    """One call as a handler sees it: everything in it was checked against the operation."""

    operation: Operation
    request: web.Request
    principal: str
    """The caller: "socket:<uid>" on the Unix socket, the key in hex elsewhere."""
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    node: Any
    """The daemon's control surface (control.Control)."""
    scope: Scope = NOTHING
    """Which objects the caller's grants cover."""
    bearer: Ed25519Signer | None = None
    """The signer of the caller's token, if it showed one: for what the node files in its name."""


class Performer(Protocol):
    """What makes one call within another, for the same caller and by the same gates: the server, as its handlers see it."""

    def operation(self, name: str) -> Operation:
        """Return an operation by its name."""

    async def within(self, outer: Call, operation: Operation, values: Mapping[str, Any], body: Any) -> bytes:
        """Make a call with these parameters and this body; return the JSON of its answer. Raises ProblemError."""


PERFORMER: web.AppKey[Performer] = web.AppKey("performer")

PAGING = (
    Parameter(
        "limit", {"type": "integer", "minimum": 1, "maximum": PAGE_ITEMS_MAX, "default": PAGE_ITEMS}, "how many"
    ),
    Parameter(
        "cursor", {"type": "string", "pattern": "^[0-9A-Za-z-]*$", "maxLength": CURSOR_MAX_CHARS},
        "the next page, as the Link field of the one before says",
    ),
)  # fmt: skip


def parameters_of(operation: Operation) -> tuple[Parameter, ...]:
    """Everything an operation reads from its path and query."""
    return (*operation.parameters, *(PAGING if operation.paged else ()))


TAGS = {
    "node": "The node that is asked, and its health",
    "mesh": "What the mesh decided, and who belongs to it",
    "changes": "Proposed changes, from the draft to the end of their rollout",
    "artifacts": "Components and configurations by their digest",
    "projects": "What runs where, and its data and secrets",
    "principals": "Who may do what",
    "following": "Logs, events and metrics",
}
"""What operations are grouped by, each with a sentence."""

_TAG_OF = {
    ".well-known": "node", "healthz": "node", "readyz": "node", "node": "node", "leave": "node",
    "openapi.json": "node", "docs": "node",
    "drafts": "changes", "starts": "changes", "records": "changes", "commands": "changes", "changes": "changes",
    "artifacts": "artifacts", "lanes": "projects", "secrets": "projects", "data": "projects",
    "names": "projects",
    "admissions": "principals", "principals": "principals",
    "mcp": "changes", "webhooks": "following", "trusts": "principals", "token-exchange": "principals",
    "logs": "following", "events": "following", "audit": "following", "metrics": "following",
}  # fmt: skip


def tag_of(operation: Operation) -> str:
    """The group an operation belongs to, by its path."""
    return _TAG_OF.get(operation.path.removeprefix("/v1").split("/")[1], "mesh")


@cache
def examples() -> dict[str, Any]:
    """Requests and answers by operation, as a test recorded them on a real node; long binary values are cut short."""
    answer: dict[str, Any] = msgspec.json.decode(resources.files(__package__).joinpath("examples.json").read_bytes())
    return answer


def value_of(parameter: Parameter, text: str) -> Any:
    """Check one parameter against its schema: type, bounds, length, pattern, enum."""
    schema = parameter.schema
    if schema["type"] == "integer":
        if not re.fullmatch(r"-?[0-9]{1,15}", text):
            raise invalid(f"{parameter.name} must be a whole number")
        number = int(text)
        if not schema.get("minimum", number) <= number <= schema.get("maximum", number):
            raise invalid(f"{parameter.name} must be {schema.get('minimum')} to {schema.get('maximum')}")
        return number
    if schema["type"] == "boolean":
        if text not in {"true", "false"}:
            raise invalid(f"{parameter.name} must be true or false")
        return text == "true"
    if len(text) > schema.get("maxLength", 256) or len(text) < schema.get("minLength", 0):
        raise invalid(f"{parameter.name} has the wrong length")
    if "enum" in schema and text not in schema["enum"]:
        raise invalid(f"{parameter.name} must be one of {', '.join(schema['enum'])}")
    if "pattern" in schema and not re.search(schema["pattern"], text):
        if parameter.place == "path":
            raise not_found(parameter.name, text)
        raise invalid(f"{parameter.name} does not match {schema['pattern']}")
    return text


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these operations."""
    types = [
        Problem,
        *(kind for operation in operations for kind in (operation.body, operation.answer) if kind not in (None, bytes)),
    ]
    unique = list({repr(kind): kind for kind in types}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    by_type = {repr(kind): schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_type)
    table = {
        "openapi": "3.1.0",
        "info": {
            "title": "Freehold node API",
            "version": version,
            "summary": "What one node of a mesh shows and does; commands are signed by principals, judged by the chain.",
            "description": ABOUT,
            "contact": {"name": "whoever runs this node"},
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "the node that serves this document"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "signature": {
                    "type": "http",
                    "scheme": "signature",
                    "description": SIGNING,
                },
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a token of `freehold token create --bearer`: it reads and proposes, nothing else",
                },
            },
        },
    }
    return cast(dict[str, Any], _exact(table))


def _exact(value: Any) -> Any:
    """The same with what generators of clients would guess said.

    They take a whole number without a width for 32 bits, and times have more. Of shapes that a tag tells apart exactly one
    fits; told that any of them may, they make one shape that has the fields of all.
    """
    if isinstance(value, list):
        return [_exact(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    wide = {"format": "int64"} if value.get("type") == "integer" else {}
    names = {"anyOf": "oneOf"} if "discriminator" in value else {}
    return wide | {
        names.get(key, key): entry if key in {"example", "examples"} else _exact(entry) for key, entry in value.items()
    }


def _operation(one: Operation, by_type: Mapping[str, Any]) -> dict[str, Any]:
    example = examples().get(one.name, {})
    shown = {**example.get("path", {}), **example.get("query", {})}
    parameters = [
        {
            "name": parameter.name,
            "in": parameter.place,
            "required": parameter.place == "path",
            "schema": dict(parameter.schema),
            "description": parameter.text,
        }
        | ({"example": shown[parameter.name]} if parameter.name in shown else {})
        for parameter in parameters_of(one)
    ]
    if one.access == "write":
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "schema": IDEMPOTENCY_KEY,
                "description": "Repeat it to retry: the same key and request get the same answer.",
                "example": f"{one.name}-1234",
            }
        )
    table: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "description": _description(one),
        "tags": [tag_of(one)],
        "parameters": parameters,
        "responses": {str(one.status): {"description": "done", **_content(one, by_type, example)}},
    }
    if one.paged:
        text = "where the next page is, with rel=next; absent on the last (RFC 8288)"
        table["responses"][str(one.status)]["headers"] = {"Link": {"schema": {"type": "string"}, "description": text}}
    if one.empty_status:
        table["responses"][str(one.empty_status)] = {"description": "done, and nothing to say"}
    problem = {"content": {CONTENT_TYPE: {"schema": by_type[repr(Problem)]}}}
    common = (400, 401, 403, 404, 405, 409, 413, 415, 421, 422, 429, 503, *((507,) if one.access == "write" else ()))
    table["responses"] |= {str(status): {"description": "a problem", **problem} for status in (*common, *one.statuses)}
    if one.body is not None:
        octets = one.body is bytes
        kind = "application/octet-stream" if octets else "application/json"
        schema = {"type": "string", "format": "binary"} if octets else by_type[repr(one.body)]
        answer = {"example": example["body"]} if "body" in example else {}
        table["requestBody"] = {"required": True, "content": {kind: {"schema": schema, **answer}}}
    if one.access != "open":
        bearer: list[dict[str, list[str]]] = [{"bearer": []}] if one.takes_tokens else []
        table["security"] = [{"signature": []}] if one.access == "signed" else [{"signature": []}, *bearer, {}]
    return table


def _description(one: Operation) -> str:
    """What the operation's handler says that it does, and who may ask for it."""
    who = {
        "open": "Needs no credential.", "known": "Needs the socket, or any key that signs.",
        "signed": "Needs a signature; the key need not be known yet.",
    }.get(one.access, "Takes a signature or a token." if one.takes_tokens else "Takes a signature, and no token.")  # fmt: skip
    return f"{inspect.getdoc(one.handler) or one.summary}\n\n{who}"


def _content(one: Operation, by_type: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if one.stream:
        content["text/event-stream"] = {"schema": EVENT}
    if one.media:
        content[one.media] = {"schema": {"type": "string"}}
    elif one.answer is bytes:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    elif one.answer is not None:
        answer = {"example": example["answer"]} if "answer" in example else {}
        content["application/json"] = {"schema": by_type[repr(one.answer)], **answer}
    return {"content": content} if content else {}
