"""A node behind the console that lies: it can withhold, and it cannot have a person sign anything but what is shown."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from cli.access.contexts import Context
from cli.console.approving import Approving, TouchGiven
from cli.errors import CommandError
from protocols.changes.change import CHANGE_DOMAIN, Change
from protocols.changes.demands import TEAM
from protocols.changes.effective import Effective
from protocols.envelope import DecodeError, decode, encode, sign
from tests.support.mesh.in_process import LANE, a_house


class Page(Approving):
    """The console's page of somebody who may approve anything, with one passkey."""

    async def _usable(self, change: Change, authors: set[str]) -> dict[str, Any]:
        return {"credential": cast(Any, _Unused())}


class _Unused:
    id = b"\0" * 32


class Liar:
    """A real node, but for the paths about which it lies."""

    def __init__(self, real: Any, lies: dict[str, bytes]) -> None:
        self._real, self._lies = real, lies

    async def get_bytes(self, path: str, **query: Any) -> Any:
        return self._lies[path] if path in self._lies else await self._real.get_bytes(path, **query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_what_is_signed_is_what_is_shown_whatever_a_node_says(
    component: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with a_house(1, policy=TEAM) as house:
        await house.prepare_lane()
        asked, _ = await house.propose(
            component("services"), app='config = { LIMIT = "10" }\nallow_hosts = ["evil.test:443"]'
        )
        other, _ = await house.propose(component("services"), app='config = { LIMIT = "11" }')
        named = asked.id.hex()
        change = asked.change
        mesh = house.control(0).core.trust.mesh
        context = Context(mesh.hex(), "", "k")
        async with house.client() as real:
            shown = await Page(context, real, "http://localhost:4188").shown(named)
            statement = base64.b64decode(shown["offer"]["statement"])
            assert named.encode() in statement
            assert LANE[1].encode() in statement
            assert other.id.hex().encode() not in statement
            assert "evil.test:443" in shown["text"]

            staging = sign(house.admin, CHANGE_DOMAIN, mesh, msgspec.structs.replace(change, environment="staging"))
            harmless = decode(encode(asked.effective), Effective)
            app = msgspec.structs.replace(harmless.apps[0], allow_hosts=())
            configuration = f"/v1/artifacts/{change.configuration.hex()}"
            lies = {
                "another change": {f"/v1/changes/{named}/signed": encode(other.signed)},
                "another environment": {f"/v1/changes/{named}/signed": encode(staging)},
                "a diff without the host": {configuration: encode(msgspec.structs.replace(harmless, apps=(app,)))},
                "another configuration": {configuration: encode(other.effective)},
                "another manifest": {f"/v1/artifacts/{change.release.hex()}": other.release_bytes + b"\0"},
                "no bytes": {f"/v1/changes/{named}/signed": b""},
            }
            for what, lie in lies.items():
                page = Page(context, cast(Any, Liar(real, lie)), "http://localhost:4188")
                with pytest.raises((CommandError, DecodeError)):
                    await page.shown(named)
                assert not page._offered, what
            # An old change in place of a new one: asked for by its id it is shown as what it is, and never as another.
            page = Page(
                context, cast(Any, Liar(real, {f"/v1/changes/{other.id.hex()}/signed": encode(asked.signed)})), "x"
            )
            with pytest.raises(CommandError, match="another change"):
                await page.shown(other.id.hex())

            # What was offered for one change is no offer for another, and a statement that nobody was shown is none.
            page = Page(context, real, "http://localhost:4188")
            await page.shown(named)
            altered = base64.b64encode(statement.replace(named.encode(), other.id.hex().encode())).decode()
            for near in (altered, base64.b64encode(statement + b" ").decode(), ""):
                touched = cast(Any, type("Touch", (), {"credential": "credential"})())
                touch_given = msgspec.structs.replace(TouchGiven("", touched), statement=near)
                with pytest.raises(CommandError, match="not offered"):
                    await page.take(touch_given)
