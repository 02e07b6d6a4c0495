"""`freehold dns`: which records a name gets, and that nothing from a node becomes a line of its own in a zone file."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cli.commands.mesh.dns import described, records_of
from protocols.api_models import NameView

RECORDS = [
    (["192.0.2.1", "2001:db8::1"], ["a.test. 300 IN A 192.0.2.1", "a.test. 300 IN AAAA 2001:db8::1"]),
    (["edge1.example.com", "edge2.example.com."], ["a.test. 300 IN CNAME edge1.example.com."]),
    (["edge1.example.com", "192.0.2.1"], ["a.test. 300 IN A 192.0.2.1"]),
    (["x. 1 IN A 6.6.6.6\nevil", "a b", "a;b", ""], []),
    ([], []),
]


@pytest.mark.parametrize(("hosts", "lines"), RECORDS, ids=["addresses", "names", "both", "hostile", "none"])
def test_a_name_leads_to_addresses_or_else_to_one_name(hosts: list[str], lines: list[str]) -> None:
    assert records_of("a.test", hosts) == lines


def test_what_a_person_is_told() -> None:
    name = NameView("a.test", "site", "production", ("n",), (), 0, "", "rateLimited: too many certificates")
    text = "\n".join(described(name, []))
    assert "no node says where visitors reach it" in text
    assert "rateLimited: too many certificates" in text
    held = described(replace(name, certificate_until_ms=1_800_000_000_000, certificate_by="CN=R11", problem=""), [])
    assert held[-1].startswith("  certificate until 2027-01-15")
    assert held[-1].endswith("by CN=R11")
