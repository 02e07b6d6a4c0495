"""Who calls: requests signed by a program that is not ours are good once, now, and at the node they name alone."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from multidict import CIMultiDict

from node.api.callers import nonces
from node.api.callers.callers import (
    BEFORE_START,
    CREATED_TOLERANCE_S,
    FAILURES_MAX,
    FUTURE_TOLERANCE_S,
    Callers,
)
from node.api.problems import ProblemError
from protocols.keys import Ed25519Signer, Ed25519Verifier

KEY = Ed25519Signer(b"k" * 32)
NODE, PIN = "12D3KooWnodeA", "ab" * 32
NOW_S = 1_700_000_000
COVERED = ("@method", "@target-uri", "freehold-node")
STRANGER = Ed25519Signer(b"s" * 32)


class Keys(HTTPSignatureKeyResolver):
    """Makes the independent library sign with the seed that the key id spells."""

    def resolve_private_key(self, key_id: str) -> Any:
        return Ed25519PrivateKey.from_private_bytes(b"k" * 32 if key_id == KEY.public_key.hex() else b"s" * 32)

    def resolve_public_key(self, key_id: str) -> Any:
        return self.resolve_private_key(key_id).public_key()


def signed(
    nonce: str = "nonce-0123456789abc",
    *,
    node: str = NODE,
    created_s: int = NOW_S,
    path: str = "/v1/changes?project=site",
    covered: tuple[str, ...] = COVERED,
    signer: Ed25519Signer = KEY,
    **changed: str,
) -> web.Request:
    """A request as it arrives; `changed` are fields that somebody changed behind the signature."""
    prepared_request = requests.Request("GET", f"https://node.test{path}", headers={"Freehold-Node": node}).prepare()
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
        prepared_request, key_id=signer.public_key.hex(), nonce=nonce, covered_component_ids=covered, include_alg=True,
        created=datetime.fromtimestamp(created_s),
    )  # fmt: skip
    headers = CIMultiDict({**dict(prepared_request.headers), "Host": "node.test", **changed})
    request = make_mocked_request("GET", path, headers=headers)
    request._transport_peername = ("192.0.2.7", 1)
    return request


def callers(
    now_s: float = NOW_S, *, started_s: float = NOW_S - 1_000.0, names: tuple[str, ...] = (NODE, PIN)
) -> Callers:
    clock = SimpleNamespace(now_s=now_s)
    new_callers = Callers(
        Ed25519Verifier(), lambda: clock.now_s, node_names=lambda: names, started_s=started_s,
        granted=lambda key: key == KEY.public_key,
    )  # fmt: skip
    new_callers.clock = clock  # type: ignore[attr-defined]
    return new_callers


def refused(asked: Callers, request: web.Request) -> tuple[int, str]:
    with pytest.raises(ProblemError) as error:
        asked.proven(request)
    return error.value.problem.status, error.value.problem.rule


def test_a_request_is_for_the_node_it_names_by_id_or_certificate_and_for_no_other() -> None:
    assert callers().proven(signed()).key == KEY.public_key.hex()
    assert callers().proven(signed(node=PIN)).key == KEY.public_key.hex()
    other = callers(names=("12D3KooWnodeB", "cd" * 32))
    assert refused(other, signed()) == (401, "caller.unsigned"), "a request captured at A was taken by B"
    assert refused(other, signed(node=PIN)) == (401, "caller.unsigned")
    assert refused(callers(), signed(covered=COVERED[:2])) == (401, "caller.unsigned"), "the field was not covered"
    assert refused(other, signed(**{"Freehold-Node": "12D3KooWnodeB"})) == (401, "caller.unsigned"), (
        "the field was moved"
    )


@pytest.mark.parametrize(
    "path", ["/v1/changes?project=other", "/v1/changes", "/v1/changes?project=site&limit=1", "/v1/lanes?project=site"]
)
def test_another_query_than_the_signed_one_is_no_signed_request(path: str) -> None:
    for covered in (
        COVERED,
        ("@method", "@authority", "@request-target", "freehold-node"),
        ("@method", "@authority", "@path", "@query", "freehold-node"),
    ):
        assert callers().proven(signed(covered=covered)).key == KEY.public_key.hex()
        assert refused(callers(), moved(covered, path)) == (401, "caller.unsigned")


def moved(covered: tuple[str, ...], path: str) -> web.Request:
    """A request whose target was changed after it was signed."""
    good = signed(covered=covered)
    request = make_mocked_request("GET", path, headers=good.headers)
    request._transport_peername = ("192.0.2.7", 1)
    return request


def test_a_signature_is_good_from_two_minutes_ago_until_now_and_not_a_moment_more() -> None:
    for created_s in (NOW_S, NOW_S - CREATED_TOLERANCE_S, NOW_S + FUTURE_TOLERANCE_S):
        assert callers().proven(signed(created_s=created_s)).key == KEY.public_key.hex()
    for created_s in (NOW_S - CREATED_TOLERANCE_S - 1, NOW_S + FUTURE_TOLERANCE_S + 1, NOW_S + CREATED_TOLERANCE_S):
        assert refused(callers(), signed(created_s=created_s)) == (401, "caller.unsigned"), created_s


def test_a_node_refuses_after_a_restart_all_that_could_have_been_made_before() -> None:
    started = NOW_S - 10.5
    first = int(started) + FUTURE_TOLERANCE_S + 1
    assert callers(started_s=started).proven(signed(created_s=first)).key == KEY.public_key.hex()
    for created_s in (first - 1, first - 2, NOW_S - 60):
        assert refused(callers(started_s=started), signed(created_s=created_s)) == (503, BEFORE_START), created_s


def test_a_request_is_made_once_for_as_long_as_its_date_is_good() -> None:
    asked = callers()
    asked.proven(signed())
    for later_s in (0, CREATED_TOLERANCE_S // 2, CREATED_TOLERANCE_S):
        asked.clock.now_s = NOW_S + later_s  # type: ignore[attr-defined]
        assert refused(asked, signed())[0] == 401, f"taken twice after {later_s} s"
    asked.proven(signed("another-nonce-of-20c", created_s=NOW_S + CREATED_TOLERANCE_S))


def test_a_key_whose_share_is_full_waits_and_forgets_nothing_while_another_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nonces, "NONCES_PER_KEY_MAX", 3)
    asked = callers()
    first = [signed(f"nonce-number-{number:08d}") for number in range(3)]
    for request in first:
        asked.proven(request)
    assert refused(asked, signed("nonce-number-00000009")) == (429, "caller.too-many-requests")
    for request in first:
        assert refused(asked, request) == (401, "caller.unsigned"), "one was forgotten, and could be made again"
    asked._granted = lambda _key: True
    assert asked.proven(signed(signer=STRANGER)).key == STRANGER.public_key.hex(), "one key's share was another's"
    asked.clock.now_s = NOW_S + CREATED_TOLERANCE_S + 1  # type: ignore[attr-defined]
    asked.proven(signed("nonce-number-00000010", created_s=NOW_S + CREATED_TOLERANCE_S))


def test_what_strangers_sign_uses_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "NONCES_MAX", 2)
    monkeypatch.setattr(nonces, "NONCES_RESERVED_PER_KEY", 0)
    asked = callers()
    for number in range(10):
        asked.proven(signed(f"nonce-number-{number:08d}", signer=STRANGER))
    asked.proven(signed())


def test_all_keys_together_are_bounded_and_each_keeps_its_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "NONCES_MAX", 4)
    monkeypatch.setattr(nonces, "NONCES_RESERVED_PER_KEY", 2)
    held = nonces.Nonces()
    assert [held.take(b"a", f"{number}", 10.0, 0.0) for number in range(6)] == [True] * 4 + [None] * 2
    assert [held.take(b"b", f"{number}", 10.0, 0.0) for number in range(3)] == [True, True, None]
    assert [held.take(b"a", f"{number}", 10.0, 10.0) for number in range(4)] == [False] * 4
    assert held.take(b"a", "9", 20.0, 10.5) is True


def test_failures_make_only_the_unproven_wait() -> None:
    asked = callers()
    unsigned = make_mocked_request("GET", "/v1/changes", headers={"Host": "node.test"})
    unsigned._transport_peername = ("192.0.2.7", 1)
    for _ in range(FAILURES_MAX):
        assert refused(asked, unsigned) == (401, "caller.unsigned")
    assert refused(asked, unsigned) == (429, "caller.too-many-failures")
    assert asked.proven(signed()).key == KEY.public_key.hex(), "a good signature waited for somebody's failures"
    elsewhere = make_mocked_request("GET", "/v1/changes", headers={"Host": "node.test"})
    elsewhere._transport_peername = ("192.0.2.8", 1)
    assert refused(asked, elsewhere) == (401, "caller.unsigned"), "another address waited"


def test_a_full_share_is_no_failure_that_locks_out() -> None:
    asked = callers(started_s=NOW_S)
    for _ in range(FAILURES_MAX + 5):
        assert refused(asked, signed()) == (503, BEFORE_START)
