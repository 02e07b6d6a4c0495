"""A node that lies in every text it answers with: each command shows it harmless, one line as one line, and no traceback.

The answers are those that a real node gave (node/api/examples.json), with something nasty put into each text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.access import client, contexts
from cli.access.contexts import Context
from cli.frame import run
from cli.main import freehold
from node.api.handlers import OPERATIONS
from node.api.operations import examples
from protocols.envelope import encode
from tests.support.protocols.mesh_world import MeshWorld

CHANGE = examples()["change"]["path"]["change"]
READS = (
    ("status",), ("releases",), ("rollouts",), ("changes",), ("changes", CHANGE), ("decisions",), ("audit",),
    ("why", "shop", "--env", "prod"), ("logs",), ("mesh", "members"), ("mesh", "voters"), ("mesh", "admins", "list"),
    ("token", "list"),
    ("secret", "list", "--project", "site"), ("evidence", "show", CHANGE), ("project", "list"), ("env", "list"), ("doctor",),
    ("data", "list"), ("passkey", "list"), ("policy", "show"), ("context", "list"),
)  # fmt: skip
FAKE = "FAKE LINE OF OURS"
NASTY = f" x\n{FAKE}\r\x1b[2J\u202e\u2066\u200b\x9b\U000e0041"
OPAQUE = re.compile(r"[0-9a-f]{16,}|12D3KooW\w+|[A-Za-z0-9+/=]{60,}|/[a-z]+/.*|[a-z_.-]{1,20}|\d.*")
"""Digests, ids, base64, words of a list and times: what a program reads, and refuses if it is something else."""


def tainted(value: Any, *, every: bool) -> Any:
    match value:
        case str():
            return value + NASTY if every or not OPAQUE.fullmatch(value) else value
        case list():
            return [tainted(entry, every=every) for entry in value]
        case dict():
            return {key: tainted(entry, every=every) for key, entry in value.items()}
        case _:
            return value


def answered(path: str, *, every: bool) -> bytes:
    if path == "/v1/state":
        return encode(MeshWorld().furnish().deployed().state)
    for operation in OPERATIONS:
        pattern = re.sub(r"\{\w+\}", "[^/]+", operation.path)
        if operation.method == "GET" and re.fullmatch(pattern, path):
            answer = examples().get(operation.name, {}).get("answer")
            if operation.name == "logs":
                answer = {
                    "lines": [json.dumps({"message": NASTY, "app": NASTY, "event": NASTY}), NASTY, "{", "[1]", ""]
                }
            return json.dumps(tainted(answer, every=every)).encode() if answer is not None else b"\xc1"
    raise AssertionError(path)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let every command speak to a node that answers so."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    contexts.store_plain("me", bytes(range(32)))
    monkeypatch.setattr(contexts, "current_context", lambda *_: ("home", Context("ab" * 32, "/nowhere", "me")))

    def set_up(*, every: bool) -> None:
        async def exchange(_client: Any, method: str, path: str, *_: Any, **__: Any) -> tuple[bytes, Mapping[str, str]]:
            assert method == "GET", "looking asks for nothing else"
            return answered(path, every=every), {}

        monkeypatch.setattr(client.NodeClient, "_exchange", exchange)

    return set_up


def acts(text: str) -> list[str]:
    return sorted(
        {entry for entry in text if entry != "\n" and unicodedata.category(entry) in {"Cc", "Cf", "Cs", "Co", "Cn"}}
    )


@pytest.mark.parametrize("every", [False, True], ids=["texts", "everything"])
@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_what_a_node_says_acts_on_no_terminal_and_fakes_no_line(
    command: tuple[str, ...], hostile: Callable[..., None], capsys: pytest.CaptureFixture[str], *, every: bool
) -> None:
    hostile(every=every)
    for more in ((), ("--json",)):
        code = run(freehold, [*command, *more])
        told = capsys.readouterr()
        for text in (told.out, told.err):
            assert acts(text) == []
            assert not [line for line in text.split("\n") if line.startswith(FAKE)], text
        if not every:
            assert "Traceback" not in told.err, told.err
            assert code in {0, 1, 3}, told.err
            if more and told.out.startswith("{"):
                assert json.loads(told.out), "for programs it is whole"
