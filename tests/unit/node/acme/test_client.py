"""The ACME client against answers in the shapes that RFC 8555 and Boulder give: refusals, nonces, limits, hostile sizes."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from node.acme.client import ANSWER_MAX_BYTES, NONCE_TRIES, AcmeClient, AcmeError, acme_client, renewal_id
from node.acme.jose import base64url, derive_key, public_jwk, thumbprint
from tests.support.runtime import pem

KEY = derive_key(b"s" * 32, "account", b"")
Answering = Callable[[dict[str, Any], dict[str, Any] | None], web.Response]


class Authority:
    """An authority that checks each request's form and signature as RFC 8555 says, and answers from a script."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answering]] = {}
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        self.nonces: set[str] = set()
        self.given = 0
        self.bad_nonces = 0
        self.base = ""

    def nonce(self) -> dict[str, str]:
        self.given += 1
        self.nonces.add(f"nonce-{self.given}")
        return {"Replay-Nonce": f"nonce-{self.given}"}

    def on(self, path: str, *answers: Answering) -> None:
        self.answers[path] = list(answers)

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path
        if path == "/dir":
            names = ("newNonce", "newAccount", "newOrder", "revokeCert")
            return web.json_response(
                {**{name: f"{self.base}/{name}" for name in names}, "meta": {}, "renewalInfo": f"{self.base}/ari"}
            )
        if request.method == "HEAD":
            return web.Response(headers=self.nonce())
        if request.method == "GET":
            return self.answers[path][0]({}, None)
        assert request.headers["Content-Type"] == "application/jose+json"
        body = await request.json()
        header = json.loads(_decode(body["protected"]))
        verify(body, header)
        assert header["url"] == f"{self.base}{path}"
        assert ("kid" in header) != ("jwk" in header)
        if header["nonce"] not in self.nonces or self.bad_nonces:
            self.bad_nonces = max(0, self.bad_nonces - 1)
            return problem("badNonce", "JWS has an invalid anti-replay nonce", 400, self.nonce())
        self.nonces.remove(header["nonce"])
        payload = json.loads(_decode(body["payload"])) if body["payload"] else None
        self.asked.append((path, header, payload))
        script = self.answers[path]
        answer = (script.pop(0) if len(script) > 1 else script[0])(header, payload)
        answer.headers.update(self.nonce())
        return answer


def problem(kind: str, detail: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
    body = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail, "status": status}
    return web.json_response(body, status=status, headers=headers, content_type="application/problem+json")


