"""Placement: which nodes run a project in an environment; pure functions of the mesh state.

The environment selects confirmed nodes by label; a change runs everywhere it selects, or on `replicas` of them chosen
by rendezvous hashing, or on the one node that holds its data. Schedules run on one node that the chain names. Not here:
which of them serve the candidate (cohort.py). Source of the hashing: Thaler and Ravishankar, "Using name-based mappings
to increase hit rates" (1998).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocols.envelope import digest
from protocols.machine import PeerId
from protocols.state.model import ConfirmedNode, Deployed, Environment, Lane, MeshState

WORKER_ROLE = "worker"


def rendezvous(name: str, nodes: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Return the nodes by descending SHA-256(name || node): whoever is first does it, the next ones stand by."""
    seed = name.encode()
    return tuple(sorted(set(nodes), key=lambda node: (digest(seed + b"\0" + node.encode("ascii")), node), reverse=True))


def selects(environment: Environment, node: ConfirmedNode) -> bool:
    """Return whether the environment may place work on the node: a worker that stays, with every selected label."""
    return (
        not node.draining
        and WORKER_ROLE in node.roles
        and (not environment.selector or all(label in node.labels for label in environment.selector))
    )


def eligible(state: MeshState, environment: str) -> tuple[PeerId, ...]:
    """Return the nodes the environment selects, ascending; none when there is no such environment."""
    found_environment = next((item for item in state.environments if item.name == environment), None)
    if found_environment is None:
        return ()
    return tuple(node.node for node in state.nodes if selects(found_environment, node))


def private_networks(state: MeshState, environment: str) -> tuple[str, ...]:
    """Return the private networks that apps may reach from an environment; none when there is no such environment."""
    return next((entry.networks for entry in state.environments if entry.name == environment), ())


def placed(
    lane: Lane, deployed: Deployed, nodes: Sequence[PeerId], down: Collection[PeerId] = ()
) -> tuple[PeerId, ...]:
    """Return where `deployed` runs among the eligible `nodes`, ascending.

    `down` are nodes one peer believes dead: replicas move past them, on that peer's own belief; data never does.
    """
    if deployed.data:
        return (lane.data_node,) if lane.data_node in nodes else ()
    if not deployed.replicas:
        return tuple(sorted(nodes))
    up = [node for node in nodes if node not in down]
    return tuple(sorted(rendezvous(f"{lane.project}/{lane.environment}", up)[: deployed.replicas]))


def pinned_size(deployed_replicas: int, data: bool, nodes: Sequence[PeerId]) -> int | None:
    """Return how many nodes a start must pin: one with data, `replicas` of those there are, None for everywhere."""
    if data:
        return 1
    return min(deployed_replicas, len(nodes)) if deployed_replicas else None
