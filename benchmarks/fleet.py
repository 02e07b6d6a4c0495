"""Meshes of real daemons for the measuring modules: processes on loopback, asked through their own API.

A node is what `freehold node run` starts, with one worker and a voter after two seconds; its folder is short, because
Unix sockets have short names. Commands that need a person are typed at a pseudo-terminal. Not here: anything measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Final

from cli.access import contexts
from cli.access.client import NodeClient
from cli.access.contexts import Context
from protocols.keys import Ed25519Signer
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, until

VOTERS_TIMEOUT_S: Final = 60
VOTERS: Final = 3
ROLES: Final = ("--role", "voter", "--role", "worker")


@contextlib.contextmanager
def running(count: int) -> Iterator[list[Machine]]:
    """A mesh of `count` nodes of which up to three vote; every process is ended and every file removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fh"))
    fleet = Fleet(folder)
    try:
        first = fleet.found("n0", "--policy", "solo")
        machines = [first, *(fleet.join(fleet.invite(first, *ROLES), f"n{index}") for index in range(1, count))]
        for machine in machines:
            until(lambda one=machine: ready(one, count), VOTERS_TIMEOUT_S, f"{machine.folder.name} to see the mesh")
        yield machines
    finally:
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)


def ready(machine: Machine, count: int) -> bool:
    """Whether a node sees `count` confirmed members that are up, and as many voters as there should be."""
    members = machine.members().values()
    confirmed = sum(member["confirmed"] and member["belief"] in {"alive", "self"} for member in members)
    return confirmed == count and sum(member["voter"] for member in members) == min(count, VOTERS)


@contextlib.asynccontextmanager
async def clients(machines: Sequence[Machine]) -> AsyncIterator[list[NodeClient]]:
    """An open session with each node, over its Unix socket."""
    async with contextlib.AsyncExitStack() as stack:
        node_clients = []
        for machine in machines:
            socket = str(next(machine.runtime.glob("*/api.sock")))
            node_clients.append(await stack.enter_async_context(NodeClient(Context("home", socket, "bench"))))
        yield node_clients


def admin(machine: Machine) -> Ed25519Signer:
    """The sealed key of the mesh's founder, opened with the passphrase that was typed when it was made."""
    before = os.environ.get("FREEHOLD_HOME")
    os.environ["FREEHOLD_HOME"] = str(machine.folder / "home")
    try:
        return contexts.open_sealed(contexts.current_context()[1].admin, PASSPHRASE)
    finally:
        if before is None:
            del os.environ["FREEHOLD_HOME"]
        else:
            os.environ["FREEHOLD_HOME"] = before


def syncs(machine: Machine) -> int:
    """How many durable writes the node has waited for since it started."""
    for line in machine.get("/metrics").decode().splitlines():
        if line.startswith("freehold_storage_syncs_total "):
            return int(float(line.split()[1]))
    raise KeyError("freehold_storage_syncs_total")


def p50_p99(times: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]
