"""What a drafted change can say of an app, beside what a change and a project file say."""

from __future__ import annotations

from dataclasses import fields

import msgspec

from cli.project.model import App
from node.api.papers.draft_models import DraftApp
from protocols.changes.change import Route
from protocols.changes.effective import EffectiveApp, effective_app

WRITTEN = {
    "name": "web", "component": "ab" * 32, "kind": "http", "timeout_ms": 7, "memory_max_bytes": 9, "instances": "reuse",
    "routes": ["Shop.test/b/", "/a"], "schedule": "* * * * *", "allow_hosts": ["a.test"], "private_networks": ["10.0.0.0/8"],
    "keyvalue": ["k"], "sql": ["s"], "blobs": ["b"], "migrate": True, "publish": ["p"], "subscribe": ["q"],
    "providers": {"k": "valkey"}, "websocket": "/ws", "websocket_origins": ["https://a.test"],
    "config": {"z": "1", "a": "2"}, "secrets": ["KEY"],
}  # fmt: skip


def test_a_draft_says_of_an_app_all_that_a_change_does() -> None:
    # The toolchain is the release's, whose components say it.
    assert set(DraftApp.__struct_fields__) - {"toolchain"} == set(EffectiveApp.__struct_fields__)


def test_a_project_file_says_of_an_app_all_that_a_change_does() -> None:
    # The component is built of its source, and the kind follows from it.
    assert {field.name for field in fields(App)} >= set(EffectiveApp.__struct_fields__) - {"component", "kind"}


def test_nothing_that_is_said_of_an_app_is_left_out_of_what_runs() -> None:
    assert set(WRITTEN) == set(EffectiveApp.__struct_fields__), "a new field needs a value here"
    draft = msgspec.convert(WRITTEN, DraftApp)
    running = msgspec.structs.asdict(effective_app(draft, b"c" * 32, "http"))
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in WRITTEN.items()} | {
        "component": b"c" * 32,
        "routes": (Route("", "/a"), Route("shop.test", "/b")),
        "providers": (("k", "valkey"),),
        "config": (("a", "2"), ("z", "1")),
    }
    assert running == expected
