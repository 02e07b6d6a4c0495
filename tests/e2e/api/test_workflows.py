"""The workflow files of `ci init`, judged by the linters of the platforms that have one here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cli.commands.principals.ci import PLATFORMS, ci
from tests.support.go import built

ACTIONLINT = ("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.7")
OIDC = [("github", False), ("github", True), ("forgejo", False), ("forgejo", True)]


def written(platform: str, folder: Path, *, oidc: bool) -> Path:
    options = ["init", platform, "--folder", str(folder), "--env", "staging", *(["--oidc"] if oidc else [])]
    done = CliRunner().invoke(ci, options)
    assert done.exit_code == 0, done.output
    return folder / PLATFORMS[platform][0]


@pytest.mark.parametrize(("platform", "oidc"), OIDC, ids=str)
def test_actionlint_finds_nothing(platform: str, oidc: bool, tmp_path: Path) -> None:
    """Forgejo reads GitHub's syntax; the one key that only it has is the one that is found."""
    path = written(platform, tmp_path, oidc=oidc)
    linter = built(*ACTIONLINT)
    done = subprocess.run([linter, "-no-color", "-oneline", "-shellcheck=", "-pyflakes=", str(path)],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    lines = [
        line
        for line in done.stdout.splitlines()
        if "enable-openid-connect" not in line and 'label "docker"' not in line
    ]
    assert lines == []
    near = path.read_text().replace("runs-on:", "run-on:", 1)
    path.write_text(near)
    again = subprocess.run([linter, "-no-color", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert "run-on" in again.stdout, "the linter sees a misspelt key"


@pytest.mark.parametrize("kind", ["gitlab-ci", "github-workflows"])
def test_the_platforms_schemas_accept_them(kind: str, tmp_path: Path) -> None:
    path = written(kind.partition("-")[0], tmp_path, oidc=False)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = yaml.safe_load(path.read_text())
    wrong = {"freehold-test": {"script": 1}} if kind == "gitlab-ci" else {"jobs": {"test": {"steps": []}}}
    path.write_text(yaml.safe_dump({**document, **wrong}))
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0


def test_a_job_asks_for_an_identity_only_where_it_deploys(tmp_path: Path) -> None:
    for platform in ("github", "forgejo"):
        document = yaml.safe_load(written(platform, tmp_path, oidc=True).read_text())
        test, deploy = document["jobs"]["test"], document["jobs"]["deploy"]
        assert "id-token" not in str(test)
        assert "openid" not in str(test)
        assert document["permissions"] == {"contents": "read"}
        assert "FREEHOLD_TOKEN" not in str(document)
        steps = [step.get("run", "") for step in deploy["steps"]]
        assert steps.index("freehold ci exchange") < steps.index("freehold test --env staging")
        asks = deploy["permissions"]["id-token"] == "write" if platform == "github" else deploy["enable-openid-connect"]
        assert asks is True
    refused = CliRunner().invoke(ci, ["init", "gitlab", "--folder", str(tmp_path), "--oidc"])
    assert refused.exit_code == 2
    assert "before the script runs" in refused.output


@pytest.mark.skip(reason="Forgejo's own linter (forgejo-runner validate) is not served by the Go module proxy")
def test_forgejos_runner_accepts_its_workflow() -> None:
    """Named, so that it is not forgotten."""
