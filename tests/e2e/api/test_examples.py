"""Every example of the API's document, executed on real nodes, in the order in which a person would come to need it.

`FREEHOLD_RECORD=1` records them anew. What differs each time (digests, keys, signed bytes, moments) is not compared; all
else of a request is what the document says, and answers fit the types it states.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import msgspec
from yarl import URL

import node.api
from cli.access.login import Offer, papers_for
from node.api.callers.callers import BEFORE_START
from node.api.handlers import OPERATIONS
from node.api.operations import Operation, document
from node.mesh.pump import system_now
from node.oidc.tokens import audience_of
from protocols.api_data import ListedFile
from protocols.chain.decision import RESET_DOMAIN, Reset, ResetTo, Voter
from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.demands import TEAM
from protocols.changes.mandates import Act, DataMandate, sign_mandate
from protocols.changes.secrets import SealedSecret, seal, sign_paper
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from protocols.state.commands import (
    Command,
    CreateEnvironment,
    DrainNode,
    PlaceData,
    SetPolicy,
    Signature,
    SignedCommand,
    sign_command,
)
from protocols.state.placement import eligible
from protocols.trust.acknowledgements import Acknowledgement, sign_acknowledgement
from protocols.trust.grants import GRANT_DOMAIN, Grant
from protocols.trust.invites import Address, Invite, make_invite, read_line, write_line
from protocols.trust.request_signatures import sign_request
from protocols.trust.upgrades import UpgradePaper, Wheel, sign_upgrade
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, until
from tests.support.mesh.issuer import an_issuer, grant_to
from tests.support.mesh.receiver import a_receiver

RECORDED = Path(node.api.__file__).parent / "examples.json"
BY_NAME: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}
CUT = 120
"""Characters of a binary value that an example shows: a multiple of four, so that it stays readable as base64."""

OPAQUE = re.compile(
    r"ey[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+|[0-9a-f]{32}|[0-9a-f]{64}|12D3Koo\w+|[A-Za-z0-9+/]{40,}={0,2}|http\S+|127\.0\.0\.1:\d+"
)
STARTING, NEW_S = 503, 2.5
"""A node refuses what is dated before it started, and dates are whole seconds: it is new for two of them."""

PLACE = {"project": LANE[0], "environment": LANE[1]}


def shown(value: Any) -> Any:
    """A value as an example shows it."""
    match value:
        case dict():
            return {key: shown(entry) for key, entry in value.items()}
        case list() | tuple():
            return [shown(entry) for entry in value[:3]]
        case str() if len(value) > CUT and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", value):
            return value[:CUT]
        case _:
            return value


def form(value: Any) -> Any:
    """A request without what differs each time."""
    match value:
        case dict():
            return {key: form(entry) for key, entry in value.items()}
        case list() | tuple():
            return [form(entry) for entry in value]
        case str() if OPAQUE.fullmatch(value):
            return "..."
        case int() if value > 1 << 40:
            return "..."
        case _:
            return value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Walk:
    """Calls every operation as its example says."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.known: dict[str, Any] = json.loads(RECORDED.read_bytes())
        self.made: dict[str, Any] = {}
        self.document = document(OPERATIONS, "0")

    async def call(self, name: str, *, body: Any = None, index: int = 0, status: int = 0, **values: Any) -> Any:
        """Make the call `name`; `values` are its parameters, of the path or the query."""
        outcome = BY_NAME[name]
        path = {key: value for key, value in values.items() if "{" + key + "}" in outcome.path}
        query = {key: value for key, value in values.items() if key not in path}
        said = {"path": path, "query": query}
        if body is not None and not isinstance(body, bytes):
            said["body"] = json.loads(json.dumps(body))
        said = {key: value for key, value in said.items() if value}
        known = {key: value for key, value in self.known.get(name, {}).items() if key != "answer"}
        if not os.environ.get("FREEHOLD_RECORD"):
            assert form(shown(said)) == form(known), f"the example of {name} is another call: record it anew"
        assert name not in self.made, f"{name} has an example already"
        self.made[name] = shown(said)
        answer, text = await self.send(outcome, outcome.path.format_map(path), query, body, index=index)
        if answer == STARTING and BEFORE_START.encode() in text:  # a fast machine is here within its first seconds
            await asyncio.sleep(NEW_S)
            answer, text = await self.send(outcome, outcome.path.format_map(path), query, body, index=index)
        assert answer == (status or outcome.status), (name, text)
        if outcome.answer not in (None, bytes) and outcome.answer != dict[str, Any]:
            value = json.loads(text)
            self.fits(outcome, value)
            self.made[name]["answer"] = shown(value)
            if not os.environ.get("FREEHOLD_RECORD"):
                self.fits(outcome, self.known[name]["answer"])
            return value
        return text

    def fits(self, one: Operation, value: Any) -> None:
        """Hold an answer against the type that the document states for it."""
        stated = self.document["paths"][one.path][one.method.lower()]["responses"][str(one.status)]
        schema = stated["content"]["application/json"]["schema"] | {"components": self.document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    async def send(
        self, one: Operation, path: str, query: dict[str, Any], body: Any, *, index: int = 0
    ) -> tuple[int, bytes]:
        fields = {"Idempotency-Key": secrets.token_urlsafe(12)} if one.access == "write" else {}
        octets = isinstance(body, bytes)
        data = body if octets else json.dumps(body).encode() if body is not None else None
        if data is not None:
            fields["Content-Type"] = "application/octet-stream" if octets else "application/json"
        if one.access == "signed":
            newcomer = self.newcomer
            control = self.house.control(index)
            fields |= sign_request(
                newcomer, one.method, f"https://node{path}", data or b"", created_s=system_now().wall_ms // 1000,
                nonce=secrets.token_urlsafe(12), node=control.core.node,
            )  # fmt: skip
        connector = aiohttp.UnixConnector(str(self.house.daemons[index].runtime / "api.sock"))
        url = URL(f"http://node{path}").with_query(query)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(one.method, url, data=data, headers=fields) as answer,
        ):
            if one.stream == "always":
                return answer.status, await answer.content.readline()
            return answer.status, await answer.read()

    newcomer = Ed25519Signer(ENTROPY.random_bytes(32))


