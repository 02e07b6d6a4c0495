"""An ACME client (RFC 8555, and RFC 9773 for when to renew): an account, orders, certificates, revocation.

Our own over aiohttp and cryptography: the library of certbot would bring requests and pyOpenSSL, 21 MiB and a thread into
every daemon, for what is a dozen signed requests here. An authority's answers are bounded, and what it refuses is an
`AcmeError` that says by which rule and when to come back. Not here: when to order and for what (certifier.py), and answering
challenges.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from yarl import URL

from node.acme.jose import AcmeKey, base64url, public_jwk, signed_request, thumbprint
from protocols.records.sites import CHAIN_MAX_BYTES

ANSWER_MAX_BYTES: Final = 256 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
NONCE_TRIES: Final = 8
"""A test authority refuses one good nonce in five at random: of a hundred requests none is to fail for that."""
POLL_S: Final = 1.0
POLL_MAX_S: Final = 30.0
RETRY_MAX_S: Final = 7 * 86_400.0
ReadT = TypeVar("ReadT")
_ERRORS: Final = "urn:ietf:params:acme:error:"


class AcmeError(Exception):
    """The authority refused, or could not be asked; `rule` is its error type, `retry_after_s` how long it asks to wait.

    `order` says that the failed order cannot be taken up again.
    """

    def __init__(self, rule: str, detail: str, retry_after_s: float = 0.0, *, order: bool = False) -> None:
        super().__init__(f"{rule}: {detail[:300]}")
        self.rule, self.retry_after_s, self.order = rule, retry_after_s, order


class AcmeDirectory(msgspec.Struct, frozen=True, rename="camel"):
    """Where an authority is asked for what."""

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str
    renewal_info: str = ""


class AcmeIdentifier(msgspec.Struct, frozen=True):
    """What a certificate is for."""

    type: str
    value: str


class AcmeChallenge(msgspec.Struct, frozen=True):
    """One way to show control."""

    type: str
    url: str
    token: str = ""
    status: str = ""
    error: dict[str, Any] | None = None


class AcmeAuthorization(msgspec.Struct, frozen=True):
    """What has to be shown for one identifier."""

    status: str
    identifier: AcmeIdentifier
    challenges: tuple[AcmeChallenge, ...]
    wildcard: bool = False


class AcmeOrder(msgspec.Struct, frozen=True):
    """An order as the authority sees it."""

    status: str
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str = ""
    error: dict[str, Any] | None = None


class _Window(msgspec.Struct, frozen=True):
    start: str
    end: str


class _RenewalInfo(msgspec.Struct, frozen=True, rename="camel"):
    suggested_window: _Window


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class AcmeClient:
    """A conversation with one authority by one account; make it with `acme_client`."""

    def __init__(self, http: aiohttp.ClientSession, directory: AcmeDirectory, key: AcmeKey) -> None:
        self._http = http
        self._directory = directory
        self._key = key
        self._nonces: list[str] = []
        self._account = ""

    async def register(self, contact: Sequence[str]) -> None:
        """Make the account, or find it: the same key is the same account."""
        payload = {"termsOfServiceAgreed": True, **({"contact": list(contact)} if contact else {})}
        answer = await self._post(self._directory.new_account, payload)
        self._account = answer.headers.get("Location", "")
        if not self._account:
            raise AcmeError("malformed", "the authority names no account")

    async def order(self, name: str, profile: str = "") -> tuple[str, AcmeOrder]:
        """Begin an order for one name; return its address and what it asks for."""
        payload: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name}]}
        if profile:
            payload["profile"] = profile
        answer = await self._post(self._directory.new_order, payload)
        return answer.headers.get("Location", ""), _read(answer, AcmeOrder)

    async def look(self, order: str) -> AcmeOrder:
        """Return where an order stands."""
        return _read(await self._post(order, None), AcmeOrder)

    async def authorization(self, url: str) -> AcmeAuthorization:
        """Return what has to be shown."""
        return _read(await self._post(url, None), AcmeAuthorization)

    def key_authorization(self, token: str) -> str:
        """Return what shows that this account is behind an answer (RFC 8555, 8.1)."""
        return f"{token}.{thumbprint(self._key)}"

    async def answer(self, challenge: AcmeChallenge, authorization: str, timeout_s: float) -> None:
        """Have the authority look, and wait for what it says. Raises AcmeError if it was not shown."""
        await self._post(challenge.url, {})
        async for entry in self._poll(authorization, timeout_s):
            judged = _read(entry, AcmeAuthorization)
            if judged.status == "valid":
                return
            if judged.status != "pending":
                why = next((challenge.error for challenge in judged.challenges if challenge.error), None)
                raise _refusal(why or {"detail": f"the authorization is {judged.status}"}, order=True)

    async def finalize(self, order: str, finalize: str, name: str, key: AcmeKey) -> None:
        """Ask for the certificate of a key; the order is ready."""
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
        )
        der = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        await self._post(finalize, {"csr": base64url(der)})

    async def certificate(self, order: str, timeout_s: float) -> bytes:
        """Wait for an order's certificate; return its chain in PEM, leaf first."""
        async for answer in self._poll(order, timeout_s):
            judged = _read(answer, AcmeOrder)
            if judged.status == "valid" and judged.certificate:
                chain = (await self._post(judged.certificate, None)).body
                if len(chain) > CHAIN_MAX_BYTES:
                    raise AcmeError(
                        "malformed", f"the chain has {len(chain)} bytes, at most {CHAIN_MAX_BYTES} are taken"
                    )
                return chain
            if judged.status == "invalid":
                raise _refusal(judged.error or {"detail": "the order is invalid"}, order=True)
        raise AcmeError("timeout", "the certificate did not come")

    async def revoke(self, leaf: x509.Certificate, reason: int) -> None:
        """Take a certificate back (RFC 5280, 5.3.1 names the reasons); one that is revoked already stays so."""
        der = leaf.public_bytes(serialization.Encoding.DER)
        try:
            await self._post(self._directory.revoke_cert, {"certificate": base64url(der), "reason": reason})
        except AcmeError as error:
            if error.rule != "alreadyRevoked":
                raise

    async def renewal_window_ms(self, leaf: x509.Certificate) -> tuple[int, int] | None:
        """Return when the authority wants a certificate renewed (wall ms), None if it does not say (RFC 9773)."""
        identifier = renewal_id(leaf)
        if not self._directory.renewal_info or identifier is None:
            return None
        answer = await self._send("GET", f"{self._directory.renewal_info}/{identifier}", None)
        if answer.status != 200:
            return None
        window = _read(answer, _RenewalInfo).suggested_window
        try:
            start, end = (_wall_ms(text) for text in (window.start, window.end))
        except ValueError:
            return None
        return (start, end) if start <= end else None

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _poll(self, url: str, timeout_s: float) -> AsyncIterator[_Answer]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            answer = await self._post(url, None)
            yield answer
            if time.monotonic() > deadline_s:
                raise AcmeError("timeout", "the authority did not come to an end")
            await asyncio.sleep(min(max(_retry_after_s(answer.headers), POLL_S), POLL_MAX_S))

    async def _post(self, url: str, payload: Mapping[str, Any] | None) -> _Answer:
        for _ in range(NONCE_TRIES):
            who = {"kid": self._account} if self._account else {"jwk": public_jwk(self._key)}
            header = {**who, "nonce": await self._nonce(), "url": url}
            answer = await self._send("POST", url, signed_request(self._key, header, payload))
            if answer.status < 400:
                return answer
            refusal = _refusal(_problem(answer), _retry_after_s(answer.headers))
            if refusal.rule != "badNonce":
                raise refusal
        raise AcmeError("badNonce", "the authority took none of its own nonces")

    async def _nonce(self) -> str:
        if not self._nonces:
            await self._send("HEAD", self._directory.new_nonce, None)
        if not self._nonces:
            raise AcmeError("malformed", "the authority gives no nonce")
        return self._nonces.pop()

    async def _send(self, method: str, url: str, body: bytes | None) -> _Answer:
        answer = await _ask(self._http, method, url, body)
        nonce = answer.headers.get("Replay-Nonce", "")
        if 0 < len(nonce) <= 512:
            self._nonces = [*self._nonces[-7:], nonce]
        return answer


