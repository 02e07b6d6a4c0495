"""Every operation of a real node, asked for every object by keys of another project and of the wrong environment.

Near misses, not strangers: each key has good rights one step aside. What it may not see is answered as what is not there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.secrets import set_secret
from cli.errors import CommandError
from node.api.handlers import OPERATIONS
from node.mesh.pump import system_now
from protocols.changes.change import CHANGE_DOMAIN, Change, Component, Plan, Release, Stage
from protocols.changes.effective import Effective, EffectiveApp
from protocols.changes.evidence import EvidenceRun, attest
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.state.commands import Command, CreateEnvironment, CreateProject, Freeze, Unfreeze, sign_command
from protocols.state.gate import gate_of
from protocols.state.model import MeshState
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from tests.support.mesh.in_process import ENTROPY, House, a_house, until

PROJECTS, ENVIRONMENTS = ("shop", "blog"), ("production", "staging")
PLACES = [(project, environment) for project in PROJECTS for environment in ENVIRONMENTS]
HOUR_MS = 3_600_000
TELLING = 12
"""So many characters of a digest tell which one it is."""


@dataclass
class Things:
    """The objects of one project in one environment."""

    change: str
    release: str
    configuration: str
    component: str
    secret: str
    filed: str

    def marks(self) -> tuple[str, ...]:
        return tuple(
            text[:TELLING] for text in (self.change, self.release, self.configuration, self.component, self.secret)
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as new_house:
        yield new_house


async def furnish(house: House) -> dict[tuple[str, str], Things]:
    table = {}
    async with house.client() as client:
        actions = [
            *(CreateEnvironment(environment, ()) for environment in ENVIRONMENTS),
            *(CreateProject(project, ("me",)) for project in PROJECTS),
        ]
        for action in actions:
            await client.decide(house.admin, action, expect=(await client.state()).sequence)
        for place in PLACES:
            await client.decide(
                house.admin, Freeze(f"freeze {'-'.join(place)}"), project=place[0], environment=place[1], expect=0
            )
            table[place] = await things(house, client, *place)
    control = house.control(0)
    await until(lambda: len(control.core.dossiers.changes) == len(PLACES))
    return table


async def things(house: House, client: NodeClient, project: str, environment: str) -> Things:
    mesh, state = await client.mesh(), await client.state()
    component = ENTROPY.random_bytes(100)
    app = EffectiveApp("web", digest(component), "http", 1_000, 1 << 26, "fresh")
    effective = encode(Effective(project, environment, (app,)))
    release = Release(project, (Component("web", digest(component), 100),), b"", "", house.admin.public_key)
    data = encode(release)
    change = Change(
        project, environment, f"change {project}-{environment}", digest(data), b"", digest(effective),
        gate_of(state, environment, release).digest, house.admin.public_key, system_now().wall_ms, Plan((Stage("100%"),)),
    )  # fmt: skip
    for entry in (component, effective, data):
        await client.put_artifact(entry, digest(entry))
    signed = sign(house.admin, CHANGE_DOMAIN, mesh, change)
    await client.publish("change", project, encode(signed))
    run = EvidenceRun(mesh.hex(), "test", "sandbox", system_now().wall_ms)
    content = attest(
        house.admin, run, passed=True, components=(("web", digest(component)),), configuration=digest(effective)
    )
    await client.publish("evidence", digest(component).hex(), content)
    name = f"KEY_{project.upper()}_{environment.upper()}"
    await set_secret(client, house.admin, (project, environment, name), b"a value")
    held = [
        candidate
        for candidate in await client.get("/v1/secrets", project=project, environment=environment)
        if candidate["name"] == name
    ]
    return Things(
        digest(signed.payload).hex(), digest(data).hex(), digest(effective).hex(), digest(component).hex(), held[0]["id"],
        digest(encode(signed)).hex(),
    )  # fmt: skip


async def key_of(
    house: House, projects: tuple[str, ...], environments: tuple[str, ...], role: Role = "deployer"
) -> Ed25519Signer:
    ed25519_signer = Ed25519Signer(ENTROPY.random_bytes(32))
    control = house.control(0)
    grant = Grant(
        ed25519_signer.public_key,
        "agent",
        f"agent of {'-'.join(projects)}-{'-'.join(environments)}",
        (role,),
        projects,
        environments,
        system_now().wall_ms + HOUR_MS,
        ENTROPY.random_bytes(16),
    )
    async with house.client() as client:
        chain = encode((sign(house.admin, GRANT_DOMAIN, control.core.trust.mesh, grant),))
        await client.publish("grant", ed25519_signer.public_key.hex(), chain)
    await until(lambda: ed25519_signer.public_key in control.core.dossiers.principals())
    return ed25519_signer


def remote(house: House, signer: Ed25519Signer) -> NodeClient:
    control = house.control(0)
    return NodeClient(Context("m", "", "", url=f"https://{control.api}", pin=control.api_pin), signer)


async def answer(client: NodeClient, method: str, path: str, body: Any = None, **query: Any) -> tuple[str, bytes]:
    """Return the rule that refused, or "", and what was answered."""
    try:
        if method == "GET":
            return "", await client.get_bytes(path, **query)
        return "", await client._call(method, path, msgspec.json.encode(body), "application/json")
    except CommandError as error:
        return error.kind, str(error).encode()


async def test_no_operation_tells_of_an_object_that_no_grant_covers(house: House) -> None:
    held = await furnish(house)
    control = house.control(0)
    node = control.core.node
    marks = {place: things.marks() for place, things in held.items()}
    cells = seen = 0
    keys = {((project,), (environment,)): [(project, environment)] for project, environment in PLACES}
    keys |= {
        (("shop",), ("*",)): [("shop", environment) for environment in ENVIRONMENTS],
        (("*",), ("staging",)): [(project, "staging") for project in PROJECTS],
    }
    for (projects, environments), mine in keys.items():
        signer = await key_of(house, projects, environments)
        async with remote(house, signer) as client:
            for place, entry in held.items():
                known = {
                    "project": place[0], "environment": place[1], "change": entry.change, "node": node,
                    "key": house.admin.public_key.hex(), "draft": entry.change, "export": "0" * 32, "number": "0",
                }  # fmt: skip
                for operation in OPERATIONS:
                    if operation.method != "GET" or operation.stream == "always" or operation.name == "read":
                        continue
                    for named in (
                        (entry.release, entry.component, entry.configuration) if "{digest}" in operation.path else ("",)
                    ):
                        path = operation.path.replace("{digest}", named)
                        for name, value in known.items():
                            path = path.replace(f"{{{name}}}", value)
                        query = {"project": mine[0][0]} if operation.name == "logs" else {}
                        rule, data = await answer(client, "GET", path, **query)
                        cells += 1
                        text = data.decode(errors="replace") + data.hex()
                        for other, told in marks.items():
                            if other not in mine:
                                texts = [mark for mark in told if mark in text and mark not in path]
                                assert not texts, f"{operation.name} told {projects} {environments} of {other}"
                        aimed = "{" in operation.path and operation.name not in {"peer", "principal"}
                        if aimed and place not in mine:
                            assert rule in {"change.unknown", "artifact.unknown", "caller.not-allowed"}, (
                                operation.name,
                                rule,
                            )
                        seen += place in mine and not rule
    assert cells >= 400, cells
    assert seen >= 60, "what a grant covers must still be seen"


async def test_absent_and_not_covered_are_one_answer(house: House) -> None:
    held = await furnish(house)
    signer = await key_of(house, ("shop",), ("staging",))
    async with remote(house, signer) as client:
        for place, entry in held.items():
            if place == ("shop", "staging"):
                continue
            aimed = [
                *((f"/v1/changes/{{}}{rest}", entry.change) for rest in ("", "/papers", "/signed")),
                ("/v1/artifacts/{}", entry.release), ("/v1/artifacts/{}/here", entry.component),
            ]  # fmt: skip
            for path, real in aimed:
                made_up = secrets.token_hex(32)
                there, absent = (
                    await answer(client, "GET", path.format(real)),
                    await answer(client, "GET", path.format(made_up)),
                )
                assert there[0] == absent[0]
                assert there[1].decode().replace(real, "X") == absent[1].decode().replace(made_up, "X")


async def test_no_write_reaches_a_place_that_no_grant_of_its_caller_covers(house: House) -> None:
    held = await furnish(house)
    control, mesh = house.control(0), house.control(0).core.trust.mesh
    signer = await key_of(house, ("shop",), ("staging",))
    state: MeshState = control.core.state
    cells = 0
    async with remote(house, signer) as client:
        for project, environment in [*PLACES, ("nowhere", "staging"), ("shop", "nowhere")]:
            mine = (project, environment) == ("shop", "staging")
            command = Command(secrets.token_bytes(16), Freeze("x"), project, environment, 1)
            signed = encode(sign_command([house.admin], mesh, command))
            for path in ("/v1/commands", "/v1/starts"):
                rule, _ = await answer(client, "POST", path, {"command": signed})
                assert (rule == "caller.not-allowed") is not mine, (path, project, environment, rule)
                cells += 1
            change = Change(
                project, environment, "x", b"r" * 32, b"", b"c" * 32, b"p" * 32, signer.public_key, system_now().wall_ms,
                Plan((Stage("100%"),)),
            )  # fmt: skip
            body = {"kind": "change", "scope": project, "body": encode(sign(signer, CHANGE_DOMAIN, mesh, change))}
            rule, _ = await answer(client, "POST", "/v1/records", body)
            assert rule == ("change.artifact" if mine else "change.author"), (project, environment, rule)
            other = held.get((project, environment))
            if other is not None and not mine:
                run = EvidenceRun(mesh.hex(), "test", "sandbox", system_now().wall_ms)
                subject = bytes.fromhex(other.component)
                content = attest(signer, run, passed=True, components=(("web", subject),), configuration=b"c" * 32)
                rule, _ = await answer(
                    client, "POST", "/v1/records", {"kind": "evidence", "scope": other.component, "body": content}
                )
                assert rule == "evidence.subject"
                stolen = Change(
                    "shop", "staging", "x", bytes.fromhex(other.release), b"", bytes.fromhex(other.configuration),
                    b"p" * 32, signer.public_key, system_now().wall_ms, Plan((Stage("100%"),)),
                )  # fmt: skip
                body = {"kind": "change", "scope": "shop", "body": encode(sign(signer, CHANGE_DOMAIN, mesh, stolen))}
                assert (await answer(client, "POST", "/v1/records", body))[0] == "change.artifact", "named, and so seen"
            cells += 3
    assert control.core.state.lanes == state.lanes or cells > 20


@pytest.mark.parametrize("kind", ["change", "approval", "evidence", "grant", "revocation"])
async def test_random_bytes_are_no_paper_of_any_kind(house: House, kind: str) -> None:
    signer = await key_of(house, ("shop",), ("*",))
    before = len(house.control(0).core.records.store.entries)
    async with remote(house, signer) as client:
        for size in (0, 1, 32, 200, 4000):
            rule, _ = await answer(
                client, "POST", "/v1/records", {"kind": kind, "scope": "ab" * 32, "body": ENTROPY.random_bytes(size)}
            )
            assert rule, f"{size} random bytes were kept as {kind}"
    kinds = [key.split("/")[1] for key in house.control(0).core.records.store.entries]
    assert kinds.count(kind) - (kind == "grant") <= 1
    assert len(kinds) - before <= 6, "only audit entries"


async def test_a_watcher_is_told_of_its_own_places_alone(house: House) -> None:
    held = await furnish(house)
    signer = await key_of(house, ("shop",), ("staging",))
    told: list[tuple[str, dict[str, Any]]] = []

    async def watch() -> None:
        async with remote(house, signer) as client:
            async for kind, fields in client.follow("/v1/events"):
                told.append((kind, fields))

    watching = asyncio.ensure_future(watch())
    try:
        await until(lambda: house.control(0).feed.watchers == 1)
        async with house.client() as client:
            for place in PLACES:
                state = await client.state()
                lane = state.lane(*place)
                assert lane is not None
                await client.decide(
                    house.admin, Unfreeze(), project=place[0], environment=place[1], expect=lane.sequence
                )
                await things(house, client, *place)
        await until(lambda: any(row.get("key", "").startswith("/secret/shop/staging/") for _, row in told))
        await asyncio.sleep(0.3)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    places = {(row["project"], row["environment"]) for kind, row in told if kind == "decision" and row["project"]}
    assert places == {("shop", "staging")}
    keys = " ".join(row["key"] for kind, row in told if kind == "record")
    assert "/secret/shop/production" not in keys
    assert "/blog/" not in keys
    assert "/change/shop/" in keys
    assert not any(things.component[:TELLING] in keys for place, things in held.items() if place != ("shop", "staging"))
