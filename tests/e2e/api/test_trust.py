"""A CI job by OIDC: a trust given by a person, a token for the job's key, a grant that ends; and whom it keeps out."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.access.client import NodeClient, RefusedError
from cli.access.contexts import Context
from cli.errors import CommandError
from node.mesh.pump import system_now
from node.oidc.issuers import AGAIN_MS
from node.oidc.tokens import audience_of
from protocols.api_outward import ExchangeBody, TrustBody
from protocols.changes.demands import TEAM
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant, Rights
from tests.e2e.api.test_ci import PROJECT
from tests.support.mesh.in_process import ENTROPY, House, a_house, until
from tests.support.mesh.issuer import REQUEST_SECRET, Issuer, a_job, an_issuer, grant_to
from tests.support.mesh.nodes import Fleet, Machine

CLAIMS = {"repository_id": "123", "ref": "refs/heads/main"}


class Platform:
    """A mesh that trusts a local issuer."""

    def __init__(self, house: House, issuer: Issuer) -> None:
        self.house, self.issuer, self.key = house, issuer, b""
        self.mesh = house.control(0).core.trust.mesh
        issuer.claims = dict(CLAIMS)

    async def trust(self, **changed: Any) -> None:
        async with self.house.client() as client:
            body = TrustBody(
                **{"name": "forge", "issuer": self.issuer.url, "claims": CLAIMS, "private": True, **changed}
            )
            self.key = bytes.fromhex((await client.post("/v1/trusts", body))["key"])

    @asynccontextmanager
    async def client(self, signer: Ed25519Signer) -> AsyncIterator[NodeClient]:
        control = self.house.control(0)
        context = Context(self.mesh.hex(), "", "", url=f"https://{control.api}", pin=control.api_pin)
        async with NodeClient(context, signer) as client:
            yield client

    async def exchange(self, job: Ed25519Signer, token: str) -> Any:
        async with self.client(job) as client:
            return await client.post("/v1/token-exchange", ExchangeBody(token))

    def token(self, job: Ed25519Signer, **said: Any) -> str:
        return self.issuer.token(audience_of(self.mesh, job.public_key), **said)


@asynccontextmanager
async def a_platform() -> AsyncIterator[Platform]:
    async with a_house(1) as house, an_issuer() as issuer:
        await house.prepare_lane()
        yield Platform(house, issuer)


async def test_a_job_gets_what_the_person_gave_and_no_longer_than_its_token() -> None:
    async with a_platform() as platform:
        job, stranger = a_job(), a_job()
        await platform.trust()
        with pytest.raises(RefusedError, match="holds no grant now"):
            await platform.exchange(job, platform.token(job))
        await grant_to(platform.house, platform.key, "deployer")
        got = await platform.exchange(job, platform.token(job))
        assert (got["trust"], got["roles"], got["projects"]) == ("forge", ["deployer"], ["site"])
        control = platform.house.control(0)
        rights = control.core.dossiers.rights(job.public_key, control.clock().wall_ms)
        assert isinstance(rights, Rights)
        assert rights.allows("start", "site", "production")
        assert not rights.allows("start", "other", "production")
        assert not rights.allows("approve", "site", "production")
        assert rights.expires_ms - control.clock().wall_ms <= 600_000, "as long as the token"
        assert platform.key in rights.lineage, "what a job does is its giver's doing"
        assert (await platform.exchange(job, platform.token(job)))["expires_ms"] == got["expires_ms"], (
            "an answer was lost"
        )
        async with platform.client(job) as client:
            assert [entry["project"] for entry in await client.get("/v1/lanes")] in ([], ["site"])
        stolen = platform.token(job)
        with pytest.raises(RefusedError, match="audience"):
            await platform.exchange(stranger, stolen)
        assert platform.issuer.asked == ["discovery", "keys"], "read once"
        async with platform.house.client() as client:
            await client.delete("/v1/trusts/forge")
        with pytest.raises(RefusedError, match="no trust"):
            await platform.exchange(stranger, platform.token(stranger))


async def test_keys_that_are_rotated_are_found_and_stolen_ones_that_are_withdrawn_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_platform() as platform:
        await platform.trust()
        await grant_to(platform.house, platform.key)
        issuer = platform.issuer
        issuer.shown = {"rsa-1"}
        first, second, third = a_job(), a_job(), a_job()
        await platform.exchange(first, platform.token(first))
        issuer.shown = {"ec-1"}
        with pytest.raises(RefusedError, match="no key that its issuer shows"):
            await platform.exchange(second, platform.token(second, kid="ec-1"))
        for _ in range(5):  # strangers' tokens do not make the node ask
            with pytest.raises(RefusedError):
                await platform.exchange(second, platform.token(second, kid="ec-1"))
        assert issuer.asked.count("keys") == 1
        held = platform.house.control(0).trusts._issuers._held[issuer.url]
        held.tried_ms -= AGAIN_MS
        await platform.exchange(second, platform.token(second, kid="ec-1"))
        with pytest.raises(RefusedError, match="no key that its issuer shows"):
            await platform.exchange(third, platform.token(third, kid="rsa-1"))


async def test_near_misses_over_https() -> None:
    async with a_platform() as platform:
        await platform.trust(subject="repo:web/site:ref:*")
        await grant_to(platform.house, platform.key)
        job = a_job()
        good = {"sub": "repo:web/site:ref:refs/heads/main"}
        near: tuple[tuple[dict[str, Any], str], ...] = (
            ({**good, "ref": "refs/heads/mainly"}, "token.claim"),
            ({**good, "repository_id": "1234"}, "token.claim"),
            ({"sub": "repo:web/site-evil:ref:refs/heads/main"}, "token.subject"),
            ({**good, "event_name": "pull_request_target"}, "token.pull-request"),
            ({**good, "exp": 1}, "token.expired"),
            ({**good, "iss": platform.issuer.url + "/"}, "token.issuer"),
        )
        for said, rule in near:
            with pytest.raises(RefusedError) as refused:
                await platform.exchange(job, platform.token(job, **said))
            assert refused.value.rule == rule, said
        other = platform.issuer.token(audience_of(b"\0" * 32, job.public_key), **good)
        for token, rule in ((other, "token.audience"), ("x.y.z", "token.issuer"), ("x" * 8_192, "token.issuer")):
            with pytest.raises(RefusedError) as refused:
                await platform.exchange(job, token)
            assert refused.value.rule == rule
        with pytest.raises(CommandError):
            await platform.exchange(job, "x" * 8_193)
        await platform.exchange(job, platform.token(job, **good))


async def test_a_job_counts_as_the_person_who_started_it_where_approvals_are_asked_for() -> None:
    async with a_house(1, policy=TEAM) as house, an_issuer() as issuer:
        await house.prepare_lane()
        platform = Platform(house, issuer)
        await platform.trust(name="anybody")
        await grant_to(house, platform.key, "deployer")
        job = a_job()
        with pytest.raises(RefusedError) as refused:
            await platform.exchange(job, platform.token(job, actor_id="77"))
        assert refused.value.rule == "token.actor"
        async with house.client() as client:
            await client.delete("/v1/trusts/anybody")
        people = {"77": Ed25519Signer(ENTROPY.random_bytes(32)), "78": Ed25519Signer(ENTROPY.random_bytes(32))}
        for number, person in people.items():
            await platform.trust(name=f"of-{number}", claims={**CLAIMS, "actor_id": number})
            await handed_on(house, person, platform.key)
        control = house.control(0)
        for number, said in (("77", "77"), ("78", 78)):
            job = a_job()
            await platform.exchange(job, platform.token(job, actor_id=said))
            rights = control.core.dossiers.rights(job.public_key, control.clock().wall_ms)
            assert isinstance(rights, Rights)
            others = [person.public_key for key, person in people.items() if key != number]
            assert people[number].public_key in rights.behind
            assert not set(others) & set(rights.behind), "only who started it may not approve it"
        job = a_job()
        for wrong in ("770", "7", "077", " 77", "77 ", "", 7, 77.0, True, None, ["77"], "ann"):
            with pytest.raises(RefusedError) as refused:
                await platform.exchange(job, platform.token(job, actor_id=wrong, actor="77"))
            assert refused.value.rule == "token.claim", wrong


async def handed_on(house: House, person: Ed25519Signer, key: bytes) -> None:
    """Have the admin give a person something, and the person give a trust's key of it, as `trust add` does."""
    control = house.control(0)
    mesh = control.core.trust.mesh
    common: dict[str, Any] = {
        "projects": ("site",), "environments": ("*",), "expires_ms": system_now().wall_ms + 86_400_000,
    }  # fmt: skip
    own = Grant(key=person.public_key, kind="person", name="somebody", roles=("deployer", "approver"),
                nonce=ENTROPY.random_bytes(16), **common)  # fmt: skip
    first = sign(house.admin, GRANT_DOMAIN, mesh, own)
    grant = Grant(key=key, kind="agent", name="forge", roles=("deployer",), nonce=ENTROPY.random_bytes(16),
                  parent=bytes(digest(first.payload)), **common)  # fmt: skip
    link = sign(person, GRANT_DOMAIN, mesh, grant)
    async with house.client() as client:
        await client.publish("grant", person.public_key.hex(), encode((first,)))
        await client.publish("grant", key.hex(), encode((first, link)))
    await until(lambda: key in control.core.dossiers.principals())


