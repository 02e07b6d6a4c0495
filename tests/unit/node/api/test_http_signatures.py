"""Signatures as other programs write them: an independent RFC 9421 signer's are read, and each near miss is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from multidict import CIMultiDict, CIMultiDictProxy

from node.api.callers.http_signatures import (
    FIELD_MAX_CHARS,
    Presented,
    Target,
    UnreadableError,
    key_named,
    read_signature,
)
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.trust.request_signatures import content_digest, sign_request

KEY = Ed25519Signer(b"k" * 32)
URL = "https://node.example:7443/v1/changes?project=site&limit=5"
BODY = b'{"a": 1}'


class Keys(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str) -> Any:
        return Ed25519PrivateKey.from_private_bytes(b"k" * 32)

    def resolve_public_key(self, key_id: str) -> Any:
        return self.resolve_private_key(key_id).public_key()


def signed(covered: tuple[str, ...], body: bytes = BODY, url: str = URL, **options: Any) -> requests.PreparedRequest:
    """A request of the independent library."""
    fields = {"Content-Digest": content_digest(body), "X-Other": "spaced  value"} if body else {}
    request = requests.Request("POST" if body else "GET", url, data=body or None, headers=fields).prepare()
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys())
    options = {
        "key_id": KEY.public_key.hex(),
        "label": "anything-1",
        "include_alg": True,
        "use_existing_digest": bool(body),
    } | options
    signer.sign(request, covered_component_ids=covered, **options)
    return request


def target(request: requests.PreparedRequest, **changed: str) -> Target:
    assert request.method is not None
    authority, _, rest = str(request.url).removeprefix("https://").partition("/")
    headers = CIMultiDictProxy(CIMultiDict(dict(request.headers)))
    whole = {"method": request.method, "scheme": "https", "authority": authority, "raw_path": f"/{rest}"} | changed
    return Target(headers=headers, **whole)


def good(said: Presented) -> bool:
    key = key_named(said.keyid)
    return key is not None and Ed25519Verifier().verify(key, said.base, said.signature)


@pytest.mark.parametrize(
    "covered",
    [
        ("@method", "@target-uri", "content-digest"),
        ("content-digest", "@target-uri", "@method"),
        ("@authority", "@request-target", "@method", "content-digest"),
        ("@method", "@authority", "@path", "@query", "@scheme", "content-digest", "x-other"),
    ],
)
def test_another_librarys_signature_is_read_in_any_order_under_any_label(covered: tuple[str, ...]) -> None:
    for options in ({}, {"include_alg": False, "nonce": "n" * 30}, {"label": "z", "tag": "an app"}):
        request = signed(covered, **options)
        said = read_signature(target(request), has_body=True)
        assert good(said)
        assert said.covered == covered
        for changed in ({"method": "PUT"}, {"authority": "other.example"}, {"raw_path": "/v1/changes?project=other"}):
            assert not good(read_signature(target(request, **changed), has_body=True)), changed


def test_a_body_less_request_needs_no_digest_and_one_with_a_body_does() -> None:
    request = signed(("@method", "@target-uri"), body=b"")
    assert good(read_signature(target(request), has_body=False))
    with pytest.raises(UnreadableError, match="content-digest"):
        read_signature(target(request), has_body=True)


def test_our_own_clients_signature_is_one_of_them() -> None:
    fields = sign_request(KEY, "GET", URL, b"", created_s=5, nonce="n" * 20)
    headers = CIMultiDictProxy(CIMultiDict(fields))
    said = read_signature(
        Target("GET", "https", "node.example:7443", "/v1/changes?project=site&limit=5", headers), has_body=False
    )
    assert good(said)
    assert (said.created_s, said.nonce) == (5, "n" * 20)


def test_a_key_is_named_in_hex_or_base64_and_anything_else_is_a_name() -> None:
    raw = KEY.public_key
    for text in (
        raw.hex(), raw.hex().upper(), f"ed25519:{raw.hex()}", base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    ):  # fmt: skip
        assert key_named(text) == raw, text
    for text in ("ada", raw.hex()[:-1], "", base64.b64encode(raw[:-1]).decode()):
        assert key_named(text) is None, text


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "missing"),
        ({"Signature-Input": 'a=("@method")', "Signature": "a=:AAAA:"}, "64 bytes"),
        ({"Signature-Input": "a=;;;", "Signature": "a=:AAAA:"}, "no dictionary"),
        ({"Signature-Input": 'a=("@method");created=1;keyid="x"', "Signature": f"b=:{'A' * 86}==:"}, "label a"),
        ({"Signature-Input": 'a=("@method");created=1;keyid="x"', "Signature": f"a=:{'A' * 86}==:"}, "@target-uri"),
        ({"Signature-Input": 'a=("@target-uri");created=1;keyid="x"', "Signature": f"a=:{'A' * 86}==:"}, "@method"),
        ({"Signature-Input": 'a=("@method" "@method");created=1;keyid="x"', "Signature": f"a=:{'A' * 86}==:"}, "twice"),
        ({"Signature-Input": 'a=("@method");created=1;keyid="x";alg="rsa-v1_5-sha256"', "Signature": f"a=:{'A' * 86}==:"},
         "ed25519"),
        ({"Signature-Input": 'a=("@method" "@target-uri");keyid="x"', "Signature": f"a=:{'A' * 86}==:"}, "created"),
        ({"Signature-Input": 'a=("@method" "@target-uri");created=1', "Signature": f"a=:{'A' * 86}==:"}, "keyid"),
        ({"Signature-Input": 'a=("@method";req "@target-uri");created=1;keyid="x"', "Signature": f"a=:{'A' * 86}==:"},
         "plain names"),
        ({"Signature-Input": 'a=("@method" "@target-uri" "x-not-there");created=1;keyid="x"',
          "Signature": f"a=:{'A' * 86}==:"}, "not there"),
        ({"Signature-Input": 'a=("@method" "@target-uri" "@status");created=1;keyid="x"',
          "Signature": f"a=:{'A' * 86}==:"}, "not known"),
        ({"Signature-Input": "x" * (FIELD_MAX_CHARS + 1), "Signature": "a=:AAAA:"}, "characters"),
        ({"Signature-Input": "a=" + "(" * 3000, "Signature": "a=:AAAA:"}, "no dictionary"),
        ({"Signature-Input": 'a=("@method" "@target-uri");created="1";keyid="x"', "Signature": f"a=:{'A' * 86}==:"},
         "whole number"),
        ({"Signature-Input": 'ä=("@method")', "Signature": "a=:AAAA:"}, "no dictionary"),
    ],
)  # fmt: skip
def test_what_does_not_cover_the_request_is_told_what_it_lacks(fields: dict[str, str], word: str) -> None:
    headers = CIMultiDictProxy(CIMultiDict(fields))
    with pytest.raises(UnreadableError, match=word):
        read_signature(Target("GET", "https", "n", "/", headers), has_body=False)


def test_of_several_signatures_the_first_good_enough_one_counts() -> None:
    request = signed(("@method",), label="weak")
    weak = dict(request.headers)
    for name in ("Signature", "Signature-Input"):
        del request.headers[name]
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
        request, key_id=KEY.public_key.hex(), label="whole", use_existing_digest=True,
        covered_component_ids=("@method", "@target-uri", "content-digest"),
    )  # fmt: skip
    for name in ("Signature", "Signature-Input"):
        request.headers[name] = f"{weak[name]}, {request.headers[name]}"
    assert good(read_signature(target(request), has_body=True))
