"""Which addresses a node speaks to when an operator names them: one message sent, or one document read.

A name leads where it was checked, and no redirect leads on.

Public addresses over https; `private` ones, and plain http, where whoever runs this machine said so. Never link-local
ones, where clouds hand out their credentials. Not here: when something is sent or read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from protocols.refusal import Refusal
from runtime.outbound.destinations import permitted

TIMEOUT_S = 15.0
CONNECT_S = 5.0
RETRY_AFTER_MAX_S = 86_400
AGENT = "freehold/1"
ALLOWED = "an https address that is public; with --private also http, and addresses of this network"


@dataclass(frozen=True, slots=True)
class Sending:
    """How one attempt ended; `gone` says that the receiver wants no more, `again_s` when it asked to be asked again."""

    delivered: bool
    result: str
    gone: bool = False
    again_s: int = 0


def url_problem(text: str, *, private: bool) -> Refusal | None:
    """Return why an address cannot be spoken to, as far as that is known without resolving it."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return Refusal("address.url", f"the address cannot be read; allowed is {ALLOWED}")
    if url.scheme not in {"https", "http"} or not host or not port:
        return Refusal("address.url", f"this is no address of the web; allowed is {ALLOWED}")
    if url.scheme == "http" and not private:
        return Refusal("address.url", f"http is not protected on its way; allowed is {ALLOWED}")
    if url.user is not None or url.password is not None or url.fragment:
        return Refusal(
            "address.url", "an address has no user, password or fragment; put a token into its path or query"
        )
    if _is_address(host) and not may_reach(host, private=private):
        return Refusal("address.private", f"{host} is not public; allowed is {ALLOWED}")
    return None


def may_reach(address: str, *, private: bool) -> bool:
    """Whether an IP address may be connected to."""
    if permitted(address, allow_loopback=private):
        return True
    if not private or not _is_address(address):
        return False
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_private and not (ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved)


class Checked(AbstractResolver):
    """Resolves a name to those of its addresses that may be reached."""

    def __init__(self, *, private: bool) -> None:
        """Take whether addresses of this network are among them."""
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises OSError where none may be reached. Same contract as aiohttp's own."""
        pairs = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        good: list[ResolveResult] = [
            {"hostname": host, "host": str(place[0]), "port": port, "family": kind, "proto": proto,
             "flags": socket.AI_NUMERICHOST}
            for kind, _, proto, _, place in pairs
            if may_reach(str(place[0]), private=self._private)
        ]  # fmt: skip
        if not good:
            raise OSError(None, f"{host} leads to no address that may be reached")
        return good

    async def close(self) -> None:
        """There is nothing to close."""


class Reaching:
    """Sessions for public and private addresses. Close it at the end."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def _session(self, *, private: bool) -> aiohttp.ClientSession:
        if private not in self._sessions:
            connector = aiohttp.TCPConnector(resolver=Checked(private=private), limit_per_host=4, ttl_dns_cache=10)
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_S)
            self._sessions[private] = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._sessions[private]

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()

    async def post(self, url: str, body: bytes, fields: dict[str, str], *, private: bool) -> Sending:
        """Send one message; what the receiver says beyond its status is not read. Never raises for what it does."""
        refusal = url_problem(url, private=private)
        if refusal is not None:
            return Sending(False, refusal.detail)
        try:
            async with self._session(private=private).post(
                URL(url), data=body, headers={"User-Agent": AGENT, **fields}, allow_redirects=False
            ) as answer:
                return attempt_of(answer.status, answer.headers.get("Retry-After", ""))
        except TimeoutError:
            return Sending(False, f"no answer within {TIMEOUT_S:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Sending(False, f"{type(error).__name__}: {error}"[:200])

    async def get(self, url: str, max_bytes: int, *, private: bool) -> bytes:
        """Read one document of JSON. Raises OSError, for whatever keeps it from being read."""
        refusal = url_problem(url, private=private)
        if refusal is not None:
            raise OSError(None, refusal.detail)
        try:
            async with self._session(private=private).get(
                URL(url), headers={"User-Agent": AGENT, "Accept": "application/json"}, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise OSError(None, f"{url} answers {answer.status}")
                data = b""
                async for piece in answer.content.iter_chunked(1 << 14):
                    data += piece
                    if len(data) > max_bytes:
                        raise OSError(None, f"{url} has over {max_bytes} bytes")
                return data
        except TimeoutError:
            raise OSError(None, f"{url} does not answer within {TIMEOUT_S:.0f} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(None, f"{url}: {type(error).__name__}: {error}"[:300]) from None


def attempt_of(status: int, retry_after: str) -> Sending:
    """Return what a receiver's status says, as Standard Webhooks has it."""
    if 200 <= status < 300:
        return Sending(True, f"status {status}")
    if status == 410:
        return Sending(False, "status 410: the receiver wants no more", gone=True)
    again = int(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 8 else 0
    return Sending(False, f"status {status}", again_s=min(again, RETRY_AFTER_MAX_S))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
