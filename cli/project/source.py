"""The files of one app's source folder: which of them count, and their digest. Not: what they mean to a language."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.errors import BuildError

FILES_MAX = 5_000
TOTAL_MAX_BYTES = 64 * 1024 * 1024
"""More than this in a source folder is data or an installed dependency, which belongs elsewhere."""

LEFT_OUT = frozenset({"__pycache__", "node_modules", ".git", ".freehold", ".venv", "venv", ".mypy_cache"})


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A source folder at one moment: path and content of each file, sorted by path."""

    folder: Path
    files: tuple[tuple[str, bytes], ...]

    def digest(self) -> str:
        """Return the hex SHA-256 over names and contents; independent of times, owners and the folder's place."""
        whole = hashlib.sha256()
        for name, content in self.files:
            whole.update(f"{name}\0{len(content)}\0".encode())
            whole.update(content)
        return whole.hexdigest()

    def content(self, name: str) -> bytes | None:
        """Return the content of the file called `name`, if there is one."""
        return next((content for path, content in self.files if path == name), None)

    def write(self, folder: Path) -> None:
        """Write every file below `folder`, all with one time: a checkout's times are no part of what is built."""
        for name, content in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (0, 0))


def read_tree(app: str, folder: Path) -> SourceTree:
    """Read an app's source folder; hidden files, caches and installed dependencies do not count."""
    if not folder.is_dir():
        raise BuildError(
            app, f"there is no folder {folder}", next_step="set source in freehold.toml to the app's folder"
        )
    files: list[tuple[str, bytes]] = []
    total = 0
    for path in _walk(folder):
        content = path.read_bytes()
        total += len(content)
        files.append((path.relative_to(folder).as_posix(), content))
        if len(files) > FILES_MAX or total > TOTAL_MAX_BYTES:
            raise BuildError(
                app,
                f"{folder} holds more than {FILES_MAX} files or {TOTAL_MAX_BYTES >> 20} MiB",
                next_step="move data and installed packages out of the source folder",
            )
    return SourceTree(folder, tuple(sorted(files)))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("."))
        for name in sorted(names):
            path = Path(root) / name
            if not name.startswith(".") and not name.endswith(".pyc") and path.is_file():
                yield path
