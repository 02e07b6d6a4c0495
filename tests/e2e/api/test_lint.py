"""The API's document where nodes serve it, and as Spectral sees it; our own linter is a unit test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import aiohttp
import pytest

from node.api.handlers import OPERATIONS
from node.api.operations import document
from tests.support.mesh.in_process import a_house
from tests.support.npm import installed

CLIENTS = Path(__file__).parent / "clients"


async def test_the_page_needs_no_credential_and_forbids_scripts() -> None:
    async with a_house(1) as house:
        control = house.control(0)
        async with aiohttp.ClientSession() as asking:
            for path, kind in (("/docs", "text/html"), ("/v1/openapi.json", "application/json")):
                async with asking.get(f"https://{control.api}{path}", ssl=False) as answer:
                    assert (answer.status, answer.content_type) == (200, kind)
                    assert len(await answer.read()) > 10_000
            async with asking.get(f"https://{control.api}/docs", ssl=False) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert "script" not in answer.headers["Content-Security-Policy"]
            async with asking.get(f"https://{control.api}/v1/node", ssl=False) as answer:
                assert answer.status == 401


@pytest.mark.long
def test_spectral_has_nothing_to_say(tmp_path: Path) -> None:
    folder = installed(CLIENTS)
    said, rules = tmp_path / "openapi.json", tmp_path / "rules.yaml"
    said.write_text(json.dumps(document(OPERATIONS, "1")))
    rules.write_text('extends: ["spectral:oas"]\n')
    command = [folder / "node_modules" / ".bin" / "spectral", "lint", said, "-r", rules, "-F", "hint"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No results" in done.stdout