def signature(signer: Ed25519Signer, view: dict[str, Any]) -> dict[str, str]:
    return {
        "key": signer.public_key.hex(), "signature": b64(signer.sign(base64.b64decode(view["to_sign"])))
    }  # fmt: skip


def change(component: str, author: str) -> dict[str, Any]:
    app = {"name": "web", "component": component, "routes": ["site.test"], "keyvalue": ["visits"],
           "config": {"GREETING": "hello"}}  # fmt: skip
    return {"kind": "change", **PLACE, "request": "count visits", "author": author, "apps": [app],
            "smoke": [{"app": "web", "path": "/env"}],
            "plan": {"stages": [{"nodes": "100%", "min_healthy_ms": 0}]}}  # fmt: skip


async def test_every_example_of_the_document_is_executed_as_it_says(component: Callable[[str], Path]) -> None:
    async with a_house(2) as house:
        walk = Walk(house)
        await look(walk)
        answer = await propose(walk, component("services").read_bytes())
        await start(walk, answer)
        await papers(walk, answer)
        await withdraw(walk, component("services").read_bytes())
        await people(walk)
        await data(walk)
        await hooks(walk)
        await upgrade(walk)
        await trust(walk)
        await ends(walk)
    if os.environ.get("FREEHOLD_RECORD"):
        RECORDED.write_text(json.dumps({name: walk.made[name] for name in sorted(walk.made)}, indent=1) + "\n")
    assert set(walk.made) == set(BY_NAME), "a new operation needs a call above, and then FREEHOLD_RECORD=1"


async def look(walk: Walk) -> None:
    for name in ("health", "ready", "node", "metrics", "voters", "mesh", "genesis", "state", "read", "authorities",
                 "members"):  # fmt: skip
        await walk.call(name)
    await walk.call("peer", node=walk.house.control(1).core.node)
    other = walk.house.control(1)
    port = re.split("[/:]", str(other.mesh.transport.listening[0]))[-1]
    await walk.call("tell_addresses", node=other.core.node, body={"addresses": [f"127.0.0.1:{port}"]})
    await walk.call("resource")
    await walk.call("mcp_resource")
    asked = {"name": "list_projects", "arguments": {}}
    await walk.call("mcp", body={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked})
    await walk.call("principals", limit=100)
    await walk.call("principal", key=walk.house.admin.public_key.hex())


