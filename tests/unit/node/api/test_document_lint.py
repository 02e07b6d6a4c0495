"""The API's document as linters of OpenAPI see it, and the page made of it; Spectral's own word is a test beside nodes.

A new operation needs an example: a call in tests/e2e/api/test_examples.py, and then FREEHOLD_RECORD=1 for that test.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from node.api.handlers import OPERATIONS
from node.api.operations import TAGS, document
from node.api.reference_page import page_of


def problems(stated: dict[str, Any]) -> Iterator[str]:
    """What Spectral's `oas` rules say, and that every call has an example which fits its schema."""
    info = stated["info"]
    yield from (
        f"info has no {name}"
        for name in ("title", "version", "description", "contact", "license")
        if not info.get(name)
    )
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(stated)))
    lost = named - set(stated["components"]["schemas"])
    yield from (f"{name} is nowhere" for name in lost)
    yield from (f"type {name} is used nowhere" for name in set(stated["components"]["schemas"]) - named)
    tags = [candidate["name"] for candidate in stated["tags"]]
    names: Counter[str] = Counter()
    for path, item in stated["paths"].items():
        if path != "/" and path.endswith("/"):
            yield f"{path} ends with a slash"
        for method, entry in item.items():
            where = f"{method} {path}"
            names[entry.get("operationId", "")] += 1
            yield from (
                f"{where} has no {name}"
                for name in ("operationId", "summary", "description", "tags")
                if not entry.get(name)
            )
            yield from (f"{where}: tag {tag} is not declared" for tag in entry.get("tags", ()) if tag not in tags)
            if not any(status.startswith("2") for status in entry["responses"]):
                yield f"{where} has no answer of success"
            silent = [status for status, answer in entry["responses"].items() if not answer.get("description")]
            yield from (f"{where}: answer {status} has no description" for status in silent)
            yield from _parameters(where, path, entry)
            if not lost:
                yield from _contents(where, stated, entry)
    yield from (f"operationId {name!r} stands there {count} times" for name, count in names.items() if count > 1)


def _parameters(where: str, path: str, one: dict[str, Any]) -> Iterator[str]:
    pairs = [(candidate["in"], candidate["name"]) for candidate in one["parameters"]]
    yield from (f"{where}: {name} stands there twice" for name, count in Counter(pairs).items() if count > 1)
    if {name for place, name in pairs if place == "path"} != set(re.findall(r"\{(\w+)\}", path)):
        yield f"{where}: its path has other parameters than it says"
    for entry in one["parameters"]:
        if not entry.get("description"):
            yield f"{where}: {entry['name']} has no description"
        if entry["in"] == "path" and "example" not in entry:
            yield f"{where}: {entry['name']} has no example"
        if "example" in entry and not Draft202012Validator(entry["schema"]).is_valid(entry["example"]):
            yield f"{where}: the example of {entry['name']} does not fit"


def _contents(where: str, stated: dict[str, Any], one: dict[str, Any]) -> Iterator[str]:
    answers = [answer for status, answer in one["responses"].items() if status.startswith("2")]
    for part in (one.get("requestBody", {}), *answers):
        for kind, content in part.get("content", {}).items():
            if kind != "application/json":
                continue
            if "example" not in content:
                if one["operationId"] != "openapi":
                    yield f"{where}: {kind} has no example"
                continue
            schema = content["schema"] | {"components": stated["components"]}
            for error in Draft202012Validator(schema).iter_errors(content["example"]):
                yield f"{where}: the example does not fit: {error.message[:200]}"


@pytest.fixture(scope="module")
def stated() -> dict[str, Any]:
    return document(OPERATIONS, "1")


def test_the_document_passes_the_linter(stated: dict[str, Any]) -> None:
    assert list(problems(stated)) == []
    assert {tag for item in stated["paths"].values() for entry in item.values() for tag in entry["tags"]} == set(TAGS)


