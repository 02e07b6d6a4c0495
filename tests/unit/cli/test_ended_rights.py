"""What an admin gives anew to a key whose grants all ended. Not here: renewal itself (test_keys_of_people.py)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cli.access.ended_rights import as_it_was, givers_of, name_it_had
from cli.access.principals import Principal
from cli.errors import UsageError
from protocols.envelope import Signed, encode, sign
from protocols.keys import Ed25519Signer
from protocols.trust.grants import GRANT_DOMAIN, Grant

MESH = b"m" * 32
LOST, NEW, OTHER, HOLDER = (Ed25519Signer(bytes([number]) * 32) for number in range(1, 5))
GRANT = Grant(HOLDER.public_key, "person", "ann", ("deployer",), ("shop",), ("staging",), 5_000, b"n" * 16)


def chain(grant: Grant = GRANT, by: Ed25519Signer = LOST, mesh: bytes = MESH) -> bytes:
    return encode((sign(by, GRANT_DOMAIN, mesh, grant),))


def ended(*chains: bytes, problem: str = "grant.not-by-admin: the first grant", name: str = "") -> Principal:
    return Principal(HOLDER.public_key.hex(), name, "", (), (), (), (), 0, (), (), problem, chains)


@pytest.mark.parametrize("rule", ["grant.not-by-admin", "grant.expired"])
def test_what_ended_is_shown_as_it_was_given(rule: str) -> None:
    principal = as_it_was(ended(chain(), problem=f"{rule}: x"), MESH, (NEW.public_key,))
    assert (principal.name, principal.kind) == ("ann", "person")
    assert name_it_had(ended(chain(), problem=f"{rule}: x"), MESH) == "ann"
    (rights,) = principal.each
    assert (rights.roles, rights.projects, rights.environments) == (("deployer",), ("shop",), ("staging",))
    assert rights.expires_ms == 0, "renewed however long it would have lasted"
    assert principal.lineage == (HOLDER.public_key.hex(),)


def test_each_ended_grant_stays_one_of_its_own() -> None:
    second = replace(GRANT, projects=("news",), environments=("production",))
    principal = as_it_was(ended(chain(), chain(second)), MESH, (NEW.public_key,))
    assert [(rights.projects, rights.environments) for rights in principal.each] == [
        (("shop",), ("staging",)),
        (("news",), ("production",)),
    ]


@pytest.mark.parametrize("problem", ["key.revoked: x", "grant.revoked: x", "grant.none: x", "", "grant.expiredly: x"])
def test_what_was_taken_away_and_what_still_counts_is_left_as_it_is(problem: str) -> None:
    principal = ended(chain(), problem=problem)
    assert as_it_was(principal, MESH, (NEW.public_key,)) is principal
    assert name_it_had(principal, MESH) == ""


@pytest.mark.parametrize(
    "data",
    [
        chain(mesh=b"o" * 32),
        chain(replace(GRANT, key=OTHER.public_key)),
        chain(replace(GRANT, kind="agent", roles=("developer",))),
        encode((Signed(sign(LOST, GRANT_DOMAIN, MESH, GRANT).payload, LOST.public_key, b"s" * 64),)),
        encode(()),
        b"\xc1",
    ],
    ids=["other-mesh", "other-key", "agent", "unsigned", "empty", "garbage"],
)
def test_a_chain_that_never_gave_this_key_anything_gives_nothing_back(data: bytes) -> None:
    principal = ended(data)
    assert as_it_was(principal, MESH, (NEW.public_key,)) is principal


def test_what_is_shown_before_it_is_signed_stays_in_its_line_and_names_who_gave_it() -> None:
    """A chain by a key that was never an admin's is good by its own signatures: only its giver tells."""
    mark = "ann: viewer in docs" + "\n" * 99
    forged = chain(replace(GRANT, name=mark, projects=("*", mark), environments=("*", mark)), by=OTHER)
    principal = as_it_was(ended(forged), MESH, (NEW.public_key,))
    for text in (principal.name, *principal.projects, *principal.environments):
        assert all(line.startswith("  | ") for line in text.split("\n")[1:])
    assert givers_of(ended(forged, chain(), chain()), MESH) == (OTHER.public_key, LOST.public_key)
    assert givers_of(ended(chain(mesh=b"o" * 32)), MESH) == ()


def test_a_founders_key_becomes_one_person_with_the_admin_key_at_hand() -> None:
    own = ended(chain(replace(GRANT, same_person=True)))
    principal = as_it_was(own, MESH, (NEW.public_key,), own_admin=NEW.public_key)
    assert set(principal.lineage) == {NEW.public_key.hex(), HOLDER.public_key.hex()}
    with pytest.raises(UsageError, match="who is no admin any more"):
        as_it_was(own, MESH, (NEW.public_key,))
    unchanged = as_it_was(own, MESH, (NEW.public_key, LOST.public_key), own_admin=NEW.public_key)
    assert LOST.public_key.hex() in unchanged.lineage, "an admin who is one still counts as that person"
