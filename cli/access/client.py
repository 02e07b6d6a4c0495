"""The API's client: what commands ask of a node. Problems become CommandErrors with the next step.

On the node's own machine over its Unix socket; elsewhere over HTTPS, believing the pinned key alone, each request
signed with the everyday key of the context. No answer leads elsewhere: a node that lies would have this machine ask
addresses that only this machine reaches.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import aiohttp
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from yarl import URL

from cli.access import contexts, endings
from cli.access.contexts import Context
from cli.errors import CommandError, ExitCode, UsageError
from cli.text.foreign import foreign, plain
from cli.text.going_on import goes_on, nothing_goes_on
from cli.text.reminders import remind
from protocols.api_models import CommandBody, OutcomeView, PaperKind, PrincipalView, RecordBody, RecordView, StartView
from protocols.api_upkeep import DrainBody
from protocols.envelope import decode, digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from protocols.state.commands import Action, Command, DrainNode, Exhibits, SignedCommand, Start, sign_command
from protocols.state.model import MeshState
from protocols.trust.genesis import mesh_id
from protocols.trust.request_signatures import sign_request

PAGE_ITEMS = 1_000
TIMEOUT_S = 120.0
PIECE_BYTES = 1 << 20
STARTING, BEFORE_START = 503, b"caller.before-start"
SIGN_AGAIN_MAX = 5
SIGN_AGAIN_S = 1.0
"""A node refuses what was signed before it started; right after its start that is this moment's signature, too."""

T = TypeVar("T")

Parameter = str | int | bool | None
"""One value of a query; None and "" leave it out."""


class RefusedError(CommandError):
    """A rule of the mesh says no; `rule` is stable."""

    exit_code = ExitCode.REFUSED_BY_POLICY

    def __init__(self, rule: str, detail: str, next_step: str) -> None:
        super().__init__(f"{rule}: {detail}", next_step=next_step, kind=rule)
        self.rule = rule


UNREACHED = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, FileNotFoundError, TimeoutError)
"""What says that the asked node is not there, or went while it answered."""


class PinnedKey(aiohttp.Fingerprint):
    """Believes a server by the SHA-256 of its public key, or of its whole certificate as earlier nodes' logins have it."""

    def check(self, transport: asyncio.Transport) -> None:
        """Raise aiohttp.ServerFingerprintMismatch for another server. Same contract as aiohttp's own."""
        handshake = transport.get_extra_info("ssl_object")
        if handshake is None:
            return
        data = handshake.getpeercert(binary_form=True)
        if spki_pin(data) != self.fingerprint:
            super().check(transport)


