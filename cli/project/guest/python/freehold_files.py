"""Files and late imports for a Python that has no disk. Runs only inside the sandbox.

A component is a snapshot of an interpreter that has already imported the app; at run time there is no file system.
Yet apps read templates, and libraries import modules on first use. So while the component is built, `keep` reads the
app's and its packages' files, and the source of every module their import statements can reach, into memory, and from
then on `open`, `os.stat` and friends answer from there for those paths, read-only. Not here: writing, or any real path.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import re
import stat
import sys
import zlib

import freehold_scratch

KEPT_MAX_BYTES = 64 * 1024 * 1024
IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+([(]?[\w \t,.*]*)|import[ \t]+([\w. \t,]+))|import_module\(['\"]([\w.]+)",
    re.MULTILINE,
)
STDLIB = "/python"
# Codecs are looked up by name at run time; these three are in every web app's way.
CODECS = ("encodings.ascii", "encodings.idna", "encodings.latin_1")
# Not kept, neither for `dev` nor for a build: tests, tools and windows, which no served app imports.
LEFT_OUT = {
    "__phello__", "_pyrepl", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tkinter", "turtledemo",
    "venv",
}

_files: dict[str, bytes] = {}
_folders: dict[str, list[str]] = {}
_modules: dict[str, tuple[str, bool]] = {}
_real_open, _real_stat, _real_listdir, _real_scandir = io.open, os.stat, os.listdir, os.scandir


def keep(app_folder: str, package_folders: list[str]) -> None:
    """Read everything that may be wanted later, then serve it. Call once, at build, after the app was imported."""
    size = 0
    for folder in [app_folder, *package_folders]:
        size += _keep_folder(folder)
    if size > KEPT_MAX_BYTES:
        raise RuntimeError(
            f"the app and its packages hold {size >> 20} MiB of files; the limit is {KEPT_MAX_BYTES >> 20} MiB"
        )
    _find_modules([app_folder, *package_folders])
    _import_early(app_folder)
    _keep_reachable_stdlib()
    _install()


def keep_interpreter(package_folders: list[str]) -> None:
    """Keep the packages and the whole standard library, for an interpreter that gets its app later. Call at build."""
    for folder in package_folders:
        _keep_folder(folder)
    _find_modules(package_folders)
    for path, folders, files in os.walk(STDLIB):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and name != "__pycache__")
        for name in sorted(files):
            if name.endswith(".py") and name[:-3] not in LEFT_OUT:
                inside = os.path.join(path, name)[len(STDLIB) + 1 : -3].replace("/", ".")
                _source_of(inside.removesuffix(".__init__"))
    _install()


def mount(folder: str, files: dict[str, bytes]) -> None:
    """Add files, by path below `folder`, to what is served (only `freehold_dev` does)."""
    _folders.setdefault(folder, [])
    for name in sorted(files):
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            parent = "/".join([folder, *parts[: depth - 1]])
            _folders.setdefault(parent, [])
            if parts[depth - 1] not in _folders[parent]:
                _folders[parent].append(parts[depth - 1])
        _files[f"{folder}/{name}"] = _packed(name, files[name])
    _find_modules([folder])


def _keep_folder(folder: str) -> int:
    size = 0
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        wanted = sorted(name for name in files if not name.endswith((".pyc", ".so", ".pyd", ".pyi", ".exe")))
        if path.endswith(".dist-info"):
            wanted = [name for name in wanted if name in {"METADATA", "entry_points.txt"}]
        _folders[path] = [*folders, *wanted]
        for name in wanted:
            with _real_open(os.path.join(path, name), "rb") as file:
                content = file.read()
            _files[os.path.join(path, name)] = _packed(name, content)
            size += len(content)
    return size


def _packed(name: str, content: bytes) -> bytes:
    """Source is read once if ever, so it is kept compressed; templates and the like are kept as they are."""
    return zlib.compress(content, 6) if name.endswith(".py") else content


def _unpacked(path: str) -> bytes:
    return zlib.decompress(_files[path]) if path.endswith(".py") else _files[path]


def _find_modules(roots: list[str]) -> None:
    for root in roots:
        for path in _files:
            if path.startswith(root + "/") and path.endswith(".py"):
                parts = path[len(root) + 1 : -3].split("/")
                is_package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if is_package else parts)
                if name and all(part.isidentifier() for part in parts):
                    _modules.setdefault(name, (path, is_package))


def _import_early(app_folder: str) -> None:
    """Import now what the app's own functions would import on their first call, so that no request waits for it."""
    own = {name for name, (path, _) in _modules.items() if path.startswith(app_folder + "/")}
    wanted = set(CODECS)
    for name in own:
        wanted.update(target for target in _targets(name, _content(_modules[name][0])))
    for name in sorted(wanted - own):
        try:
            importlib.import_module(name)
        except BaseException:  # a name inside a module, or a module only other platforms have
            sys.modules.pop(name, None)


