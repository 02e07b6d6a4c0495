"""Secrets from this side: sealed on this machine to the nodes that may run the app, and named by version in a change.

The value goes from the prompt or the pipe into the sealed paper and nowhere else: not into an argument, a file, a log or
an error. Not here: reading it (commands/change/secret.py), and what nodes do with it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from cli.access.client import NodeClient
from cli.errors import CommandError
from protocols.api_models import SecretBody, SecretView
from protocols.changes.change import SecretVersion
from protocols.changes.effective import Effective
from protocols.changes.secrets import SealedSecret, SealError, SecretRemoval, seal, sign_paper
from protocols.envelope import encode
from protocols.keys import Ed25519Signer
from protocols.machine import Entropy
from protocols.state.placement import eligible


class SystemRandom:
    """The operating system's randomness, as the sealing's `Entropy`."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` bytes fit for keys."""
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        """Return a float in [low, high)."""
        return low + (high - low) * secrets.randbelow(1 << 53) / (1 << 53)


async def rows_of(client: NodeClient, project: str, environment: str) -> tuple[SecretView, ...]:
    """Return the versions of a project's secrets, newest first within each name; an empty environment means all."""
    return await client.read_all(SecretView, "/v1/secrets", project=project, environment=environment)


async def versions_for(client: NodeClient, effective: Effective) -> tuple[SecretVersion, ...]:
    """Return the newest version of every secret the apps name. Raises CommandError naming those without a value."""
    names = sorted({name for app in effective.apps for name in app.secrets})
    if not names:
        return ()
    newest: dict[str, SecretView] = {}
    for row in await rows_of(client, effective.project, effective.environment):
        if not row.problem:
            newest.setdefault(row.name, row)
    missing = [name for name in names if name not in newest]
    if missing:
        raise CommandError(
            f"no value is set in {effective.environment} for secret {', '.join(missing)}",
            next_step=f"freehold secret set {missing[0]} --env {effective.environment}",
            kind="no-secret",
        )
    return tuple(SecretVersion(name, newest[name].version, bytes.fromhex(newest[name].id)) for name in names)


async def set_secret(
    client: NodeClient, signer: Ed25519Signer, place: tuple[str, str, str], value: bytes
) -> tuple[int, tuple[str, ...]]:
    """Seal a new version to the nodes of the environment and file it; return its number and the nodes."""
    project, environment, name = place
    state, mesh = await client.state(), await client.mesh()
    nodes = eligible(state, environment)
    if not nodes:
        raise CommandError(
            f"no node serves {environment}, so nobody could open the secret", next_step="freehold env list",
            kind="no-nodes",
        )  # fmt: skip
    known = [row.version for row in await rows_of(client, project, environment) if row.name == name]
    number = max(known, default=0) + 1
    blank = SealedSecret(project, environment, name, number, time.time_ns() // 1_000_000, b"", ())
    entropy: Entropy = SystemRandom()
    try:
        sealed = seal(mesh, blank, value, nodes, entropy)
    except SealError as error:
        raise CommandError(str(error), next_step="freehold secret set --help", kind="secret") from None
    await client.post_nothing("/v1/secrets", SecretBody(encode(sign_paper(signer, mesh, sealed))))
    return number, nodes


async def remove_versions(
    client: NodeClient, signer: Ed25519Signer, place: tuple[str, str, str], versions: Sequence[SecretView]
) -> None:
    """Take versions away. Raises RefusedError if one is in use."""
    project, environment, name = place
    ids = tuple(bytes.fromhex(row.id) for row in versions)
    paper = SecretRemoval(project, environment, name, ids, time.time_ns() // 1_000_000)
    signed = sign_paper(signer, await client.mesh(), paper)
    await client.post_nothing("/v1/secrets", SecretBody(encode(signed)))