async def propose(walk: Walk, component: bytes) -> dict[str, Any]:
    admin, named = walk.house.admin, digest(component).hex()
    mesh = walk.house.control(0).core.trust.mesh
    signed = sign_command([admin], mesh, Command(secrets.token_bytes(16), CreateEnvironment(LANE[1], ())))
    await walk.call("submit", body={"command": b64(encode(signed)), "material": []})
    await walk.house.create_project()
    await walk.call("put_artifact", digest=named, body=component)
    await walk.call("has_artifact", digest=named)
    await walk.call("get_artifact", digest=named)
    view: dict[str, Any] = await walk.call("draft", body=change(named, admin.public_key.hex()))
    await walk.call("propose", body={"digest": view["digest"], **signature(admin, view)})
    return view


async def start(walk: Walk, view: dict[str, Any]) -> None:
    house, admin = walk.house, walk.house.admin
    routes = {"kind": "routes", **PLACE, "routes": ["site.test"]}
    _, text = await walk.send(BY_NAME["draft"], "/v1/drafts", {}, routes)
    command = json.loads(text)
    await walk.call("sign_draft", draft=command["digest"], body=signature(admin, command))
    _, text = await walk.send(BY_NAME["draft"], "/v1/drafts", {}, {"kind": "start", "change": view["digest"]})
    command = json.loads(text)
    key = admin.public_key
    raw = admin.sign(base64.b64decode(command["to_sign"]))
    signed = SignedCommand(base64.b64decode(command["payload"]), (Signature(key, raw),))
    await walk.call("start", body={"command": b64(encode(signed))})
    await until(lambda: house.based(bytes.fromhex(view["digest"])), 150)  # type: ignore[arg-type]


async def papers(walk: Walk, view: dict[str, Any]) -> None:
    change, admin, mesh = view["digest"], walk.house.admin, walk.house.control(0).core.trust.mesh
    await walk.call("changes", **PLACE, limit=100)
    await walk.call("change", change=change)
    await walk.call("change_bytes", change=change)
    now_ms = system_now().wall_ms
    said = Approval(b"", digest(base64.b64decode(view["payload"])), *LANE, now_ms, now_ms + 86_400_000, "reads well")
    await walk.call(
        "publish", body={"kind": "approval", "scope": change, "body": b64(sign_approval(admin, mesh, said))}
    )
    longer = replace(said, expires_ms=said.expires_ms + 1)
    await walk.call("carry_approval", body={"envelope": b64(sign_approval(admin, mesh, longer))})
    await walk.call("papers", change=change)
    await walk.call("decisions", project=LANE[0], environment=LANE[1], limit=100)
    await walk.call("lanes", **PLACE)
    await walk.call("lane", **PLACE)
    await walk.call("names")
    await walk.call("statements", **PLACE)
    await walk.call("logs", project=LANE[0], limit=100)
    await walk.call("events", kind="decision,rollout", **PLACE)


async def withdraw(walk: Walk, component: bytes) -> None:
    """A start that waits for an approval which nobody gives, and is taken back."""
    admin = walk.house.admin
    async with walk.house.client() as client:
        await client.decide(admin, SetPolicy(TEAM, LANE[1]), expect=(await client.state()).sequence)
    wanted = change(digest(component).hex(), admin.public_key.hex()) | {"request": "greet louder"}
    _, text = await walk.send(BY_NAME["draft"], "/v1/drafts", {}, wanted)
    view = json.loads(text)
    await walk.send(BY_NAME["propose"], "/v1/changes", {}, {"digest": view["digest"], **signature(admin, view)})
    _, text = await walk.send(BY_NAME["draft"], "/v1/drafts", {}, {"kind": "start", "change": view["digest"]})
    command = json.loads(text)
    path = f"/v1/drafts/{command['digest']}/signature"
    status, text = await walk.send(BY_NAME["sign_draft"], path, {}, signature(admin, command))
    assert (status, json.loads(text)["outcome"]) == (200, "waiting"), text
    await walk.call("withdraw_start", change=view["digest"])


