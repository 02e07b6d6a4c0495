"""The alert rules of docs/monitoring: each fires for a fault that is made on real daemons, and none on a healthy mesh."""

from __future__ import annotations

import asyncio
import datetime
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.mesh.pump import system_now
from node.serving import schedules
from node.store import disk_room
from node.store.disk_room import ROOM_MARGIN_BYTES, ROOM_MIN_BYTES
from protocols.changes.demands import TEAM
from protocols.envelope import digest
from protocols.liveness import Belief
from protocols.records.quotas import RecordLimits
from protocols.state.commands import Pause, Resume, SetPolicy
from tests.e2e.api import test_telemetry
from tests.e2e.api.test_bearer import give
from tests.e2e.api.test_webhooks import add
from tests.e2e.data import test_standby
from tests.support.mesh.alerting import NAMES, Series, firing, need_promtool, parsed, scraped
from tests.support.mesh.in_process import ENTROPY, LANE, House, a_house, until
from tests.support.mesh.receiver import a_receiver
from tests.support.runtime.wasm_text import module

DAY_S = 86_400
EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
Component = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _promtool() -> None:
    need_promtool()


async def visit(house: House, path: str, times: int) -> list[int]:
    numbers = []
    async with aiohttp.ClientSession() as visiting:
        for _ in range(times):
            async with visiting.get(f"http://{house.ingress(0)}{path}", headers={"Host": "site.test"}) as answer:
                await answer.read()
                numbers.append(answer.status)
    return numbers


def changed(series: Series, name: str, value: float) -> Series:
    """The series with another value for each of one name."""
    assert any(text == name for text, _ in series), name
    return {key: value if key[0] == name else old for key, old in series.items()}


async def test_nothing_fires_in_an_hour_on_a_healthy_mesh_that_serves(component: Component) -> None:
    async with a_house(2) as house, a_receiver() as receiver:
        await house.prepare_lane()
        async with house.client() as client:
            await add(client, "ops", receiver.url)
        now_ms = system_now().wall_ms
        await give(house, ENTROPY.random_bytes(32), kind="person", expires_ms=now_ms + 8 * DAY_S * 1000)
        await give(house, ENTROPY.random_bytes(32), name="job", expires_ms=now_ms + 3_600_000)
        await house.deploy(component("probe"), smoke="/")
        before = await scraped(house)
        assert set(await visit(house, "/", 50)) == {200}
        assert min(await visit(house, "/trap", 2)) >= 500
        await until(lambda: bool(receiver.came))
        now = await scraped(house)
    assert firing(now, before) == {}, "4 % of requests fail, a grant has eight days, an agent's ends by intent"
    assert firing(changed(now, "freehold_disk_free_bytes", float(1 << 30)), before) == {}
    assert set(firing(changed(now, "freehold_disk_free_bytes", float((1 << 30) - 1)), before)) == {"FreeholdDiskFills"}
    assert set(firing(now, before, later_s=2 * DAY_S)) == {"FreeholdGrantEnds"}
    late = firing(now, before, later_s=77 * DAY_S)
    assert set(late) == {"FreeholdCertificateEnds", "FreeholdGrantEnds"}, "nobody renewed certificates for 77 days"


async def test_an_app_that_fails_and_a_webhook_that_nobody_takes(component: Component) -> None:
    async with a_house(1) as house, a_receiver(lambda _one: (410, {})) as receiver:
        await house.prepare_lane()
        async with house.client() as client:
            await add(client, "ops", receiver.url)
        await house.deploy(component("probe"), smoke="/")
        await until(lambda: bool(house.control(0).webhooks.files["ops"].off), 60)
        before = await scraped(house)
        await visit(house, "/", 45)
        assert min(await visit(house, "/trap", 5)) >= 500
        now = await scraped(house)
    table = firing(now, before)
    assert set(table) == {"FreeholdAppErrors", "FreeholdWebhookGivesUp"}
    assert 'app="web"' in table["FreeholdAppErrors"]
    assert 'webhook="ops"' in table["FreeholdWebhookGivesUp"]


