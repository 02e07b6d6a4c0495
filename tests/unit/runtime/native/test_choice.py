"""Which engine serves, and what is said where it is not the native one."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.native import choice
from runtime.native.choice import NOT_BUILT, choose, load_module

NAME = "runtime.native._engine"


class Built:
    """A compiled module that takes one release of wasmtime."""

    POLL = 0

    def __init__(self, version: str) -> None:
        self.version = version

    def open(self, path: str, version: str) -> None:
        if version != self.version:
            raise RuntimeError(f"wasmtime {version} is not one this engine knows ({self.version})")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = Built(choice.version("wasmtime"))
    monkeypatch.setitem(sys.modules, NAME, module)  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize("wanted", ["native", "auto"])
def test_a_node_gets_it_where_it_is_built(built: Built, wanted: Any) -> None:
    engine_choice = choose(wanted, plain_listeners=1, local_only=False)
    assert (engine_choice.engine, engine_choice.reason, engine_choice.module) == ("native", "", built)


def test_addresses_that_it_does_not_serve_are_said_to_be_pythons(built: Built) -> None:
    engine_choice = choose("auto", plain_listeners=1, other_listeners=1, local_only=False)
    assert (engine_choice.engine, engine_choice.reason) == ("native", choice.OTHERS_IN_PYTHON)


@pytest.mark.parametrize(
    ("wanted", "plain_listeners", "local_only", "reason"),
    [
        ("python", 1, False, "asked for"),
        ("native", 0, False, "no listener without TLS"),
    ],
)
def test_another_gets_python_and_is_told_why(
    built: Built, wanted: Any, plain_listeners: int, local_only: bool, reason: str
) -> None:
    engine_choice = choose(wanted, plain_listeners=plain_listeners, local_only=local_only)
    assert (engine_choice.engine, engine_choice.reason, engine_choice.module) == ("python", reason, None)


def test_a_node_for_its_own_machine_keeps_the_engine_that_checks_hosts(built: Built) -> None:
    engine_choice = choose("native", plain_listeners=1, local_only=True)
    assert engine_choice.engine == "python"
    assert "hosts and origins" in engine_choice.reason


def test_another_release_of_wasmtime_refuses_the_engine(built: Built) -> None:
    built.version = "1.0.0"
    engine_choice = choose("native", plain_listeners=1, local_only=False)
    assert engine_choice.engine == "python"
    assert "is not one this engine knows (1.0.0)" in engine_choice.reason


def test_an_engine_that_is_not_built_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(choice, "importlib", SimpleNamespace(import_module=missing))
    assert load_module() == (None, NOT_BUILT)
    for wanted in ("native", "auto"):
        engine_choice = choose(wanted, plain_listeners=1, local_only=False)
        assert (engine_choice.engine, engine_choice.reason) == ("python", NOT_BUILT)


def test_an_engine_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(name: str) -> Any:
        raise ImportError("wrong ELF class")

    monkeypatch.setattr(choice, "importlib", SimpleNamespace(import_module=foreign))
    assert "wrong ELF class" in load_module()[1]


def test_a_node_that_answers_an_authority_keeps_the_python_path(built: Built) -> None:
    engine_choice = choose("native", plain_listeners=1, local_only=False, proves=True)
    assert (engine_choice.engine, engine_choice.module) == ("python", None)
    assert "[acme]" in engine_choice.reason
