"""The one face of every protocol machine, and the inputs and effects they share.

A machine is a pure value transformer: `handle(event, now)` returns the effects to perform, in order, and
`deadline_ms()` says when it next wants a `Tick`. It never reads a clock, a socket, a file or ambient
randomness; those arrive as `Now`, events, `Entropy`, `Signer` and `Verifier`. Two interpreters perform the
effects: `node/` on asyncio and `simulation/` under virtual time. Not here: any protocol.

The order of effects is a contract (etcd/raft `Ready`, doc.go): a `Persist` is durable before any later effect of the
same list is performed. A machine may therefore write `[Persist(promise), Send(promise)]` and never see a
completion event. If a `Persist` fails, the process ends; nothing after it happens.

Events and effects are Structs because thousands of them are made per second, four times as fast as frozen dataclasses.

Shape taken from iroh-gossip (`proto/state.rs`) and aioquic (polled deadline instead of timer objects).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Generic, NewType, Protocol, TypeVar, runtime_checkable

import msgspec

PeerId = NewType("PeerId", str)
"""A node's identity: its Ed25519 public key as a libp2p peer id, base58btc text ("12D3Koo...")."""

Digest = NewType("Digest", bytes)
"""A SHA-256 digest, 32 bytes."""


MessageT_co = TypeVar("MessageT_co", covariant=True)
"""The messages that a machine takes or sends: a union of tagged Structs."""


class Now(msgspec.Struct, frozen=True):
    """The two clocks of one moment: timers use `mono_ms`, expiries use `wall_ms` (Unix epoch)."""

    mono_ms: int
    wall_ms: int


class Entropy(Protocol):
    """A source of randomness: the operating system's in `node/`, a seeded one in `simulation/`."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` uniformly random bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """Return a float in [low, high), for jitter; never for keys."""
        ...


class Signer(Protocol):
    """Holds one Ed25519 private key (RFC 8032); the key itself never enters a machine."""

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        ...


class Verifier(Protocol):
    """Checks Ed25519 signatures (RFC 8032), and those of passkeys: ECDSA on P-256 with SHA-256 (RFC 7518, ES256)."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` (64 bytes) by `public_key` (32 bytes) covers `message`; never raises."""
        ...

    def verify_es256(self, point: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` (DER) by the P-256 key at `point` (uncompressed) covers `message`; never raises."""
        ...


# --- events -----------------------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """The polled deadline has come."""


class PeerConnected(msgspec.Struct, frozen=True):
    """The transport authenticated a connection to `peer` (Noise); nothing is admitted yet."""

    peer: PeerId
    inbound: bool
    boot_nonce: bytes = b""


class PeerDisconnected(msgspec.Struct, frozen=True):
    """The last connection to `peer` ended."""

    peer: PeerId
    reason: str = ""


class Received(msgspec.Struct, Generic[MessageT_co], frozen=True):
    """One decoded message from an authenticated `peer`; each machine's events say of which kinds."""

    peer: PeerId
    message: MessageT_co


# --- effects ----------------------------------------------------------------------------------------------------------


class Store(Enum):
    """Where a `Persist` lands: `vote.db`, `state.db` (rebuildable by sync), or the two-slot fence file."""

    VOTE = "vote"
    STATE = "state"
    FENCE = "fence"

    __hash__ = object.__hash__  # each is one object; Enum hashes its name, in Python, at every look-up


class Write(msgspec.Struct, frozen=True):
    """One key-value write; `value` None deletes. `table` is a lower-case word, keys sort as bytes."""

    table: str
    key: bytes
    value: bytes | None


class Send(msgspec.Struct, Generic[MessageT_co], frozen=True):
    """Send `message` (a tagged msgspec Struct) to one connected peer; silently lost if it is not connected."""

    peer: PeerId
    message: MessageT_co


class Broadcast(msgspec.Struct, Generic[MessageT_co], frozen=True):
    """Send `message` to every admitted connected peer, except those named."""

    message: MessageT_co
    exclude: tuple[PeerId, ...] = ()


class Persist(msgspec.Struct, frozen=True):
    """Apply `writes` to one store atomically and make them durable before any later effect is performed."""

    store: Store
    writes: tuple[Write, ...]


class Disconnect(msgspec.Struct, frozen=True):
    """Close the connection to `peer`."""

    peer: PeerId
    reason: str


class Reject(msgspec.Struct, frozen=True):
    """`peer` broke `rule` (a stable dotted name such as "chain.ballot-reused"); the input changed nothing."""

    peer: PeerId
    rule: str
    detail: str = ""


class Notify(msgspec.Struct, frozen=True):
    """Tell the node something happened; `event` is a frozen dataclass of the emitting machine's module."""

    event: Any


Effect = Send[Any] | Broadcast[Any] | Persist | Disconnect | Reject | Notify
Effects = Sequence[Effect]

InT_contra = TypeVar("InT_contra", contravariant=True)
OutT_co = TypeVar("OutT_co", covariant=True)


@runtime_checkable
class Machine(Protocol[InT_contra, OutT_co]):
    """The one face; nothing else mutates a machine, queries are properties."""

    def handle(self, event: InT_contra, now: Now) -> Sequence[OutT_co]:
        """Consume one event; return the effects to perform, in order."""
        ...

    def deadline_ms(self) -> int | None:
        """When `Tick` is next due (monotonic ms), or None for never."""
        ...
