"""Files and modules for a Python that has no disk. Runs only inside the sandbox.

A component is a snapshot of an interpreter that has already imported the app; at run time there is no file system.
Yet apps read templates, and libraries import modules on first use. So while the component is built, and before the app
is imported, `serve` reads the app, its packages and the whole standard library into memory. From then on imports, `open`,
`os.stat` and friends answer from there for those paths, read-only, in a build as in a release.
Not here: temporary files (`freehold_scratch.py`), or any real path.
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
STDLIB = "/python"
# Bindings and the guest's own modules: what they import on first use is wanted as well.
OWN_FOLDERS = ("/world", "/0", "/bundled")
# Codecs are looked up by name at run time; these three are in every web app's way.
CODECS = ("encodings.ascii", "encodings.idna", "encodings.latin_1")
# Not kept: tests, an installer and windows. Tools are: pdb is imported by what tests other packages, and pydoc by pdb.
LEFT_OUT = {"__phello__", "ensurepip", "idlelib", "site-packages", "test", "tkinter", "turtledemo"}
FILE_TIME_S = 3_786_912_000  # 2090: later than any release, see _File
FILE_TIME_SPAN_S = 1 << 28
READ_ONLY = "an app's files are read-only: temporary files go below /tmp, data into a key-value store"
EXTENSION = ".cpython-314-wasm32-wasi.so"
IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+([(]?[\w \t,.*]*)|import[ \t]+([\w. \t,]+))|import_module\(['\"]([\w.]+)",
    re.MULTILINE,
)


class _File:
    """One kept file. Source is read once if ever, so it is kept compressed; templates and the like as they are."""

    __slots__ = ("modified_ns", "packed", "size")

    def __init__(self, path: str, content: bytes) -> None:
        self.packed = zlib.compress(content, 6) if path.endswith(".py") else content
        self.size = len(content)
        # Frameworks make an ETag of size and time, some of whole seconds alone, so the time is made of the content: equal
        # on every machine that builds it. It lies ahead of every visitor's clock: whoever asks for what changed since a
        # date gets the file, never a wrong 304. As Last-Modified it is not sent (freehold_http).
        mark = zlib.crc32(content)
        self.modified_ns = (FILE_TIME_S + mark % FILE_TIME_SPAN_S) * 1_000_000_000 + mark % 1_000_000_000


_files: dict[str, _File] = {}
_folders: dict[str, list[str]] = {}
_extensions: set[str] = set()
_roots: list[str] = []
_cwd = "/"
_real_open, _real_stat, _real_listdir, _real_scandir = io.open, os.stat, os.listdir, os.scandir


def serve(app_folder: str, package_folders: list[str]) -> None:
    """Read everything that may be wanted later, then answer from it. Call once, at build, before the app is imported."""
    global _cwd
    size = sum(_keep_folder(folder) for folder in (app_folder, *package_folders))
    if size > KEPT_MAX_BYTES:
        raise RuntimeError(
            f"the app and its packages hold {size >> 20} MiB of files; the limit is {KEPT_MAX_BYTES >> 20} MiB"
        )
    for folder in (STDLIB, *OWN_FOLDERS):
        _keep_folder(folder, only=".py", left_out=LEFT_OUT)
    _roots[:] = [app_folder, *package_folders, STDLIB, *OWN_FOLDERS]
    _cwd = app_folder
    sys.path[:] = [app_folder, STDLIB, *OWN_FOLDERS, *package_folders]  # as where a program starts: its own folder first
    _install()


def import_early(app_folder: str) -> None:
    """Import now what the app's own functions would import on their first call, so that no request waits for it."""
    own = {_module_name(app_folder, path) for path in _files if path.startswith(app_folder + "/") and path.endswith(".py")}
    wanted = set(CODECS)
    for path in list(_files):
        if path.startswith(app_folder + "/") and path.endswith(".py"):
            wanted.update(_targets(_module_name(app_folder, path), path.endswith("/__init__.py"), _content(path)))
    for name in sorted(wanted - own):
        try:
            importlib.import_module(name)
        except BaseException:  # a name inside a module, or a module only other platforms have
            sys.modules.pop(name, None)


