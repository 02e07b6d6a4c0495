"""Values planted as secrets, and the search for them: in any bytes, in every file below a folder, inside archives too.

Not here: where they are planted.
"""

from __future__ import annotations

import base64
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SHOWN = 16
"""So much of a value's beginning gives it away."""


def forms(value: str) -> list[bytes]:
    """A value as it might stand somewhere: plain, cut, base64 at any alignment, hex."""
    data = value.encode()
    encoded = [base64.b64encode(b"x" * shift + data)[4:-4] for shift in range(3)]
    return [data, data[:SHOWN], *encoded, data.hex().encode()]


def tells(data: bytes, values: Sequence[str]) -> bool:
    """Whether the bytes hold one of the values in some form."""
    return any(form in data for value in values for form in forms(value))


def files_that_tell(folders: Iterable[Path], values: Sequence[str]) -> list[str]:
    """Every file below the folders that holds a value, databases and their journals, core files and archives included."""
    return [
        name
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for name, data in _contents(path)
        if tells(data, values)
    ]


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    yield str(path), path.read_bytes()
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield f"{path}:{member.name}", file.read()
