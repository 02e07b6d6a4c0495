"""A mesh of three real daemons with apps on it, written to through the API and called through the ingress.

Signs with the admin's own key in this process: a write then costs a request, not a command. What was acknowledged is
remembered (`Ledger`) and can be asked of any node. Not here: any test, and how a node is hurt.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cli.access import contexts
from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Context
from cli.access.secrets import rows_of, versions_for
from cli.change.proposal import ChangeProposal, built_here, lane_of, make_proposal, pinned_nodes, start_of
from cli.change.propose import claim_missing_routes, upload
from cli.errors import CommandError
from cli.project.build import build_project
from cli.project.find import open_project
from node.keys import SystemEntropy
from node.mesh.pump import system_now
from protocols.api_models import StartView
from protocols.changes.secrets import SealedSecret, seal, sign_paper
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.state.commands import Action, CreateEnvironment, CreateProject
from protocols.state.placement import eligible
from tests.support.mesh.in_process import Quiet
from tests.support.mesh.nodes import PASSPHRASE, Fleet, Machine, free_port, until

T = TypeVar("T")
ENVIRONMENT = "production"
VOTING = ("--role", "voter", "--role", "worker")

PROJECT = """
[project]
name = "{name}"
owners = ["me"]

[app.web]
language = "component"
source = "web.wasm"
routes = ["{name}.test"]
config = {{ TEXT = "{text}" }}
{more}

[rollout]
stages = {stages}
min_healthy_time = "{healthy}"

