"""How commands find the mesh of one of `freehold dev`, and what its folder keeps. No node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.access import contexts
from cli.access.contexts import Context
from cli.access.prompts import unlock
from cli.commands.principals.context import context
from cli.dev.secrets import set_changed, with_secrets
from cli.errors import UsageError
from cli.project.find import Found, open_project
from cli.text.output import Output
from protocols.keys import Ed25519Signer

SEED = bytes(range(32))
PROJECT = """
[project]
name = "shop"
[app.web]
language = "component"
source = "web.wasm"
routes = ["/"]
secrets = ["KEY", "OTHER"]
"""


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("FREEHOLD_HOME", str(folder))
    monkeypatch.delenv("FREEHOLD_CONTEXT", raising=False)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / ".freehold" / "dev" / "keys").mkdir(parents=True)
    (folder / "web").mkdir()
    contexts.write_dev_context(
        folder / ".freehold" / "dev", Context("m" * 64, "/run/api.sock", "k", start="freehold dev")
    )
    return folder


def test_the_context_dev_is_the_project_here_or_above_and_never_the_users(
    project: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "web")
    assert contexts.current_context("dev")[1].start == "freehold dev"
    assert not user.exists()
    with pytest.raises(UsageError) as unnamed:
        contexts.current_context()
    assert "--context dev" in unnamed.value.next_step
    monkeypatch.setenv("FREEHOLD_CONTEXT", "dev")
    assert contexts.current_context()[0] == "dev"
    listed = CliRunner().invoke(context, ["list", "--json"]).output
    assert [load["name"] for load in json.loads(listed)["contexts"]] == ["dev"]
    monkeypatch.chdir(project.parent)
    with pytest.raises(UsageError) as caught:
        contexts.current_context()
    assert caught.value.next_step == "freehold dev"
    with pytest.raises(UsageError, match="freehold dev"):
        contexts.require_free_name("dev")


def test_commands_act_in_its_one_environment_unless_told() -> None:
    @click.command()
    @click.option("--env", default=contexts.default_environment)
    @click.option("--context", "context_name")
    def show(env: str, context_name: str | None) -> None:
        del context_name
        click.echo(env)

    def said(*arguments: str, **environment: str) -> str:
        return CliRunner().invoke(show, arguments, env=environment).output.strip()

    assert said() == said("--context", "home") == "production"
    assert said("--context", "dev") == said(FREEHOLD_CONTEXT="dev") == "dev"
    assert said("--context", "dev", "--env", "staging") == "staging"
    assert said("--context", "home", FREEHOLD_CONTEXT="dev") == "production"


def test_a_key_of_the_project_lies_beside_it_and_asks_for_no_passphrase(project: Path) -> None:
    name = str(project / ".freehold" / "dev" / "keys" / "admin")
    contexts.store_plain(name, SEED)
    path = Path(f"{name}.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert unlock(name, "try it").public_key == Ed25519Signer(SEED).public_key


def found_in(folder: Path) -> Found:
    (folder / "freehold.toml").write_text(PROJECT)
    (folder / "web.wasm").write_bytes(b"\0asm")
    return open_project(folder)


def test_a_secret_without_a_value_is_told_and_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = with_secrets(found_in(project), {"KEY": "v", "OTHER": ""}, Output(as_json=False))
    assert secrets.project.settings("dev").apps["web"].secrets == ("KEY",)
    assert secrets.project.settings("production").apps["web"].secrets == ("KEY", "OTHER")
    assert "put OTHER=... into .freehold/secrets" in capsys.readouterr().err


async def test_only_a_value_that_changed_becomes_a_new_version(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, table = found_in(project), {"KEY": "hunter2", "OTHER": "x"}
    held: list[str] = []

    async def rows(*_: Any) -> tuple[Any, ...]:
        return tuple(type("Row", (), {"name": name}) for name in held)

    async def set_one(_client: Any, _signer: Any, place: tuple[str, str, str], value: bytes) -> None:
        assert place[:2] == ("shop", "dev")
        assert value.decode() == table[place[2]]
        held.append(place[2])

    monkeypatch.setattr("cli.dev.secrets.rows_of", rows)
    monkeypatch.setattr("cli.dev.secrets.set_secret", set_one)
    marks = project / ".freehold" / "dev" / "secrets-set"
    told: Any = None
    for expected in (["KEY", "OTHER"], [], ["OTHER"]):
        before = len(held)
        await set_changed(told, Ed25519Signer(SEED), answer, table, marks)
        assert held[before:] == expected
        table["OTHER"] = "y" if expected == [] else table["OTHER"]
    held.clear()  # a mesh that lost its records gets them again
    await set_changed(told, Ed25519Signer(SEED), answer, table, marks)
    assert held == ["KEY", "OTHER"]
    assert marks.stat().st_mode & 0o777 == 0o600
    assert b"hunter2" not in marks.read_bytes()