async def people(walk: Walk) -> None:
    house, control = walk.house, walk.house.control(0)
    mesh, now_ms, seed = control.core.trust.mesh, system_now().wall_ms, secrets.token_bytes(32)
    guest = Ed25519Signer(seed)
    grant = Grant(
        key=guest.public_key, kind="person", name="ada", roles=("deployer",), projects=("*",), environments=("*",),
        expires_ms=now_ms + 86_400_000, nonce=secrets.token_bytes(16), invite_uses=1,
    )  # fmt: skip
    signed = sign(house.admin, GRANT_DOMAIN, mesh, grant)
    invite = Invite(mesh, guest.public_key, "principal", (), (), 1, now_ms, now_ms + 3_600_000, grant=signed)
    line = read_line(write_line(seed, make_invite(house.admin, invite), (Address("https://node", "00" * 32),)))
    offered, _ = papers_for(Offer(line, grant, ()), walk.newcomer.public_key)
    await walk.call("enrol", body={"papers": b64(encode(offered))})


async def data(walk: Walk) -> None:
    house, control = walk.house, walk.house.control(0)
    mesh = control.core.trust.mesh
    blank = SealedSecret(*LANE, "API_KEY", 1, system_now().wall_ms, b"", ())
    sealed = seal(mesh, blank, b"a value", eligible(control.core.state, LANE[1]), ENTROPY)
    await walk.call("file_secret", body={"paper": b64(encode(sign_paper(house.admin, mesh, sealed)))})
    await walk.call("secrets", **PLACE, limit=100)
    await walk.call("data", **PLACE)
    lane = control.core.state.lane(*LANE)
    assert lane is not None
    source = house.index_of(lane.data_node)
    await data_files(walk, source)
    targets = [house.control(index).core.node for index in (1 - source, source)]
    switch, abort = (
        b64(encode(sign_command([house.admin], mesh, Command(secrets.token_bytes(16), PlaceData(PeerId(target)), *LANE,
                                                             lane.sequence))))
        for target in targets
    )  # fmt: skip
    await walk.call("move_data", index=source, **PLACE, body={"switch": switch, "abort": abort, "material": []})
    await until(lambda: control.core.state.lane(*LANE).data_node == targets[0], 150)  # type: ignore[union-attr]
    await walk.call("audit", contains="publish", limit=100)
    await walk.call("audit_links", after=0)


async def data_files(walk: Walk, index: int) -> None:
    """A copy that is fetched, and put back in the place of what it was made of; then the data is held still, and let go."""
    control, admin = walk.house.control(index), walk.house.admin
    mesh, node = control.core.trust.mesh, PeerId(control.core.node)

    def mandate(act: Act, files: tuple[ListedFile, ...] = (), target: str = "") -> str:
        listing = bytes(digest(encode(files))) if files else b""
        asked = DataMandate(
            act, *LANE, node, secrets.token_bytes(16), system_now().wall_ms, listing, bool(files), target
        )  # fmt: skip
        return b64(encode(sign_mandate(admin, mesh, asked)))

    async with aiohttp.ClientSession(headers={"host": "site.test"}) as visitor:
        answer = await visitor.get(f"http://{walk.house.ingress(index)}/kv/increment?store=visits&key=n")
        assert answer.status == 200
    result = await walk.call("export_data", index=index, **PLACE, body={"mandate": mandate("export")})
    bytes_of = await walk.call("exported_file", index=index, **PLACE, export=result["export"], number=0)
    await walk.call("drop_export", index=index, **PLACE, export=result["export"])
    files = (ListedFile("keyvalue.db", len(bytes_of), digest(bytes_of).hex()),)
    asked = {"mandate": mandate("import", files), "files": [msgspec.to_builtins(file) for file in files]}
    name = (await walk.call("begin_import", index=index, **PLACE, body=asked))["name"]
    outcome = {**PLACE, "import": name}
    await walk.call("put_imported", index=index, **outcome, digest=files[0].sha256, body=bytes_of)
    await walk.call("install_import", index=index, **outcome)
    await walk.call("freeze_data", index=index, **PLACE, body={"mandate": mandate("freeze")})
    await walk.call("thaw_data", index=index, **PLACE, body={"mandate": mandate("thaw")})
    standby = walk.house.control(1 - index).core.node
    await walk.call("set_standby", index=index, **PLACE, body={"mandate": mandate("standby", target=standby)})
    await until(lambda: walk.house.control(1 - index).standby.copy_ms(LANE) > 0, 30)


