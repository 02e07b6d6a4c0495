"""The HTTP API against its own OpenAPI document, on one real daemon: whatever is sent, the answer is one it describes.

Schemathesis makes the requests: boundaries and broken values of every parameter and body, methods that are not there,
random ones, and chains of them. Endless streams are left to the tests of streams.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events

from node.api.handlers import OPERATIONS
from tests.support.mesh.nodes import Fleet, Machine
from tests.support.mesh.relay import relay_to

STREAMS = ("GET /v1/events",)
SETTINGS: dict[str, Any] = {
    "seed": 1,
    "request-timeout": 30,
    "generation": {"max-examples": 2, "deterministic": True, "database": "none", "no-shrink": True},
    "phases": {"stateful": {"max-steps": 4}},
    "checks": {
        # Who calls on the Unix socket is known without a signature; that TCP asks for one is another test's.
        "ignored_auth": {"enabled": False},
        # 422: well formed, and not what it should be, as random bytes where a signed paper belongs always are.
        # 429: who fails to sign again and again has to wait, as the many unsigned calls of a newcomer's door do.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "401", "403", "404", "409", "422", "429"]},
    },
    "operations": [
        {"include-name": "GET /v1/logs", "parameters": {"query.follow": "false"}},
        # An address that failed too often is asked to wait (429) before its header is looked at.
        {"include-name": "POST /v1/token-exchange", "checks": {"missing_required_header": {"enabled": False}}},
    ],
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    fleet = Fleet(tmp_path_factory.mktemp("api"))
    try:
        yield fleet.found("one")
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def document(machine: Machine) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(machine.get("/v1/openapi.json"))
    return answer


def test_the_document_names_every_operation_and_nothing_else(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(entry.method, entry.path) for entry in OPERATIONS} | {
        ("GET", "/v1/openapi.json"),
        ("GET", "/docs"),
    }
    assert len({entry.name for entry in OPERATIONS}) == len(OPERATIONS)
    for operation in OPERATIONS:
        keyed = [part["name"] for part in document["paths"][operation.path][operation.method.lower()]["parameters"]]
        # Papers of an admission are answered alike each time they are shown, so they need no key.
        # A draft takes no effect, so making it twice is harmless; what tools of MCP write is idempotent by its content.
        assert ("Idempotency-Key" in keyed) == (
            operation.method != "GET" and operation.name not in {"enrol", "draft", "mcp", "exchange_token"}
        ), operation.name


def test_whatever_is_sent_the_answer_is_as_the_document_says(machine: Machine, document: dict[str, Any]) -> None:
    answer: Counter[str] = Counter()
    tried: set[str] = set()
    with relay_to(next(machine.runtime.glob("*/api.sock"))) as address:
        settings = SchemathesisConfig.from_dict({**SETTINGS, "base-url": address})
        schema = schemathesis.openapi.from_dict(document, config=settings).exclude(name=list(STREAMS))
        for event in engine.from_schema(schema).execute():
            assert not isinstance(event, events.FatalError | events.NonFatalError), event
            if isinstance(event, events.ScenarioFinished):
                tried.add(event.recorder.label)
                for case, checks in event.recorder.checks.items():
                    answer.update(_told(event, case, check) for check in checks if check.status is Status.FAILURE)
    assert not answer, "\n".join(answer)
    assert {f"{operation.method} {operation.path}" for operation in OPERATIONS} - tried == set(STREAMS)
    machine.status()  # it still answers


def _told(event: events.ScenarioFinished, case: str, check: Any) -> str:
    sent, exchange = event.recorder.cases[case].value, event.recorder.interactions.get(case)
    answer = exchange.response if exchange is not None else None
    shown = f"{answer.status_code} {answer.content[:300]!r}" if answer is not None else "no answer"
    failure = check.failure_info.failure
    asked = f"{sent.method} {sent.formatted_path} {sent.query} {str(sent.body)[:300]}"
    return f"{failure.title}: {failure.message}\n  {asked}\n  {shown}"
