"""The operation on names: where each name of a route should lead, and how its certificate stands. Not here: getting one."""

from __future__ import annotations

import ipaddress

from node.acme.shared import HeldSite
from node.api.operations import Call, Operation
from node.control import Control
from node.mesh.presence import status_of
from protocols.api_models import NameView
from protocols.liveness import Belief
from protocols.machine import PeerId
from protocols.state.placement import eligible

HOST_PROTOCOLS = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})


async def names(call: Call) -> tuple[NameView, ...]:
    """List the names of routes that the caller may see."""
    control: Control = call.node
    core = control.core
    found_names: dict[str, NameView] = {}
    for claim in core.state.routes:
        host = claim.route.host
        if not host or host in found_names or not call.scope.sees(claim.project, claim.environment):
            continue
        serving = _serving(control, claim.environment)
        held, problem = control.certifier.standing(host) if control.certifier is not None else (None, "")
        found_names[host] = NameView(
            name=host,
            project=claim.project,
            environment=claim.environment,
            nodes=serving,
            addresses=tuple(dict.fromkeys(address for node in serving for address in addresses_of(control, node))),
            certificate_until_ms=held.ends_ms if held is not None else 0,
            certificate_by=_issuer(held) if held is not None else "",
            problem=problem,
        )
    return tuple(found_names[host] for host in sorted(found_names))


def addresses_of(control: Control, node: PeerId) -> tuple[str, ...]:
    """Where visitors reach a node: what it says, or the hosts of its mesh addresses that are not of one machine alone."""
    said = status_of(control.core.records, node).ingress_names
    if said:
        return said
    hosts = []
    for text in control.addresses.texts().get(node, ()):
        parts = text.split("/")
        if len(parts) > 2 and parts[1] in HOST_PROTOCOLS and not _is_loopback(parts[2]):
            hosts.append(parts[2])
    return tuple(dict.fromkeys(hosts))


def _serving(control: Control, environment: str) -> tuple[PeerId, ...]:
    """The nodes that visitors of an environment should be led to: those that are up, and share its certificates if any do."""
    core = control.core
    up = [node for node in eligible(core.state, environment) if core.liveness.belief(node) is Belief.ALIVE]
    sharing = [node for node in up if status_of(core.records, node).acme]
    return tuple(sharing or up)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _issuer(held: HeldSite) -> str:
    return held.leaf.issuer.rfc4514_string()[:128]


NAME_OPERATIONS: tuple[Operation, ...] = (
    Operation("names", "GET", "/v1/names", "Names of routes: where they should lead, and their certificates", names,
              answer=tuple[NameView, ...]),
)  # fmt: skip
