"""The few protobuf messages libp2p needs: fields in, fields out, nothing generated.

A message is read as a list of (field number, value), where a value is an int (wire type 0) or bytes (wire type 2);
fixed-width fields are skipped. Unknown fields are the caller's to ignore; groups and unknown wire types are refused.
Varints may be of any length up to ten bytes here, because protobuf, unlike multiformats, allows it.
Not here: nesting (decode the bytes again), packed fields, defaults. Source: the protobuf encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.libp2p import varint
from protocols.libp2p.errors import RemoteProtocolError

FIELDS_MAX = 1024
"""Fields in one message. An Identify answer with a hundred protocols and addresses has about 200."""

_VARINT_MAX_BYTES = 10
_FIXED_BYTES = {1: 8, 5: 4}

Fields = list[tuple[int, int | bytes]]


def encode(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    """Return the message with `fields` in the order given (libp2p wants tag order where keys are hashed)."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += varint.encode(number << 3) + varint.encode(value)
        else:
            out += varint.encode(number << 3 | 2) + varint.encode(len(value)) + value
    return bytes(out)


def decode(data: bytes) -> Fields:
    """Return the fields of one complete message, in order of arrival.

    Raises RemoteProtocolError for truncation, field number 0, an unknown wire type or over FIELDS_MAX fields.
    """
    fields: Fields = []
    offset = 0
    while offset < len(data):
        if len(fields) >= FIELDS_MAX:
            raise RemoteProtocolError("protobuf.too-many-fields", f"over {FIELDS_MAX}")
        key, offset = _read_varint(data, offset)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise RemoteProtocolError("protobuf.field-zero")
        if wire_type == 0:
            value, offset = _read_varint(data, offset)
            fields.append((number, value))
        elif wire_type == 2:
            length, offset = _read_varint(data, offset)
            if length > len(data) - offset:
                raise RemoteProtocolError("protobuf.truncated")
            fields.append((number, data[offset : offset + length]))
            offset += length
        elif wire_type in _FIXED_BYTES:
            offset += _FIXED_BYTES[wire_type]
            if offset > len(data):
                raise RemoteProtocolError("protobuf.truncated")
        else:
            raise RemoteProtocolError("protobuf.wire-type", str(wire_type))
    return fields


def last_bytes(fields: Fields, number: int) -> bytes | None:
    """Return an optional bytes field (the last one wins), or None; RemoteProtocolError if it is an int."""
    content: bytes | None = None
    for field, value in fields:
        if field == number:
            if isinstance(value, int):
                raise RemoteProtocolError("protobuf.field-type", f"field {number}")
            content = value
    return content


def all_bytes(fields: Fields, number: int) -> tuple[bytes, ...]:
    """Return every value of a repeated bytes field; RemoteProtocolError if one is an int."""
    values = [value for field, value in fields if field == number]
    if any(isinstance(value, int) for value in values):
        raise RemoteProtocolError("protobuf.field-type", f"field {number}")
    return tuple(value for value in values if not isinstance(value, int))


def last_int(fields: Fields, number: int) -> int | None:
    """Return an optional integer field (the last one wins), or None; RemoteProtocolError if it is bytes."""
    answer: int | None = None
    for field, value in fields:
        if field == number:
            if not isinstance(value, int):
                raise RemoteProtocolError("protobuf.field-type", f"field {number}")
            answer = value
    return answer


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_MAX_BYTES):
        if offset + index >= len(data):
            raise RemoteProtocolError("protobuf.truncated")
        byte = data[offset + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 2**64 - 1, offset + index + 1
    raise RemoteProtocolError("protobuf.varint-too-long")