@pytest.mark.timeout(240)
async def test_a_lost_voter_and_a_rollout_that_cannot_go_on(component: Component) -> None:
    async with a_house(2) as house:  # the first node is the only voter, so nothing is decided without it
        await house.prepare_lane()
        await house.propose(component("hello"), smoke="/other", healthy="60s")

        def open_stage() -> bool:
            lane = house.control(1).core.state.lane(*LANE)
            return lane is not None and lane.rollout is not None

        await until(open_stage, 100)
        paused, resumed = await held_up(house)
        gone = house.control(0).core.node
        running = await scraped(house, 1)
        house.daemons[0].hand_over()
        await asyncio.wait_for(house._tasks[0], 40)
        await until(lambda: house.control(1).core.liveness.belief(gone) is Belief.DOWN, 90)
        stuck = await scraped(house, 1)
    assert firing(paused, minutes=14) == {}
    assert set(firing(paused)) == {"FreeholdRolloutPaused"}, "it is paused, and so not overdue"
    assert firing(resumed, minutes=9) == firing(running, minutes=9) == {}, "a rollout on its way"
    table = firing(stuck)
    assert set(table) == {"FreeholdNodeDown", "FreeholdRolloutStuck"}
    assert "project" in table["FreeholdRolloutStuck"]


async def held_up(house: House) -> tuple[Series, Series]:
    """Pause the rollout under way and let it go on; return what the second node showed in between and afterwards."""

    async def decided(action: Pause | Resume, *, paused: bool) -> Series:
        lane = house.control(1).core.state.lane(*LANE)
        assert lane is not None
        async with house.client() as client:
            await client.decide(house.admin, action, project=LANE[0], environment=LANE[1], expect=lane.sequence)

        def seen() -> bool:
            lane = house.control(1).core.state.lane(*LANE)
            return lane is not None and lane.rollout is not None and bool(lane.rollout.paused) == paused

        await until(seen)
        return await scraped(house, 1)

    lane = house.control(1).core.state.lane(*LANE)
    assert lane is not None
    assert lane.rollout is not None
    rollout = lane.rollout.id
    return await decided(Pause(rollout, "the owner asks"), paused=True), await decided(Resume(rollout), paused=False)


