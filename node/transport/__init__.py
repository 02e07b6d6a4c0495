"""The asyncio transport: authenticated, multiplexed connections to peers, and nothing about what they say.

It drives `protocols.libp2p.connection` over TCP. For the daemon:

    transport = Transport(settings, signer=signer, verifier=verifier, entropy=entropy)
    transport.serve("/freehold/artifact/1", handler)         # handler: async (stream: Stream) -> None
    transport.set_members({peer: (address, ...)})            # dialled for ever, all addresses, with back-off
    async with asyncio.TaskGroup() as group:
        group.create_task(transport.run())                   # listens and dials; cancel it to stop
        async for event in transport.events():               # one consumer; slow consumption slows the peers down
            ...

Events, in this order for each link (one authenticated connection):

    LinkUp(link, peer, inbound, address)        Noise is done; only hello, identify and ping, 5 s, 64 KiB
    FramesReceived(link, peer, HELLO, frames)   the dialler's hello stream is open from the start; both sides `send`
    ... the daemon judges the hello and calls `admit(link)` or `close(link, reason)`
    LinkReady(link, peer)                       both sides admitted each other: the control stream is open
    FramesReceived(link, peer, CONTROL, frames) a batch of whole control frames, each at most 1 MiB
    LinkDown(link, peer, reason)                `reason` is a rule name such as "connection.silent", or empty

A peer may have several links for a moment (simultaneous dials, a restart, a clone). All of them come up, so that the
daemon can compare boot nonces; when a second one is admitted, the one dialled by the lower peer id stays, or the newer
one if the same side dialled both, and the other goes down with reason "transport.duplicate". `is_alive(link)` pings.

- `send(link, channel, frame)` queues one frame, returns False if it was dropped (no such link, not admitted, or 4 MiB
  queued); frames queued in one turn of the loop leave in one write.
- `link_to(peer)` is the admitted link to a peer, or None. `send_to(peer, frame)` is `send` on its control channel.
- `await open_stream(peer, protocol)` gives a `Stream`: `read`, `read_exactly`, `write`, `finish`, `reset`; both
  directions have back-pressure. Open one after LinkReady; before that the peer refuses it.
- `await dial(addresses, expected)` tries addresses once (joining a mesh) and returns the link.
- `await identify(link)` asks the peer who it is and how it sees our address.
- `listening` is the list of addresses with the real ports; a node with none listens nowhere and still takes part.

A stream that fails harms no other stream, a link that fails harms no other link, and no peer ends `run`.
Not here: hello's content, membership, message encoding.
"""

from node.transport.dialler import DialError
from node.transport.events import ChannelName, FramesReceived, LinkDown, LinkReady, LinkUp, TransportEvent
from node.transport.settings import CONTROL_PROTOCOL, HELLO_PROTOCOL, TransportSettings
from node.transport.stream import Stream, StreamError
from node.transport.transport import Transport

__all__ = [
    "CONTROL_PROTOCOL",
    "HELLO_PROTOCOL",
    "ChannelName",
    "DialError",
    "FramesReceived",
    "LinkDown",
    "LinkReady",
    "LinkUp",
    "Stream",
    "StreamError",
    "Transport",
    "TransportEvent",
    "TransportSettings",
]
