"""Where a node speaks to: public addresses by https, private ones where the machine's owner said so, never a cloud's own."""

from __future__ import annotations

import pytest

from node.reaching import Checked, Reaching, attempt_of, may_reach, url_problem
from tests.support.mesh.receiver import a_receiver

PUBLIC = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")
PRIVATE = ("127.0.0.1", "10.1.2.3", "192.168.1.9", "172.16.0.1", "::1", "fd00::1", "::ffff:10.0.0.1")
NEVER = ("169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:169.254.169.254",
         "64:ff9b::a9fe:a9fe", "255.255.255.255", "nonsense")  # fmt: skip


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_addresses(private: bool) -> None:
    assert all(may_reach(text, private=private) for text in PUBLIC)
    assert [text for text in PRIVATE if may_reach(text, private=private)] == (list(PRIVATE) if private else [])
    assert not [text for text in NEVER if may_reach(text, private=private)]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://hooks.example.org/a?b=c", ""),
        ("https://93.184.216.34:8443/a", ""),
        ("http://hooks.example.org/", "address.url"),
        ("https://user:pass@hooks.example.org/", "address.url"),
        ("https://hooks.example.org/#x", "address.url"),
        ("ftp://hooks.example.org/", "address.url"),
        ("https://", "address.url"),
        ("https://[::1", "address.url"),
        ("https://x:99999/", "address.url"),
        ("https://127.0.0.1/", "address.private"),
        ("https://[::1]/", "address.private"),
        ("https://[::ffff:127.0.0.1]/", "address.private"),
    ],
)  # fmt: skip
def test_what_may_be_named(url: str, rule: str) -> None:
    refusal = url_problem(url, private=False)
    assert (refusal.rule if refusal is not None else "") == rule


def test_private_allows_this_network_and_still_no_metadata_service() -> None:
    assert url_problem("http://192.168.1.9:9000/hook", private=True) is None
    assert url_problem("http://169.254.169.254/latest/meta-data", private=True) is not None


async def test_a_name_that_leads_here_is_not_reached_by_a_public_webhook() -> None:
    with pytest.raises(OSError, match="no address that may be reached"):
        await Checked(private=False).resolve("localhost", 80)
    assert await Checked(private=True).resolve("localhost", 80)
    reaching = Reaching()
    try:
        async with a_receiver() as receiver:
            port = receiver.url.partition("127.0.0.1:")[2]
            refused = await reaching.post(f"https://localhost:{port}", b"", {}, private=False)
            assert (refused.delivered, receiver.came) == (False, [])
            assert "may be reached" in refused.result
    finally:
        await reaching.close()


async def test_a_redirect_is_no_delivery_and_is_not_followed() -> None:
    reaching = Reaching()
    try:
        async with a_receiver() as inner, a_receiver(lambda _one: (307, {"Location": inner.url})) as outer:
            ended = await reaching.post(outer.url, b"{}", {}, private=True)
            assert (ended.delivered, ended.result, len(outer.came), inner.came) == (False, "status 307", 1, [])
    finally:
        await reaching.close()


@pytest.mark.parametrize(
    ("status", "field", "delivered", "gone", "again_s"),
    [
        (200, "", True, False, 0), (204, "", True, False, 0), (299, "", True, False, 0), (300, "", False, False, 0),
        (410, "", False, True, 0), (404, "", False, False, 0), (429, "120", False, False, 120),
        (503, "99999999", False, False, 0), (503, "9999999", False, False, 86_400), (503, "-1", False, False, 0),
        (503, "²", False, False, 0), (503, "Wed, 21 Oct 2026 07:28:00 GMT", False, False, 0),
    ],
)  # fmt: skip
def test_what_a_status_says(status: int, field: str, delivered: bool, gone: bool, again_s: int) -> None:
    sending = attempt_of(status, field)
    assert (sending.delivered, sending.gone, sending.again_s) == (delivered, gone, again_s)