def mount(folder: str, files: dict[str, bytes]) -> None:
    """Add files, content by path below `folder`, to what is served (only `freehold_dev` does)."""
    _folders.setdefault(folder, [])
    for name in sorted(files):
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            parent = "/".join([folder, *parts[: depth - 1]])
            _folders.setdefault(parent, [])
            if parts[depth - 1] not in _folders[parent]:
                _folders[parent].append(parts[depth - 1])
        _files[f"{folder}/{name}"] = _File(name, files[name])
    sys.path_importer_cache.clear()


def _keep_folder(folder: str, only: str = "", left_out=frozenset()) -> int:
    size = 0
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name != "__pycache__" and not name.startswith(".") and name not in left_out
        )
        wanted = sorted(name for name in files if name.endswith(only) and name.removesuffix(".py") not in left_out)
        _extensions.update(os.path.join(path, name) for name in files if name.endswith((EXTENSION, ".abi3.so")))
        wanted = [name for name in wanted if not name.endswith((".pyc", ".so", ".pyd", ".pyi", ".exe"))]
        if path.endswith(".dist-info"):
            wanted = [name for name in wanted if name in {"METADATA", "entry_points.txt", "top_level.txt"}]
        _folders[path] = [*folders, *wanted]
        for name in wanted:
            whole = os.path.join(path, name)
            with _real_open(whole, "rb") as file:
                content = file.read()
            _files[whole] = _File(whole, content)
            size += len(content)
    return size


def _module_name(root: str, path: str) -> str:
    return path[len(root) + 1 : -3].replace("/", ".").removesuffix(".__init__")


