"""A start that is signed twice is one start: whoever asks again for what was started hears that it was."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cli.errors import CommandError
from protocols.envelope import decode
from protocols.state.commands import Command, SignedCommand, sign_command
from tests.support.mesh.in_process import LANE, House, a_house, until

Component = Callable[[str], Path]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house(1) as chosen_house:
        await chosen_house.prepare_lane()
        yield chosen_house


def anew(house: House, start: SignedCommand) -> SignedCommand:
    """The same start as another person signs it, who saw the lane as it was for the first."""
    before: Command = decode(start.payload, Command)
    mesh = house.control(0).core.trust.mesh
    return sign_command([house.admin], mesh, Command(secrets.token_bytes(16), before.action, *LANE, before.expect))


async def test_a_second_start_of_what_is_under_way_or_runs_is_no_refusal(house: House, component: Component) -> None:
    proposal, start = await house.propose(component("hello"), healthy="500ms")
    starter = house.control(0).starter
    async with house.client() as client:
        waited = await client.start(
            anew(house, start)
        )  # the first waits for its node to prepare, or is decided just now
        assert waited.outcome in {"waiting", "started"}
        outcomes = set()
        await until(lambda: outcomes.add(starter.starts[proposal.id].outcome) is None and house.based(proposal.id))
        assert outcomes <= {"waiting", "started"}
        view = await client.get(f"/v1/changes/{proposal.id.hex()}")
        assert (view["state"], view["start"]["outcome"]) == ("base", "started")
        again = await client.start(anew(house, start))
        assert (again.outcome, again.slot) == ("started", view["start"]["slot"])


async def test_a_start_of_what_ran_before_is_refused_when_it_is_outdated(house: House, component: Component) -> None:
    first, start = await house.propose(component("hello"))
    await until(lambda: house.based(first.id))
    await house.deploy(component("hello"), smoke="/other")
    with pytest.raises(CommandError) as refused:
        async with house.client() as client:
            await client.start(anew(house, start))
    assert refused.value.kind == "command.expect"
