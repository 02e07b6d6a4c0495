"""Knocking: one newcomer's conversation with the members an invite names, from dialling to the welcome.

Drives the join machine over a transport of its own that listens nowhere. Not here: what is checked
(protocols/trust/joining.py), and what is written down afterwards (found.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from node.errors import ConfigError
from node.keys import SystemEntropy
from node.mesh.pump import system_now
from node.transport import (
    ChannelName,
    DialError,
    FramesReceived,
    LinkDown,
    LinkUp,
    Transport,
    TransportEvent,
    TransportSettings,
)
from protocols.core import decode_message
from protocols.envelope import DecodeError, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.libp2p import multiaddr
from protocols.machine import Effect, Notify, PeerConnected, PeerId, Received, Send
from protocols.trust.hello import RefusedBy
from protocols.trust.invites import InviteLine
from protocols.trust.joining import Joined, JoinMachine

JOIN_TIMEOUT_S = 30.0


class Knock:
    """One attempt to join."""

    def __init__(self, line: InviteLine, signer: Ed25519Signer, entropy: SystemEntropy, name: str) -> None:
        """Take the parsed line, the node's own key and its name."""
        verifier = Ed25519Verifier()
        self._line = line
        self._machine = JoinMachine(line, Ed25519Signer(line.seed), signer, verifier, entropy, name=name)
        self._transport = Transport(TransportSettings(), signer=signer, verifier=verifier, entropy=entropy)
        self._links: dict[PeerId, int] = {}
        self._refusals: list[str] = []
        self.refused = False
        """Whether a member refused by a rule: what it was shown is of no use, now or later."""

    async def answer(self) -> Joined:
        """Return what the mesh gave. Raises ConfigError saying who refused, or that nobody answered."""
        try:
            await asyncio.wait_for(self._run(), JOIN_TIMEOUT_S)
        except TimeoutError:
            raise ConfigError(
                "no member answered the invite in time", "check that a node of the mesh is running"
            ) from None
        if self._machine.joined is None:
            raise ConfigError(f"not admitted: {'; '.join(self._refusals)}", "ask an operator for a new invite")
        return self._machine.joined

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._transport.run())
            await self._transport.started.wait()
            talking = group.create_task(self._talk())
            if not await self._dial():
                talking.cancel()
            await asyncio.wait([talking])
            running.cancel()

    async def _dial(self) -> bool:
        silent: list[str] = []
        for address in self._line.addresses:
            try:
                await self._transport.dial((multiaddr.parse(address.address),), PeerId(address.pin))
            except (DialError, OSError, ValueError) as error:
                silent.append(f"{address.address} does not answer: {error}")
            else:
                return True
        self._refusals += silent
        return False

    async def _talk(self) -> None:
        async for event in self._transport.events():
            self._perform(self._take(event))
            if self._machine.joined is not None or self._refusals:
                return

    def _take(self, event: TransportEvent) -> Sequence[Effect]:
        match event:
            case LinkUp(link, peer, inbound, _):
                self._links[peer] = link
                return self._machine.handle(PeerConnected(peer, inbound), system_now())
            case FramesReceived(_, peer, _, frames):
                effects: list[Effect] = []
                for frame in frames:
                    try:
                        effects += self._machine.handle(Received(peer, decode_message(frame)), system_now())
                    except DecodeError as error:
                        self._refusals.append(f"a member sent what is no hello: {error}")
                return effects
            case LinkDown(_, _, reason):
                if not self._refusals:
                    self._refusals.append(f"the member hung up: {reason or 'it closed the connection'}")
                return []
            case _:
                return []

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._transport.send(self._links[peer], ChannelName.HELLO, encode(message))
                case Notify(RefusedBy(_, rule, detail)):
                    self.refused = True
                    self._refusals.append(f"{rule}: {detail}")
                case _:
                    pass