[[test.smoke]]
app = "web"
path = "{smoke}"
"""


@dataclass
class AcknowledgedWrites:
    """What the mesh said it has: every one of these must be on every node, whatever happens."""

    projects: set[str] = field(default_factory=set)
    environments: set[str] = field(default_factory=set)
    secrets: set[tuple[str, int]] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    slots: dict[int, str] = field(default_factory=dict)
    """What each slot was said to have decided."""

    def copy(self) -> AcknowledgedWrites:
        """As it is now; somebody else may be writing."""
        return AcknowledgedWrites(
            set(self.projects), set(self.environments), set(self.secrets), set(self.changes), dict(self.slots)
        )

    @property
    def count(self) -> int:
        return len(self.projects) + len(self.environments) + len(self.secrets) + len(self.changes)


class Site:
    """The mesh, its admin, and what it acknowledged."""

    def __init__(self, fleet: Fleet, components: Callable[[str], Path]) -> None:
        self.fleet = fleet
        self.components = components
        self.acknowledged = AcknowledgedWrites()
        self._admin: Ed25519Signer | None = None

    @property
    def machines(self) -> list[Machine]:
        return self.fleet.machines[:3]

    @property
    def admin(self) -> Ed25519Signer:
        """The admin's key, opened once as a person opens it."""
        if self._admin is None:
            with _home_of(self.fleet.machines[0]):
                _, context = contexts.current_context()
                self._admin = contexts.open_sealed(context.admin, PASSPHRASE)
        return self._admin

    def found(self, disks: dict[str, Path] | None = None) -> None:
        """Found the mesh, let two more in, wait for three voters, make the environment."""
        first = self.fleet.found("one", "--policy", "solo", *ports())
        line = self.fleet.invite(first, "--uses", "2", *VOTING)
        for name in ("two", "three"):
            self.fleet.join(line, name, *ports(), disk=(disks or {}).get(name))
        until(lambda: sum(member["voter"] for member in first.members().values()) == 3, 90, "three voters")
        self.ask(first, lambda client: self.write_environment(client, ENVIRONMENT))

    def ask(self, machine: Machine, conversation: Callable[[NodeClient], Awaitable[T]]) -> T:
        """Talk to one node's API."""

        async def run() -> T:
            async with client_of(machine) as client:
                return await conversation(client)

        return asyncio.run(run())

    # --- writes: remembered only once they are acknowledged -----------------------------------------------------------

    async def write_project(self, client: NodeClient, name: str) -> None:
        slot = await self._decide(client, CreateProject(name, ("me",)))
        self._decided(slot, f"create_project {name}")
        self.acknowledged.projects.add(name)

    async def write_environment(self, client: NodeClient, name: str) -> None:
        again = name in self.acknowledged.environments
        slot = await self._decide(client, CreateEnvironment(name, (), replace=again))
        self._decided(slot, f"create_environment {name}")
        self.acknowledged.environments.add(name)

    async def write_secret(self, client: NodeClient, project: str, name: str, value: bytes) -> None:
        """The first version of a secret nobody set before: what others there are need not be asked for."""
        mesh, nodes = await client.mesh(), eligible(await client.state(), ENVIRONMENT)
        blank = SealedSecret(project, ENVIRONMENT, name, 1, system_now().wall_ms, b"", ())
        sealed = seal(mesh, blank, value, nodes, SystemEntropy())
        await client.post_nothing("/v1/secrets", {"paper": encode(sign_paper(self.admin, mesh, sealed))})
        self.acknowledged.secrets.add((name, 1))

    async def _decide(self, client: NodeClient, action: Action) -> int:
        """Have a command decided, looking again whenever something else was decided in between."""
        while True:
            try:
                return await client.decide(self.admin, action, expect=(await client.state()).sequence)
            except RefusedError as error:
                if error.rule != "command.expect":
                    raise

    def _decided(self, slot: int, what: str) -> None:
        assert self.acknowledged.slots.setdefault(slot, what) == what, f"slot {slot} was said to decide two things"

    # --- apps ---------------------------------------------------------------------------------------------------------

    async def propose(
        self, client: NodeClient, name: str, component: str, text: str, *, more: str = "", stages: str = '["1", "100%"]',
        healthy: str = "0s", smoke: str = "/",
    ) -> ChangeProposal:  # fmt: skip
        """Build a release, upload it and file its change; return once that is acknowledged."""
        folder = self.fleet.folder / f"project-{name}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(self.components(component), folder / "web.wasm")
        toml = PROJECT.format(name=name, text=text, more=more, stages=stages, healthy=healthy, smoke=smoke)
        (folder / "freehold.toml").write_text(toml)
        project = open_project(folder)
        bundle = await asyncio.to_thread(build_project, project.project, toml, folder, Quiet())
        offered = built_here(project, bundle, self.admin.public_key)
        proposal = make_proposal(
            await client.state(), await client.mesh(), offered, environment=ENVIRONMENT, request=text,
            signer=self.admin, versions=await versions_for(client, offered.effective(ENVIRONMENT)),
        )  # fmt: skip
        await upload(client, proposal)
        await client.publish("change", name, encode(proposal.signed))
        self.acknowledged.changes.add(proposal.id.hex())
        return proposal

    async def start(self, client: NodeClient, proposal: ChangeProposal, *, supersede: bool = False) -> StartView:
        """Hand over the start of a proposed change; the node submits it once its papers are there."""
        change = proposal.change
        lane = lane_of(await client.state(), change.project, change.environment)
        await claim_missing_routes(client, lane, proposal.change.routes, self.admin)
        state = await client.state()
        lane = lane_of(state, change.project, change.environment)
        nodes = pinned_nodes(state, lane, change)
        mesh = await client.mesh()
        return await client.start(start_of(mesh, lane, proposal.id, nodes, self.admin, supersede=supersede))

    def deploy(
        self,
        machine: Machine,
        name: str,
        component: str,
        text: str,
        timeout_s: float = 90,
        *,
        supersede: bool = False,
        **options: Any,
    ) -> str:
        """Deploy and wait until it is the base; return the release.

        A rollout that goes on may end before this one is prepared: its ground has moved then, and it is proposed anew.
        """

        async def conversation(client: NodeClient) -> ChangeProposal:
            proposal = await self.propose(client, name, component, text, **options)
            await self.start(client, proposal, supersede=supersede)
            return proposal

        proposal = self.ask(machine, conversation)

        def live() -> bool:
            nonlocal proposal
            change = self.ask(machine, lambda client: client.get(f"/v1/changes/{proposal.id.hex()}"))
            assert not change["failure"] or change["tries_again"], change
            start = change["start"]
            if supersede and start is not None and (start["outcome"], start["rule"]) == ("refused", "command.expect"):
                proposal = self.ask(machine, conversation)
            return self.base(machine, name) == bytes(proposal.change.release).hex()

        try:
            until(live, timeout_s, f"{text} to be the base of {name}")
        except AssertionError as error:
            lanes = self.ask(machine, lambda client: client.get("/v1/lanes"))
            change = self.ask(machine, lambda client: client.get(f"/v1/changes/{proposal.id.hex()}"))
            raise AssertionError(f"{error}: {lanes} {change}") from None
        return bytes(proposal.change.release).hex()

    def base(self, machine: Machine, name: str) -> str:
        """The release that a node's chain has as the base of a project, or ""."""

        async def conversation(client: NodeClient) -> str:
            lane = (await client.state()).lane(name, ENVIRONMENT)
            return lane.base.release.hex() if lane is not None and lane.base is not None else ""

        return self.ask(machine, conversation)

    # --- judging ------------------------------------------------------------------------------------------------------

    def missing(self, machine: Machine, project: str = "") -> list[str]:
        """What was acknowledged and this node does not have."""
        acknowledged_writes = self.acknowledged.copy()

        async def conversation(client: NodeClient) -> list[str]:
            state = await client.state()
            held = {f"project {project.name}" for project in state.projects}
            held |= {f"environment {environment.name}" for environment in state.environments}
            wanted = {f"project {project}" for project in acknowledged_writes.projects}
            wanted |= {f"environment {environment}" for environment in acknowledged_writes.environments}
            if acknowledged_writes.secrets:
                held |= {f"secret {row.name} {row.version}" for row in await rows_of(client, project, ENVIRONMENT)}
                wanted |= {f"secret {name} {number}" for name, number in acknowledged_writes.secrets}
            for change in acknowledged_writes.changes:
                wanted.add(f"change {change}")
                if await _is_there(client, f"/v1/changes/{change}"):
                    held.add(f"change {change}")
            decided = {
                entry["slot"]: f"{entry['action']} {entry['subject']}"
                for entry in await client.get("/v1/decisions", limit=2000)
            }
            wanted |= {
                f"slot {slot}: {what}" for slot, what in acknowledged_writes.slots.items() if slot >= min(decided)
            }
            held |= {f"slot {slot}: {what}" for slot, what in decided.items()}
            return sorted(wanted - held)

        return self.ask(machine, conversation)