def spki_pin(certificate: bytes) -> bytes:
    """The SHA-256 of the public key in a certificate (DER); of nothing if it cannot be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


class NodeClient:
    """One session with a node. Use as an async context manager."""

    def __init__(self, context: Context, signer: Ed25519Signer | None = None) -> None:
        """Take where the node is; `signer` signs requests, on the socket too, instead of the context's key."""
        self._context = context
        self._signer = signer
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session; no request is made yet."""
        if self._context.url and self._signer is None:
            self._signer = contexts.open_plain(self._context.key)
        self._session = aiohttp.ClientSession(
            connector=_connector(self._context),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=TIMEOUT_S),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Close the session; of a grant that ends soon the command's end will tell."""
        if self._session is not None:
            if kind is None and self._context.key:
                remind(await self.ending())
            await self._session.close()

    async def ending(self) -> str:
        """Return what to say of the grants of the context's everyday key, or ""; a node is asked when it is time to."""
        try:
            key = contexts.public_key(self._context.key).hex()
            held = endings.known(key)
            if held is None or held.is_old(endings.now_ms()):
                principal = await self.read(PrincipalView, f"/v1/principals/{key}")
                held = endings.ending_of(principal, endings.now_ms())
                endings.keep(key, held)
        except (CommandError, UsageError):
            return ""  # whoever may not look at principals hears of it when a command is refused
        return held.words(endings.now_ms())

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, path: str, **query: Parameter) -> Any:
        """Return a JSON answer as it came, for who looks at an answer's shape itself; commands `read` it."""
        return await self.read(Any, path, **query)

    async def read(self, kind: type[T], path: str, **query: Parameter) -> T:
        """Return a JSON answer as the type that the API states for it. Raises CommandError for one of another type."""
        return _typed(kind, await self._call("GET", path, query=query))

    async def read_all(self, kind: type[T], path: str, **query: Parameter) -> tuple[T, ...]:
        """Return a whole list of `kind`, page by page."""
        items: list[T] = []
        while True:
            data, fields = await self._exchange("GET", path, query={**query, "limit": PAGE_ITEMS})
            items += _typed(list[kind], data)  # type: ignore[valid-type]
            following = fields.get("Link", "").partition(">")[0].removeprefix("<")
            if not following:
                return tuple(items)
            query["cursor"] = URL(following).query["cursor"]

    async def get_bytes(self, path: str, **query: Parameter) -> bytes:
        """Return a binary answer."""
        return await self._call("GET", path, query=query)

    async def state(self) -> MeshState:
        """Return the mesh state at the node's head."""
        state: MeshState = decode(await self.get_bytes("/v1/state"), MeshState, 8 << 20)
        return state

    async def mesh(self) -> Digest:
        """Return the mesh id."""
        return mesh_id(await self.get_bytes("/v1/genesis"))

    async def follow(self, path: str, **query: Parameter) -> AsyncIterator[tuple[str, dict[str, object]]]:
        """Yield (event, fields) of a server-sent event stream until it ends."""
        assert self._session is not None
        params = {key: _text(value) for key, value in query.items() if value not in (None, "")}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        url = self._url(path, params)
        try:
            for left in reversed(range(SIGN_AGAIN_MAX)):
                async with self._session.get(
                    url, timeout=timeout, headers=self._signed("GET", url, b""), allow_redirects=False
                ) as answer:
                    if answer.status == 200:
                        async for event in _events(answer.content):
                            yield event
                        return
                    data = await answer.read()
                if answer.status != STARTING or not left or BEFORE_START not in data:
                    raise _problem(answer.status, data)
                await asyncio.sleep(SIGN_AGAIN_S)
        except UNREACHED as error:
            raise self._unreached(error) from None

    @property
    def authority(self) -> str:
        """What requests to this node are addressed to: the beginning of the target that a signature covers."""
        return self._context.url or "https://node"

    @asynccontextmanager
    async def carried(self, path: str, fields: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Bring a GET that somebody else signed to the node, `path` with its query just as it was signed.

        Raises CommandError if the node is not there.
        """
        assert self._session is not None
        url = URL((self._context.url or "http://node") + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.get(url, timeout=timeout, headers=dict(fields), allow_redirects=False) as answer:
                yield answer
        except UNREACHED as error:
            raise self._unreached(error) from None

    # --- writing ------------------------------------------------------------------------------------------------------

    async def post(self, path: str, body: object = None) -> Any:
        """Send JSON, or no body; return the JSON answer as it came. Commands `send` it."""
        return await self.send(Any, path, body)

    async def send(self, kind: type[T], path: str, body: object = None, *, patience_s: float = TIMEOUT_S) -> T:
        """Send JSON, or no body; return the JSON answer as the type that the API states for it."""
        data = None if body is None else msgspec.json.encode(body, enc_hook=plain)
        answer, _ = await self._exchange("POST", path, data, "application/json", patience_s=patience_s)
        return _typed(kind, answer)

    async def post_nothing(self, path: str, body: object = None, *, patience_s: float = TIMEOUT_S) -> None:
        """Send JSON, or no body, where the answer is empty."""
        data = None if body is None else msgspec.json.encode(body, enc_hook=plain)
        await self._exchange("POST", path, data, "application/json", patience_s=patience_s)

    async def put_file(self, path: str, file: Path, sha256: str) -> None:
        """Send a file's bytes, whose SHA-256 (hex) the caller knows, while they are read."""
        with file.open("rb") as content:
            await self._exchange("PUT", path, content, "application/octet-stream", digest=bytes.fromhex(sha256))

    async def fetch_file(self, path: str, take: Callable[[bytes], object]) -> None:
        """Hand over a binary answer in pieces, while it arrives."""
        assert self._session is not None
        url = self._url(path, {})
        try:
            async with self._session.get(url, headers=self._signed("GET", url, b""), allow_redirects=False) as answer:
                if answer.status != 200:
                    raise _problem(answer.status, await answer.read())
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    take(piece)
        except UNREACHED as error:
            raise self._unreached(error) from None

    async def delete(self, path: str) -> None:
        """Have what is at a path forgotten."""
        await self._call("DELETE", path)

    async def put(self, path: str, body: object) -> None:
        """Replace what is at a path with JSON; the answer is empty."""
        await self._call("PUT", path, msgspec.json.encode(body, enc_hook=plain), "application/json")

    async def put_artifact(self, data: bytes, digest: bytes) -> bool:
        """Upload an artifact unless the node has it; return whether it was sent."""
        if await self.has_artifact(digest):
            return False
        await self._call("PUT", f"/v1/artifacts/{digest.hex()}", data, "application/octet-stream")
        return True

    async def has_artifact(self, digest: bytes) -> bool:
        """Whether the node has an artifact."""
        try:
            await self._call("GET", f"/v1/artifacts/{digest.hex()}/here")
        except CommandError:
            return False
        return True

    async def publish(self, kind: PaperKind, scope: str, body: bytes) -> str:
        """File a signed paper; return its key."""
        return (await self.send(RecordView, "/v1/records", RecordBody(kind, scope, body))).key

    async def decide(
        self,
        signer: Ed25519Signer,
        action: Action,
        *,
        project: str = "",
        environment: str = "",
        expect: int | None = None,
        exhibits: Exhibits | None = None,
        material: tuple[bytes, ...] = (),
        next_step: str = "freehold status",
    ) -> int:
        """Sign a command, show the signer's grants, have it decided, return its slot. Raises RefusedError naming the rule."""
        chains = await self.chains(signer.public_key)
        exhibits = msgspec.structs.replace(
            exhibits or Exhibits(), grants=tuple(bytes(digest(chain)) for chain in chains)
        )
        material = (*chains, *material)
        command = Command(secrets.token_bytes(16), action, project, environment, expect)
        signed = sign_command([signer], await self.mesh(), command, exhibits)
        return await self.decide_signed(signed, material, next_step)

    async def drain_until(self, admin: Ed25519Signer, action: DrainNode, until_ms: int) -> int:
        """Have a node drained, and have the asked node undrain it at a moment (wall ms); return the drain's slot."""
        chains, mesh = await self.chains(admin.public_key), await self.mesh()
        exhibits = Exhibits(grants=tuple(bytes(digest(chain)) for chain in chains))
        drain, undrain = (
            encode(sign_command([admin], mesh, Command(secrets.token_bytes(16), drain_node), exhibits))
            for drain_node in (action, msgspec.structs.replace(action, draining=False))
        )
        step = "freehold mesh members"
        goes_on("the drain was handed over: the voters may still decide it", step)
        return _slot_of(await self.send(OutcomeView, "/v1/drains", DrainBody(drain, undrain, until_ms, chains)), step)

    async def decide_signed(
        self, signed: SignedCommand, material: tuple[bytes, ...] = (), next_step: str = "freehold status"
    ) -> int:
        """Have a signed command decided, return its slot. Raises RefusedError naming the rule."""
        command: Command = decode(signed.payload, Command)
        action = command.action
        name = str(action.__struct_config__.tag).replace("_", " ")
        goes_on(f"the command ({name}) was handed over: the voters may still decide it", "freehold decisions")
        return _slot_of(await self.send(OutcomeView, "/v1/commands", CommandBody(encode(signed), material)), next_step)

    async def chains(self, key: bytes) -> tuple[bytes, ...]:
        """Return the encoded chains of grants that the node holds for a key: what proves its rights."""
        return (await self.read(PrincipalView, f"/v1/principals/{key.hex()}")).chains

    async def start(self, signed: SignedCommand) -> StartView:
        """Hand over a signed start."""
        command: Command = decode(signed.payload, Command)
        change = bytes(command.action.change).hex() if isinstance(command.action, Start) else ""
        told = {"change": change, "outcome": "started"}
        goes_on(f"the start of change {change[:12]} is handed over and goes on by itself", "freehold abort", told)
        return await self.send(StartView, "/v1/starts", CommandBody(encode(signed)))

    async def withdraw(self, change: str) -> None:
        """Have the node forget a start that still waits there."""
        await self.delete(f"/v1/starts/{change}")

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "",
        query: Mapping[str, Parameter] | None = None,
    ) -> bytes:
        return (await self._exchange(method, path, body, kind, query))[0]

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | BinaryIO | None = None,
        kind: str = "",
        query: Mapping[str, Parameter] | None = None,
        *,
        patience_s: float = TIMEOUT_S,
        digest: bytes | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        assert self._session is not None
        headers = {"Idempotency-Key": secrets.token_urlsafe(16)} if method != "GET" else {}
        if body is not None:
            headers["Content-Type"] = kind
        params = {key: _text(value) for key, value in (query or {}).items() if value not in (None, "")}
        url = self._url(path, params)
        try:
            for left in reversed(range(SIGN_AGAIN_MAX)):
                whole = body if isinstance(body, bytes) else b""
                signed = headers | self._signed(method, url, whole, digest)
                content = io.BytesIO(body) if isinstance(body, bytes) else body
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=patience_s)
                async with self._session.request(
                    method, url, data=content, headers=signed, timeout=timeout, allow_redirects=False
                ) as answer:
                    data = await answer.read()
                if answer.status != STARTING or not left or BEFORE_START not in data:
                    break
                await asyncio.sleep(SIGN_AGAIN_S)
        except aiohttp.ServerFingerprintMismatch:
            raise CommandError(
                f"what answers at {self._context.where} is not the node of this login",
                next_step="ask an operator: freehold mesh invite --kind principal, then freehold login LINE",
                kind="wrong-pin",
            ) from None
        except UNREACHED as error:
            raise self._unreached(error) from None
        if answer.status >= 300:
            raise _problem(answer.status, data)
        return data, answer.headers

    def _unreached(self, error: Exception) -> CommandError:
        reason = error if self._context.url else "it does not run"
        return CommandError(
            f"no node answers at {self._context.where}: {reason or 'no answer in time'}",
            next_step=self._context.start,
            kind="no-node",
        )

    def _url(self, path: str, params: dict[str, str]) -> URL:
        return URL((self._context.url or "http://node") + path, encoded=False).with_query(params or None)

    def _signed(self, method: str, url: URL, body: bytes, digest: bytes | None = None) -> dict[str, str]:
        """The fields that sign a request. On the Unix socket, which says itself who calls, only a named signer signs."""
        if self._signer is None:
            return {}
        target = f"https://{url.host_port_subcomponent}{url.raw_path_qs}"
        return sign_request(
            self._signer, method, target, body,
            created_s=int(time.time()), nonce=secrets.token_urlsafe(18), node=self._context.pin, digest=digest,
        )  # fmt: skip


