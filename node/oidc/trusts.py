"""Trusts: which jobs of a CI platform this node gives a grant to, out of a grant that a person gave the trust.

A trust has a key on this node, and a person's grant to it says what its jobs may do at most; taking that grant away ends the
trust everywhere. For a job's believed token the trust's key signs the next link of the chain, to the job's own key, which
ends within the hour. So voters judge a job as they judge any agent, and nothing is fetched while they judge. What such a
node could do with the key is what the person gave it. Not here: what a token must say (tokens.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from node.errors import NotDoneError, NotNowError
from node.keys import write_private_in
from node.mesh.core_requests import Filing
from node.oidc.issuers import Issuers
from node.oidc.tokens import Conditions, IssuerKey, audience_of, believed, issuer_named, key_named, read_keys
from node.reaching import url_problem
from protocols.core import NodeCore
from protocols.envelope import Signed, digest, sign
from protocols.keys import SEED_BYTES, Ed25519Signer
from protocols.machine import Entropy, Now
from protocols.records.credentials import grant_record
from protocols.refusal import Refusal
from protocols.trust.grants import ANY, GRANT_DOMAIN, Grant, GrantChain, Rights
from runtime.durable import sync_folder

TRUSTS_MAX = 16
JOB_MS = 3_600_000
"""How long a job's grant lasts at most; it never outlives its token."""

JOBS_PER_HOUR = 60
"""Grants that one trust gives: each is a record that every node keeps until it ends."""

NONCE_BYTES = 16
_log = logging.getLogger("freehold.oidc")


class Trust(msgspec.Struct, frozen=True):
    """One trust as it is kept; `pinned` holds the issuer's keys where they are not fetched. `seed` is the trust's own key."""

    name: str
    conditions: Conditions
    seed: bytes
    private: bool = False
    pinned: tuple[IssuerKey, ...] = ()
    author: str = ""
    added_ms: int = 0

    @property
    def signer(self) -> Ed25519Signer:
        """The key that a person's grant goes to, and that signs the grants of jobs."""
        return Ed25519Signer(self.seed)


class JobGrant(msgspec.Struct, frozen=True):
    """What a job got: the trust, the grant's name and end (wall ms), and what the token said of the job."""

    trust: str
    name: str
    expires_ms: int
    subject: str


