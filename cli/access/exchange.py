"""A CI job's way in: its platform's ID token, made for a key of the job's own, is exchanged for a grant to that key.

What a job needs to know is public: which mesh, where a node of it is, what that is believed by. Not here: what a token must
say (node/oidc).
"""

from __future__ import annotations

import hashlib
import os
import secrets

import aiohttp
import msgspec
from yarl import URL

from cli.access.client import NodeClient
from cli.access.contexts import Context, RunnerToken
from cli.access.pasted import pasted_bytes, pasted_line
from cli.errors import CommandError, UsageError
from protocols.api_outward import ExchangeBody, ExchangeView
from protocols.keys import SEED_BYTES, Ed25519Signer

TRUST_VARIABLE = "FREEHOLD_TRUST"
TRUST_PREFIX = "fhx1."
TRUST_MAX_CHARACTERS = 1_000
REQUEST_URL, REQUEST_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
ANSWER_MAX_BYTES = 64 * 1024
TIMEOUT_S = 30


class TrustLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a job goes with its token: the mesh (hex), an HTTPS address, and what that is believed by. No secret."""

    mesh: str
    url: str
    pin: str

    def text(self) -> str:
        """The one string, for one variable."""
        return pasted_line(TRUST_PREFIX, msgspec.json.encode(self))


def trust_line(text: str) -> TrustLine:
    """Read what `trust add` printed. Raises UsageError."""
    step = "freehold trust list prints it; put it into the variable FREEHOLD_TRUST of the CI platform"
    try:
        data = pasted_bytes(text, TRUST_PREFIX, TRUST_MAX_CHARACTERS)
        if data is None:
            raise UsageError(f"{TRUST_VARIABLE} holds no text that begins {TRUST_PREFIX}", next_step=step, kind="trust")
        line = msgspec.json.decode(data, type=TrustLine)
    except (ValueError, msgspec.DecodeError):
        raise UsageError(f"{TRUST_VARIABLE} is damaged or cut off", next_step=step, kind="trust") from None
    if len(line.pin) != 64 or len(line.mesh) != 64 or not line.url.startswith("https://"):
        raise UsageError(f"{TRUST_VARIABLE} is damaged", next_step=step, kind="trust")
    return line


def audience_for(mesh: str, key: bytes) -> str:
    """The audience of a token that is good for this key in this mesh alone."""
    return f"freehold:{mesh}:{hashlib.sha256(key).hexdigest()}"


async def exchanged(line: TrustLine) -> tuple[RunnerToken, ExchangeView]:
    """Make a key, have the platform vouch for it, and have a node grant it something. Raises CommandError."""
    seed = secrets.token_bytes(SEED_BYTES)
    signer = Ed25519Signer(seed)
    token = await _id_token(audience_for(line.mesh, signer.public_key))
    async with NodeClient(Context(line.mesh, "", "", url=line.url, pin=line.pin), signer) as client:
        got = await client.send(ExchangeView, "/v1/token-exchange", ExchangeBody(token))
    return RunnerToken(line.mesh, line.url, line.pin, seed), got


async def _id_token(audience: str) -> str:
    """Ask the platform that runs this job for its ID token. Raises CommandError where there is none."""
    url, secret = os.environ.get(REQUEST_URL, ""), os.environ.get(REQUEST_TOKEN, "")
    if not url or not secret:
        raise CommandError(
            "this job may not ask for ID tokens",
            next_step="GitHub: permissions: id-token: write; Forgejo: enable-openid-connect: true (freehold ci init does)",
            kind="no-id-token",
        )
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        asked = URL(url).update_query(audience=audience)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(asked, headers={"Authorization": f"Bearer {secret}"}, allow_redirects=False) as answer,
        ):
            data = await answer.content.read(ANSWER_MAX_BYTES)
            if answer.status != 200:
                raise CommandError(f"the platform answers {answer.status}", next_step="try again", kind="no-id-token")
        return str(msgspec.json.decode(data, type=dict[str, object])["value"])
    except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, msgspec.MsgspecError) as error:
        what = f"the platform gave no ID token: {type(error).__name__}"
        raise CommandError(what, next_step="try again", kind="no-id-token") from None
