"""The routing table: the longest match wins, whole segments only, and nobody claims what is the node's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.ingress.routing import SEGMENTS_MAX, RouteError, RouteTable, normal_host

TABLE = RouteTable(
    [
        (None, "/", "root"),
        (None, "/guestbook", "guestbook"),
        (None, "/guestbook/admin/", "admin"),
        ("Shop.Example.", "/", "shop"),
        ("shop.example", "/api", "api"),
        ("api.example", "/v1", "v1"),
    ]
)


@pytest.mark.parametrize(
    ("authority", "path", "target"),
    [
        ("a", "/", "root"),
        ("a", "/guestbook", "guestbook"),
        ("a", "/guestbook/", "guestbook"),
        ("a", "/guestbook/x/y", "guestbook"),
        ("a", "/guestbooks", "root"),
        ("a", "/guestbook/admin", "admin"),
        ("a", "/guestbook/administrator", "guestbook"),
        ("shop.example", "/guestbook", "shop"),
        ("SHOP.example.:8080", "/api/x", "api"),
        ("api.example", "/v1/x", "v1"),
        ("api.example", "/v2", "root"),
    ],
)
def test_the_longest_match_wins(authority: str, path: str, target: str) -> None:
    assert TABLE.find(authority, path) == target


def test_no_match_is_none() -> None:
    assert RouteTable([("a", "/x", 1)]).find("b", "/x") is None
    assert RouteTable([("a", "/x", 1)]).find("a", "/y") is None
    assert RouteTable[int]().find("a", "/") is None


@pytest.mark.parametrize("prefix", ["/.freehold", "/.freehold/", "/.freehold/x", "x", "", "/a?b", "/a" * 65])
def test_a_prefix_that_cannot_stand_is_refused(prefix: str) -> None:
    with pytest.raises(RouteError):
        RouteTable([(None, prefix, 1)])


def test_a_reserved_path_reaches_no_app_even_through_a_root_route() -> None:
    assert TABLE.find("a", "/.freehold") is None
    assert TABLE.find("shop.example", "/.freehold/health") is None
    assert TABLE.find("a", "/.freeholder") == "root"


@pytest.mark.parametrize("below", ["acme-challenge", "pki-validation"])
def test_no_project_answers_where_an_authority_asks_whose_a_host_is(below: str) -> None:
    proof = f"/.well-known/{below}"
    taken = RouteTable([("shop.example", "/", "shop"), ("shop.example", proof, "thief"), (None, proof, "thief")])
    for asked in (proof, f"{proof}/", f"{proof}/{'u' * 43}"):
        assert taken.find("shop.example", asked) is None, "not the thief, and not the host's own root either"
        assert taken.find("other.example", asked) is None
        assert RouteTable([(None, "/", "any")]).find("shop.example", asked) is None
    assert taken.find("shop.example", f"{proof}s") == "shop"
    assert taken.find("shop.example", "/.well-known/security.txt") == "shop"


def test_a_route_claimed_twice_is_refused() -> None:
    with pytest.raises(RouteError, match="claimed twice"):
        RouteTable([("a", "/x", 1), ("A", "/x/", 2)])


@pytest.mark.parametrize(
    ("authority", "host"), [("A.b:80", "a.b"), ("a.", "a"), ("[::1]:80", "[::1]"), ("[::1", ""), ("", "")]
)
def test_a_host_is_its_authority_without_case_port_and_final_dot(authority: str, host: str) -> None:
    assert normal_host(authority) == host


@given(st.lists(st.text("/ab", min_size=1, max_size=6).map(lambda text: "/" + text)), st.text("/ab", max_size=12))
def test_a_lookup_agrees_with_trying_every_prefix(prefixes: list[str], rest: str) -> None:
    path = "/" + rest
    unique = {prefix.rstrip("/"): prefix for prefix in prefixes}
    table = RouteTable([(None, prefix, key) for key, prefix in unique.items() if prefix.startswith("/")])
    matching = [key for key in unique if path == key or path.startswith(key + "/")]
    assert table.find("a", path) == (max(matching, key=len) if matching else None)


def test_a_path_of_many_segments_is_matched_in_bounded_steps() -> None:
    assert TABLE.find("a", "/guestbook" + "/x" * 5000) == "guestbook"
    deep = "/d" * SEGMENTS_MAX
    assert RouteTable([(None, deep, 1)]).find("a", deep + "/x" * 100) == 1
