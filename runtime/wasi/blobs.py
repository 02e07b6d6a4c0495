"""wasi:blobstore 0.2.0-draft over the app's containers: objects stream both ways, whole or in part.

An object becomes visible when its outgoing value is finished, under every name it was written to. A container that
freehold.toml grants is always there. Source: the WIT of WebAssembly/wasi-blobstore. Not here: where the bytes lie.
"""

from __future__ import annotations

import re
from typing import Final

from runtime.engine.codecs import Err
from runtime.engine.guest import Guest, Resource
from runtime.engine.interface import Interface
from runtime.providers import BlobProvider, BlobReader, BlobWriter, ProviderError
from runtime.wasi.services import note_away, served
from runtime.wasi.streams import CLOSED, InputStream, OutputStream, failed

WRITE_PERMIT_BYTES: Final = 256 * 1024
CONSUME_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes of an object that are taken whole, as a list; a larger one is read as a stream."""

VALUES_MAX: Final = 16
"""Objects of one instance that are open for writing or reading at once."""

NAMES_MAX: Final = 1_000
TARGETS_MAX: Final = 16

_DRAFT: Final = re.compile(r"0\.2\.0-draft(-2024-09-01)?")

BLOBS: Final = "freehold.blobs"
"""What spans call it."""

types: Final = Interface(
    "wasi:blobstore/types", _DRAFT, system=BLOBS,
    quiet=frozenset({
        "[static]outgoing-value.new-outgoing-value", "[method]outgoing-value.outgoing-value-write-body",
        "[static]incoming-value.incoming-value-consume-async", "[method]incoming-value.size",
    }),
)  # fmt: skip
container: Final = Interface(
    "wasi:blobstore/container", _DRAFT, system=BLOBS,
    quiet=frozenset({"[method]container.name", "[method]container.list-objects"}),
)  # fmt: skip
blobstore: Final = Interface(
    "wasi:blobstore/blobstore", _DRAFT, system=BLOBS, quiet=frozenset({"get-container", "container-exists"})
)
INTERFACES: Final = (types, container, blobstore)


class Container(Resource, wit="container"):
    """A container the guest opened."""

    __slots__ = ("blobs", "store")

    def __init__(self, blobs: BlobProvider, name: str) -> None:
        super().__init__()
        self.blobs = blobs
        self.store = name


class OutgoingValue(Resource, wit="outgoing-value"):
    """An object on its way in; the file is begun when its stream is asked for."""

    __slots__ = ("failure", "store", "streamed", "targets", "writer")

    def __init__(self) -> None:
        super().__init__()
        self.store = ""
        self.writer: BlobWriter | None = None
        self.targets: list[tuple[str, str]] = []
        self.failure = ""
        self.streamed = False

    def dropped(self, guest: Guest) -> None:
        """Not finished: nobody sees it."""
        if self.writer is not None:
            self.writer.close()


class IncomingValue(Resource, wit="incoming-value"):
    """An object, or a part of one, that was opened."""

    __slots__ = ("reader", "store")

    def __init__(self, reader: BlobReader, store: str) -> None:
        super().__init__()
        self.reader = reader
        self.store = store

    def dropped(self, guest: Guest) -> None:
        """Let go of the file."""
        self.reader.close()


class ObjectNames(Resource, wit="stream-object-names"):
    """A walk over the names in a container."""

    __slots__ = ("after", "of", "store")

    def __init__(self, of: Container) -> None:
        super().__init__()
        self.store = of.store
        self.of = of
        self.after: str | None = None


class ValueOutput(OutputStream):
    """The bytes of an object on its way in."""

    __slots__ = ()
    parent: OutgoingValue

    def permit(self) -> int | Err:
        """As much as one call should bring."""
        return failed(self.parent.failure) if self.parent.failure else WRITE_PERMIT_BYTES

    def put(self, data: bytes) -> Err | None:
        """Write to the file."""
        assert self.parent.writer is not None
        try:
            self.parent.writer.write(data)
        except ProviderError as error:
            self.parent.failure = error.text
            return failed(error.text)
        return None


class ValueInput(InputStream):
    """The bytes of an object."""

    __slots__ = ("reader",)

    def __init__(self, reader: BlobReader) -> None:
        super().__init__()
        self.reader = reader

    def read(self, max_bytes: int) -> bytes | Err:
        """Return what comes next."""
        if max_bytes == 0:
            return b""
        try:
            return self.reader.read(max_bytes) or CLOSED
        except ProviderError as error:
            return failed(error.text)

    def dropped(self, guest: Guest) -> None:
        """Let go of the file."""
        self.reader.close()


_served = served(lambda error: Err(error.text or error.kind))


def _open(guest: Guest, name: str) -> Container:
    return Container(guest.services.open_container(name), name)


def _check_open(guest: Guest) -> None:
    kinds = (IncomingValue, OutgoingValue, ValueInput)
    if sum(isinstance(held, kinds) for held in guest.table.values()) >= VALUES_MAX:
        raise ProviderError("other", f"an instance holds at most {VALUES_MAX} objects open; drop one")


@blobstore.function("create-container")
@blobstore.function("get-container")
@_served
def _get_container(guest: Guest, name: str) -> Container:
    return _open(guest, name)


@blobstore.function("container-exists")
@_served
def _container_exists(guest: Guest, name: str) -> bool:
    return name in guest.services.spec.blobs


@blobstore.function("delete-container")
@_served
def _delete_container(guest: Guest, name: str) -> None:
    _open(guest, name).blobs.delete(name, None)


@blobstore.function("copy-object")
@_served
def _copy(guest: Guest, source: tuple[str, str], target: tuple[str, str]) -> None:
    _open(guest, source[0])
    _open(guest, target[0]).blobs.copy(source, target)


@blobstore.function("move-object")
@_served
def _move(guest: Guest, source: tuple[str, str], target: tuple[str, str]) -> None:
    _open(guest, source[0])
    _open(guest, target[0]).blobs.copy(source, target, move=True)


@container.function("[method]container.name")
def _name(guest: Guest, this: Container) -> str:
    return this.store


@container.function("[method]container.info")
@_served
def _info(guest: Guest, this: Container) -> tuple[str, int]:
    return this.store, this.blobs.created_ms(this.store) // 1000


@container.function("[method]container.get-data")
@_served
def _get_data(guest: Guest, this: Container, name: str, start: int, end: int) -> IncomingValue:
    _check_open(guest)
    return IncomingValue(this.blobs.get(this.store, name, start, end), this.store)


@container.function("[method]container.write-data")
@_served
def _write_data(guest: Guest, this: Container, name: str, value: OutgoingValue) -> None:
    if not name or len(value.targets) >= TARGETS_MAX:
        raise ProviderError("other", f"an object has a name, and at most {TARGETS_MAX} at once")
    value.targets.append((this.store, name))
    value.store = this.store
    if value.writer is None:
        value.writer = this.blobs.put()


@container.function("[method]container.list-objects")
def _list(guest: Guest, this: Container) -> ObjectNames:
    return ObjectNames(this)


@container.function("[method]container.delete-object")
@_served
def _delete(guest: Guest, this: Container, name: str) -> None:
    this.blobs.delete(this.store, (name,))


@container.function("[method]container.delete-objects")
@_served
def _delete_objects(guest: Guest, this: Container, names: list[str]) -> None:
    if len(names) > NAMES_MAX:
        raise ProviderError("other", f"one call deletes at most {NAMES_MAX} objects")
    this.blobs.delete(this.store, names)


@container.function("[method]container.has-object")
@_served
def _has(guest: Guest, this: Container, name: str) -> bool:
    return this.blobs.info(this.store, name) is not None


@container.function("[method]container.object-info")
@_served
def _object_info(guest: Guest, this: Container, name: str) -> tuple[str, str, int, int]:
    blob_info = this.blobs.info(this.store, name)
    if blob_info is None:
        raise ProviderError("other", f"there is no object {name[:60]!r}")
    return name, this.store, blob_info.created_ms // 1000, blob_info.size


@container.function("[method]container.clear")
@_served
def _clear(guest: Guest, this: Container) -> None:
    this.blobs.delete(this.store, None)


def _page(this: ObjectNames, count: int) -> tuple[list[str], bool]:
    """The next names, and whether none follow."""
    wanted = min(count, NAMES_MAX)
    names = list(this.of.blobs.names(this.of.store, this.after, wanted + 1))
    page = names[:wanted]
    this.after = page[-1] if page else this.after
    return page, len(names) <= wanted


@container.function("[method]stream-object-names.read-stream-object-names")
@_served
def _read_names(guest: Guest, this: ObjectNames, count: int) -> tuple[list[str], bool]:
    return _page(this, count)


@container.function("[method]stream-object-names.skip-stream-object-names")
@_served
def _skip_names(guest: Guest, this: ObjectNames, count: int) -> tuple[int, bool]:
    names, ended = _page(this, count)
    return len(names), ended


@types.function("[static]outgoing-value.new-outgoing-value")
def _new_outgoing(guest: Guest) -> OutgoingValue:
    return OutgoingValue()


@types.function("[method]outgoing-value.outgoing-value-write-body")
def _write_body(guest: Guest, this: OutgoingValue) -> ValueOutput | Err:
    blobs = guest.services.providers.blobs
    if this.streamed or blobs is None or not guest.services.spec.blobs:
        return Err(None)
    if this.writer is None:
        try:
            _check_open(guest)
            this.writer = blobs.put()
        except ProviderError as error:
            note_away(guest, error)
            return Err(None)
    this.streamed = True
    return ValueOutput(this)


@types.function("[static]outgoing-value.finish")
@_served
def _finish(guest: Guest, this: OutgoingValue) -> None:
    writer, this.writer = this.writer, None
    if writer is None:
        raise ProviderError("other", "nothing was written")
    try:
        if this.failure:
            raise ProviderError("other", this.failure)
        if not this.targets:
            raise ProviderError("other", "the value was written to no object")
        writer.commit(this.targets)
    finally:
        writer.close()


@types.function("[static]incoming-value.incoming-value-consume-sync")
@_served
def _consume(guest: Guest, this: IncomingValue) -> bytes:
    try:
        if this.reader.size > CONSUME_MAX_BYTES:
            raise ProviderError("other", f"an object of over {CONSUME_MAX_BYTES} bytes is read as a stream")
        answer = bytearray()
        while data := this.reader.read(WRITE_PERMIT_BYTES):
            answer += data
        return bytes(answer)
    finally:
        this.reader.close()


@types.function("[static]incoming-value.incoming-value-consume-async")
def _consume_stream(guest: Guest, this: IncomingValue) -> ValueInput:
    return ValueInput(this.reader)


@types.function("[method]incoming-value.size")
def _size(guest: Guest, this: IncomingValue) -> int:
    return this.reader.size
