"""The `freehold` command: its groups, and the process's exit. Not here: any command (`cli/commands/`)."""

from __future__ import annotations

import sys
from importlib.metadata import version

import click

from cli.frame import LazyGroup, run

COMMANDS = {
    "new": "cli.commands.new:new",
    "dev": "cli.commands.dev:dev",
    "build": "cli.commands.build:build",
    "test": "cli.commands.test:test",
    "evidence": "cli.commands.evidence:evidence",
    "diff": "cli.commands.diff:diff",
    "propose": "cli.commands.propose:propose",
    "changes": "cli.commands.changes:changes",
    "approve": "cli.commands.approve:approve",
    "reject": "cli.commands.approve:reject",
    "deploy": "cli.commands.deploy:deploy",
    "status": "cli.commands.status:status",
    "releases": "cli.commands.status:releases",
    "rollouts": "cli.commands.status:rollouts",
    "promote": "cli.commands.rollout:promote",
    "pause": "cli.commands.rollout:pause",
    "resume": "cli.commands.rollout:resume",
    "abort": "cli.commands.rollout:abort",
    "rollback": "cli.commands.rollout:rollback",
    "why": "cli.commands.why:why",
    "audit": "cli.commands.audit:audit",
    "mcp": "cli.commands.mcp:mcp",
    "policy": "cli.commands.policy:policy",
    "token": "cli.commands.token:token",
    "mesh": "cli.commands.mesh:mesh",
    "node": "cli.commands.node:node",
    "env": "cli.commands.env:env",
    "project": "cli.commands.project:project",
    "logs": "cli.commands.logs:logs",
    "decisions": "cli.commands.decisions:decisions",
    "doctor": "cli.commands.doctor:doctor",
    "secret": "cli.commands.secret:secret",
    "login": "cli.commands.login:login",
    "context": "cli.commands.context:context",
}
"""Command names in the order a project uses them, and where each is found."""


@click.group(
    cls=LazyGroup,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart with:\n  freehold new hello --template wsgi\n  cd hello\n  freehold dev",
)
@click.version_option(version("freehold"), prog_name="freehold")
def freehold() -> None:
    """Carry a change from a request to running software on machines you own."""


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(freehold, sys.argv[1:]))