@pytest.mark.timeout(240)
async def test_a_job_that_fails_and_a_start_that_waits_for_a_person(
    component: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MINUTE_MS", 2_000)
    async with a_house(1) as house:
        await house.prepare_lane()
        source = house.folder / "project"
        source.mkdir()
        (source / "good.wasm").write_bytes(module("(nop)"))
        (source / "bad.wasm").write_bytes(module("(call $exit (i32.const 3))", imports=EXIT))
        jobs = "".join(
            f'[app.{name}]\nlanguage = "component"\nsource = "{name}.wasm"\nschedule = "* * * * *"\n'
            for name in ("good", "bad")
        )
        await house.deploy(component("hello"), app=jobs, smoke="/other")
        shown: dict[float, Series] = {}
        failures = "freehold_job_failures_in_a_row"
        async with asyncio.timeout(60):
            while max(shown, default=0) < 3:
                now = await scraped(house)
                shown.setdefault(max((value for (name, _), value in now.items() if name == failures), default=0), now)
                await asyncio.sleep(0.1)
        async with house.client() as client:
            action = SetPolicy(TEAM, LANE[1])
            await client.decide(house.admin, action, expect=(await client.state()).sequence)
        await house.propose(component("hello"), app='config = { A = "b" }', smoke="/other")
        waits = house.control(0).starter.starts
        await until(lambda: any(waiting.outcome == "waiting" for waiting in waits.values()))
        waiting = await scraped(house)
    most = shown.pop(max(shown))
    assert firing(shown[max(shown)]) == firing(changed(most, failures, 2.0)) == {}, "fewer runs failed"
    table = firing(most)
    assert set(table) == {"FreeholdJobFails"}
    assert 'app="bad"' in table["FreeholdJobFails"]
    assert set(firing(waiting, minutes=59)) == {"FreeholdJobFails"}, "people have an hour"
    assert set(firing(waiting)) == {"FreeholdJobFails", "FreeholdStartWaits"}


async def test_records_that_fill_up_and_a_grant_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_house(1) as house:
        control = house.control(0)
        ends_ms = system_now().wall_ms + 6 * DAY_S * 1000
        await give(house, ENTROPY.random_bytes(32), kind="person", name="ann", expires_ms=ends_ms)
        ending = await scraped(house)
        control.core.records.store.limits = RecordLimits(node_audit_max=5)
        async with house.client() as client:
            while control.audit.fullness <= 0.8:
                body = ENTROPY.random_bytes(16)
                await client.put_artifact(body, digest(body))
                await asyncio.sleep(0.05)
        full = await scraped(house)
    table = firing(ending)
    assert set(table) == {"FreeholdGrantEnds"}
    assert 'name="ann"' in table["FreeholdGrantEnds"]
    assert set(firing(full)) == {"FreeholdGrantEnds", "FreeholdRecordsFill"}


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of its own where new temporary folders lie."""
    folder = Path(tempfile.mkdtemp(prefix="fhd"))
    completed = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if completed.returncode != 0:
        folder.rmdir()
        pytest.skip("a file system of its own cannot be mounted here")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def certificate_for(days: int) -> bytes:
    """A chain of one and its key in PEM, for site.test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("site.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + private


async def test_a_small_disk_and_a_certificate_for_visitors_that_ends(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small_disk
    plain = House.config
    folder = Path(tempfile.mkdtemp(prefix="c"))
    for name, days in (("old", 13), ("new", 16)):
        path = folder / f"{name}.pem"
        path.touch(0o600)
        path.write_bytes(certificate_for(days))

    def config(self: House, name: str) -> object:
        return msgspec.structs.replace(plain(self, name), ingress_tls=("127.0.0.1:0",), certificates=str(folder))

    monkeypatch.setattr(House, "config", config)
    async with a_house(1) as house:
        table = firing(await scraped(house))
        near = await filled(house, free_bytes=ROOM_MIN_BYTES + ROOM_MARGIN_BYTES)
        full = await filled(house, free_bytes=ROOM_MIN_BYTES // 2)
    assert set(table) == {"FreeholdDiskFills", "FreeholdIngressCertificateEnds"}
    assert set(firing(near)) == set(table), "it votes as long as there is room"
    assert set(firing(full)) == {*table, "FreeholdChainStalled"}
    assert 'file="old.pem"' in table["FreeholdIngressCertificateEnds"]


async def filled(house: House, *, free_bytes: int) -> Series:
    """Fill a node's disk but for this much; return what it shows two looks later."""
    control = house.control(0)
    left = os.statvfs(control.folder)
    with (house.folder / "ballast").open("ab") as ballast:
        end = ballast.seek(0, os.SEEK_END)
        os.posix_fallocate(ballast.fileno(), end, left.f_bavail * left.f_frsize - free_bytes)
    await asyncio.sleep(2.5 * disk_room.LOOK_EVERY_S)
    return await scraped(house)


def test_a_node_that_does_not_answer_its_scraper() -> None:
    assert set(firing(parsed("up 0\n", "n0"))) == {"FreeholdNotScraped"}
    assert firing(parsed("up 1\n", "n0")) == {}


def test_every_rule_is_made_to_fire_by_some_test() -> None:
    places = (Path(__file__), Path(test_telemetry.__file__), Path(test_standby.__file__))
    text = "".join(path.read_text() for path in places)
    assert [name for name in NAMES if f'"{name}"' not in text] == []
