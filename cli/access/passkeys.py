"""Passkeys of this person, as they are known here: what a browser calls them, and what voters take of them.

    passkeys/NAME.json      mesh, the credential's id, and the description that a grant names by digest; all public

The private key is the authenticator's. Not here: the page that asks for a touch (cli/console), what voters check.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass

import msgspec

from cli.access import contexts
from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.principals import principal_of
from cli.errors import CommandError, UsageError
from protocols.changes.demands import PASSKEY_RULES
from protocols.changes.evidence import seal_by_passkey
from protocols.changes.passkeys import Assertion, passkey_id, read_passkey
from protocols.envelope import Signed, digest, encode, sign
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from protocols.refusal import Refusal
from protocols.trust.grants import ANY, GRANT_DOMAIN, VERBS_OF_ROLE, Grant, Role

NONCE_BYTES = 16
STORED_MAX_BYTES = 16 * 1024


class StoredPasskey(msgspec.Struct, frozen=True):
    """One passkey: the mesh's id in hex, the credential's id in base64url, and its description's bytes."""

    mesh: str
    credential: str
    description: bytes

    @property
    def id(self) -> Digest:
        """What its grant names as its key."""
        return passkey_id(self.description)

    @property
    def origins(self) -> tuple[str, ...]:
        """Where it may be used."""
        read = read_passkey(self.description)
        return () if isinstance(read, Refusal) else read[0].origins


class Touched(msgspec.Struct, frozen=True):
    """What the page says of a touch: the credential's id and the assertion's parts, each in base64url."""

    credential: str
    authenticator_data: str
    client_data: str
    signature: str

    def envelope(self, passkey: StoredPasskey, statement: bytes) -> bytes:
        """Return the envelope of the statement; whether it is good, whoever reads it says. Raises CommandError."""
        parts = (passkey.description, unpadded(self.authenticator_data), unpadded(self.client_data))
        said = Assertion(*(base64.b64encode(part).decode() for part in parts))
        return seal_by_passkey(statement, passkey.id, unpadded(self.signature), said)


def unpadded(text: str) -> bytes:
    """Decode base64url without padding, as browsers write it. Raises CommandError."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise CommandError(
            "the page sent no base64", next_step="load the page again", kind="passkey.malformed"
        ) from None


def known_passkeys(context: Context) -> tuple[StoredPasskey, ...]:
    """Return the passkeys of this mesh that are known here, by file name."""
    stored_passkeys = []
    for path in sorted((contexts.home_folder() / "passkeys").glob("*.json")):
        try:
            data = path.read_bytes()
            stored_passkey = msgspec.json.decode(data, type=StoredPasskey) if len(data) <= STORED_MAX_BYTES else None
        except (OSError, msgspec.DecodeError):
            raise CommandError(
                f"{path} is damaged", next_step=f"rm {path}, then freehold passkey add", kind="passkey.damaged"
            ) from None
        if stored_passkey is not None and stored_passkey.mesh == context.mesh:
            stored_passkeys.append(stored_passkey)
    return tuple(stored_passkeys)


def require_unknown(name: str) -> None:
    """Raise UsageError if there is a passkey of that name."""
    if (contexts.home_folder() / "passkeys" / f"{name}.json").exists():
        raise UsageError(
            f"there is a passkey {name} already", next_step="choose another: freehold passkey add --name NAME",
            kind="exists",
        )  # fmt: skip


def store_passkey(name: str, passkey: StoredPasskey) -> None:
    """Keep what is known of a passkey."""
    folder = contexts.home_folder() / "passkeys"
    folder.mkdir(exist_ok=True, mode=0o700)
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(passkey))


def forget_passkey(context: Context, key: bytes) -> None:
    """Forget what is known here of a passkey."""
    for path in (contexts.home_folder() / "passkeys").glob("*.json"):
        known = msgspec.json.decode(path.read_bytes(), type=StoredPasskey)
        if (known.mesh, known.id) == (context.mesh, key):
            path.unlink()


async def require_passkey_rules(client: NodeClient) -> None:
    """Raise CommandError in a mesh whose rules know no passkeys."""
    rules = (await client.state()).rules_version
    if rules < PASSKEY_RULES:
        raise CommandError(
            f"the mesh judges by rules {rules}; passkeys need {PASSKEY_RULES}",
            next_step="freehold mesh rules --raise, by an admin, once every node runs a release that knows them",
            kind="rules.passkey",
        )


@dataclass(frozen=True, slots=True)
class GrantScope:
    """What a passkey's grant may give at most; `expires_ms` is 0 where the person's own right has no end."""

    roles: tuple[Role, ...]
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    expires_ms: int
    same_person: bool = False


async def approving_grant(client: NodeClient, person: bytes, *, admin: bool) -> tuple[tuple[Signed, ...], GrantScope]:
    """Return the chain that a passkey's grant is put under, and what it may give; an admin's key needs no chain.

    Raises CommandError if the person may not approve anywhere.
    """
    if admin:
        return (), GrantScope(("approver", "admin"), (ANY,), (ANY,), 0, same_person=True)
    mine = await principal_of(client, person)
    held = next((rights for rights in mine.each if "approve" in rights.verbs), None)
    if mine.problem or held is None:
        raise CommandError(
            f"your key approves nothing here: {mine.problem or 'it has no role that may'}",
            next_step="ask an admin: freehold mesh invite --kind principal --role approver, then freehold login LINE",
            kind="approval.no-rights",
        )
    roles = tuple(role for role in VERBS_OF_ROLE if role in held.roles and "approve" in VERBS_OF_ROLE[role])
    return mine.chain_of(held), GrantScope(roles, held.projects, held.environments, held.expires_ms)


async def grant_passkey(
    client: NodeClient, person: Ed25519Signer, chain: tuple[Signed, ...], gives: GrantScope, *, key: bytes,
    name: str, span_ms: int,
) -> Grant:  # fmt: skip
    """Have the person's key take the passkey `key` into its grant, for approvals alone, and file that."""
    until_ms = time.time_ns() // 1_000_000 + span_ms
    grant = Grant(
        key=key, kind="person", name=name, nonce=secrets.token_bytes(NONCE_BYTES), verbs=("approve",),
        parent=bytes(digest(chain[-1].payload)) if chain else b"",
        expires_ms=min(until_ms, gives.expires_ms) if gives.expires_ms else until_ms, roles=gives.roles,
        projects=gives.projects, environments=gives.environments, same_person=gives.same_person,
    )  # fmt: skip
    link = sign(person, GRANT_DOMAIN, await client.mesh(), grant)
    await client.publish("grant", key.hex(), encode((*chain, link)))
    return grant
