"""ID tokens: one that is right, and next to it everything that is almost right."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from node.oidc.tokens import Conditions, IssuerKey, audience_of, believed, key_named, read_keys, subject_fits
from protocols.refusal import Refusal
from tests.support.mesh.issuer import Issuer, jwk_of

MESH, KEY = b"m" * 32, b"k" * 32
AUDIENCE = audience_of(MESH, KEY)
SUBJECT = "repo:web/site:ref:refs/heads/main"
CLAIMS = {"repository_id": "123", "repository_owner_id": "7", "ref": "refs/heads/main"}
SAID = {**CLAIMS, "event_name": "push", "sub": SUBJECT}
NOW_S = int(time.time())


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    new_issuer = Issuer("https://forge.example.org")
    new_issuer.claims = {**SAID, "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 600}
    new_issuer.keys["rsa-short"] = rsa.generate_private_key(65537, 1024)
    new_issuer.keys["ec-384"] = ec.generate_private_key(ec.SECP384R1())
    new_issuer.keys["thief"] = rsa.generate_private_key(65537, 2048)
    new_issuer.shown = {"rsa-1", "ec-1", "rsa-short", "ec-384"}
    return new_issuer


def keys_of(issuer: Issuer) -> tuple[IssuerKey, ...]:
    return read_keys(json.dumps(issuer.key_set()).encode())


def judged(issuer: Issuer, token: str, **changed: Any) -> str:
    wanted = Conditions(issuer.url, changed.get("subject", ""), changed.get("claims", CLAIMS))
    answer = believed(token, keys_of(issuer), wanted, AUDIENCE, changed.get("at_s", NOW_S))
    return answer.rule if isinstance(answer, Refusal) else ""


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
def test_a_good_token_is_believed(issuer: Issuer, kid: str) -> None:
    assert judged(issuer, issuer.token(AUDIENCE, kid)) == ""
    assert judged(issuer, issuer.token([AUDIENCE], kid), subject="repo:web/site:ref:refs/heads/*") == ""
    assert judged(issuer, issuer.token([AUDIENCE], kid), subject="repo:web/site:ref:refs/tags/*") == "token.subject"
    assert judged(issuer, issuer.token([AUDIENCE], kid), subject="repo:web/*:ref:*") == ""


NEAR: dict[str, tuple[dict[str, Any], str]] = {
    "audience of another key": ({"aud": audience_of(MESH, b"j" * 32)}, "token.audience"),
    "audience of another mesh": ({"aud": audience_of(b"n" * 32, KEY)}, "token.audience"),
    "audience beside another": ({"aud": [AUDIENCE, "sts.example.org"]}, "token.audience"),
    "audience in upper case": ({"aud": AUDIENCE.upper()}, "token.audience"),
    "audience with more": ({"aud": AUDIENCE + "0"}, "token.audience"),
    "no audience": ({"aud": None}, "token.audience"),
    "issuer with a slash": ({"iss": "https://forge.example.org/"}, "token.issuer"),
    "issuer below": ({"iss": "https://forge.example.org.evil.test"}, "token.issuer"),
    "repository by name alone": ({"repository_id": None, "repository": "web/site"}, "token.claim"),
    "repository with a digit more": ({"repository_id": "1234"}, "token.claim"),
    "repository as a list": ({"repository_id": ["123"]}, "token.claim"),
    "another owner": ({"repository_owner_id": "70"}, "token.claim"),
    "branch of the same beginning": ({"ref": "refs/heads/main-2"}, "token.claim"),
    "tag of the same name": ({"ref": "refs/tags/main"}, "token.claim"),
    "pull request": ({"event_name": "pull_request"}, "token.pull-request"),
    "pull request's target": ({"event_name": "pull_request_target"}, "token.pull-request"),
    "merge request": ({"pipeline_source": "merge_request_event"}, "token.pull-request"),
    "ended this second": ({"exp": NOW_S}, "token.expired"),
    "good for two days": ({"exp": NOW_S + 172_800}, "token.expired"),
    "from the future": ({"iat": NOW_S + 60, "nbf": NOW_S + 60}, "token.early"),
    "not before later": ({"nbf": NOW_S + 60}, "token.early"),
    "no end": ({"exp": None}, "token.malformed"),
    "no beginning": ({"iat": None}, "token.malformed"),
    "end in words": ({"exp": str(NOW_S + 600)}, "token.malformed"),
    "end as a fraction": ({"exp": NOW_S + 600.5}, "token.malformed"),
    "end as truth": ({"exp": True}, "token.malformed"),
}


@pytest.mark.parametrize("what", NEAR)
def test_near_misses(issuer: Issuer, what: str) -> None:
    said, rule = NEAR[what]
    assert judged(issuer, issuer.token(**{"audience": AUDIENCE, **said})) == rule  # type: ignore[arg-type]


def test_a_number_claim_is_its_digits(issuer: Issuer) -> None:
    assert judged(issuer, issuer.token(AUDIENCE, repository_id=123)) == ""
    assert judged(issuer, issuer.token(AUDIENCE, repository_id=True)) == "token.claim"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forged(issuer: Issuer, header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    _, body, _ = issuer.token(AUDIENCE).split(".")
    head = b64(json.dumps(header).encode())
    return f"{head}.{body}.{b64(sign(f'{head}.{body}'.encode()))}"


def test_no_token_chooses_its_own_algorithm(issuer: Issuer) -> None:
    public = issuer.keys["rsa-1"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    jwk = json.dumps(jwk_of("rsa-1", issuer.keys["rsa-1"])).encode()
    for name in ("none", "None", "NONE", ""):
        text = judged(issuer, forged(issuer, {"alg": name, "kid": "rsa-1"}, lambda _data: b""))
        assert text in {"token.algorithm", "token.malformed"}, name
    for secret in (pem, pem.strip(), der, jwk, b""):
        token = forged(
            issuer, {"alg": "HS256", "kid": "rsa-1"},
            lambda data, secret=secret: hmac.new(secret, data, hashlib.sha256).digest(),
        )  # fmt: skip
        assert judged(issuer, token) == "token.algorithm", "the public key as a shared secret"
    for name in ("RS384", "RS512", "PS256"):
        assert judged(issuer, issuer.token(AUDIENCE, algorithm=name)) == "token.algorithm", name
    assert (
        judged(issuer, forged(issuer, {"alg": "ES256", "kid": "rsa-1"}, lambda _data: b"x" * 64)) == "token.algorithm"
    )


def test_only_keys_that_the_issuer_shows_and_that_are_strong_enough_count(issuer: Issuer) -> None:
    assert {key.kid for key in keys_of(issuer)} == {"rsa-1", "ec-1"}
    assert judged(issuer, issuer.token(AUDIENCE, "thief")) == "token.key"
    own = jwk_of("thief", issuer.keys["thief"])
    thief = issuer.keys["thief"]
    import jwt

    for header in ({"kid": "rsa-1"}, {"kid": "rsa-1", "jwk": own}, {"kid": "rsa-1", "jku": "https://evil.test/keys"}):
        claims = {"iss": issuer.url, "aud": AUDIENCE, "iat": NOW_S, "exp": NOW_S + 600, **SAID}
        assert judged(issuer, jwt.encode(claims, thief, algorithm="RS256", headers=header)) == "token.signature"


def test_two_keys_of_one_name_are_none(issuer: Issuer) -> None:
    doubled = json.dumps({"keys": [jwk_of("a", issuer.keys["rsa-1"]), jwk_of("a", issuer.keys["thief"])]}).encode()
    issuer_keys = read_keys(doubled)
    token = issuer.token(AUDIENCE)
    answer = believed(token, issuer_keys, Conditions(issuer.url, "", CLAIMS), AUDIENCE, NOW_S)
    assert isinstance(answer, Refusal)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": {}}', b"[" * 100_000, b'{"keys":[' + b"{}," * 40 + b"{}]}", b"\xff"],
    ids=["empty", "list", "none", "number", "object", "deep", "many", "bytes"],
)  # fmt: skip
def test_what_is_no_key_set(data: bytes) -> None:
    with pytest.raises(ValueError, match="JWK Set"):
        read_keys(data)


def test_odd_keys_are_left_out_and_harm_none_beside_them(issuer: Issuer) -> None:
    good = jwk_of("good", issuer.keys["rsa-1"])
    odd: list[Any] = [
        1, None, {}, {"kty": "RSA", "kid": "x"}, {**good, "kid": 7}, {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "other", "alg": "RS512"}, {**good, "kid": "n", "n": "!!"}, {"kty": "oct", "kid": "s", "k": "AAAA"},
        {**good, "kid": "private", "d": "AQAB"},
    ]  # fmt: skip
    assert [key.kid for key in read_keys(json.dumps({"keys": [*odd, good]}).encode())] == ["good"]


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "a.b.c.d", "é.b.c", "." * 9_000, "e30.e30.e30", "e30.e30."])
def test_what_is_no_token(issuer: Issuer, token: str) -> None:
    assert judged(issuer, token) == "token.malformed"
    with pytest.raises(ValueError):  # noqa: PT011  whatever is wrong with it
        key_named(token)


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("repo:web/site:*", "repo:web/site:main", True), ("repo:web/site:*", "repo:web/site-evil:main", False),
        ("repo:web/*", "repo:web/site:main", False), ("repo:web/*:main", "repo:web/site:main", True),
        ("repo:web/*:main", "repo:web/site:main\n", False), ("repo:web.site", "repo:webxsite", False),
        ("*", "a:b", False), ("repo:web/site", "xrepo:web/site", False), ("repo:web/site", None, False),
        ("repo:*:ref:refs/heads/main", "repo:a:ref:refs/heads/evil:ref:refs/heads/main", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, subject: Any, fits: bool) -> None:
    assert subject_fits(pattern, subject) is fits
