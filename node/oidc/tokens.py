"""What an ID token must say to be believed (OpenID Connect Core 1.0, section 3.1.3.7), and for what it is good. Pure.

The token is a certificate for one key: its audience names the mesh and the key's digest, so a token that somebody else
sees, or that was made for another mesh, is worthless. The algorithm follows from the kind of the issuer's key, never from the
token's header. Not here: fetching the keys (issuers.py), and what a believed token gets (trusts.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import msgspec

from protocols.refusal import Refusal

TOKEN_MAX_CHARS = 8 * 1024
KEYS_MAX = 32
RSA_BITS = range(2_048, 8_193)
LEEWAY_S = 30
TOKEN_LIVES_MAX_S = 24 * 3_600
"""A token that is good for longer is no job's."""

AUDIENCE_PREFIX = "freehold"
PULL_REQUEST = re.compile(r"pull_request|merge_request|external_pull_request")
"""Values of `event_name` and `pipeline_source`: code that nobody has merged."""

ACTOR_CLAIMS = ("actor_id", "user_id")
"""Claims that number the account that started the job: of GitHub and Forgejo, and of GitLab."""

_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}


class IssuerKey(msgspec.Struct, frozen=True):
    """A key of an issuer: what tokens name it by, its one algorithm, and the key itself (JWK)."""

    kid: str
    algorithm: str
    jwk: dict[str, Any]


class Conditions(msgspec.Struct, frozen=True):
    """What a token must say: its issuer, a pattern of its subject ("" for any), and claims with exact values.

    In a pattern `*` stands for characters of one part, between two colons.
    """

    issuer: str
    subject: str
    claims: dict[str, str]

    @property
    def names_actor(self) -> bool:
        """Whether all jobs that fit are one person's."""
        return any(name in self.claims for name in ACTOR_CLAIMS)


def audience_of(mesh: bytes, key: bytes) -> str:
    """Return the audience that a job asks its platform for, to have a token for its key in a mesh."""
    return f"{AUDIENCE_PREFIX}:{mesh.hex()}:{hashlib.sha256(key).hexdigest()}"


def read_keys(data: bytes) -> tuple[IssuerKey, ...]:
    """Return the keys of a JWK Set that tokens may be signed with; the others are left out. Raises ValueError."""
    try:
        document: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no JWK Set: {error}") from None
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError(f"no JWK Set of at most {KEYS_MAX} keys")
    return tuple(key for entry in listed if isinstance(entry, dict) and (key := _key_of(entry)) is not None)


def _key_of(one: dict[str, Any]) -> IssuerKey | None:
    algorithm = _ALGORITHMS.get(str(one.get("kty")))
    kid = one.get("kid")
    if algorithm is None or not isinstance(kid, str) or not kid or "d" in one:
        return None
    if one.get("use", "sig") != "sig" or one.get("alg", algorithm) != algorithm:
        return None
    try:
        key: Any = jwt.PyJWK(one, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and key.key_size not in RSA_BITS:
        return None
    if algorithm == "ES256" and key.curve.name != "secp256r1":
        return None
    return IssuerKey(kid, algorithm, one)


def key_named(token: str) -> str:
    """Return the name of the key that a token says it was signed with. Raises ValueError for no token."""
    if len(token) > TOKEN_MAX_CHARS or not token.isascii() or token.count(".") != 2:
        raise ValueError(f"no token of at most {TOKEN_MAX_CHARS} characters")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError as error:
        raise ValueError(str(error)) from None
    if not isinstance(kid, str) or not kid:
        raise ValueError("the token names no key")
    return kid


def issuer_named(token: str) -> str:
    """Return who a token says it is by, unproven: to find whose keys to hold against it; "" if it says nothing."""
    if len(token) > TOKEN_MAX_CHARS or token.count(".") != 2:
        return ""
    try:
        said = jwt.decode(token, options={"verify_signature": False}).get("iss", "")
    except (jwt.PyJWTError, ValueError, RecursionError):
        return ""
    return said if isinstance(said, str) else ""


def believed(
    token: str, keys: Sequence[IssuerKey], wanted: Conditions, audience: str, at_s: int
) -> Mapping[str, Any] | Refusal:
    """Return what a token says if all of it holds at a moment (Unix seconds), or the first thing that does not."""
    try:
        kid = key_named(token)
    except ValueError as error:
        return Refusal("token.malformed", str(error))
    named = [key for key in keys if key.kid == kid]
    if len(named) != 1:
        return Refusal("token.key", "the token is signed with no key that its issuer shows")
    key = named[0]
    try:
        said: dict[str, Any] = jwt.decode(
            token, jwt.PyJWK(key.jwk, key.algorithm), algorithms=[key.algorithm],
            options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False,
                     "verify_iss": False, "verify_sub": False, "verify_jti": False},
        )  # fmt: skip
    except jwt.InvalidAlgorithmError:
        return Refusal("token.algorithm", f"a key of this kind signs with {key.algorithm} alone")
    except jwt.InvalidSignatureError:
        return Refusal("token.signature", "the token's signature does not verify under its issuer's key")
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        return Refusal("token.malformed", f"the token cannot be read: {type(error).__name__}")
    return _claims_refusal(said, wanted, audience, at_s) or said


def _claims_refusal(said: Mapping[str, Any], wanted: Conditions, audience: str, at_s: int) -> Refusal | None:
    if said.get("iss") != wanted.issuer:
        return Refusal("token.issuer", f"the token is by another issuer than {wanted.issuer}")
    listed = said.get("aud")
    if listed not in (audience, [audience]):
        return Refusal(
            "token.audience",
            "the token's audience is not this mesh and the key that signed the request; ask the platform for a token"
            " with the audience freehold:MESH:SHA256-OF-THE-KEY, and no other",
        )
    began_s, ends_s = said.get("iat"), said.get("exp")
    not_before_s = said.get("nbf", began_s)
    if not all(type(entry) is int for entry in (began_s, ends_s, not_before_s)):
        return Refusal("token.malformed", "the token does not say from when until when it is good, in whole seconds")
    assert isinstance(began_s, int)
    assert isinstance(ends_s, int)
    if at_s >= ends_s or ends_s - began_s > TOKEN_LIVES_MAX_S:
        return Refusal(
            "token.expired", "the token has ended, or is good for longer than a day; a job asks for a new one"
        )
    if max(began_s, not_before_s) > at_s + LEEWAY_S:
        return Refusal("token.early", "the token is dated in the future; compare the clocks")
    if any(PULL_REQUEST.match(str(said.get(name, ""))) for name in ("event_name", "pipeline_source")):
        return Refusal("token.pull-request", "the job runs for a pull request, whose code nobody has merged")
    if wanted.subject and not subject_fits(wanted.subject, said.get("sub")):
        return Refusal("token.subject", f"the token's subject is not {wanted.subject}")
    for name, value in wanted.claims.items():
        if not _is(said.get(name), value):
            return Refusal("token.claim", f"the token's {name} is not {value}")
    return None


def subject_fits(pattern: str, subject: Any) -> bool:
    """Whether a subject fits a pattern, whole: `*` stands for characters of one part, between two colons."""
    if not isinstance(subject, str):
        return False
    form = "[^:]*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(form, subject) is not None


def _is(said: Any, value: str) -> bool:
    """Whether a claim has exactly this value; numbers are written in digits, true and false in words."""
    if isinstance(said, bool):
        return value == ("true" if said else "false")
    return str(said) == value if isinstance(said, str | int) else False
