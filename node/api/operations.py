"""Operations as data: one table from which come the routes, the validation and the OpenAPI 3.1 document.

An operation names its method and path, what it reads (query parameters, a body type), what it answers, and the verb its
caller needs. Bodies are msgspec Structs, so that the schema in the document is the type that is decoded. Not here: what
an operation does (the handlers), and who the caller is (callers.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from node.api.problems import CONTENT_TYPE, Problem

Handler = Callable[["Call"], Awaitable[Any]]
Access = Literal["open", "signed", "read", "write"]
"""`open`: anybody who reaches the address; `signed`: any key that signs, known or not; `read`: any principal; `write`: a
principal, with an idempotency key."""


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

    `stream` says that the answer is server-sent events. `statuses` are the problems it may answer beside the common ones.
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
    stream: bool = False
    statuses: Sequence[int] = field(default_factory=tuple)


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


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these operations."""
    types = [Problem, *(kind for one in operations for kind in (one.body, one.answer) if kind not in (None, bytes))]
    unique = list({repr(kind): kind for kind in types}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    by_type = {repr(kind): schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Freehold node API",
            "version": version,
            "summary": "What one node of a mesh shows and does; commands are signed by principals, judged by the chain.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "signature": {"type": "http", "scheme": "signature", "description": "HTTP message signatures, RFC 9421"}
            },
        },
    }


def _operation(one: Operation, by_type: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": parameter.name,
            "in": parameter.place,
            "required": parameter.place == "path",
            "schema": dict(parameter.schema),
            "description": parameter.text,
        }
        for parameter in one.parameters
    ]
    if one.access == "write":
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "minLength": 8, "maxLength": 64, "pattern": "^[A-Za-z0-9_-]+$"},
                "description": "Repeat it to retry: the same key and request get the same answer.",
            }
        )
    made: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": parameters,
        "responses": {str(one.status): {"description": "done", **_content(one, by_type)}},
    }
    problem = {"content": {CONTENT_TYPE: {"schema": by_type[repr(Problem)]}}}
    common = (400, 401, 403, 404, 405, 409, 413, 415, 421, 422, 429, 503, *((507,) if one.access == "write" else ()))
    made["responses"] |= {str(status): {"description": "a problem", **problem} for status in (*common, *one.statuses)}
    if one.body is not None:
        octets = one.body is bytes
        kind = "application/octet-stream" if octets else "application/json"
        schema = {"type": "string", "format": "binary"} if octets else by_type[repr(one.body)]
        made["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    if one.access != "open":
        made["security"] = [{"signature": []}]
    return made


def _content(one: Operation, by_type: Mapping[str, Any]) -> dict[str, Any]:
    if one.stream:
        return {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    if one.answer is None:
        return {}
    if one.answer is bytes:
        return {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    return {"content": {"application/json": {"schema": by_type[repr(one.answer)]}}}
