"""libp2p on the wire, as sans-IO machines: bytes in, events and bytes out.

The face here is not `Machine.handle`: a byte stream arrives in pieces of any size, one piece may carry hundreds of
frames, and bytes leave only as fast as a socket takes them. So these machines follow h11 and h2 instead:
`receive_data(bytes, now_ms)` returns events, `data_to_send(limit)` is asked for bytes when the socket has room, and
a broken peer raises `RemoteProtocolError`. Pulling the output, rather than emitting it as effects, is what lets one
stream's megabytes wait behind another's hundred bytes. Clocks and randomness are arguments, as everywhere in
`protocols/`.

- `varint`, `protobuf`: the two encodings libp2p builds on, with caps.
- `peer_id`, `multiaddr`: names of nodes and of their addresses, as text and as bytes.
- `multistream`: agreeing on one protocol (multistream-select 1.0), both roles.
- `noise`, `noise_payload`, `noise_channel`: Noise XX, the libp2p payload in it, frames after it.
- `yamux_frames`, `yamux_stream`, `yamux`: many streams on one connection, with windows enforced both ways.
- `upgrade`: raw bytes until the peer is authenticated and the muxer agreed.
- `connection`: all of it composed; the only class a transport drives.
- `identify`, `ping`: the two protocols every libp2p peer answers.

Not here: sockets, dialling, limits over many connections (`node/transport/`), and every other libp2p transport,
security protocol and muxer.
"""
