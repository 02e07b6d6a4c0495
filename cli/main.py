"""The `freehold` command: its groups, and the process's exit. Not here: any command (`cli/commands/`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version

import click

from cli.frame import LazyGroup, run

SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "A project": {
        "new": ("cli.commands.project.new:new", "start a project from a template"),
        "dev": ("cli.commands.project.dev:dev", "serve the project here, and again on every save"),
        "build": ("cli.commands.project.build:build", "build the project into a release, named by digest"),
        "test": ("cli.commands.project.test:test", "run tests and smoke checks; sign the results"),
        "wheels": ("cli.commands.project.wheels:wheels", "build packages written in Rust for the sandbox"),
        "release": ("cli.commands.project.release:release", "carry a build elsewhere, with its bill of materials"),
        "diff": ("cli.commands.project.diff:diff", "show what a deploy would change, and the way back"),
    },
    "A change": {
        "propose": ("cli.commands.change.propose:propose", "file the project as a change; nothing starts"),
        "changes": ("cli.commands.change.changes:changes", "list changes, or show one and what it lacks"),
        "approve": ("cli.commands.change.approve:approve", "approve a change, with a passphrase or a passkey"),
        "reject": ("cli.commands.change.approve:reject", "reject a change, or take an approval back"),
        "passkey": ("cli.commands.change.passkey:passkey", "let a passkey approve in your name"),
        "evidence": ("cli.commands.change.evidence:evidence", "show, export and verify the signed papers"),
        "policy": ("cli.commands.change.policy:policy", "show and set what a change needs"),
        "secret": ("cli.commands.change.secret:secret", "set, list and remove values that apps read by name"),
    },
    "A rollout": {
        "deploy": ("cli.commands.rollout.deploy:deploy", "build, propose and roll out in stages"),
        "status": ("cli.commands.rollout.status:status", "show what runs and what is under way"),
        "releases": ("cli.commands.rollout.status:releases", "list what runs and what it can go back to"),
        "rollouts": ("cli.commands.rollout.status:rollouts", "list what was decided about rollouts, with numbers"),
        "promote": ("cli.commands.rollout.rollout:promote", "take the rollout to its next stage"),
        "pause": ("cli.commands.rollout.rollout:pause", "hold the rollout where it is"),
        "resume": ("cli.commands.rollout.rollout:resume", "continue a paused rollout"),
        "abort": ("cli.commands.rollout.rollout:abort", "end the rollout; every node returns to what it had"),
        "rollback": ("cli.commands.rollout.rollout:rollback", "return to an earlier release at once"),
        "logs": ("cli.commands.rollout.logs:logs", "show what apps and nodes wrote"),
    },
    "What happened": {
        "why": ("cli.commands.history.why:why", "explain what runs: who approved it, how it fails"),
        "audit": ("cli.commands.history.audit:audit", "show who wrote what, or verify the log"),
        "decisions": ("cli.commands.history.decisions:decisions", "list the chain's decisions"),
    },
    "A mesh": {
        "mesh": ("cli.commands.mesh.mesh:mesh", "found a mesh, let nodes in and out, back a node up"),
        "node": ("cli.commands.mesh.node:node", "run this machine's node, or install it"),
        "env": ("cli.commands.mesh.env:env", "make and change environments"),
        "project": ("cli.commands.mesh.project:project", "make projects, and place what must be on one node"),
        "data": ("cli.commands.mesh.data:data", "see where apps' data lies, move it, export and import it"),
        "dns": ("cli.commands.mesh.dns:dns", "print the records that names of routes should have"),
        "console": ("cli.commands.mesh.console:console", "see and steer the mesh in a browser"),
        "webhook": ("cli.commands.mesh.webhook:webhook", "have a node tell others what happens"),
        "doctor": ("cli.commands.mesh.doctor:doctor", "look for what is or will soon be wrong"),
    },
    "Who acts": {
        "login": ("cli.commands.principals.login:login", "accept an invite, to work from this machine"),
        "context": ("cli.commands.principals.context:context", "choose the mesh that commands speak to"),
        "key": ("cli.commands.principals.key:key", "change a passphrase, renew a grant, keep a key on paper"),
        "token": ("cli.commands.principals.token:token", "make and revoke keys for agents"),
        "trust": ("cli.commands.principals.trust:trust", "let CI jobs in by the tokens of their platform"),
        "mcp": ("cli.commands.principals.mcp:mcp", "serve the change path to a coding agent"),
        "ci": ("cli.commands.principals.ci:ci", "write the workflow of a CI platform"),
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
