"""A command opened for judgement: its verified signatures, the rights behind them, and its exhibits read.

Everything here is a function of the command, its material, the admins of the state and the moment `at_ms`, so that all
voters read the same. A superfluous or unreadable exhibit refuses the command: what a decision carries forever is
exactly what proves it. Not here: what the command does with it (rollout.py, governance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from protocols.chain.decision import MATERIAL_MAX_ITEMS, Material
from protocols.changes.change import (
    CHANGE_DOMAIN,
    CHANGE_MAX_BYTES,
    RELEASE_MAX_BYTES,
    Change,
    Release,
    change_problem,
    release_problem,
)
from protocols.changes.statements import STATEMENT_MAX_BYTES, Statement, open_statement
from protocols.envelope import DecodeError, Signed, decode, digest, verify
from protocols.machine import Digest, PeerId, Verifier
from protocols.refusal import Refusal
from protocols.state.commands import (
    COMMAND_DOMAIN,
    COMMAND_ID_BYTES,
    COMMAND_MAX_BYTES,
    SIGNATURES_MAX,
    Command,
    SignedCommand,
)
from protocols.trust.grants import (
    BEFORE_EXPIRY_MS,
    GRANT_MAX_BYTES,
    Grant,
    GrantChain,
    Rights,
    Verb,
    holders_of,
    rights_of_any,
)

CHAIN_MAX_BYTES = 6 * GRANT_MAX_BYTES
SIGNED_OVERHEAD_BYTES = 256
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """What judging needs beside the state: a verifier of signatures and the mesh id they cover."""

    verifier: Verifier
    mesh: Digest


@dataclass(frozen=True, slots=True)
class Case:
    """A command under judgement at `at_ms`; `chains` are the grant chains shown, by the key they end in: all count."""

    command: Command
    signers: tuple[bytes, ...]
    exhibits: SignedCommand
    material: Material
    at_ms: int
    rules: Rules
    admins: tuple[bytes, ...]
    chains: Mapping[bytes, Sequence[GrantChain]]

    def rights(self, key: bytes, at_ms: int | None = None) -> Rights | Refusal:
        """Return what `key` may do at `at_ms` (this decision's moment unless given)."""
        moment = self.at_ms if at_ms is None else at_ms
        return rights_of_any(
            self.rules.verifier, self.rules.mesh, self.admins, key, chains=self.chains.get(key, ()), at_ms=moment
        )

    def lineage(self, key: bytes) -> tuple[bytes, ...]:
        """Return every key that counts as `key`'s own doing; just itself when no chain says more.

        Whose a key is does not expire with what it may do.
        """
        rights = self.rights(key, BEFORE_EXPIRY_MS)
        return rights.behind if isinstance(rights, Rights) else (key,)

    def signer(self, verb: Verb, project: str, environment: str) -> Rights | Refusal:
        """Return the rights of the first signer that may do `verb` there, or why none may."""
        who = f"a principal with the role {holders_of(verb)} signs it"
        refusal = Refusal("command.unsigned", f"nobody signed what changes {environment or 'the mesh'}; {who}")
        for key in self.signers:
            rights = self.rights(key)
            if isinstance(rights, Refusal):
                refusal = Refusal(rights.rule, f"{rights.detail}; {who}")
            elif rights.allows(verb, project, environment):
                return rights
            else:
                what = f"{rights.name} may not {verb} in {project or 'the mesh'} {environment}".rstrip()
                refusal = Refusal("command.not-allowed", f"{what}; {who}")
        return refusal

    def admin_threshold(self, threshold: int, keys: Sequence[bytes] | None = None) -> Refusal | None:
        """Return why fewer than `threshold` admins signed, or fewer of `keys` where others count, or None."""
        count = sum(key in (self.admins if keys is None else keys) for key in self.signers)
        if count >= threshold:
            return None
        return Refusal(
            "command.admin-threshold", f"{count} of {threshold} admin signatures; other admins must sign too"
        )

    def change(self) -> tuple[Change, Digest] | Refusal:
        """Return the exhibited change, signed by its author, and its digest."""
        signed = self.read(self.exhibits.exhibits.change, Signed, CHANGE_MAX_BYTES + SIGNED_OVERHEAD_BYTES, "change")
        if isinstance(signed, Refusal):
            return signed
        try:
            change: Change = decode(signed.payload, Change, CHANGE_MAX_BYTES)
        except DecodeError as error:
            return Refusal("change.malformed", str(error))
        problem = change_problem(change)
        if problem:
            return Refusal("change.malformed", problem)
        if change.author != signed.key or not verify(self.rules.verifier, CHANGE_DOMAIN, self.rules.mesh, signed):
            return Refusal(
                "change.signature", "the change is not signed by the author it names; its author does: freehold propose"
            )
        return change, digest(signed.payload)

    def release(self) -> tuple[Release, Digest] | Refusal:
        """Return the exhibited manifest and its digest."""
        named = self.exhibits.exhibits.release
        release = self.read(named, Release, RELEASE_MAX_BYTES, "release")
        if isinstance(release, Refusal):
            return release
        problem = release_problem(release)
        return Refusal("release.malformed", problem) if problem else (release, Digest(named))

    def statements(self) -> tuple[tuple[PeerId, Statement], ...] | Refusal:
        """Return the nodes' statements in the order of the exhibits, each under the node that signed it."""
        pairs: list[tuple[PeerId, Statement]] = []
        for named in self.exhibits.exhibits.statements:
            signed = self.read(named, Signed, STATEMENT_MAX_BYTES + SIGNED_OVERHEAD_BYTES, "statement")
            if isinstance(signed, Refusal):
                return signed
            said = open_statement(self.rules.verifier, self.rules.mesh, signed)
            if isinstance(said, Refusal):
                return said
            pairs.append((said.node, said.statement))
        return tuple(pairs)

    def read(self, named: bytes, kind: type[T], max_bytes: int, what: str) -> T | Refusal:
        """Decode the exhibit `named` as `kind`; `what` names it in a refusal."""
        data = self.material.get(Digest(named))
        if data is None:
            return Refusal(f"{what}.absent", f"the command shows no {what}")
        try:
            return decode(data, kind, max_bytes)
        except DecodeError as error:
            return Refusal(f"{what}.malformed", str(error))


def open_case(
    command: SignedCommand, material: Material, at_ms: int, rules: Rules, admins: tuple[bytes, ...]
) -> Case | Refusal:
    """Check a command's form, signatures and the completeness of its material; nothing of its meaning."""
    if len(command.payload) > COMMAND_MAX_BYTES or len(command.signatures) > SIGNATURES_MAX:
        return Refusal("command.too-large", "the command or its list of signatures is too long")
    named = command.exhibits.digests()
    if len(named) > MATERIAL_MAX_ITEMS:
        return Refusal("command.too-large", f"a command shows at most {MATERIAL_MAX_ITEMS} exhibits")
    if set(named) != set(material):
        return Refusal("command.material", "the material is not exactly what the exhibits name")
    keys = tuple(signature.key for signature in command.signatures)
    if any(first >= second for first, second in pairwise(keys)):
        return Refusal("command.signatures", "signatures are not distinct and in ascending order of key")
    for signature in command.signatures:
        if not verify(
            rules.verifier, COMMAND_DOMAIN, rules.mesh, Signed(command.payload, signature.key, signature.signature)
        ):
            return Refusal("command.signature", "a signature of the command does not verify in this mesh")
    try:
        opened: Command = decode(command.payload, Command, COMMAND_MAX_BYTES)
        chains = _chains(command, material)
    except DecodeError as error:
        return Refusal("command.malformed", str(error))
    if len(opened.id) != COMMAND_ID_BYTES:
        return Refusal("command.malformed", f"a command's id has {COMMAND_ID_BYTES} bytes")
    return Case(opened, keys, command, material, at_ms, rules, admins, chains)


def _chains(command: SignedCommand, material: Material) -> dict[bytes, list[GrantChain]]:
    chains: dict[bytes, list[GrantChain]] = {}
    for named in command.exhibits.grants:
        chain: tuple[Signed, ...] = decode(material[Digest(named)], tuple[Signed, ...], CHAIN_MAX_BYTES)
        if not chain:
            raise DecodeError("an empty chain of grants")
        chains.setdefault(decode(chain[-1].payload, Grant, GRANT_MAX_BYTES).key, []).append(chain)
    return chains
