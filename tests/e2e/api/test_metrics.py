"""Metrics as a scraper on the machine and one elsewhere read them: of apps, rollouts, certificates and grants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.api.test_bearer import give, made, session
from tests.support.mesh.in_process import House, a_house

Component = Callable[[str], Path]


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    plain = House.config
    monkeypatch.setattr(
        House, "config", lambda self, name: msgspec.structs.replace(plain(self, name), metrics="127.0.0.1:47190")
    )
    async with a_house(1) as chosen_house:
        await chosen_house.prepare_lane()
        yield chosen_house


def series(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_apps_rollouts_and_ends_are_series_and_grow_with_what_is_served(
    house: House, component: Component
) -> None:
    await house.deploy(component("hello"))
    async with aiohttp.ClientSession() as visiting:
        for _ in range(3):
            async with visiting.get(f"http://{house.ingress(0)}/", headers={"Host": "site.test"}) as answer:
                await answer.read()
        async with visiting.get("http://127.0.0.1:47190/metrics") as answer:
            assert answer.status == 200
            text = await answer.text()
        for fields in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            async with visiting.get("http://127.0.0.1:47190/metrics", headers=fields) as answer:
                assert answer.status == 403
        async with visiting.get("http://127.0.0.1:47190/v1/node") as answer:
            assert answer.status == 404
    table = series(text)
    answers = {name: value for name, value in table.items() if name.startswith("freehold_app_answers_total")}
    assert sum(answers.values()) >= 3
    assert all("('project', 'site')" in answer and "('environment', 'production')" in answer for answer in answers)
    counts = [value for name, value in table.items() if name.startswith("freehold_app_duration_seconds_count")]
    assert counts == [sum(answers.values())]
    assert any(text.startswith("freehold_member_certificate_expiry_timestamp_seconds") for text in table)


async def test_a_token_scrapes_its_own_projects_series(house: House, component: Component) -> None:
    await house.deploy(component("hello"))
    for projects, sees in ((("*",), True), (("site",), True), (("other",), False)):
        token, key = made(house)
        await give(house, key, projects=projects, roles=("viewer",), verbs=("view",))
        async with session(house, token) as asking, asking.get("/metrics") as answer:
            text = await answer.text()
            assert answer.status == 200, text
        assert ('project="site"' in text) == sees, projects
        assert ("freehold_grant_expiry" in text) == (projects == ("*",))
