"""freehold new: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest

from cli.errors import UsageError
from cli.main import COMMANDS
from cli.project.find import open_project
from cli.project.scaffold import CHOICES, create


@pytest.mark.parametrize("name", CHOICES)
def test_a_new_project_has_an_app_a_test_a_smoke_check_and_instructions(name: str, tmp_path: Path) -> None:
    folder, files = create("hello", CHOICES[name], tmp_path)
    project = open_project(folder)
    assert project.project.name == "hello"
    assert project.project.smoke
    assert project.project.test_command
    assert {"AGENTS.md", ".gitignore", "freehold.toml"} <= set(files)
    assert any(file.startswith("tests/") for file in files)
    app = project.project.base.apps["web"]
    assert (folder / app.source / app.entry.partition(":")[0]).with_suffix("").exists() or any(
        (folder / app.source).glob(app.entry.partition(":")[0].partition(".")[0] + ".*")
    )
    assert ".freehold/" in (folder / ".gitignore").read_text()
    assert not [
        file for file in files if "@" in (folder / file).read_text() and "@NAME@" in (folder / file).read_text()
    ]


@pytest.mark.parametrize("name", CHOICES)
def test_the_instructions_name_only_commands_that_exist(name: str, tmp_path: Path) -> None:
    folder, _ = create("hello", CHOICES[name], tmp_path)
    text = (folder / "AGENTS.md").read_text()
    named = set(re.findall(r"`freehold ([a-z]+)", text))
    assert named
    assert named <= set(COMMANDS)
    assert found_test_command(folder) in text


def found_test_command(folder: Path) -> str:
    command = open_project(folder).project.test_command
    assert command is not None
    return command


def test_a_project_that_cannot_be_written_whole_leaves_nothing_in_the_way_of_the_next_attempt(
    tmp_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # bytes of a file: AGENTS.md has more
    try:
        with pytest.raises(OSError, match="too large"):
            create("hello", CHOICES["python"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "hello").exists()
    create("hello", CHOICES["python"], tmp_path)


def test_the_javascript_templates_test_with_npm_too(tmp_path: Path) -> None:
    for name in ("javascript", "typescript"):
        folder, _ = create(name, CHOICES[name], tmp_path)
        assert json.loads((folder / "package.json").read_text())["scripts"]["test"].startswith("node ")


def test_it_never_overwrites(tmp_path: Path) -> None:
    create("hello", CHOICES["python"], tmp_path)
    before = (tmp_path / "hello" / "freehold.toml").read_text()
    with pytest.raises(UsageError, match="there already"):
        create("hello", CHOICES["wsgi"], tmp_path)
    assert (tmp_path / "hello" / "freehold.toml").read_text() == before


@pytest.mark.parametrize("name", ["", "Hello", "../up", "9lives", "a" * 41, "a b"])
def test_a_name_that_freehold_toml_would_refuse_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a project's name"):
        create(name, CHOICES["python"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_example_holds_the_module_that_a_new_project_gets(tmp_path: Path) -> None:
    folder, _ = create("hello", CHOICES["wsgi"], tmp_path)
    example = Path(__file__).parents[3] / "examples" / "guestbook" / "web" / "freehold.py"
    assert example.read_bytes() == (folder / "web" / "freehold.py").read_bytes()
