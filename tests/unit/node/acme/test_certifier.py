"""When a certificate is due and when a failed try comes again: never before the authority's word, and later each time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509

from node.acme.certifier import (
    KEYLESS_MS,
    LIMITED_MS,
    RETRY_MAX_MS,
    RETRY_MS,
    Certifier,
    NameState,
    next_try_ms,
    renewal_due_ms,
)
from node.acme.client import AcmeError
from node.acme.shared import HeldSite
from protocols.machine import Now, PeerId
from protocols.records.sites import SiteCertificate
from tests.support.runtime import pem

DAY_MS = 86_400_000


def test_tries_come_later_and_later_up_to_a_day() -> None:
    refused = AcmeError("connection", "refused")
    waits = [next_try_ms(failures, refused, 0) for failures in range(1, 40)]
    assert waits[:4] == [RETRY_MS, 2 * RETRY_MS, 4 * RETRY_MS, 8 * RETRY_MS]
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MAX_MS
    assert next_try_ms(1, refused, 1) == RETRY_MS * 3 // 2


@pytest.mark.parametrize(
    ("rule", "retry_after_s", "least_ms"),
    [("rateLimited", 0, LIMITED_MS), ("rateLimited", 7200, 7_200_000), ("serverInternal", 7200, 7_200_000),
     ("connection", 1, RETRY_MS)],
    ids=["limited", "limited-until", "told", "told-too-soon"],
)  # fmt: skip
def test_the_authoritys_word_comes_first(rule: str, retry_after_s: float, least_ms: int) -> None:
    assert next_try_ms(1, AcmeError(rule, "no", retry_after_s), 0) == least_ms


def held(folder: Path, *, begins: int, ends: int) -> HeldSite:
    chain = pem.write(folder / "one.pem", begins=begins, ends=ends).read_bytes()
    site = SiteCertificate("site.test", chain, cast(Any, SimpleNamespace(boxes=())))
    return HeldSite(PeerId("n"), site, x509.load_pem_x509_certificate(chain))


def test_a_certificate_is_renewed_with_a_third_of_its_life_left(tmp_path: Path) -> None:
    held_site = held(tmp_path, begins=-60, ends=30)
    assert renewal_due_ms(held_site, None) == held_site.ends_ms - 30 * DAY_MS
    short = held(tmp_path, begins=0, ends=6)
    assert renewal_due_ms(short, None) == short.ends_ms - 2 * DAY_MS


def test_in_the_authoritys_window_each_certificate_has_a_moment_of_its_own(tmp_path: Path) -> None:
    moments = {renewal_due_ms(held(tmp_path, begins=-60, ends=30), (1_000, 101_000)) for _ in range(8)}
    assert len(moments) > 4
    assert all(1_000 <= moment < 101_000 for moment in moments)
    held_site = held(tmp_path, begins=-60, ends=30)
    assert renewal_due_ms(held_site, (5, 5)) == 5  # renew at once: the certificate will be revoked
    assert renewal_due_ms(held_site, (1_000, 101_000)) == renewal_due_ms(held_site, (1_000, 101_000))


def test_a_window_that_leads_to_the_end_is_no_reason_to_have_no_certificate(tmp_path: Path) -> None:
    held_site = held(tmp_path, begins=-60, ends=30)
    latest_ms = held_site.ends_ms - 15 * DAY_MS
    assert renewal_due_ms(held_site, (held_site.ends_ms, held_site.ends_ms + DAY_MS)) == latest_ms
    assert renewal_due_ms(held_site, (latest_ms - 1, latest_ms - 1)) == latest_ms - 1, (
        "the authority's word, where it can be kept"
    )


def test_what_is_kept_of_a_name_holds_no_key() -> None:
    state = NameState("site.test", "https://localhost/o", "ab" * 32, 2, 5, "why")
    text = msgspec.json.encode(state)
    assert msgspec.json.decode(text, type=NameState) == state
    assert set(msgspec.json.decode(text)) == {"name", "order", "salt", "failures", "not_before_ms", "why"}


class Sites:
    """What records say of one name: each with whom its key is sealed to."""

    def __init__(self, *held: HeldSite) -> None:
        self.held = held

    def best(self, name: str, *, opens_here: bool = False) -> HeldSite | None:
        held_sites = [
            held_site for held_site in self.held if name == "site.test" and (not opens_here or "me" in held_site.nodes)
        ]
        return max(held_sites, key=lambda one: one.ends_ms, default=None)


def sealed_to(folder: Path, *nodes: str, ends: int) -> HeldSite:
    chain = pem.write(folder / "one.pem", begins=-1, ends=ends).read_bytes()
    boxes = tuple(SimpleNamespace(node=PeerId(node)) for node in nodes)
    return HeldSite(
        PeerId(nodes[0]),
        SiteCertificate("site.test", chain, cast(Any, SimpleNamespace(boxes=boxes))),
        x509.load_pem_x509_certificate(chain),
    )


def certifier(folder: Path, sites: Sites) -> Certifier:
    nodes = [SimpleNamespace(node=PeerId(text)) for text in ("me", "liar", "other")]
    core: Any = SimpleNamespace(node=PeerId("me"), state=SimpleNamespace(nodes=nodes))
    rest: Any = {"entropy": None, "post": None, "clock": None, "asking": None}
    shared: Any = sites
    return Certifier(core, cast(Any, None), shared, seed=b"s", folder=folder / "orders", own_names=frozenset, **rest)


def test_a_certificate_that_nobody_gives_this_node_keeps_it_from_ordering_for_minutes_not_for_ever(
    tmp_path: Path,
) -> None:
    now_ms = int(pem.NOW.timestamp() * 1000)
    hidden = sealed_to(tmp_path, "liar", ends=3_000)
    new_certifier = certifier(tmp_path, Sites(hidden))
    held = new_certifier._held("site.test")
    assert held is hidden
    assert not new_certifier._due("site.test", held, Now(1_000, now_ms)), "whoever has it may still be about to give it"
    assert not new_certifier._due("site.test", held, Now(1_000 + KEYLESS_MS - 1, now_ms))
    assert new_certifier._due("site.test", held, Now(1_000 + KEYLESS_MS, now_ms))


def test_what_opens_here_is_renewed_whatever_a_member_says_of_one_that_does_not(tmp_path: Path) -> None:
    now_ms = int(pem.NOW.timestamp() * 1000)
    mine, hidden = sealed_to(tmp_path, "me", "other", ends=30), sealed_to(tmp_path, "liar", ends=3_000)
    new_certifier = certifier(tmp_path, Sites(mine, hidden))
    held = new_certifier._held("site.test")
    assert held is mine
    assert not new_certifier._due("site.test", held, Now(1_000, now_ms))
    assert new_certifier._due("site.test", held, Now(1_000, mine.ends_ms - 5 * DAY_MS)), "a third of its life is left"