async def test_who_may_trust_an_issuer_and_how_widely() -> None:
    async with a_platform() as platform:
        await platform.trust()
        await grant_to(platform.house, platform.key, "deployer", projects=("*",))
        job = a_job()
        await platform.exchange(job, platform.token(job))
        async with platform.client(job) as client:
            with pytest.raises(RefusedError, match="owns the node's machine"):
                await client.post("/v1/trusts", TrustBody("own", "https://evil.example.org", claims=CLAIMS))
            with pytest.raises(RefusedError):
                await client.delete("/v1/trusts/forge")
        async with platform.house.client() as client:
            for body in (
                TrustBody("wide", "https://forge.example.org"),
                TrustBody("wide", "https://forge.example.org", subject="*"),
                TrustBody("wide", "http://forge.example.org", claims=CLAIMS),
                TrustBody("wide", "https://127.0.0.1", claims=CLAIMS),
                TrustBody("wide", "https://forge.example.org", claims=CLAIMS, jwks="{}"),
                TrustBody("forge", "https://forge.example.org", claims=CLAIMS),
            ):
                with pytest.raises(CommandError):
                    await client.post("/v1/trusts", body)
            pinned = json.dumps(platform.issuer.key_set())
            entry = await client.post(
                "/v1/trusts", TrustBody("pinned", platform.issuer.url, "repo:*", jwks=pinned, private=True)
            )
            assert entry["pinned"] == ["rsa-1", "ec-1"]
            folder = platform.house.folder / "n0" / "trusts"
            assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]
        await platform.house.stop(0)
        await platform.house.start(0)
        assert set(platform.house.control(0).trusts.held) == {"forge", "pinned"}


