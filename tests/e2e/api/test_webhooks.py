"""Webhooks of real nodes: an approval that waits, a rollout, a node that goes; judged by the specification's library."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Context
from cli.errors import CommandError
from node.webhooks.model import HookFile, Message
from protocols.api_outward import WebhookBody
from protocols.changes.approvals import Approval, sign_approval
from protocols.changes.demands import TEAM
from protocols.envelope import encode, sign
from protocols.keys import Ed25519Signer
from protocols.liveness import Belief
from protocols.trust.grants import GRANT_DOMAIN, Grant, Role
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, system_now, until
from tests.support.mesh.nodes import Fleet
from tests.support.mesh.receiver import Received, Receiver, a_receiver

HOUR_MS = 3_600_000


def said(receiver: Receiver, secret: str) -> list[dict[str, Any]]:
    """Everything that came, as far as the library believes it."""
    judge = Webhook(secret)
    return [judge.verify(received.body, received.fields) for received in receiver.came]


def kinds(receiver: Receiver) -> list[str]:
    return [json.loads(received.body)["type"] for received in receiver.came]


async def add(client: NodeClient, name: str, url: str, **more: Any) -> str:
    entry = await client.post("/v1/webhooks", WebhookBody(name, url, private=True, **more))
    return str(entry["secret"])


async def a_person(house: House, name: str, *roles: Role) -> Ed25519Signer:
    control, signer = house.control(0), Ed25519Signer(ENTROPY.random_bytes(32))
    grant = Grant(
        key=signer.public_key, kind="person", name=name, roles=roles, projects=("*",), environments=("*",),
        expires_ms=system_now().wall_ms + 30 * 24 * HOUR_MS, nonce=ENTROPY.random_bytes(16),
    )  # fmt: skip
    signed = sign(house.admin, GRANT_DOMAIN, control.core.trust.mesh, grant)
    async with house.client() as client:
        await client.publish("grant", signer.public_key.hex(), encode((signed,)))
    await until(lambda: signer.public_key in control.core.dossiers.principals())
    return signer


async def test_an_approval_a_rollout_and_a_lost_node_are_told(component: Callable[[str], Path]) -> None:
    async with a_house(2, policy=TEAM) as house, a_receiver() as receiver, a_receiver() as other:
        ann = await a_person(house, "ann", "approver")
        await house.prepare_lane()
        async with house.client() as client, house.client(1) as second:
            secret = await add(client, "ops", receiver.url)
            theirs = await add(second, "ops", other.url, events=("rollout.started",))
        proposal, _ = await house.propose(component("hello"), smoke="/other")
        await until(lambda: "approval.needed" in kinds(receiver), 60)
        waiting = said(receiver, secret)[0]["data"]
        assert (waiting["project"], waiting["environment"], waiting["change"]) == (*LANE, proposal.id.hex())
        assert waiting["next"] == f"freehold approve {proposal.id.hex()[:12]}"
        now_ms = system_now().wall_ms
        yes = Approval(b"", proposal.id, *LANE, now_ms, now_ms + HOUR_MS, "reads well")
        async with house.client() as client:
            envelope = sign_approval(ann, house.control(0).core.trust.mesh, yes)
            await client.publish("approval", proposal.id.hex(), envelope)
        await until(lambda: house.based(proposal.id), 90)
        await until(lambda: "rollout.succeeded" in kinds(receiver), 20)
        assert kinds(receiver) == ["approval.needed", "rollout.started", "rollout.succeeded"], "each once"
        await until(lambda: len(other.came) == 1, 20)
        started = receiver.came[1].fields["webhook-id"]
        assert other.came[0].fields["webhook-id"] == started, "two nodes tell of one decision under one id"
        assert [row["type"] for row in said(other, theirs)] == ["rollout.started"]

        gone = house.control(1).core.node
        house.daemons[1].hand_over()
        await asyncio.wait_for(house._tasks[1], 40)
        await until(lambda: house.control(0).core.liveness.belief(gone) is Belief.DOWN, 90)
        await until(lambda: "node.down" in kinds(receiver), 30)
        assert said(receiver, secret)[-1]["data"]["name"] == "n1"
        await house.start(1)
        await until(lambda: "node.up" in kinds(receiver), 90)
        assert kinds(receiver)[3:] == ["node.down", "node.up"]


async def test_who_may_have_a_node_speak_to_others() -> None:
    async with a_house(1) as house, a_receiver() as receiver:
        people = {role: await a_person(house, role, role) for role in ("viewer", "deployer", "approver")}  # type: ignore[arg-type]
        path = str(house.daemons[0].runtime / "api.sock")
        for signer in people.values():
            async with NodeClient(Context("home", path, "k"), signer) as client:
                for attempt in (
                    client.get("/v1/webhooks"),
                    client.post("/v1/webhooks", WebhookBody("spy", "https://hooks.example.org/")),
                    client.post("/v1/webhooks/ops/test"),
                    client.delete("/v1/webhooks/ops"),
                ):
                    with pytest.raises(RefusedError):
                        await attempt
        async with NodeClient(Context("home", path, "k"), house.admin) as client:
            await client.post("/v1/webhooks", WebhookBody("fine", "https://hooks.example.org/"))
            with pytest.raises(RefusedError, match="named on the machine itself"):
                await client.post("/v1/webhooks", WebhookBody("spy", receiver.url, private=True))
        async with house.client() as client:
            for url in (
                "http://hooks.example.org/",
                "https://127.0.0.1/x",
                "https://[::ffff:10.0.0.1]/",
                "https://a b/",
            ):
                with pytest.raises(CommandError):
                    await client.post("/v1/webhooks", WebhookBody("w", url))
            entry = await client.get("/v1/webhooks")
            assert [candidate["name"] for candidate in entry] == ["fine"]
            assert "secret" not in entry[0]
        assert receiver.came == []


async def test_a_webhook_and_what_it_was_told_outlive_the_daemon(component: Callable[[str], Path]) -> None:
    """What is decided while the node is away is told when it is back; what was told is not told again."""
    async with a_house(1) as house, a_receiver() as receiver:
        await house.prepare_lane()
        async with house.client() as client:
            await add(client, "ops", receiver.url)
        await house.deploy(component("hello"), smoke="/other")
        await until(lambda: kinds(receiver) == ["rollout.started", "rollout.succeeded"], 30)
        await asyncio.sleep(1.5)
        await house.stop(0)
        await house.start(0)
        async with house.client() as client:
            answer = await client.post("/v1/webhooks/ops/test")
        assert answer["delivered"]
        await asyncio.sleep(1.5)
        assert kinds(receiver) == ["rollout.started", "rollout.succeeded", "test"]


async def test_the_commands_and_a_node_that_is_killed_with_a_message_under_way() -> None:
    refusing = [True]

    def answer(_one: Received) -> tuple[int, dict[str, str]]:
        return (500 if refusing[0] else 200), {}

    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    fleet = Fleet(folder)
    try:
        async with a_receiver(answer) as receiver:
            machine = await asyncio.to_thread(fleet.found)

            def run(*words: str) -> Any:
                return asyncio.to_thread(machine.run, "webhook", *words, "--json")

            refused = await run("add", "ops", receiver.url)
            assert (refused.code, refused.json["error"]["kind"]) == (3, "address.url"), refused
            added = await run(
                "add", "ops", receiver.url, "--private", "--event", "rollout.started", "--event", "grant.ending"
            )
            assert added.code == 0, added
            assert added.json["secret"].startswith("whsec_")
            failed = await run("test", "ops")
            assert (failed.code != 0, failed.json["error"]["kind"]) == (True, "webhook.failed"), failed
            assert "status 500" in failed.json["error"]["message"]
            path = machine.data / "webhooks" / "ops"
            await asyncio.to_thread(machine.kill)
            file = msgspec.msgpack.decode(path.read_bytes(), type=HookFile)
            at_ms = system_now().wall_ms
            file.queue(Message("msg_waits", "rollout.started", at_ms, {"project": "site"}), at_ms)
            refusing[0] = False
            path.write_bytes(msgspec.msgpack.encode(file))  # as a node leaves it that is killed before it sends
            await asyncio.to_thread(machine.start)
            await until(lambda: receiver.came[-1].fields["webhook-id"] == "msg_waits", 20)
            assert Webhook(added.json["secret"]).verify(receiver.came[-1].body, receiver.came[-1].fields)
            assert (await run("test", "ops")).code == 0
            listed = (await run("list")).json["webhooks"]
            assert [(two["kind"], two["delivered"]) for two in listed[0]["deliveries"]][:2] == [
                ("test", True), ("rollout.started", True),
            ]  # fmt: skip
            assert (await run("remove", "ops")).code == 0
            assert not path.exists()
            unknown = await asyncio.to_thread(
                machine.run, "webhook", "add", "x", "https://x.example/", "--event", "nonsense"
            )
            assert unknown.code == 2
    finally:
        await asyncio.to_thread(fleet.close)
        shutil.rmtree(folder, ignore_errors=True)
