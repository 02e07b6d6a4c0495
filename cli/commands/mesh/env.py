"""`freehold env create|list|set`: environments, the named targets of deploys: which nodes, and how well guarded.

Not here: an environment's policy (`freehold policy`), and overlays of configuration (`[env.NAME]` in freehold.toml).
"""

from __future__ import annotations

import click

from cli.access import contexts
from cli.access.client import talk
from cli.access.contexts import Context
from cli.access.members import members_of
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.commands.mesh.maintenance import freeze, unfreeze
from cli.commands.mesh.networks import networks
from cli.errors import UsageError
from cli.frame import Group, command
from cli.text.output import Output
from cli.text.table import short, table
from cli.text.units import labels_of
from cli.views.watch import VOTERS_DECIDE
from protocols.changes.change import valid_name
from protocols.state.commands import CreateEnvironment
from protocols.state.model import Environment, MeshState
from protocols.state.placement import selects
from protocols.trust.certificates import Labels

_CONTEXT = click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
_YES = click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
_SELECT = click.option("--select", "selector", multiple=True, metavar="KEY=VALUE",
                       help="Only nodes with this label; may repeat. Without it, every node.")  # fmt: skip


@command("create", examples=("freehold env create production --protected", "freehold env create eu --select zone=eu"))
@click.argument("name")
@_SELECT
@click.option("--protected", is_flag=True, help="Demand smoke evidence that a node ran, not the author alone.")
@_CONTEXT
@_YES
def create(output: Output, *, name: str, selector: tuple[str, ...], protected: bool, context_name: str | None,
           yes: bool) -> None:  # fmt: skip
    """Make an environment. Needs the admin key; the mesh's policy holds there until it has its own."""
    if not valid_name(name):
        raise UsageError(
            "an environment's name is 1 to 63 of a-z, 0-9 and dash", next_step="freehold env create staging"
        )
    _, context = contexts.current_context(context_name)
    require_admin(context, f"make the environment {name}")
    state = talk(context, lambda client: client.state())
    if any(environment.name == name for environment in state.environments):
        raise UsageError(f"there is an environment {name} already", next_step=f"freehold env set {name}", kind="exists")
    labels = labels_of(selector)
    _decide(output, context, state, CreateEnvironment(name, labels, None, protected), yes)


@command("set", examples=("freehold env set production --select zone=eu", "freehold env set staging --not-protected"))
@click.argument("name")
@_SELECT
@click.option("--every-node", is_flag=True, help="Select every node again.")
@click.option("--protected/--not-protected", default=None, help="Demand smoke evidence that a node ran, or not.")
@_CONTEXT
@_YES
def change(output: Output, *, name: str, selector: tuple[str, ...], every_node: bool, protected: bool | None,
           context_name: str | None, yes: bool) -> None:  # fmt: skip
    """Change an environment's nodes or protection; its policy stays. Needs the admin key."""
    _, context = contexts.current_context(context_name)
    require_admin(context, f"change the environment {name}")
    state = talk(context, lambda client: client.state())
    before = next((environment for environment in state.environments if environment.name == name), None)
    if before is None:
        raise UsageError(f"there is no environment {name}", next_step="freehold env list", kind="no-environment")
    if not selector and not every_node and protected is None:
        raise UsageError("nothing to change", next_step="freehold env set --help", kind="usage")
    labels: Labels = () if every_node else labels_of(selector) or before.selector
    guarded = before.protected if protected is None else protected
    _decide(output, context, state, CreateEnvironment(name, labels, before.policy, guarded, replace=True), yes)


@command("list", examples=("freehold env list", "freehold env list --json"))
@_CONTEXT
def show(output: Output, context_name: str | None) -> None:
    """List the environments: which nodes they select, and what a change needs there."""
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    rows, values = [], []
    for environment in state.environments:
        policy = environment.policy or state.policy
        nodes = _nodes(state, environment)
        approvals = policy.demands.approvals
        values.append({
            "name": environment.name, "selector": dict(environment.selector), "protected": environment.protected,
            "nodes": nodes, "policy": "own" if environment.policy else "mesh", "approvals": approvals,
            "networks": list(environment.networks),
        })  # fmt: skip
        whose = "its own" if environment.policy else "the mesh’s"
        protected = "yes" if environment.protected else "no"
        selector = _selector(environment.selector)
        rows.append((environment.name, selector, str(len(nodes)), protected, f"{approvals} ({whose} policy)"))
    output.result({"environments": values}, table(("ENVIRONMENT", "SELECTS", "NODES", "PROTECTED", "APPROVALS"), rows))
    if not rows:
        output.note("there is no environment yet")
        output.hint("freehold env create NAME")


def _decide(output: Output, context: Context, state: MeshState, action: CreateEnvironment, yes: bool) -> None:
    nodes = _nodes(state, Environment(action.name, action.selector, action.policy, action.protected))
    titles = {member.node: member.title for member in talk(context, members_of)}
    named = ", ".join(titles.get(node, short(node)) for node in nodes) or "no node yet"
    output.note(f"The environment {action.name}:")
    output.note(f"  selects    {_selector(action.selector)}: {named}")
    output.note(f"  protected  {'yes' if action.protected else 'no'}")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"{'change' if action.replace else 'make'} the environment {action.name}")
    output.live(VOTERS_DECIDE)
    expect = state.sequence if action.replace else None  # a new one depends on nothing that may be decided meanwhile
    slot = talk(
        context,
        lambda client: client.decide(admin, action, expect=expect, next_step="freehold env list"),
    )
    value = {"environment": action.name, "selector": dict(action.selector), "protected": action.protected,
             "nodes": nodes, "slot": slot}  # fmt: skip
    output.result(value, f"environment {action.name} (decision {slot})")
    if not state.projects:
        output.hint("freehold project create NAME")
    if not nodes:
        output.warn("no node has these labels; nothing can be deployed there yet")


def _nodes(state: MeshState, environment: Environment) -> list[str]:
    return [node.node for node in state.nodes if selects(environment, node)]


def _selector(labels: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels) or "every node"


@click.group("env", cls=Group)
def env() -> None:
    """Make, change, freeze and list environments."""


for _one in (create, change, show, networks, freeze, unfreeze):
    env.add_command(_one)