async def _events(lines: aiohttp.StreamReader) -> AsyncIterator[tuple[str, dict[str, object]]]:
    name = ""
    async for raw in lines:
        line = raw.rstrip(b"\n")
        if line.startswith(b"event: "):
            name = line[7:].decode(errors="replace")
        elif line.startswith(b"data: "):
            yield name, _typed(dict[str, object], line[6:])


def _connector(context: Context) -> aiohttp.BaseConnector:
    if context.url:
        return aiohttp.TCPConnector(ssl=PinnedKey(bytes.fromhex(context.pin)))
    return aiohttp.UnixConnector(context.socket)


def _text(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _typed(kind: type[T], data: bytes) -> T:
    """Read an answer; its texts are `Foreign` where they need it. Raises CommandError for what is not of that type."""
    try:
        return msgspec.convert(foreign(msgspec.json.decode(data)), kind)
    except msgspec.MsgspecError as error:
        raise CommandError(
            f"the node's answer cannot be read: {error}",
            next_step="freehold doctor; the node may run another release than this command",
            kind="bad-answer",
        ) from None


def _problem(status: int, data: bytes) -> CommandError:
    try:
        problem = msgspec.convert(foreign(msgspec.json.decode(data)), dict[str, object])
    except msgspec.MsgspecError:
        return CommandError(f"the node answered {status}", next_step="freehold node status", kind="bad-answer")
    rule = str(problem.get("rule") or f"http-{status}")
    next_step = str(problem.get("next") or "freehold status")
    if status in {403, 409, 422}:
        return RefusedError(rule, str(problem.get("detail", "")), next_step)
    return CommandError(str(problem.get("detail", "")), next_step=next_step, kind=rule)


def talk(context: Context, conversation: Callable[[NodeClient], Awaitable[T]]) -> T:
    """Run one conversation with a node to its end."""

    async def run() -> T:
        async with NodeClient(context) as client:
            return await conversation(client)

    return asyncio.run(run())


def _slot_of(answer: OutcomeView, next_step: str) -> int:
    """Return where a command was decided. Raises RefusedError naming the rule, or CommandError if nobody knows."""
    if answer.outcome == "unknown":
        raise CommandError(
            "no majority of voters answered in time; it may still be decided",
            next_step="freehold mesh members",
            kind="unknown-outcome",
        )
    if answer.outcome != "decided":
        raise RefusedError(answer.rule or answer.outcome, answer.detail, next_step)
    nothing_goes_on()
    return answer.slot


def node_folder(data: Path | None) -> Path:
    """Return the folder of this machine's node: the named one, or where it is by default.

    Raises UsageError where a context knows it to be elsewhere, with the option that names it: nothing is done to a node
    that was not meant.
    """
    folder = (data or default_data_folder()).absolute()
    if data is not None or (folder / "genesis").exists():
        return folder
    for name, context in contexts.read_contexts().contexts.items():
        words = shlex.split(context.start)
        if "--data" in words[:-1] and Path(elsewhere := words[words.index("--data") + 1], "genesis").exists():
            step = f"add --data {shlex.quote(elsewhere)}, the node of {name}"
            raise UsageError(f"{folder} holds no node", next_step=step, kind="no-node")
    return folder


def default_data_folder() -> Path:
    """Where this user's node keeps its data unless told otherwise: /var/lib/freehold for root."""
    if os.getuid() == 0:
        return Path("/var/lib/freehold/node")
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "freehold" / "node"
