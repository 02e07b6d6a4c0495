"""`freehold secret` as a person or a script uses it, on a real process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.nodes import Fleet, Machine

VALUE = "sk-live-5d41402abc4b2a76"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    fleet = Fleet(tmp_path_factory.mktemp("secret"))
    try:
        made = fleet.found("one")
        made.typed_ok("env", "create", "production", "-y")
        made.typed_ok("project", "create", "shop")
        yield made
    finally:
        fleet.close()


def test_a_value_comes_from_a_pipe_and_is_never_said_again(node: Machine) -> None:
    empty = node.run("secret", "set", "API_KEY", "--project", "shop")
    assert empty.code == 1, empty
    said = [
        node.run("secret", "set", "API_KEY", "--project", "shop", "--json", stdin=VALUE + "\n"),
        node.run("secret", "set", "API_KEY", "--project", "shop", stdin=VALUE + "2"),
        node.run("secret", "list", "--project", "shop", "--json"),
        node.run("secret", "list", "--project", "shop"),
        node.run("logs", "--json"),
    ]
    assert [one.code for one in said] == [0] * len(said), said
    assert said[0].json["version"] == 1
    assert [(row["name"], row["version"]) for row in said[2].json["secrets"]] == [("API_KEY", 2), ("API_KEY", 1)]
    assert not any(VALUE in one.stdout + one.stderr for one in said)
    for path in node.folder.rglob("*"):
        if path.is_file():
            assert VALUE.encode() not in path.read_bytes(), path


def test_a_prompt_does_not_echo(node: Machine) -> None:
    typed = node.typed("secret", "set", "TYPED", "--project", "shop", "--json", typing=(VALUE,))
    assert typed.code == 0, typed
    assert VALUE not in typed.stdout + typed.stderr


def test_what_is_wrong_is_said_without_the_value(node: Machine) -> None:
    for arguments, code in (
        (("set", "lower-case", "--project", "shop"), 2),
        (("set", "API_KEY", "--project", "unknown"), 3),
        (("set", "API_KEY", "--project", "shop", "--env", "nowhere"), 1),
        (("rm", "MISSING", "--project", "shop", "-y"), 2),
    ):
        answer = node.run("secret", *arguments, stdin=VALUE)
        assert answer.code == code, (arguments, answer)
        assert VALUE not in answer.stdout + answer.stderr
    gone = node.ok("secret", "rm", "API_KEY", "--project", "shop", "-y")
    assert gone["removed"] == [2, 1]
    assert [row["name"] for row in node.ok("secret", "list", "--project", "shop")["secrets"]] == ["TYPED"]
