"""Cloned machines: two live processes with one identity, which would both vote with one store.

Suspicion is a second boot nonce while the first connection still stands; it may only be a restart. Proof is a fresh
challenge answered by two lives: both are told, and whoever is told with its own signature on a life that is not the
other's gives up its store. Not here: closing connections.
"""

from __future__ import annotations

from protocols.chain.ballots import BOOT_NONCE_BYTES, key_of
from protocols.chain.context import ChainContext
from protocols.chain.messages import LIFE_DOMAIN, Cloned, IAm, Life, WhoAreYou
from protocols.envelope import DecodeError, Signed, open_signed, sign
from protocols.machine import PeerId

CHALLENGE_BYTES = 16


class Clones:
    """One node's watch over doubles, its own included."""

    def __init__(self, context: ChainContext) -> None:
        self._at = context
        self._challenges: dict[PeerId, bytes] = {}
        self._answers: dict[PeerId, dict[bytes, Signed]] = {}

    def on_connected(self, peer: PeerId, boot_nonce: bytes) -> None:
        """A connection came up; challenge the peer if another life of it is connected already."""
        known = self._at.peers.get(peer)
        if known is not None and known != boot_nonce and known and boot_nonce:
            challenge = self._at.setup.entropy.random_bytes(CHALLENGE_BYTES)
            self._challenges[peer] = challenge
            self._answers[peer] = {}
            self._at.send(peer, WhoAreYou(challenge))

    def on_disconnected(self, peer: PeerId) -> None:
        """The last connection ended, and the suspicion with it."""
        self._challenges.pop(peer, None)
        self._answers.pop(peer, None)

    def on_who(self, peer: PeerId, message: WhoAreYou) -> None:
        """Answer a challenge with this life's nonce."""
        context = self._at
        if len(message.challenge) != CHALLENGE_BYTES:
            context.reject(peer, "chain.challenge-size")
            return
        life = Life(message.challenge, context.setup.boot_nonce)
        context.send(peer, IAm(sign(context.setup.signer, LIFE_DOMAIN, context.setup.mesh, life)))

    def on_life(self, peer: PeerId, message: IAm) -> None:
        """Collect answers; two lives behind one challenge are a clone."""
        context = self._at
        life = self._open(peer, message.life)
        if life is None or life.challenge != self._challenges.get(peer):
            return
        answers = self._answers[peer]
        answers[life.boot_nonce] = message.life
        if len(answers) == 2:
            first, second = answers.values()
            context.reject(peer, "chain.cloned", "two live processes answer for one identity")
            context.send(peer, Cloned(first, second))

    def proven(self, message: Cloned) -> bool:
        """Return whether a notice proves that this node has a double: two lives of ours under one challenge."""
        context = self._at
        first = self._open(context.setup.node, message.first)
        second = self._open(context.setup.node, message.second)
        if first is None or second is None:
            return False
        mine = context.setup.boot_nonce
        return first.challenge == second.challenge and (first.boot_nonce == mine) != (second.boot_nonce == mine)

    def _open(self, peer: PeerId, signed: Signed) -> Life | None:
        context = self._at
        try:
            life: Life = open_signed(context.setup.verifier, LIFE_DOMAIN, context.setup.mesh, signed, Life)
        except DecodeError:
            return None
        return life if signed.key == key_of(peer) and len(life.boot_nonce) == BOOT_NONCE_BYTES else None
