"""Unsigned LEB128 integers as multiformats define them: at most 9 bytes (63 bits), shortest form only.

Not here: signed or zigzag integers; libp2p uses none. Source: the multiformats unsigned-varint specification.
"""

from __future__ import annotations

from protocols.libp2p.errors import LocalProtocolError, RemoteProtocolError

VARINT_MAX_BYTES = 9
"""The multiformats limit: nine bytes carry 63 bits, so every value fits a signed 64-bit integer elsewhere."""

VALUE_MAX = 2**63 - 1


def encode(value: int) -> bytes:
    """Return `value` (0 to 2^63 - 1) in its shortest form; LocalProtocolError outside that range."""
    if not 0 <= value <= VALUE_MAX:
        raise LocalProtocolError("varint.range", str(value))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int] | None:
    """Return (value, offset after it), or None if `data` ends inside the integer.

    Raises RemoteProtocolError for more than nine bytes or a longer form than needed.
    """
    value = 0
    for index in range(VARINT_MAX_BYTES):
        if offset + index >= len(data):
            return None
        byte = data[offset + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise RemoteProtocolError("varint.not-minimal")
            return value, offset + index + 1
    raise RemoteProtocolError("varint.too-long", f"over {VARINT_MAX_BYTES} bytes")


def decode_whole(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """Return (value, offset after it) from complete data; RemoteProtocolError if it ends early."""
    decoded = decode(data, offset)
    if decoded is None:
        raise RemoteProtocolError("varint.truncated")
    return decoded