def answer_of(one: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = one["responses"]["200"]["content"]["application/json"]
    return answer


def test_the_linter_finds_what_is_wrong(stated: dict[str, Any]) -> None:
    def broken(change: Any) -> list[str]:
        copy = json.loads(json.dumps(stated))
        change(copy["paths"]["/v1/changes/{change}"]["get"], copy)
        return list(problems(copy))

    for change, said in (
        (lambda one, _: one.pop("description"), "has no description"),
        (lambda one, _: one.update(tags=["odd"]), "tag odd is not declared"),
        (lambda one, _: one.update(operationId="changes"), "stands there 2 times"),
        (lambda one, _: one["parameters"][0].update(name="id"), "other parameters"),
        (lambda one, _: one["parameters"][0].pop("example"), "has no example"),
        (lambda one, _: one["parameters"][0].update(example=7), "the example of change does not fit"),
        (lambda one, _: answer_of(one)["example"].update(approvals="two"), "does not fit"),
        (lambda _, all_: all_["components"]["schemas"].pop("StartView"), "is nowhere"),
        (lambda _, all_: all_["components"]["schemas"].update(Odd={"type": "object"}), "is used nowhere"),
    ):  # fmt: skip
        assert any(said in text for text in broken(change)), said


class _Page(HTMLParser):
    """What a page would load, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found_attributes = dict(attributes)
        if tag in {"script", "link", "img", "iframe", "object", "embed", "form", "base"} or "src" in found_attributes:
            self.loads.append(tag)
        self.loads += [name for name in found_attributes if name.startswith("on")]
        if "href" in found_attributes:
            self.links.add(str(found_attributes["href"]))
        if "id" in found_attributes:
            self.ids.add(str(found_attributes["id"]))


def test_the_page_shows_every_operation_and_loads_nothing(stated: dict[str, Any]) -> None:
    page = _Page()
    text = page_of(stated).decode()
    page.feed(text)
    assert page.loads == []
    assert "url(" not in text
    assert "@import" not in text
    assert {f"op-{operation.name}" for operation in OPERATIONS} <= page.ids
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert {link for link in page.links if not link.startswith("#")} == {"/v1/openapi.json"}


def test_what_a_type_says_is_text_on_the_page(stated: dict[str, Any]) -> None:
    copy = json.loads(json.dumps(stated))
    copy["paths"]["/v1/node"]["get"]["summary"] = "<script>alert(1)</script>"
    copy["components"]["schemas"]["NodeView"]["description"] = '"><img src=x onerror=alert(1)>'
    page = _Page()
    page.feed(page_of(copy).decode())
    assert page.loads == []


def whole_numbers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for entry in value:
            yield from whole_numbers(entry)
    if isinstance(value, dict):
        if value.get("type") == "integer":
            yield value
        for key, entry in value.items():
            if key not in {"example", "examples"}:
                yield from whole_numbers(entry)


def test_whole_numbers_say_their_width_so_that_generated_clients_hold_times() -> None:
    numbers = list(whole_numbers(document(OPERATIONS, "1")))
    assert len(numbers) > 50
    assert all(number["format"] == "int64" for number in numbers)


def _unbounded(schema: Any, place: str) -> list[str]:
    """Where a schema says integer without both ends."""
    texts = [place] if schema.get("type") == "integer" and not {"minimum", "maximum"} <= schema.keys() else []
    for name, below in schema.get("properties", {}).items():
        texts += _unbounded(below, f"{place}.{name}")
    for key in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for below in schema.get(key, ()):
            texts += _unbounded(below, place)
    for key in ("items", "additionalProperties"):
        if isinstance(below := schema.get(key), dict):
            texts += _unbounded(below, f"{place}[]")
    return texts


def test_every_whole_number_of_a_body_has_both_ends() -> None:
    bodies = [operation.body for operation in OPERATIONS if operation.body not in (None, bytes)]
    schemas, named = msgspec.json.schema_components(bodies)
    texts = [place for name, schema in named.items() for place in _unbounded(schema, name)]
    assert not [*texts, *(place for schema in schemas for place in _unbounded(schema, "body"))]
    assert _unbounded({"properties": {"a": {"type": "integer", "minimum": 0}}}, "x") == ["x.a"], "a near miss"
