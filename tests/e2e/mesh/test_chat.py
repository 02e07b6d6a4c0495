"""A chat over three nodes: a browser and three other clients miss no message while its release changes and a node stops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.browser import Browser
from tests.support.mesh.nodes import Fleet, Machine

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[3] / "examples" / "chat"
SAYS_EVERY_S = 0.08
AGAIN_S = 1.0
SETTLED_S = 60.0
ENDS = aiohttp.ClientWSTimeout(ws_close=2)
TALK = """
window.said = 0;
window.talking = setInterval(() => {
  document.forms[0].elements[0].value = `browser ${said += 1}`;
  document.forms[0].requestSubmit();
}, 150);
"""


class Chatter:
    """One client: it says something all the time, comes to another node when its own is gone, and asks for what it missed."""

    def __init__(self, name: str, places: list[str]) -> None:
        self.name, self.places = name, itertools.cycle(places)
        self.have: list[dict[str, Any]] = []
        self.early: dict[int, dict[str, Any]] = {}
        self.ours: dict[str, str] = {}
        self.said = self.came = 0
        self.codes: list[int | None] = []
        self.talking = True
        self.socket: aiohttp.ClientWebSocketResponse | None = None

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            group.create_task(self.talk())
            for place in self.places:
                with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
                    async with http.ws_connect(
                        f"http://{place}/chat/ws", timeout=aiohttp.ClientWSTimeout(ws_close=2)
                    ) as socket:
                        self.socket, self.came = socket, self.came + 1
                        await self.again()
                        async for message in socket:
                            await self.take(json.loads(message.data))
                        self.codes.append(socket.close_code)
                self.socket = None
                await asyncio.sleep(0.2)

    async def take(self, said: dict[str, Any]) -> None:
        self.ours.pop(said["id"], None)
        if said["number"] <= len(self.have):
            return
        self.early[said["number"]] = said
        while (following := self.early.pop(len(self.have) + 1, None)) is not None:
            self.have.append(following)
        if self.early:
            await self.tell({"since": len(self.have)})

    async def talk(self) -> None:
        for turn in itertools.count():
            if self.talking:
                self.said += 1
                self.ours[f"{self.name}-{self.said}"] = f"{self.name} {self.said}"
                await self.tell({"id": f"{self.name}-{self.said}", "text": f"{self.name} {self.said}"})
            if turn % int(AGAIN_S / SAYS_EVERY_S) == 0:
                await self.again()
            await asyncio.sleep(SAYS_EVERY_S)

    async def again(self) -> None:
        await self.tell({"since": len(self.have)})
        for name, text in list(self.ours.items()):
            await self.tell({"id": name, "text": text})

    async def tell(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, aiohttp.ClientError, AttributeError):
            await self.socket.send_str(json.dumps(what))  # type: ignore[union-attr]


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(int(SETTLED_S / 0.2)):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"never: {what}")


def deployed(machine: Machine, folder: Path, greeting: str) -> None:
    text = (EXAMPLE / "freehold.toml").read_text()
    (folder / "freehold.toml").write_text(text.replace("Say something.", greeting))
    answer = machine.run("deploy", "--folder", str(folder), "-m", greeting, "--json", timeout_s=280)
    assert answer.code == 0, answer


@pytest.mark.timeout(900)
def test_nobody_misses_a_message_while_the_release_changes_and_a_node_stops(tmp_path: Path) -> None:
    fleet, browser = Fleet(tmp_path / "m"), Browser()
    ignored = shutil.ignore_patterns(".freehold", "__pycache__")
    try:
        _talked_through(fleet, browser, Path(shutil.copytree(EXAMPLE, tmp_path / "chat", ignore=ignored)))
    finally:
        fleet.close()
        browser.close()


def _talked_through(fleet: Fleet, browser: Browser, folder: Path) -> None:
    first = fleet.found("one")
    fleet.grow(3)
    first.typed_ok("env", "create", "production", "-y")
    first.typed_ok("project", "create", "chat")
    deployed(first, folder, "Say something.")
    holder = json.loads(first.get("/v1/lanes/chat/production"))["data_node"]
    keeper, seen, stops = sorted(fleet.machines, key=lambda one: (one.status()["node"] != holder, one is not first))
    page = browser.page(f"http://{seen.ingress}/chat")
    page.has("here")
    places = [machine.ingress for machine in (stops, keeper, seen)]
    asyncio.run(_chat(places, page, lambda: (deployed(first, folder, "Say more."), stops.stop())))


async def _chat(places: list[str], page: Any, act: Callable[[], Any]) -> None:
    chatters = [Chatter(name, places[index:] + places[:index]) for index, name in enumerate(("ann", "bob", "cy"))]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(chatter.run()) for chatter in chatters]
        try:
            await _judged(chatters, page, act)
        finally:
            for task in running:
                task.cancel()


async def _judged(chatters: list[Chatter], page: Any, act: Callable[[], Any]) -> None:
    await until(lambda: all(len(entry.have) > 20 for entry in chatters), "a talk")
    await asyncio.to_thread(page.js, TALK)
    await asyncio.to_thread(act)
    before = len(chatters[1].have)
    await until(lambda: len(chatters[1].have) > before + 100, "a talk behind the change")
    for chatter in chatters:
        chatter.talking = False
    await asyncio.to_thread(page.js, "clearInterval(talking)")
    typed = await asyncio.to_thread(page.js, "said")
    everything = sum(entry.said for entry in chatters) + typed
    await until(
        lambda: all(len(entry.have) == everything for entry in chatters), f"{everything} messages at each client"
    )
    await until(lambda: page.js("document.querySelectorAll('li').length") == everything, "all in the browser")
    texts = [row["text"] for row in chatters[0].have]
    assert [[row["text"] for row in entry.have] for entry in chatters[1:]] == [texts] * 2
    shown = await asyncio.to_thread(page.js, "[...document.querySelectorAll('li')].map((one) => one.textContent)")
    assert shown == texts
    wanted = [f"{entry.name} {n + 1}" for entry in chatters for n in range(entry.said)]
    assert sorted(texts) == sorted(wanted + [f"browser {n + 1}" for n in range(typed)])
    assert 1012 in chatters[0].codes, "the node that stopped says to come to another"
    assert chatters[0].came >= 2
    assert [entry.came for entry in chatters[1:]] == [1, 1], "a release that changes closes no socket"
    print(f"{everything} messages, {typed} of them typed in the browser; {chatters[0].came} sockets of ann")