class Job(Machine):
    """A job of a CI platform: it has the trust's text, and may ask its platform for tokens. No secret is stored for it."""

    issuer_url, line = "", ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment, "GITHUB_ACTIONS": "true", "GITHUB_ENV": str(self.folder / "env"),
            "FREEHOLD_TRUST": self.line, "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.issuer_url}/token?api=1",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": REQUEST_SECRET, **self.told,
        }  # fmt: skip

    @property
    def told(self) -> dict[str, str]:
        """What earlier steps wrote for later ones."""
        path = self.folder / "env"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.split("=", 1) for line in lines)


async def test_a_clean_job_comes_in_by_the_commands_and_deploys(component: Callable[[str], Path]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    fleet = Fleet(folder)
    try:
        async with an_issuer() as issuer:
            issuer.claims = {"sub": "repo:web/hello:ref:refs/heads/main", **CLAIMS}
            machine = await asyncio.to_thread(fleet.found, "d", "--api", "127.0.0.1:0")
            await asyncio.to_thread(machine.typed_ok, "env", "create", "production", "-y")
            await asyncio.to_thread(machine.typed_ok, "project", "create", "hello", "--owner", "web-team")
            added = await asyncio.to_thread(
                machine.run, "trust", "add", "forge", "--issuer", issuer.url, "--repository-id", "123",
                "--ref", "refs/heads/main", "--role", "deployer", "--project", "hello", "--private", "--json",
            )  # fmt: skip
            assert added.code == 0, added
            job = Job(folder / "job")
            job.issuer_url, job.line = issuer.url, added.json["text"]
            came = await asyncio.to_thread(job.run, "ci", "exchange", "--json")
            assert came.code == 0, came
            assert came.json["projects"] == ["hello"]
            token = job.told["FREEHOLD_TOKEN"]
            assert f"::add-mask::{token}" in came.stderr
            assert token not in came.stdout
            listed = await asyncio.to_thread(job.run, "token", "list", "--json")
            mine = [two for two in listed.json["principals"] if two["name"] == "forge-job"]
            assert mine
            assert mine[0]["roles"] == ["deployer"]
            checkout = folder / "checkout"
            checkout.mkdir()
            shutil.copy(component("hello"), checkout / "web.wasm")
            (checkout / "freehold.toml").write_text(PROJECT)
            where = ("--folder", str(checkout), "--json")
            done = await asyncio.to_thread(job.run, "test", *where)
            assert done.code == 0, done
            done = await asyncio.to_thread(job.run, "deploy", *where, timeout_s=90)
            assert (done.code, done.json["outcome"]) == (0, "succeeded"), done
            assert not any((job.folder / "home").rglob("*.json")), "the key was written down"
            issuer.claims["ref"] = "refs/heads/feature"
            other = Job(folder / "other")
            other.issuer_url, other.line = issuer.url, job.line
            kept_out = await asyncio.to_thread(other.run, "ci", "exchange", "--json")
            assert (kept_out.code, kept_out.json["error"]["kind"]) == (3, "token.claim"), kept_out
            assert other.told == {}
            shown = await asyncio.to_thread(machine.run, "trust", "list", "--json")
            assert shown.json["text"] == job.line
            gone = await asyncio.to_thread(machine.run, "trust", "remove", "forge", "--json")
            assert gone.code == 0
    finally:
        await asyncio.to_thread(fleet.close)
        shutil.rmtree(folder, ignore_errors=True)
