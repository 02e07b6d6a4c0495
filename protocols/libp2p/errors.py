"""Errors of the wire: whose fault it was, and which rule was broken (after h11).

ProtocolError
├── LocalProtocolError    our own caller asked for something the protocol does not allow; the connection stays usable
└── RemoteProtocolError   the peer broke a rule; the connection (or, where said, the one stream) is over
"""

from __future__ import annotations


class ProtocolError(Exception):
    """A rule of the wire was broken. `rule` is a stable dotted name such as "yamux.window-overrun"."""

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.detail = detail


class LocalProtocolError(ProtocolError):
    """This side asked for what the protocol forbids; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids."""
