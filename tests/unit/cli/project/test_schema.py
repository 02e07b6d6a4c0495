"""The published JSON Schema and reference page are generated, and agree with the validator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.project import kinds
from cli.project.parse import parse
from cli.project.schema import FILE, Either, Listed, Named, Shape, Table, published_schema, reference_page
from tests.unit.cli.project.test_parse import GOOD

DOCS = Path(__file__).resolve().parents[4] / "docs" / "reference"


def test_the_committed_schema_and_page_are_what_the_code_generates() -> None:
    said = "run: .venv/bin/python -m cli.project.publish"
    assert (DOCS / "freehold.schema.json").read_text() == json.dumps(published_schema(), indent=2) + "\n", said
    assert (DOCS / "freehold-toml.md").read_text() == reference_page(), said


def test_the_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(published_schema())


def leaves(shape: Shape) -> list[kinds.Kind]:
    match shape:
        case Table(fields):
            return [kind for field in fields for kind in leaves(field.shape)]
        case Named(name, value):
            return [name, *leaves(value)]
        case Listed(value, _):
            return leaves(value)
        case Either(short, table, _):
            return [short, *leaves(table)]
        case _:
            return [shape]


SAMPLES: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=12),
    st.integers(-5, 2000),
    st.booleans(),
    st.from_regex(r"\A[0-9]{1,4}(ms|s|m|h|d|KiB|MiB|GiB|B|%)\Z"),
    st.from_regex(r"\A[a-z0-9.*/:=-]{1,12}\Z"),
    st.sampled_from(["approve", "fresh", "wsgi", "a.example:443", "/", "A_KEY", "* * * * *"]),
)


@given(st.sampled_from(leaves(FILE)), SAMPLES)
@settings(max_examples=800)
def test_an_editor_never_flags_a_value_that_the_validator_accepts(kind: kinds.Kind, value: object) -> None:
    try:
        kind.read(value)
    except kinds.ValueRefusedError:
        return
    jsonschema.validate(value, kind.json_schema())


def test_an_editor_accepts_a_good_file_and_flags_an_unknown_key() -> None:
    import tomllib

    parse(GOOD)
    validator = jsonschema.Draft202012Validator(published_schema())
    assert validator.is_valid(tomllib.loads(GOOD))
    assert not validator.is_valid(tomllib.loads(GOOD.replace("owners", "owner")))
    assert not validator.is_valid(tomllib.loads(GOOD.replace('"64MiB"', '"64MB"')))


def test_every_default_is_a_value_its_own_kind_accepts() -> None:
    validator = jsonschema.Draft202012Validator(published_schema())

    def check(shape: Shape) -> None:
        if isinstance(shape, Table):
            for field in shape.fields:
                if field.default is not None and isinstance(field.shape, kinds.Kind):
                    field.shape.read(field.default)
                check(field.shape)

    check(FILE)
    assert validator.is_valid({"project": {"name": "a"}, "app": {}})