@asynccontextmanager
async def acme_client(directory: str, key: AcmeKey, authority: str = "") -> AsyncIterator[AcmeClient]:
    """Yield a client of the authority whose directory is at `directory` (https).

    `authority` is a file with the certificates that vouch for it, "" for the system's. Raises AcmeError.
    """
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except OSError as error:
        raise AcmeError("authority", f"{authority}: {error.strerror}") from None
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=True) as http:
        answer = await _ask(http, "GET", directory, None)
        if answer.status != 200:
            raise _refusal(_problem(answer), _retry_after_s(answer.headers))
        yield AcmeClient(http, _read(answer, AcmeDirectory), key)


async def _ask(http: aiohttp.ClientSession, method: str, url: str, body: bytes | None) -> _Answer:
    try:
        if URL(url).scheme != "https":
            raise AcmeError("malformed", f"{url[:200]} is not https")
        headers = {"Content-Type": "application/jose+json", "User-Agent": "freehold"}
        async with http.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
            data = await response.content.read(ANSWER_MAX_BYTES + 1)
            while len(data) <= ANSWER_MAX_BYTES and (more := await response.content.read(ANSWER_MAX_BYTES)):
                data += more
            if len(data) > ANSWER_MAX_BYTES:
                raise AcmeError("malformed", f"an answer has over {ANSWER_MAX_BYTES} bytes")
            return _Answer(response.status, response.headers, data)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise AcmeError("unreachable", f"{type(error).__name__}: {error}") from None


def renewal_id(leaf: x509.Certificate) -> str | None:
    """Return how RFC 9773 names a certificate, None if it does not say who issued it."""
    try:
        issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None
    if issuer is None:
        return None
    serial = leaf.serial_number
    return f"{base64url(issuer)}.{base64url(serial.to_bytes(serial.bit_length() // 8 + 1))}"


def _read(answer: _Answer, kind: type[ReadT]) -> ReadT:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AcmeError("malformed", f"the authority's answer is no {kind.__name__}: {error}") from None


def _problem(answer: _Answer) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"type": f"status-{answer.status}", "detail": "without a word"}


def _refusal(problem: Mapping[str, Any], retry_after_s: float = 0.0, *, order: bool = False) -> AcmeError:
    rule = str(problem.get("type", "refused")).removeprefix(_ERRORS)[:64]
    return AcmeError(rule, str(problem.get("detail", "")), retry_after_s, order=order)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """How long an answer asks to wait: seconds or a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_MAX_S)
    try:
        position = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return 0.0
    return min(max(0.0, position - time.time()), RETRY_MAX_S)


def _wall_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
