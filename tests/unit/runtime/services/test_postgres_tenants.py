"""What is thrown away after smoke checks; a server is stood in for. With a real one: tests/fault/test_postgres_provider.py."""

from __future__ import annotations

import time
from typing import Any

import pytest

from runtime.services import postgres_tenants
from runtime.services.postgres_link import PostgresAnswer, ServerRefusedError
from runtime.services.postgres_tenants import KEPT_S, THROWN_AWAY

OLD = f"{THROWN_AWAY}{int(time.time() - KEPT_S - 60):x}_"
NEW = f"{THROWN_AWAY}{int(time.time()):x}_"


class Link:
    """Databases by name: whether each is called a template; those in `held` cannot be dropped."""

    def __init__(self, databases: dict[str, bool], held: tuple[str, ...] = ()) -> None:
        self.databases, self.held = databases, held

    def ask(self, statement: str, values: tuple[str, ...], _bounds: Any) -> PostgresAnswer:
        rows: list[Any] = []
        name = statement.split('"')[1] if '"' in statement else ""
        if statement.startswith("SELECT datname"):
            rows = [[name] for name in self.databases]
        elif statement.startswith("SELECT 1"):
            rows = [[1]] * self.databases.get(values[0], False)
        elif statement.startswith("ALTER DATABASE"):
            self.databases[name] = False
        elif statement.startswith("DROP DATABASE") and name in self.databases:
            if self.databases[name]:
                raise ServerRefusedError({"C": "42809", "M": "cannot drop a template database"})
            if name in self.held:
                raise ServerRefusedError({"C": "55006", "M": "there is 1 prepared transaction using the database"})
            del self.databases[name]
        return PostgresAnswer((), rows, "", 0)

    def shut(self) -> None:
        """Nothing is open."""


def test_a_database_that_its_guest_called_a_template_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    link: Any = Link({OLD + "a": True, OLD + "b": False, NEW + "c": True})
    postgres_tenants._sweep(link, time.monotonic() + 1)
    assert link.databases == {NEW + "c": True}, "a check is under way there"
    monkeypatch.setattr(postgres_tenants, "_as_the_node", lambda *_: link)
    monkeypatch.setattr(postgres_tenants, "credential", lambda _access: "first")
    access: Any = None
    postgres_tenants.throw_away(access, NEW + "c")
    assert not link.databases


def test_one_that_cannot_be_removed_holds_up_neither_the_rest_nor_who_comes() -> None:
    link: Any = Link({OLD + "a": False, OLD + "b": False}, held=(OLD + "a",))
    postgres_tenants._sweep(link, time.monotonic() + 1)
    assert link.databases == {OLD + "a": False}
