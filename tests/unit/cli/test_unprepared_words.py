"""Whom a start waits for, and why, in a deploy's words: a node that is down, that cannot, that is at it, that is silent."""

from __future__ import annotations

import json
from typing import Any

from cli.errors import CommandError
from cli.views.watch import unprepared_words
from protocols.api_models import ChangeView, LogLines, StartView
from tests.support.protocols.answers import change_view
from tests.unit.cli.test_mesh import member

CHANGE = "c" * 64


class Answers:
    """A node that answers for its peers: the log lines of each, or None for one that is not reached."""

    def __init__(self, logs: dict[str, list[dict[str, Any]] | None], down: str = "") -> None:
        self.logs, self.down = logs, down
        self.asked: list[str] = []

    async def read(self, kind: Any, path: str, **query: Any) -> Any:
        if path == "/v1/members":
            return tuple(member("", node=log, belief="down" if log == self.down else "alive") for log in self.logs)
        self.asked.append(query["node"])
        assert query["contains"] == CHANGE
        lines = self.logs[query["node"]]
        if lines is None:
            raise CommandError("timed out", next_step="", kind="node.unreachable")
        return LogLines(tuple(json.dumps(line) for line in lines))


def failed(why: str) -> dict[str, Any]:
    return {"event": "prepare.failed", "message": f"not prepared: {why}"}


def view(rule: str, *nodes: str) -> ChangeView:
    detail = f"of the first stage {', '.join(nodes)} have not prepared the change"
    return change_view(id=CHANGE, start=StartView(CHANGE, "waiting", 0, rule, detail))


async def test_each_node_that_is_waited_for_is_named_with_why() -> None:
    client = Answers(
        {"down": [], "busy": [{"event": "x", "message": ""}], "gone": None, "ready": [failed("of before")],
         "broken": [failed("no room"), failed("the artifact web cannot be fetched")]},
        down="down",
    )  # fmt: skip
    waited = view("rollout.not-prepared", "down", "busy", "gone", "broken")
    assert await unprepared_words(client, waited, {"broken": "attic"}) == [  # type: ignore[arg-type]
        "down has not prepared it yet: it is down",
        "busy has not prepared it yet: it fetches, compiles and tries it",
        "gone has not prepared it yet: it does not answer (timed out)",
        "attic has not prepared it yet: the artifact web cannot be fetched",
    ]
    assert "ready" not in client.asked
    assert "down" not in client.asked


async def test_nothing_is_asked_where_a_start_waits_for_something_else() -> None:
    client = Answers({"busy": []})
    assert await unprepared_words(client, view("approval.missing", "busy"), {}) == []  # type: ignore[arg-type]
    assert await unprepared_words(client, change_view(id=CHANGE), {}) == []  # type: ignore[arg-type]
    assert client.asked == []
