"""Temporary files in memory, for a Python that has no disk. Runs only inside the sandbox.

A file under /tmp lives in the instance's own memory, which the app's limit bounds, until it is removed or the instance
ends. There are no file descriptors, so `tempfile.mkstemp` and `os.open` stay refused. Not here: the app's own files,
which are read-only (`freehold_files.py`).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
import tempfile
import time
import uuid
import zlib

ROOT = "/tmp"

_content: dict[str, bytes] = {}
_changed: dict[str, int] = {}
_folders: set[str] = {ROOT}
_below: dict[str, object] = {}


def _name(path) -> str | None:
    """Return the path below /tmp that `path` means, or None where it means another place."""
    if isinstance(path, int):
        return None
    try:
        text = os.fspath(path)
    except TypeError:
        return None
    text = os.path.abspath(os.fsdecode(text) if isinstance(text, bytes) else text)
    return text if text == ROOT or text.startswith(ROOT + "/") else None


def _refused(number: int, path) -> OSError:
    return OSError(number, os.strerror(number), path)


class _Raw(io.BytesIO):
    """An open temporary file; what was written is kept at each flush and at the end."""

    def __init__(self, name: str, mode: str, content: bytes, *, removed_at_end: bool = False) -> None:
        super().__init__(content)
        self.name, self.mode = name, mode
        self._writes, self._removed_at_end = bool(set(mode) & set("wax+")), removed_at_end
        if "a" in mode:
            self.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return "r" in self.mode or "+" in self.mode

    def writable(self) -> bool:
        return self._writes

    def write(self, data) -> int:
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        if "a" in self.mode:
            self.seek(0, io.SEEK_END)
        return super().write(data)

    def flush(self) -> None:
        if not self.closed and self._writes and self.name in _content:
            _content[self.name] = self.getvalue()
            _changed[self.name] = time.time_ns()

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a temporary file in the sandbox has no descriptor")

    def close(self) -> None:
        if not self.closed:
            self.flush()
            if self._removed_at_end:
                _content.pop(self.name, None)
        super().close()


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    name = _name(file)
    if name is None:
        return _below["open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
    if name in _folders:
        raise _refused(errno.EISDIR, file)
    if os.path.dirname(name) not in _folders or ("r" in mode and name not in _content):
        raise _refused(errno.ENOENT, file)
    if "x" in mode and name in _content:
        raise _refused(errno.EEXIST, file)
    if "w" in mode or name not in _content:
        _content[name] = b""
    _changed[name] = time.time_ns() if set(mode) & set("wax+") else _changed.get(name, 0)
    return _wrapped(_Raw(name, mode, _content[name]), mode, encoding, errors, newline)


def _wrapped(raw, mode, encoding, errors, newline):
    return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline, write_through=True)


def _fresh(suffix, prefix, folder) -> str:
    parent = _name(folder or ROOT)
    if parent is None or parent not in _folders:
        raise _refused(errno.ENOENT, folder)
    return f"{parent}/{prefix or 'tmp'}{uuid.uuid4().hex[:12]}{suffix or ''}"


def _temporary(mode="w+b", buffering=-1, encoding=None, newline=None, suffix=None, prefix=None, dir=None, delete=True,
               *, errors=None, delete_on_close=True):  # fmt: skip
    name = _fresh(suffix, prefix, dir)
    _content[name] = b""
    return _wrapped(_Raw(name, mode, b"", removed_at_end=delete), mode, encoding, errors, newline)


def _folder(suffix=None, prefix=None, dir=None) -> str:
    name = _fresh(suffix, prefix, dir)
    _folders.add(name)
    return name


def _no_descriptor(*_, **__):
    raise NotImplementedError("the sandbox has no file descriptors; use tempfile.NamedTemporaryFile")


def _stat(path, *, dir_fd=None, follow_symlinks=True):
    name = _name(path)
    if name is None:
        return _below["stat"](path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    if name in _folders:
        return os.stat_result((stat.S_IFDIR | 0o700, zlib.crc32(name.encode()), 1, 1, 0, 0, 0, 0, 0, 0))
    if name not in _content:
        raise _refused(errno.ENOENT, path)
    size, changed_ns = len(_content[name]), _changed.get(name, 0)
    whole_s, seconds = changed_ns // 1_000_000_000, changed_ns / 1_000_000_000
    times = {f"st_{letter}time": seconds for letter in "amc"} | {f"st_{letter}time_ns": changed_ns for letter in "amc"}
    number = zlib.crc32(name.encode())
    return os.stat_result((stat.S_IFREG | 0o600, number, 1, 1, 0, 0, size, whole_s, whole_s, whole_s), times)


def _children(name: str) -> list[str]:
    inside = {path[len(name) + 1 :] for path in (*_content, *_folders) if path.startswith(name + "/")}
    return sorted({path.split("/", 1)[0] for path in inside})


def _listdir(path="."):
    name = _name(path)
    if name is None:
        return _below["listdir"](path)
    if name not in _folders:
        raise _refused(errno.ENOTDIR if name in _content else errno.ENOENT, path)
    return _children(name)


def _scandir(path="."):
    return _below["entries"](path, _listdir(path)) if _name(path) is not None else _below["scandir"](path)


def _remove(path, *, dir_fd=None) -> None:
    name = _name(path)
    if name is None:
        _below["remove"](path, dir_fd=dir_fd)
    elif _content.pop(name, None) is None:
        raise _refused(errno.EISDIR if name in _folders else errno.ENOENT, path)


def _mkdir(path, mode=0o777, *, dir_fd=None) -> None:
    name = _name(path)
    if name is None:
        _below["mkdir"](path, mode, dir_fd=dir_fd)
        return
    if name in _folders or name in _content:
        raise _refused(errno.EEXIST, path)
    if os.path.dirname(name) not in _folders:
        raise _refused(errno.ENOENT, path)
    _folders.add(name)


def _rmdir(path, *, dir_fd=None) -> None:
    name = _name(path)
    if name is None:
        _below["rmdir"](path, dir_fd=dir_fd)
        return
    if name not in _folders or name == ROOT:
        raise _refused(errno.ENOENT, path)
    if _children(name):
        raise _refused(errno.ENOTEMPTY, path)
    _folders.discard(name)


def _rename(source, target, *, src_dir_fd=None, dst_dir_fd=None) -> None:
    old, new = _name(source), _name(target)
    if old is None and new is None:
        _below["rename"](source, target)
        return
    if old is None or new is None or old not in _content or os.path.dirname(new) not in _folders or new in _folders:
        raise _refused(errno.EXDEV if old is None or new is None else errno.ENOENT, source)
    _content[new] = _content.pop(old)


def _utime(path, times=None, *, ns=None, dir_fd=None, follow_symlinks=True) -> None:
    name = _name(path)
    if name is None:
        _below["utime"](path, times, ns=ns)
    elif name in _content:
        _changed[name] = ns[1] if ns else int(times[1] * 1_000_000_000) if times else time.time_ns()
    elif name not in _folders:
        raise _refused(errno.ENOENT, path)


def _chmod(path, mode, *, dir_fd=None, follow_symlinks=True) -> None:
    if _name(path) is None:
        _below["chmod"](path, mode)
    else:
        _stat(path)  # there is one user here, who may do all: no mode is kept


def _rmtree(path, ignore_errors=False, onerror=None, *, onexc=None, dir_fd=None) -> None:
    name = _name(path)
    if name is None:
        _below["rmtree"](path, ignore_errors, onerror, onexc=onexc, dir_fd=dir_fd)
        return
    for file in [file for file in _content if file.startswith(name + "/")]:
        del _content[file]
    _folders.difference_update({folder for folder in _folders if folder == name or folder.startswith(name + "/")} - {ROOT})


def _at_home(path, expand=os.path.expanduser):
    """`os.path.expanduser`: there are no users; where no HOME is configured, /tmp is the home, so that files can be made in it."""
    text = os.fspath(path)
    tilde, slash = (b"~", b"/") if isinstance(text, bytes) else ("~", "/")
    if "HOME" in os.environ or not (text == tilde or text.startswith(tilde + slash)):
        return expand(path)
    return (b"/tmp" if isinstance(text, bytes) else "/tmp") + text[1:]


def install() -> None:
    """Serve /tmp from memory, above whatever serves the other paths. Call after `freehold_files` was installed."""
    import shutil

    import freehold_files

    _below.update(
        open=builtins.open, stat=os.stat, listdir=os.listdir, remove=os.remove, mkdir=os.mkdir, rmdir=os.rmdir,
        rename=os.rename, rmtree=shutil.rmtree, utime=os.utime, chmod=os.chmod, scandir=os.scandir, entries=freehold_files.entries,
    )  # fmt: skip
    builtins.open = io.open = _open
    os.stat, os.listdir, os.scandir = _stat, _listdir, _scandir
    os.lstat = lambda path, *, dir_fd=None: _stat(path, dir_fd=dir_fd)
    os.remove = os.unlink = _remove
    os.mkdir, os.rmdir, os.rename, os.replace = _mkdir, _rmdir, _rename, _rename
    os.utime, os.chmod = _utime, _chmod
    os.path.expanduser = _at_home
    shutil.rmtree = _rmtree
    tempfile.tempdir = ROOT
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile = _temporary
    tempfile.mkdtemp, tempfile.mkstemp = _folder, _no_descriptor
