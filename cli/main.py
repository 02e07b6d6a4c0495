"""The `freehold` command: its groups, and the process's exit. Not here: any command (`cli/commands/`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version

import click

from cli.frame import LazyGroup, run

SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "A project": {
        "new": ("cli.commands.new:new", "start a project from a template"),
        "dev": ("cli.commands.dev:dev", "serve it here, anew on every save"),
        "build": ("cli.commands.build:build", "make its release: components named by digest"),
        "test": ("cli.commands.test:test", "run its tests and smoke checks; sign the results"),
        "diff": ("cli.commands.diff:diff", "show what a deploy would change, and the way back"),
    },
    "A change": {
        "propose": ("cli.commands.propose:propose", "file the project as a change; nothing starts"),
        "changes": ("cli.commands.changes:changes", "list changes, or show one and what it lacks"),
        "approve": ("cli.commands.approve:approve", "say yes, with your passphrase at a terminal"),
        "reject": ("cli.commands.approve:reject", "say no, or take an approval back"),
        "passkey": ("cli.commands.passkey:passkey", "let a passkey approve in your name"),
        "evidence": ("cli.commands.evidence:evidence", "show, export and verify the signed papers"),
        "policy": ("cli.commands.policy:policy", "show and set what a change needs"),
        "secret": ("cli.commands.secret:secret", "set, list and remove values that apps read by name"),
    },
    "A rollout": {
        "deploy": ("cli.commands.deploy:deploy", "build, propose and roll out in stages"),
        "status": ("cli.commands.status:status", "show what runs and what is under way"),
        "releases": ("cli.commands.status:releases", "list what runs and what it can go back to"),
        "rollouts": ("cli.commands.status:rollouts", "list what was decided, with its numbers"),
        "promote": ("cli.commands.rollout:promote", "take it to its next stage"),
        "pause": ("cli.commands.rollout:pause", "hold it where it is"),
        "resume": ("cli.commands.rollout:resume", "let it go on"),
        "abort": ("cli.commands.rollout:abort", "end it; every node returns to what it had"),
        "rollback": ("cli.commands.rollout:rollback", "return to an earlier release at once, whole"),
        "logs": ("cli.commands.logs:logs", "show what apps and nodes wrote"),
    },
    "What happened": {
        "why": ("cli.commands.why:why", "say who approved what, how it fails and goes back"),
        "audit": ("cli.commands.audit:audit", "show who wrote what, or prove the log whole"),
        "decisions": ("cli.commands.decisions:decisions", "list the chain's decisions"),
    },
    "A mesh": {
        "mesh": ("cli.commands.mesh:mesh", "found one, let nodes in and out, back up"),
        "node": ("cli.commands.node:node", "run this machine's node, or install it"),
        "env": ("cli.commands.env:env", "make and change environments"),
        "project": ("cli.commands.project:project", "make projects, and place what must be on one node"),
        "data": ("cli.commands.data:data", "see where apps' data lies, and move it"),
        "console": ("cli.commands.console:console", "see and steer it in a browser"),
        "doctor": ("cli.commands.doctor:doctor", "look for what is or will soon be wrong"),
    },
    "Who acts": {
        "login": ("cli.commands.login:login", "take an invite: work from this machine"),
        "context": ("cli.commands.context:context", "choose the mesh that commands speak to"),
        "key": ("cli.commands.key:key", "change a passphrase, renew a grant, keep a key on paper"),
        "token": ("cli.commands.token:token", "make and revoke keys for agents"),
        "mcp": ("cli.commands.mcp:mcp", "serve the change path to a coding agent"),
        "ci": ("cli.commands.ci:ci", "write the workflow of a CI platform"),
    },
}
"""Commands in the order a project uses them: where each is found, and what it does, short enough for one line of help."""

COMMANDS = tuple(name for rows in SECTIONS.values() for name in rows)


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart with:\n  freehold new hello --template wsgi\n  cd hello\n  freehold dev",
)
@click.version_option(version("freehold"), prog_name="freehold")
def freehold() -> None:
    """Carry a change from a request to running software on machines you own."""


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(freehold, sys.argv[1:]))
