"""Stands in for a part of CPython that the sandbox is built without: packages that import bz2 work, use of it says why."""

WITHOUT = "the sandbox's Python is built without bz2; use zlib or gzip"


class BZ2Compressor:
    """What `bz2.compress` uses."""

    def __init__(self, compresslevel=9) -> None:
        raise OSError(WITHOUT)


class BZ2Decompressor:
    """What `bz2.decompress` uses. It can be made, as tarfile makes one to find out what a file is."""

    eof, needs_input, unused_data = False, True, b""

    def decompress(self, data, max_length=-1):
        """Say why it cannot be done."""
        raise OSError(WITHOUT)
