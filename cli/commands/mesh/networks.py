"""`freehold env networks`: the private networks that apps may reach from an environment; none unless an admin says so.

An app asks for its networks in freehold.toml (`private_networks`), which diff and approvals show; both must agree. Not
here: what a node never connects to, whatever is allowed (runtime/outbound/destinations.py).
"""

from __future__ import annotations

import ipaddress

import click

from cli.access import contexts
from cli.access.client import talk
from cli.access.principals import require_admin, unlock_admin
from cli.access.prompts import confirm
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.text.output import Output
from cli.views.watch import VOTERS_DECIDE
from protocols.changes.networks import networks_problem
from protocols.state.commands import SetNetworks
from protocols.state.governance import NETWORK_RULES
from protocols.state.model import Environment, MeshState


@command("networks", examples=(
    "freehold env networks production",
    "freehold env networks production --allow 10.0.5.0/24 --allow 192.168.7.0/24",
    "freehold env networks production --none",
))  # fmt: skip
@click.argument("name")
@click.option("--allow", "allowed", multiple=True, metavar="NETWORK",
              help="A private network, like 10.0.5.0/24; may repeat. Replaces all.")  # fmt: skip
@click.option("--none", "nothing", is_flag=True, help="Public addresses alone, as by default.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def networks(output: Output, *, name: str, allowed: tuple[str, ...], nothing: bool, context_name: str | None,
             yes: bool) -> None:  # fmt: skip
    """Show or set the private networks that apps may reach from an environment. Setting needs the admin key.

    An app that asks for one of them in freehold.toml (private_networks) may then call hosts whose addresses lie there. This
    machine's own addresses, loopback and link-local ones stay out of reach.
    """
    _, context = contexts.current_context(context_name)
    state = talk(context, lambda client: client.state())
    found_environment = next((environment for environment in state.environments if environment.name == name), None)
    if found_environment is None:
        raise UsageError(f"there is no environment {name}", next_step="freehold env list", kind="no-environment")
    if allowed and nothing:
        raise UsageError(
            "--allow and --none exclude each other", next_step="freehold env networks --help", kind="usage"
        )
    if not allowed and not nothing:
        _show(output, found_environment)
        return
    action = SetNetworks(name, read_networks(allowed))
    _check_rules(state)
    require_admin(context, f"set the private networks of {name}")
    output.note(f"From the environment {name}, apps that ask for it may reach: {in_words(action.networks)}")
    confirm(output, "Go on?", yes)
    admin = unlock_admin(context, f"set the private networks of {name}")
    output.live(VOTERS_DECIDE)
    slot = talk(
        context,
        lambda client: client.decide(
            admin, action, expect=state.sequence, next_step=f"freehold env networks {name}"
        ),
    )  # fmt: skip
    value = {"environment": name, "networks": list(action.networks), "slot": slot}
    output.result(value, f"the private networks of {name} are set (decision {slot})")


def read_networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Read what somebody wrote, in ascending order. Raises UsageError naming it."""
    entries = []
    for text in texts:
        try:
            entries.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise UsageError(
                f"{text!r} is no network: {error}", next_step="write for example 10.0.5.0/24", kind="usage"
            ) from None
    named = tuple(sorted(set(entries)))
    problem = networks_problem(named)
    if problem:
        raise UsageError(problem, next_step="freehold env networks --help", kind="networks.malformed")
    return named


def in_words(allowed: tuple[str, ...]) -> str:
    """Networks for people."""
    return ", ".join(allowed) or "public addresses alone"


def _show(output: Output, found: Environment) -> None:
    value = {"environment": found.name, "networks": list(found.networks)}
    output.result(value, f"{found.name}: {in_words(found.networks)}")


def _check_rules(state: MeshState) -> None:
    if state.rules_version < NETWORK_RULES:
        raise CommandError(
            f"private networks need rules {NETWORK_RULES}; the mesh judges by {state.rules_version}",
            next_step="freehold mesh rules --raise", kind="rules.networks",
        )  # fmt: skip