async def hooks(walk: Walk) -> None:
    async with a_receiver() as receiver:
        asked = {"name": "ops", "url": receiver.url, "events": ["approval.needed", "node.down"], "private": True}
        await walk.call("add_webhook", body=asked)
        await walk.call("test_webhook", webhook="ops")
        await walk.call("webhooks")
        await walk.call("remove_webhook", webhook="ops")


async def upgrade(walk: Walk) -> None:
    control = walk.house.control(0)
    held = digest(b"no wheel")
    await control.artifacts.put(b"no wheel")
    wheel = Wheel("freehold-0.2.0-py3-none-any.whl", held)
    paper = UpgradePaper("start", system_now().wall_ms, "0.2.0", (wheel,))
    signed = sign_upgrade(walk.house.admin, control.core.trust.mesh, paper)
    control_of_second = walk.house.control(1)
    pair = [
        encode(sign_command([walk.house.admin], control.core.trust.mesh, Command(secrets.token_bytes(16), action)))
        for action in (DrainNode(control_of_second.core.node), DrainNode(control_of_second.core.node, draining=False))
    ]
    until_ms = system_now().wall_ms + 3_600_000
    await walk.call(
        "drain", body={"drain": b64(pair[0]), "undrain": b64(pair[1]), "until_ms": until_ms, "material": []}
    )
    async with walk.house.client() as client:
        await client.decide(walk.house.admin, DrainNode(control_of_second.core.node, draining=False))
    await walk.call("upgrade", body={"paper": b64(encode(signed))})
    await walk.call("show_upgrade")


async def trust(walk: Walk) -> None:
    """A job of a CI platform comes in by its token."""
    house, job = walk.house, walk.newcomer
    mesh = house.control(0).core.trust.mesh
    async with an_issuer() as issuer:
        asked = {"name": "forge", "issuer": issuer.url, "subject": "repo:web/site:ref:refs/heads/main", "private": True}
        answer = await walk.call("add_trust", body=asked)
        await grant_to(house, bytes.fromhex(answer["key"]))
        token = issuer.token(audience_of(mesh, job.public_key), sub=asked["subject"])
        await walk.call("exchange_token", body={"token": token})
        await walk.call("trusts")
        await walk.call("remove_trust", trust="forge")


async def ends(walk: Walk) -> None:
    """Last what ends things: a new era, and a node that leaves."""
    house = walk.house
    async with house.client() as client:
        view = await client.get("/v1/mesh")
    control = house.control(0)
    voters = tuple(sorted(Voter(voter.node, voter.store_id) for voter in control.core.state.voters))
    reset = Reset(
        mesh=control.core.trust.mesh, number=view["unsafe_resets"] + 1, slot=view["slot"] + 1,
        prev=bytes.fromhex(view["head"]), at_ms=system_now().wall_ms, voters=voters, reason="two voters burnt",
    )  # fmt: skip
    signed = sign(house.admin, RESET_DOMAIN, reset.mesh, reset)
    await walk.call("reset", body={"entry": b64(encode(ResetTo(signed.payload, (signed,))))})
    state = control.core.state
    said = Acknowledgement(state.resets, state.era, system_now().wall_ms, "compared with the deploy log")
    paper = encode(sign_acknowledgement(house.admin, reset.mesh, said))
    await walk.call("acknowledge", body={"paper": b64(paper)})
    await walk.call("show_acknowledgement")
    await walk.call("leave", index=1, body={"reason": "an old machine"})
