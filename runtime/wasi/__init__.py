"""The WASI interfaces the host serves, a file for each family. Nothing that is not listed here reaches a guest."""

from __future__ import annotations

from typing import Final

from runtime.engine.interface import Interface
from runtime.wasi import (
    blobs,
    cli,
    clocks,
    http_outgoing,
    http_types,
    messaging,
    poll,
    random,
    refused,
    services,
    sql,
    streams,
)

INTERFACES: Final[tuple[Interface, ...]] = (
    poll.error,
    poll.poll,
    streams.streams,
    clocks.monotonic,
    clocks.wall,
    random.random,
    random.insecure,
    random.insecure_seed,
    *cli.INTERFACES,
    *refused.INTERFACES,
    http_types.types,
    http_outgoing.outgoing_handler,
    *services.INTERFACES,
    *sql.INTERFACES,
    *blobs.INTERFACES,
    *messaging.INTERFACES,
)
"""What a guest may import."""

WITH_ADAPTER: Final = (*INTERFACES, streams.hex_streams)
"""What a compiled component may import: the adapter around a guest has an interface of its own."""
