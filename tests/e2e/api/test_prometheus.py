"""A real Prometheus that scrapes a node by the guide's own settings, with a token, and evaluates the alert rules of docs/."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.api.test_bearer import give, made
from tests.support.mesh.alerting import NAMES, RULES
from tests.support.mesh.in_process import House, a_house

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "monitoring.md"


def settings(folder: Path, api: str) -> Path:
    """The guide's settings with this machine's files and the node's address, looking every half second."""
    text = GUIDE.read_text().partition("```yaml\n")[2].partition("```")[0]
    for said, here in (
        ("/etc/prometheus/freehold.token", str(folder / "token")), ("/etc/prometheus/freehold-ca.pem", str(folder / "ca.pem")),
        ("alerts.yml", str(RULES)), ("node.example:4180", api),
    ):  # fmt: skip
        assert said in text, said
        text = text.replace(said, here)
    path = folder / "prometheus.yml"
    path.write_text("global: {scrape_interval: 500ms, scrape_timeout: 450ms, evaluation_interval: 500ms}\n" + text)
    return path


@asynccontextmanager
async def a_prometheus(folder: Path, config: Path) -> AsyncIterator[str]:
    """Run one; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def ask(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.get(url) as answer:
            return (await answer.json())["data"] if answer.status == 200 else None
    except aiohttp.ClientError:
        return None


async def asked(session: aiohttp.ClientSession, address: str, query: str, wanted: str) -> None:
    """Return when a query's first answer is as wanted."""
    url, said = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}", None
    async with asyncio.timeout(60):
        while True:
            said = await ask(session, url)
            if said and said["result"] and said["result"][0]["value"][1] == wanted:
                return
            await asyncio.sleep(0.2)


async def scraping(house: House, folder: Path, token: str) -> Path:
    control = house.control(0)
    (folder / "token").write_text(token)
    (folder / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(control.api_place.authority))
    return settings(folder, control.api)


async def test_prometheus_scrapes_with_a_token_and_can_evaluate_every_rule(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus: apt-get install prometheus")
    async with a_house(1) as house:
        token, key = made(house)
        await give(house, key, roles=("viewer",), verbs=("view",), projects=("*",))
        config = await scraping(house, tmp_path, token)
        async with a_prometheus(tmp_path, config) as address, aiohttp.ClientSession() as session:
            await asked(session, address, "up", "1")
            slot = house.control(0).core.chain.position.slot
            await asked(session, address, "freehold_chain_slot", str(slot))
            await asked(session, address, "count(freehold_grant_expiry_timestamp_seconds)", "1")
            async with asyncio.timeout(30):
                while True:
                    entry = await ask(session, f"{address}/api/v1/rules")
                    rules = {candidate["name"]: candidate["health"] for candidate in entry["groups"][0]["rules"]}
                    if set(rules.values()) == {"ok"}:
                        break
                    await asyncio.sleep(0.2)
            assert set(rules) == set(NAMES)
            assert json.dumps(entry).count('"state": "firing"') == 0
            (tmp_path / "token").write_text(token[:-2] + ("aA" if token[-2] != "a" else "bA"))
            await asked(session, address, "up", "0")
