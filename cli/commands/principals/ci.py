"""`freehold ci init|exchange`: the workflow of a CI platform, which tests each push and deploys the main branch.

A runner acts with one variable: FREEHOLD_TOKEN, which holds address, pin and key (freehold token create --runner), or with
`--oidc` FREEHOLD_TRUST, which is no secret: `ci exchange` has the platform vouch for a key that lives as long as the job.
Pull requests see neither. Not here: what a deploy does, and who approves it.
"""

from __future__ import annotations

import asyncio
import os
import time
from importlib.metadata import version
from pathlib import Path

import click
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.exchange import TRUST_VARIABLE, exchanged, trust_line
from cli.errors import UsageError
from cli.frame import Group, command
from cli.project.find import project_at
from cli.text.output import Output
from cli.text.units import in_words
from runtime.durable import made_whole

_WORKFLOW = """\
# Made by: freehold ci init {platform}{flag}. {origin}
name: freehold
on:
  push:
    branches: [{branch}]
  pull_request:
permissions:
  contents: read
jobs:
  test:
    runs-on: {runner}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install "freehold=={version}"
      - run: freehold build
      - run: freehold test
  deploy:
    needs: test
    if: github.event_name == 'push'
    runs-on: {runner}
    concurrency:
      group: freehold-{environment}
      cancel-in-progress: false
{identity}    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install "freehold=={version}"
{exchange}      - run: freehold test --env {environment}
      - run: freehold deploy --env {environment} --message "$MESSAGE" --detach
        env:
          MESSAGE: ${{{{ github.event.head_commit.message }}}}
"""

_FROM_SECRETS = """\
    env:
      FREEHOLD_TOKEN: ${{ secrets.FREEHOLD_TOKEN }}
"""
_GITHUB_IDENTITY = """\
    permissions:
      contents: read
      id-token: write
"""
_FORGEJO_IDENTITY = """\
    enable-openid-connect: true
"""
_EXCHANGE = """\
      - run: freehold ci exchange
        env:
          FREEHOLD_TRUST: ${{ vars.FREEHOLD_TRUST }}
"""
_MADE_BY_KEY = "The secret FREEHOLD_TOKEN comes from: freehold token create ci --role deployer --runner"
_MADE_BY_TRUST = "The variable FREEHOLD_TRUST comes from: freehold trust add {platform} --role deployer"
_IDENTITY = {"github": _GITHUB_IDENTITY, "forgejo": _FORGEJO_IDENTITY}
"""How a job says that it asks its platform for ID tokens."""

_GITLAB = """\
# Made by: freehold ci init gitlab. The masked, protected variable FREEHOLD_TOKEN comes from:
#   freehold token create ci --role deployer --runner
# GitLab makes its ID tokens before the script runs, so none can name a key of the job: this uses a token that lives longer.
stages: [test, deploy]
default:
  image: python:3.12-slim
  before_script:
    - pip install "freehold=={version}"
freehold-test:
  stage: test
  script:
    - freehold build
    - freehold test
freehold-deploy:
  stage: deploy
  rules:
    - if: $CI_COMMIT_BRANCH == "{branch}"
  resource_group: freehold-{environment}
  allow_failure:
    exit_codes: [5]
  script:
    - freehold test --env {environment}
    - freehold deploy --env {environment} --message "$CI_COMMIT_MESSAGE" --detach
"""

PLATFORMS = {
    "github": (Path(".github/workflows/freehold.yml"), _WORKFLOW, "ubuntu-latest"),
    "gitlab": (Path(".gitlab-ci.yml"), _GITLAB, ""),
    "forgejo": (Path(".forgejo/workflows/freehold.yml"), _WORKFLOW, "docker"),
}


@command(
    "init", examples=("freehold ci init github", "freehold ci init gitlab --env staging", "freehold ci init forgejo")
)
@click.argument("platform", type=click.Choice(tuple(PLATFORMS)))
@click.option("--env", "environment", default="production", show_default=True, help="Where the main branch goes.")
@click.option("--branch", default="main", show_default=True, help="The branch that is deployed.")
@click.option("--oidc", is_flag=True, help="No secret: the platform vouches for each job (freehold trust add).")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def init(
    output: Output, *, platform: str, environment: str, branch: str, oidc: bool, force: bool, folder: Path
) -> None:
    """Write the workflow of a CI platform: test each push, deploy the main branch.

    A deploy that waits for an approval ends with exit code 5 and names its change; people approve it, and it starts.
    """
    for name, text in (("--env", environment), ("--branch", branch)):
        if not text or not text.replace("-", "").replace("/", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{text!r} is no name for {name}", next_step=f"{name} main", kind="usage")
    if oidc and platform not in _IDENTITY:
        raise UsageError(
            f"{platform} makes its ID tokens before the script runs, so none can name a key of the job",
            next_step=f"freehold ci init {platform}, with the variable FREEHOLD_TOKEN", kind="no-oidc",
        )  # fmt: skip
    project = project_at(folder)
    root = project.root if project is not None else folder
    path, template, runner = PLATFORMS[platform]
    target = root / path
    if target.exists() and not force:
        raise UsageError(
            f"{target} is there already", next_step="look at it, then add --force to replace it", kind="exists"
        )
    text = template.format(
        platform=platform, branch=branch, environment=environment, runner=runner, version=version("freehold"),
        flag=" --oidc" if oidc else "", origin=_MADE_BY_TRUST.format(platform=platform) if oidc else _MADE_BY_KEY,
        identity=_IDENTITY[platform] if oidc else _FROM_SECRETS, exchange=_EXCHANGE if oidc else "",
    )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with made_whole(target) as partial:
        partial.write_text(text)
    variable = TRUST_VARIABLE if oidc else contexts.TOKEN_VARIABLE
    output.result({"platform": platform, "file": str(target), "variable": variable}, f"wrote {target}")
    if oidc:
        output.hint(f"freehold trust add {platform} --role deployer, and put its text into the variable {variable}")
    else:
        output.hint(f"freehold token create ci --role deployer --runner, and put its text into the secret {variable}")


@command("exchange", examples=("freehold ci exchange", "freehold ci exchange --json"))
def exchange(output: Output) -> None:
    """In a CI job: have the platform vouch for a key of this job, and let the steps that follow act with it.

    Reads FREEHOLD_TRUST. Writes FREEHOLD_TOKEN for the steps that follow, where the platform has a file for that
    (GITHUB_ENV), and hides it in the job's log.
    """
    line = trust_line(os.environ.get(TRUST_VARIABLE, ""))
    token, got = asyncio.run(exchanged(line))
    told = os.environ.get("GITHUB_ENV") or os.environ.get("FORGEJO_ENV")
    if not told:
        raise UsageError(
            "there is no file for the steps that follow: GITHUB_ENV is not set",
            next_step="run it in a job of GitHub or Forgejo Actions", kind="no-job",
        )  # fmt: skip
    output.mask(token.text())
    with Path(told).open("a") as file:
        file.write(f"{contexts.TOKEN_VARIABLE}={token.text()}\n")
    left = in_words(got.expires_ms - time.time_ns() // 1_000_000)
    output.result(asdict(got), f"{got.name} may {', '.join(got.roles)} in {', '.join(got.projects)} for {left}")


@click.group("ci", cls=Group)
def ci() -> None:
    """Set up a project's CI."""


for _one in (init, exchange):
    ci.add_command(_one)