def ports() -> tuple[str, ...]:
    """Addresses that stay over restarts: workers are adopted by the next daemon, and peers that all died meet again."""
    return "--listen", f"127.0.0.1:{free_port()}", "--ingress", f"127.0.0.1:{free_port()}"


def client_of(machine: Machine) -> NodeClient:
    """The API of a node on its Unix socket; the daemon need not run yet."""
    return NodeClient(Context("home", str(socket_of(machine)), "k"))


def socket_of(machine: Machine) -> Path:
    name = hashlib.sha256(str(machine.data.resolve()).encode()).hexdigest()[:12]
    return machine.runtime / name / "api.sock"


async def _is_there(client: NodeClient, path: str) -> bool:
    try:
        await client.get(path)
    except CommandError:
        return False
    return True


def ingress_of(machine: Machine) -> str:
    return next(entry for entry in machine.status()["ingress"] if not entry.startswith("unix:"))


def call(address: str, host: str, path: str = "/", timeout_s: float = 10.0) -> tuple[int, str, str]:
    """Call an app; return the status, the release that answered and the body. Status 0: no answer."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.headers.get("freehold-release", ""), answer.read().decode(errors="replace")
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers.get("freehold-release", ""), ""
    except OSError:
        return 0, "", ""


@contextmanager
def _home_of(machine: Machine) -> Iterator[None]:
    before = os.environ.get("FREEHOLD_HOME")
    os.environ["FREEHOLD_HOME"] = machine.environment["FREEHOLD_HOME"]
    try:
        yield
    finally:
        if before is None:
            del os.environ["FREEHOLD_HOME"]
        else:
            os.environ["FREEHOLD_HOME"] = before
