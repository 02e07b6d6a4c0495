"""`freehold ci init`: the workflow file of a CI platform that tests each push and deploys what is on the main branch.

A runner acts with one variable, FREEHOLD_TOKEN, which holds address, pin and key (freehold token create --runner); pull
requests never see it. Not here: what a deploy does, and who approves it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click

from cli.errors import UsageError
from cli.frame import Group, command
from cli.project.find import project_at
from cli.text.output import Output

_WORKFLOW = """\
# Made by: freehold ci init {platform}. The secret FREEHOLD_TOKEN comes from: freehold token create ci --role deployer --runner
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
    env:
      FREEHOLD_TOKEN: ${{{{ secrets.FREEHOLD_TOKEN }}}}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install "freehold=={version}"
      - run: freehold test --env {environment}
      - run: freehold deploy --env {environment} --message "$MESSAGE" --detach
        env:
          MESSAGE: ${{{{ github.event.head_commit.message }}}}
"""

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
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def init(output: Output, *, platform: str, environment: str, branch: str, force: bool, folder: Path) -> None:
    """Write the workflow of a CI platform: test each push, deploy the main branch.

    A deploy that waits for an approval ends with exit code 5 and names its change; people approve it, and it starts.
    """
    for name, text in (("--env", environment), ("--branch", branch)):
        if not text or not text.replace("-", "").replace("/", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{text!r} is no name for {name}", next_step=f"{name} main", kind="usage")
    found = project_at(folder)
    root = found.root if found is not None else folder
    path, template, runner = PLATFORMS[platform]
    target = root / path
    if target.exists() and not force:
        raise UsageError(
            f"{target} is there already", next_step="look at it, then add --force to replace it", kind="exists"
        )
    text = template.format(
        platform=platform, branch=branch, environment=environment, runner=runner, version=version("freehold")
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    output.result({"platform": platform, "file": str(target), "variable": "FREEHOLD_TOKEN"}, f"wrote {target}")
    output.hint("freehold token create ci --role deployer --runner, and put its text into the secret FREEHOLD_TOKEN")


@click.group("ci", cls=Group)
def ci() -> None:
    """Set up a project's CI."""


ci.add_command(init)
