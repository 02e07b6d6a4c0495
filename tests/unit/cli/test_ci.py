"""What runs in CI: the workflow files, annotations, the token in one variable, and what none of them gives away."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cli.access import contexts
from cli.access.contexts import TOKEN_PREFIX, TOKEN_VARIABLE, RunnerToken, current_context, token_of
from cli.commands.principals.ci import PLATFORMS, ci
from cli.errors import UsageError
from cli.text.output import workflow_commands

TOKEN = RunnerToken("ab" * 32, "https://node.example:4180", "cd" * 32, b"s" * 32)
RUNNER = {"GITHUB_ACTIONS": "true"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_workflow_is_yaml_that_shows_the_token_to_the_deploy_alone(platform: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(ci, ["init", platform, "--folder", str(tmp_path), "--env", "staging", "--json"])
    assert done.exit_code == 0, done.output
    path = tmp_path / PLATFORMS[platform][0]
    document = yaml.safe_load(path.read_text())
    if platform == "gitlab":
        assert document["freehold-deploy"]["rules"] == [{"if": '$CI_COMMIT_BRANCH == "main"'}]
        assert document["freehold-deploy"]["script"][-1].startswith("freehold deploy --env staging")
    else:
        jobs = document["jobs"]
        assert "FREEHOLD_TOKEN" not in str(jobs["test"])
        assert jobs["deploy"]["env"]["FREEHOLD_TOKEN"] == "${{ secrets.FREEHOLD_TOKEN }}"
        assert jobs["deploy"]["if"] == "github.event_name == 'push'"
        for step in jobs["deploy"]["steps"]:
            assert "${{" not in step.get("run", ""), "a commit's message would be run as a script"
    again = CliRunner().invoke(ci, ["init", platform, "--folder", str(tmp_path)])
    assert again.exit_code == 2
    for branch in ("main]", "a b", "x\nrun: evil", "$(id)"):
        assert CliRunner().invoke(ci, ["init", platform, "--folder", str(tmp_path), "--branch", branch]).exit_code == 2


def test_errors_stand_at_their_line_on_a_runner_and_nowhere_else() -> None:
    said = "freehold.toml:8:3: this is not so\nweb/app.py:12:1: 100% wrong"
    assert workflow_commands(said, {}) == []
    assert workflow_commands(said, RUNNER) == [
        "::error file=freehold.toml,line=8,col=3::this is not so",
        "::error file=web/app.py,line=12,col=1::100%25 wrong",
    ]
    assert workflow_commands("approval.missing: 0 of 1\n::set-env name=PATH::/evil", RUNNER) == [
        "::error::approval.missing: 0 of 1"
    ]


def test_one_variable_is_a_context_and_a_key_as_often_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv(TOKEN_VARIABLE, f" {TOKEN.text()}\n")
    monkeypatch.delenv("FREEHOLD_CONTEXT", raising=False)
    for _ in range(3):
        name, context = current_context()
        assert (name, context.url, context.pin, context.mesh) == (TOKEN_VARIABLE, TOKEN.url, TOKEN.pin, TOKEN.mesh)
        assert contexts.open_plain(context.key).public_key == contexts.public_key(context.key)
    assert list(tmp_path.rglob("*.json")) == [], "the key was written down"
    with pytest.raises(UsageError, match="no context 'home'"):
        current_context("home")


@pytest.mark.parametrize(
    "text",
    ["", "x", TOKEN.text()[:-5], TOKEN_PREFIX, f"{TOKEN_PREFIX}AAAA", "fht1.ab.cd", f"{TOKEN_PREFIX}{'A' * 5000}"],
)
def test_a_damaged_token_is_refused_without_a_letter_of_it(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        token_of(text)
    assert not text or len(text) < 3 or text[5:] not in str(refused.value) or text == TOKEN_PREFIX
    assert "token create" in refused.value.next_step