def _targets(name: str, is_package: bool, source: bytes):
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
    return _real_get_data(self, path) if _name(path) is None else _content(path)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a kept source on first import."""

    def path_stats(self, path: str):
        raise OSError(errno.ENOENT, "no bytecode is kept", path)

    def set_data(self, path: str, data: bytes, *, _mode: int = 0) -> None:
        return None


class PathFinder(importlib.abc.PathEntryFinder):
    """Finds the modules of one kept folder: packages, modules, compiled modules, and parts of namespace packages."""

    def __init__(self, folder: str) -> None:
        if folder not in _folders:
            raise ImportError(f"{folder} is not kept", path=folder)
        self.path = folder

    def find_spec(self, fullname, target=None):
        base = f"{self.path}/{fullname.rpartition('.')[2]}"
        make = importlib.util.spec_from_file_location
        if f"{base}/__init__.py" in _files:
            file = f"{base}/__init__.py"
            return make(fullname, file, loader=_Loader(fullname, file), submodule_search_locations=[base])
        for file in (base + EXTENSION, base + ".abi3.so"):
            if file in _extensions:
                return make(fullname, file, loader=importlib.machinery.ExtensionFileLoader(fullname, file))
        if f"{base}.py" in _files:
            return make(fullname, f"{base}.py", loader=_Loader(fullname, f"{base}.py"))
        if base in _folders:
            spec = importlib.machinery.ModuleSpec(fullname, None)
            spec.submodule_search_locations = [base]
            return spec
        return None

    def iter_modules(self, prefix=""):
        """What `pkgutil.iter_modules` asks for."""
        for name in sorted(_folders.get(self.path, ())):
            base = f"{self.path}/{name}"
            if f"{base}/__init__.py" in _files:
                yield prefix + name, True
            elif name.endswith(".py") and name != "__init__.py" and base in _files:
                yield prefix + name[:-3], False


def _absolute(path) -> str | None:
    """Return `path` as absolute text; None where it is a file descriptor."""
    if isinstance(path, int):
        return None
    text = os.fspath(path)
    return os.path.abspath(os.fsdecode(text) if isinstance(text, bytes) else text)


def _name(path) -> str | None:
    """Return the kept path that `path` means, or None when it is none of ours."""
    text = _absolute(path)
    return text if text in _files or text in _folders else None


def _content(path: str) -> bytes:
    file = _files.get(_name(path) or "")
    if file is None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    return zlib.decompress(file.packed) if _name(path).endswith(".py") else file.packed


def _below_a_root(path) -> bool:
    text = _absolute(path)
    return text is not None and any(text.startswith(root + "/") for root in _roots)


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    name = _name(file)
    if name is None and not _below_a_root(file):
        return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if set(mode) & set("wax+"):
        raise PermissionError(errno.EROFS, READ_ONLY, file)
    if name in _folders:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", file)
    raw = io.BytesIO(_content(file))
    raw.name = file
    return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)


def _stat(path, *, dir_fd=None, follow_symlinks=True):
    name = _name(path)
    if name is None:
        return _real_stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    file = _files.get(name)
    kind = stat.S_IFDIR | 0o555 if file is None else stat.S_IFREG | 0o444
    size, modified_ns = (0, 0) if file is None else (file.size, file.modified_ns)
    whole_s, seconds = modified_ns // 1_000_000_000, modified_ns / 1_000_000_000
    times = {f"st_{letter}time": seconds for letter in "amc"} | {f"st_{letter}time_ns": modified_ns for letter in "amc"}
    return os.stat_result((kind, zlib.crc32(name.encode()), 1, 1, 0, 0, size, whole_s, whole_s, whole_s), times)


def _listdir(path="."):
    name = _name(path)
    return list(_folders[name]) if name in _folders else _real_listdir(path)


class _Entry:
    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, f"{folder.rstrip('/')}/{name}"

    def is_dir(self, *, follow_symlinks=True) -> bool:
        return os.path.isdir(self.path)

    def is_file(self, *, follow_symlinks=True) -> bool:
        return os.path.isfile(self.path)

    def is_symlink(self) -> bool:
        return False

    def is_junction(self) -> bool:
        return False

    def stat(self, *, follow_symlinks=True):
        return os.stat(self.path)

    def inode(self) -> int:
        return os.stat(self.path).st_ino

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class _Entries:
    """What `os.scandir` returns: an iterator that can be closed."""

    def __init__(self, entries) -> None:
        self._entries = iter(entries)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        return None

    def close(self) -> None:
        return None


def entries(folder, names) -> _Entries:
    """Return what `os.scandir` gives for the files `names` of `folder`."""
    return _Entries([_Entry(os.fspath(folder), name) for name in names])


def _scandir(path="."):
    name = _name(path)
    return entries(path, _folders[name]) if name in _folders else _real_scandir(path)


def _chdir(path) -> None:
    global _cwd
    if not os.path.isdir(path):
        number = errno.ENOTDIR if os.path.exists(path) else errno.ENOENT
        raise OSError(number, os.strerror(number), path)
    _cwd = _absolute(path)


def _refuse_to_write(real):
    def change(path, *arguments, **named):
        if _below_a_root(path):
            raise PermissionError(errno.EROFS, READ_ONLY, path)
        return real(path, *arguments, **named)

    return change


def _no_disk(path, *_, **__):
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _access(path, mode, **_) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return not mode & os.W_OK or bool(found.st_mode & stat.S_IWUSR)


def _install() -> None:
    os.getcwd, os.getcwdb, os.chdir = lambda: _cwd, lambda: os.fsencode(_cwd), _chdir
    builtins.open = io.open = _open
    os.stat, os.listdir, os.scandir, os.access = _stat, _listdir, _scandir, _access
    for change in ("remove", "unlink", "mkdir", "rmdir", "rename", "replace", "utime", "chmod"):
        setattr(os, change, _refuse_to_write(getattr(os, change, _no_disk)))
    os.lstat = lambda path, *, dir_fd=None: _stat(path, dir_fd=dir_fd)
    importlib.machinery.SourceFileLoader.get_data = _get_data
    if "tokenize" in sys.modules:
        sys.modules["tokenize"]._builtin_open = _open
    sys.path_hooks.insert(0, PathFinder)
    sys.path_importer_cache.clear()
    freehold_scratch.install()