def says(value: Any, **headers: str) -> Answering:
    return lambda _header, _payload: web.json_response(
        value, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def verify(body: dict[str, str], header: dict[str, Any]) -> None:
    assert set(body) == {"protected", "payload", "signature"}
    assert header["alg"] == "ES256"
    raw = _decode(body["signature"])
    assert len(raw) == 64
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    KEY.public_key().verify(der, f"{body['protected']}.{body['payload']}".encode(), ec.ECDSA(hashes.SHA256()))


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@contextlib.asynccontextmanager
async def conversation(tmp_path: Path) -> AsyncIterator[tuple[Authority, AcmeClient]]:
    authority = Authority()
    certificate = pem.write(tmp_path / "ca.pem", "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", authority.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    authority.base = f"https://localhost:{runner.addresses[0][1]}"
    authority.on("/newAccount", says({"status": "valid"}, Location=f"{authority.base}/account/1"))
    try:
        async with acme_client(f"{authority.base}/dir", KEY, str(certificate)) as client:
            await client.register(["mailto:ops@site.test"])
            yield authority, client
    finally:
        await runner.cleanup()


async def test_an_account_is_made_with_the_key_and_named_from_then_on(tmp_path: Path) -> None:
    async with conversation(tmp_path) as (authority, client):
        authority.on(
            "/newOrder",
            says({"status": "pending", "authorizations": [], "finalize": "f"}, Location="https://localhost/o"),
        )
        url, order = await client.order("site.test", "shortlived")
        assert (url, order.status) == ("https://localhost/o", "pending")
        (path, header, payload), (_, second, asked) = authority.asked
        assert (path, header["jwk"]) == ("/newAccount", public_jwk(KEY))
        assert payload == {"termsOfServiceAgreed": True, "contact": ["mailto:ops@site.test"]}
        assert second["kid"] == f"{authority.base}/account/1"
        assert asked == {"identifiers": [{"type": "dns", "value": "site.test"}], "profile": "shortlived"}


async def test_a_refused_nonce_is_replaced_and_not_for_ever(tmp_path: Path) -> None:
    async with conversation(tmp_path) as (authority, client):
        authority.on("/o", says({"status": "ready", "authorizations": [], "finalize": "f"}))
        authority.bad_nonces = 3
        assert (await client.look(f"{authority.base}/o")).status == "ready"
        authority.bad_nonces = 99
        with pytest.raises(AcmeError, match="badNonce"):
            await client.look(f"{authority.base}/o")
        assert authority.bad_nonces == 99 - NONCE_TRIES


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [("3600", 3600.0), ("", 0.0), ("soon", 0.0), ("-5", 0.0), ("9" * 30, 604_800.0),
     ("Wed, 01 Jan 2020 00:00:00 GMT", 0.0)],
    ids=["seconds", "none", "word", "negative", "years", "past"],
)  # fmt: skip
async def test_a_rate_limit_says_by_which_rule_and_until_when(tmp_path: Path, said: str, wait_s: float) -> None:
    async with conversation(tmp_path) as (authority, client):
        detail = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s"
        authority.on("/newOrder", lambda _header, _payload: problem("rateLimited", detail, 429, {"Retry-After": said}))
        with pytest.raises(AcmeError, match="exact set") as refused:
            await client.order("site.test")
        assert (refused.value.rule, refused.value.retry_after_s) == ("rateLimited", wait_s)


async def test_a_failed_proof_says_why_and_ends_its_order(tmp_path: Path) -> None:
    async with conversation(tmp_path) as (authority, client):
        error = {
            "type": "urn:ietf:params:acme:error:connection",
            "detail": "127.0.0.1: Connection refused",
            "status": 400,
        }
        failed = {"type": "http-01", "url": "u", "token": "t", "status": "invalid", "error": error}
        pending = {
            "status": "pending",
            "identifier": {"type": "dns", "value": "site.test"},
            "challenges": [failed | {"error": None}],
        }
        authority.on("/chall", says({}))
        authority.on(
            "/authz", says(pending, Retry_After="1"), says(pending | {"status": "invalid", "challenges": [failed]})
        )
        acme_authorization = await client.authorization(f"{authority.base}/authz")
        authority.on("/authz", says(pending | {"status": "invalid", "challenges": [failed]}))
        challenge = type(acme_authorization.challenges[0])("http-01", f"{authority.base}/chall", "t")
        with pytest.raises(AcmeError, match="Connection refused") as refused:
            await client.answer(challenge, f"{authority.base}/authz", 5)
        assert (refused.value.rule, refused.value.order) == ("connection", True)
        assert (authority.asked[-2][0], authority.asked[-2][2]) == ("/chall", {})  # an empty object, not nothing


@pytest.mark.parametrize(
    "answer",
    [web.Response, lambda: web.Response(text="x" * (ANSWER_MAX_BYTES + 1)), lambda: web.json_response([1]),
     lambda: web.json_response({"status": 1, "authorizations": [], "finalize": ""}), lambda: web.Response(text="[" * 100_000),
     lambda: web.Response(status=302, headers={"Location": "https://localhost/"})],
    ids=["empty", "long", "list", "types", "deep", "redirect"],
)  # fmt: skip
async def test_what_is_no_answer_is_refused_whole(tmp_path: Path, answer: Callable[[], web.Response]) -> None:
    async with conversation(tmp_path) as (authority, client):
        authority.on("/o", lambda _header, _payload: answer())
        with pytest.raises(AcmeError, match="malformed"):
            await client.look(f"{authority.base}/o")


async def test_an_authority_is_asked_over_verified_tls_alone(tmp_path: Path) -> None:
    async with conversation(tmp_path) as (authority, client):
        with pytest.raises(AcmeError, match="not https"):
            await client.look("http://localhost/o")
        with pytest.raises(AcmeError, match="unreachable"):
            async with acme_client(f"{authority.base}/dir", KEY):
                pass  # the system knows nothing of this certificate
        with pytest.raises(AcmeError, match="authority"):
            async with acme_client(f"{authority.base}/dir", KEY, str(tmp_path / "none.pem")):
                pass


async def test_revoking_what_is_revoked_is_done(tmp_path: Path) -> None:
    leaf = x509.load_pem_x509_certificate(pem.write(tmp_path / "leaf.pem").read_bytes())
    async with conversation(tmp_path) as (authority, client):
        authority.on(
            "/revokeCert", lambda _header, _payload: problem("alreadyRevoked", "Certificate already revoked", 400)
        )
        await client.revoke(leaf, 1)
        assert authority.asked[-1][2]["reason"] == 1
        authority.on("/revokeCert", lambda _header, _payload: problem("unauthorized", "no", 403))
        with pytest.raises(AcmeError, match="unauthorized"):
            await client.revoke(leaf, 1)


async def test_when_to_renew_is_the_authoritys_word_if_it_has_one(tmp_path: Path) -> None:
    leaf = _with_issuer(tmp_path)
    async with conversation(tmp_path) as (authority, client):
        path = f"/ari/{renewal_id(leaf)}"
        window = {"start": "2026-01-02T04:00:00Z", "end": "2026-01-03T04:00:00Z"}
        authority.on(path, says({"suggestedWindow": window}))
        assert await client.renewal_window_ms(leaf) == (1767326400000, 1767412800000)
        authority.on(path, says({"suggestedWindow": {"start": window["end"], "end": window["start"]}}))
        assert await client.renewal_window_ms(leaf) is None
        authority.on(path, lambda _header, _payload: problem("malformed", "no such certificate", 404))
        assert await client.renewal_window_ms(leaf) is None
        plain = x509.load_pem_x509_certificate(pem.write(tmp_path / "leaf.pem").read_bytes())
        assert await client.renewal_window_ms(plain) is None


def _with_issuer(folder: Path) -> x509.Certificate:
    """A certificate with a key identifier, and the serial number of RFC 9773's example."""
    plain = x509.load_pem_x509_certificate(pem.write(folder / "base.pem").read_bytes())
    key = derive_key(b"x" * 32, "any", b"")
    issuer = bytes.fromhex("69885b6b8746404181b37b847847a0ae2cde0108d4")
    built = (
        x509.CertificateBuilder()
        .subject_name(plain.subject).issuer_name(plain.issuer).public_key(key.public_key())
        .serial_number(int("8765432105", 16)).not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier(issuer, None, None), critical=False)
    )  # fmt: skip
    return built.sign(key, hashes.SHA256())


def test_a_certificate_is_named_by_its_issuer_and_serial(tmp_path: Path) -> None:
    assert (
        renewal_id(_with_issuer(tmp_path)) == "aYhba4dGQEGBs3uEeEegrizeAQjU.AIdlQyEF"
    )  # with the sign byte of the serial


def test_keys_are_derived_and_differ_by_seed_purpose_and_salt() -> None:
    keys = {
        thumbprint(derive_key(seed, purpose, salt))
        for seed in (b"a" * 32, b"b" * 32)
        for purpose in ("account", "certificate x.test")
        for salt in (b"", b"1")
    }
    assert len(keys) == 8
    assert thumbprint(derive_key(b"a" * 32, "account", b"")) in keys
    assert base64url(b"\xff\xfe") == "__4"