def _keep_reachable_stdlib() -> None:
    """Follow import statements from the kept modules through the standard library, without running anything."""
    codecs = [f"encodings.{name[:-3]}" for name in sorted(_real_listdir(f"{STDLIB}/encodings")) if name.endswith(".py")]
    waiting = sorted({*_modules, *codecs})
    seen = set(waiting)
    for module in sorted(sys.modules):
        if module not in seen:
            seen.add(module)
            waiting.append(module)
    while waiting:
        name = waiting.pop()
        source = _source_of(name)
        if source is None:
            continue
        for target in sorted(_targets(name, source)):
            if target not in seen:
                seen.add(target)
                waiting.append(target)


def _source_of(name: str) -> bytes | None:
    if name in _modules:
        return _content(_modules[name][0])
    parts = name.split(".")
    if parts[0] in LEFT_OUT:
        return None
    for path, is_package in ((f"{STDLIB}/{'/'.join(parts)}/__init__.py", True), (f"{STDLIB}/{'/'.join(parts)}.py", False)):
        try:
            with _real_open(path, "rb") as file:
                source = file.read()
        except OSError:
            continue
        _files[path] = _packed(path, source)
        _modules[name] = (path, is_package)
        return source
    return None


def _targets(name: str, source: bytes):
    is_package = _modules[name][1] if name in _modules else False
    package = name if is_package else name.rpartition(".")[0]
    for match in IMPORT.finditer(source):
        if match[1] is not None:
            base = match[1].decode()
            if base.startswith("."):
                dots = len(base) - len(base.lstrip("."))
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - dots + 1] + ([base[dots:]] if base[dots:] else []))
            yield from _ancestors(base)
            for item in match[2].decode().strip("( \t").split(","):
                word = item.split(" as ")[0].strip()
                if word and word != "*":
                    yield f"{base}.{word}"
        else:
            for item in (match[3] or match[4]).decode().split(","):
                yield from _ancestors(item.split(" as ")[0].strip())


def _ancestors(dotted: str):
    parts = dotted.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


_real_get_data = importlib.machinery.SourceFileLoader.get_data


def _get_data(self, path: str) -> bytes:
    # While the component is still being built, the generated bindings come from the real disk.
    return _real_get_data(self, path) if _name(path) is None else _content(path)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a kept source on first import."""

    def path_stats(self, path: str):
        raise OSError(errno.ENOENT, "no bytecode is kept", path)

    def set_data(self, path: str, data: bytes, *, _mode: int = 0) -> None:
        return None


class Finder(importlib.abc.MetaPathFinder):
    """Finds kept modules by name."""

    def find_spec(self, fullname, path=None, target=None):
        found = _modules.get(fullname)
        if found is None:
            return None
        file, is_package = found
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, file),
            submodule_search_locations=[file.rpartition("/")[0]] if is_package else None,
        )


def _name(path) -> str | None:
    """Return the kept path that `path` means, or None when it is none of ours."""
    if isinstance(path, int):
        return None
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    text = os.path.normpath(text)
    return text if text in _files or text in _folders else None


def _content(path: str) -> bytes:
    name = _name(path)
    if name is None or name not in _files:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    return _unpacked(name)


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    name = _name(file)
    if name is None:
        return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if name in _folders:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", file)
    if set(mode) & set("wax+"):
        raise PermissionError(errno.EROFS, "An app's files are read-only; keep data in a key-value store", file)
    raw = io.BytesIO(_unpacked(name))
    raw.name = file
    return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)


def _stat(path, *, dir_fd=None, follow_symlinks=True):
    name = _name(path)
    if name is None:
        return _real_stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    kind = stat.S_IFDIR | 0o555 if name in _folders else stat.S_IFREG | 0o444
    size = 0 if name in _folders else len(_unpacked(name))
    inode = hash(name) & 0x7FFFFFFF
    return os.stat_result((kind, inode, 1, 1, 0, 0, size, 0, 0, 0))


def _listdir(path="."):
    name = _name(path)
    return list(_folders[name]) if name in _folders else _real_listdir(path)


class _Entry:
    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, f"{folder}/{name}"

    def is_dir(self, *, follow_symlinks=True) -> bool:
        return self.path in _folders

    def is_file(self, *, follow_symlinks=True) -> bool:
        return self.path in _files

    def is_symlink(self) -> bool:
        return False

    def stat(self, *, follow_symlinks=True):
        return _stat(self.path)

    def __fspath__(self) -> str:
        return self.path


class _Entries(list):
    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        return None

    def close(self) -> None:
        return None


def _scandir(path="."):
    name = _name(path)
    return _Entries(_Entry(name, item) for item in _folders[name]) if name in _folders else _real_scandir(path)


def _install() -> None:
    builtins.open = io.open = _open
    os.stat, os.listdir, os.scandir = _stat, _listdir, _scandir
    os.lstat = lambda path, *, dir_fd=None: _stat(path, dir_fd=dir_fd)
    os.walk.__globals__["scandir"] = _scandir
    os.access = lambda path, mode, **_: _name(path) is not None and not mode & os.W_OK
    importlib.machinery.SourceFileLoader.get_data = _get_data
    if "tokenize" in sys.modules:
        sys.modules["tokenize"]._builtin_open = _open
    sys.meta_path.insert(0, Finder())
    sys.path_importer_cache.clear()
    freehold_scratch.install()
