"""A chain is believed that leads from the name to an authority; near misses are not."""

from __future__ import annotations

import pytest
from cryptography import x509

from node.acme.authorities import is_believed, system_roots
from tests.support.runtime.pem import Authority

GOOD, OTHER = Authority(), Authority("another")


def chain_of(authority: Authority, name: str, ends: int = 10) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(authority.issue(name, ends)[0])


@pytest.mark.parametrize("name", ["site.test", "*.site.test"])
def test_a_chain_that_leads_to_an_authority_is_believed_also_when_it_has_ended(name: str) -> None:
    for ends in (10, -1):
        assert is_believed(chain_of(GOOD, name, ends), name, [GOOD.certificate])


def test_another_name_another_authority_and_none_are_not() -> None:
    chain = chain_of(GOOD, "site.test")
    assert not is_believed(chain, "other.test", [GOOD.certificate])
    assert not is_believed(chain, "www.site.test", [GOOD.certificate])
    assert not is_believed(chain, "site.test", [OTHER.certificate])
    assert not is_believed(chain, "site.test", [])
    assert not is_believed([], "site.test", [GOOD.certificate])
    assert not is_believed(chain_of(GOOD, "*.test"), "*.site.test", [GOOD.certificate])


def test_an_authority_of_the_same_name_signs_nothing_in_the_others_place() -> None:
    forged = Authority()  # it has the good one's name
    chain = chain_of(forged, "site.test")
    assert not is_believed(chain, "site.test", [GOOD.certificate])
    assert not is_believed([*chain, forged.certificate], "site.test", [GOOD.certificate])


def test_the_machines_own_authorities_are_read_once() -> None:
    assert system_roots() is system_roots()