class Trusts:
    """All of a node's trusts."""

    def __init__(
        self, folder: Path, core: NodeCore, filing: Filing, clock: Callable[[], Now], entropy: Entropy
    ) -> None:
        """Take the folder, where each has a file, what is read, and where grants are filed."""
        self._folder, self._core, self._filing, self._clock, self._entropy = folder, core, filing, clock, entropy
        self._issuers = Issuers(clock)
        self._given: dict[str, deque[int]] = {}
        self._exchanging = asyncio.Lock()
        self.held: dict[str, Trust] = dict(_read(folder))

    async def add(self, wanted: Trust, jwks: bytes) -> Trust:
        """Keep a new trust with a key of its own; it gives nothing until a person grants that key something."""
        refusal = self._problem(wanted)
        if refusal is not None:
            raise NotDoneError(refusal, "freehold trust list")
        pinned: tuple[IssuerKey, ...] = ()
        if jwks:
            try:
                pinned = read_keys(jwks)
            except ValueError as error:
                raise NotDoneError(Refusal("trust.keys", str(error)), "give a JWK Set: --jwks FILE") from None
            if not pinned:
                raise NotDoneError(
                    Refusal("trust.keys", "none of the keys is RSA from 2048 bits, or P-256"), "--jwks FILE"
                )
        trust = msgspec.structs.replace(
            wanted, seed=self._entropy.random_bytes(SEED_BYTES), pinned=pinned, added_ms=self._clock().wall_ms
        )
        try:
            await asyncio.to_thread(write_private_in, self._folder, trust.name, msgspec.msgpack.encode(trust))
        except OSError as error:
            raise NotNowError(Refusal("trust.not-written", str(error)), "freehold doctor") from None
        self.held[trust.name] = trust
        return trust

    async def remove(self, name: str) -> None:
        """Give nothing more; what jobs hold ends within the hour, or when the person's grant is revoked."""
        if name not in self.held:
            raise NotDoneError(Refusal("trust.unknown", f"no trust is called {name[:63]!r}"), "freehold trust list")
        del self.held[name]
        await asyncio.to_thread(_remove, self._folder / name)

    def _problem(self, wanted: Trust) -> Refusal | None:
        if wanted.name in self.held:
            return Refusal("trust.exists", f"there is a trust {wanted.name} already; remove it first")
        if len(self.held) >= TRUSTS_MAX:
            return Refusal("trust.too-many", f"a node has at most {TRUSTS_MAX} trusts; remove one first")
        if not wanted.conditions.subject.strip("*:") and not wanted.conditions.claims:
            return Refusal("trust.too-wide", "anybody at this issuer would fit; name a repository, by its id")
        return url_problem(wanted.conditions.issuer, private=wanted.private)

    async def exchange(self, token: str, key: bytes) -> JobGrant:
        """Give the key that signed the request a grant for a believed token. Raises NotDoneError, NotNowError."""
        issuer = issuer_named(token)
        about = [trust for trust in self.held.values() if issuer and trust.conditions.issuer == issuer]
        about.sort(key=lambda one: not one.conditions.names_actor)  # whose job it is comes before anybody's
        refusal = Refusal("token.issuer", "no trust of this node is in the token's issuer")
        for trust in about:
            answer = await self._believed(trust, token, key)
            if not isinstance(answer, Refusal):
                async with self._exchanging:
                    return await self._give(trust, key, answer)
            refusal = answer
        raise NotDoneError(refusal, "an operator looks: freehold trust list")

    async def _believed(self, trust: Trust, token: str, key: bytes) -> Mapping[str, Any] | Refusal:
        keys = trust.pinned
        try:
            kid = key_named(token)
            if not keys:
                keys = tuple(await self._issuers.keys(trust.conditions.issuer, kid, private=trust.private))
        except ValueError as error:
            return Refusal("token.malformed", str(error))
        except OSError as error:
            raise NotNowError(
                Refusal("token.issuer-silent", f"the issuer's keys cannot be read: {error}"), "try again"
            ) from None
        audience = audience_of(self._core.trust.mesh, key)
        return believed(token, keys, trust.conditions, audience, self._clock().wall_ms // 1000)

    async def _give(self, trust: Trust, key: bytes, said: Mapping[str, Any]) -> JobGrant:
        wall_ms, subject = self._clock().wall_ms, str(said.get("sub", ""))[:200]
        ends_ms = min(1000 * int(said["exp"]), wall_ms + JOB_MS)
        name = f"{trust.name}-job"
        held = self._core.dossiers.rights(key, wall_ms)
        if isinstance(held, Rights):  # the answer before was lost
            return JobGrant(trust.name, held.name, held.expires_ms, subject)
        chain, rights = self._source(trust, wall_ms)
        refusal = self._stranger(trust, rights)
        if refusal is not None:
            raise NotDoneError(refusal, "each person adds one for their own jobs: freehold trust add NAME --actor-id N")
        numbers = self._given.setdefault(trust.name, deque())
        while numbers and wall_ms - numbers[0] >= JOB_MS:
            numbers.popleft()
        if len(numbers) >= JOBS_PER_HOUR:
            raise NotNowError(
                Refusal("trust.busy", f"the trust {trust.name} gave {JOBS_PER_HOUR} grants within an hour"),
                "try again later",
            )
        grant = Grant(
            key=key, kind="agent", name=name, roles=rights.roles, projects=rights.projects,
            environments=rights.environments, expires_ms=min(ends_ms, rights.expires_ms),
            nonce=self._entropy.random_bytes(NONCE_BYTES), parent=bytes(digest(chain[-1].payload)), verbs=rights.verbs,
        )  # fmt: skip
        link = sign(trust.signer, GRANT_DOMAIN, self._core.trust.mesh, grant)
        numbers.append(wall_ms)
        await self._filing.file(*grant_record(key, (*chain, link)))
        answer = self._core.dossiers.rights(key, self._clock().wall_ms)
        if isinstance(answer, Refusal):
            raise NotDoneError(answer, "an operator looks: freehold token list")
        _log.info("trust %s gave a grant to %s", trust.name, subject, extra={"event": "oidc.granted"})
        return JobGrant(trust.name, name, grant.expires_ms, subject)

    def _stranger(self, trust: Trust, rights: Rights) -> Refusal | None:
        """Why jobs of a trust that says nobody's must stay out: whoever starts one could approve their own change."""
        state = self._core.state
        asking = [
            environment.name for environment in state.environments
            if (environment.policy or state.policy).demands.approvals
            and any(environment.name in entry.environments or ANY in entry.environments for entry in rights.each)
        ]  # fmt: skip
        if trust.conditions.names_actor or not asking:
            return None
        return Refusal(
            "token.actor",
            f"a change of {asking[0]} needs somebody else's approval, and the trust {trust.name} does not say whose jobs"
            " come in by it",
        )

    def _source(self, trust: Trust, wall_ms: int) -> tuple[tuple[Signed, ...], Rights]:
        """The chain that a person gave the trust, and what it gives now. Raises NotDoneError if none holds."""
        core, public = self._core, trust.signer.public_key
        rights = core.dossiers.rights(public, wall_ms)
        if isinstance(rights, Refusal):
            raise NotDoneError(
                Refusal("trust.no-grant", f"the trust {trust.name} holds no grant now: {rights.detail}"),
                "a person gives it one: freehold trust add, anew",
            )
        chains: tuple[GrantChain, ...] = core.dossiers.chains(public)
        chain = next(chain for chain in chains if digest(chain[-1].payload) == rights.grants[-1])
        return tuple(chain), rights


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def _read(folder: Path) -> list[tuple[str, Trust]]:
    pairs = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix:
            continue
        try:
            pairs.append((path.name, msgspec.msgpack.decode(path.read_bytes(), type=Trust)))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.error("trust %s cannot be read: %s", path.name, error, extra={"event": "oidc.unreadable"})
    return pairs
