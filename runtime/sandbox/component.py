"""Reads what a `.wasm` file is, asks for and offers, without compiling it: the sections of the binary, names only.

Answers at build what would otherwise fail at deploy. The types behind the names are checked when the component is
compiled (`compiler.py` links it), since only then are they resolved. Sources: WebAssembly core spec 5.5; component
model Binary.md. Not here: validation of code, which wasmtime does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from runtime.engine.interface import split_import
from runtime.engine.linking import LinkError, find_interface
from runtime.engine.wasm_binary import Reader, component_name, sections
from runtime.sandbox.code_size import code_problem
from runtime.wasi import INTERFACES

Kind = Literal["http", "command", "module"]

PREVIEW1: Final = "wasi_snapshot_preview1"
HTTP_EXPORT: Final = "wasi:http/incoming-handler"
COMMAND_EXPORT: Final = "wasi:cli/run"
LATER: Final = ("wasi:messaging",)
"""Packages the design names and this version does not serve yet."""

_CORE_VERSION: Final = b"\x01\x00\x00\x00"
_COMPONENT_VERSION: Final = b"\x0d\x00\x01\x00"


class ComponentError(Exception):
    """The file cannot run here; the text is a whole sentence for the developer."""


class CompilerEndedError(ComponentError):
    """The compiler was cut short before it could judge the file: another try may get an answer."""


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """What a file is. `problems` are sentences, each a reason this host refuses it; empty means it may be released."""

    kind: Kind
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    problems: tuple[str, ...]


def inspect(source: Path | bytes) -> ComponentInfo:
    """Read a component or a preview 1 command; raises `ComponentError` if the file is neither, or damaged."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data:
        raise ComponentError("The file is empty.")
    if data[:4] != b"\0asm":
        raise ComponentError("This is not WebAssembly: the file does not begin with the bytes 00 61 73 6d.")
    version = data[4:8]
    try:
        if version == _COMPONENT_VERSION:
            return _component(data)
        if version == _CORE_VERSION:
            return _module(data)
    except (IndexError, UnicodeDecodeError) as error:
        raise ComponentError(f"The WebAssembly file is truncated or corrupt ({error}).") from None
    raise ComponentError(f"This is WebAssembly of an unknown version ({version.hex() or 'cut off'}).")


def check(source: Path | bytes, expected: Kind | None = None) -> ComponentInfo:
    """Return `inspect(source)`; raises `ComponentError` if it has a problem, or is not of the kind `expected`.

    What would take too much to compile is a problem too.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    info = inspect(data)
    if expected is not None and info.kind != expected and {info.kind, expected} != {"command", "module"}:
        raise ComponentError(_WRONG_KIND[info.kind])
    if info.problems:
        raise ComponentError(info.problems[0])
    try:
        problem = code_problem(data)
    except IndexError as error:
        raise ComponentError(f"The WebAssembly file is truncated or corrupt ({error}).") from None
    if problem is not None:
        raise ComponentError(problem)
    return info


_WRONG_KIND: Final[dict[Kind, str]] = {
    "http": f"The component exports {HTTP_EXPORT}, so it answers requests; a job needs one that exports "
    f"{COMMAND_EXPORT}.",
    "command": f"The component exports {COMMAND_EXPORT}, so it is a command; an app with routes needs one that exports "
    f"{HTTP_EXPORT}.",
    "module": "This is a core WebAssembly module, not a component; an app with routes needs a component that exports "
    f"{HTTP_EXPORT} (make one with `wasm-tools component new` or your toolchain's component target).",
}


def _component(data: bytes) -> ComponentInfo:
    imports: list[str] = []
    exports: list[str] = []
    for section, reader in sections(data):
        if section == 10:
            imports += [_component_import(reader) for _ in range(reader.count())]
        elif section == 11:
            exports += [_component_export(reader) for _ in range(reader.count())]
    bases = {split_import(name)[0] for name in exports}
    problems = [problem for name in imports if (problem := _import_problem(name)) is not None]
    kind: Kind = "command" if COMMAND_EXPORT in bases and HTTP_EXPORT not in bases else "http"
    if HTTP_EXPORT not in bases and COMMAND_EXPORT not in bases:
        offered = ", ".join(sorted(exports)) or "nothing"
        problems.append(
            f"The component exports neither {HTTP_EXPORT} (to answer requests) nor {COMMAND_EXPORT} (to run as a job); "
            f"it exports {offered}."
        )
    return ComponentInfo(kind, tuple(imports), tuple(exports), tuple(problems))


def _import_problem(name: str) -> str | None:
    base, _ = split_import(name)
    for package in LATER:
        if base.startswith(package + "/"):
            return f"The component imports {name}: {package} comes in a later step."
    try:
        find_interface(INTERFACES, name)
    except LinkError as error:
        text = str(error)
        return text[0].upper() + text[1:] + "."
    return None


def _module(data: bytes) -> ComponentInfo:
    imports: list[str] = []
    exports: list[str] = []
    for section, reader in sections(data):
        if section == 2:
            for _ in range(reader.count()):
                module = reader.name()
                imports.append(f"{module}.{reader.name()}")
                _skip_core_import(reader)
        elif section == 7:
            for _ in range(reader.count()):
                exports.append(reader.name())
                reader.byte()
                reader.number()
    problems = []
    foreign = [name for name in imports if not name.startswith(PREVIEW1 + ".")]
    if "_start" not in exports:
        problems.append(
            "This is a core WebAssembly module without `_start`: neither a component nor a WASI preview 1 command."
        )
    if foreign:
        problems.append(f"The module imports {foreign[0]}, which this host does not offer; only {PREVIEW1} is.")
    return ComponentInfo("module", tuple(imports), tuple(exports), tuple(problems))


def _skip_type_reference(reader: Reader) -> None:
    sort = reader.byte()
    if sort == 0:
        reader.byte()
        reader.number()
    elif sort == 3:
        if reader.byte() == 0:
            reader.number()
    elif sort in {1, 4, 5}:
        reader.number()
    else:
        raise IndexError(f"an import or export of the unknown sort {sort}")


def _component_import(reader: Reader) -> str:
    name = component_name(reader)
    _skip_type_reference(reader)
    return name


def _component_export(reader: Reader) -> str:
    name = component_name(reader)
    if reader.byte() == 0:
        reader.byte()
    reader.number()
    if reader.byte() == 1:
        _skip_type_reference(reader)
    return name


def _skip_core_import(reader: Reader) -> None:
    match reader.byte():
        case 0:
            reader.number()
        case 1:
            reader.byte()
            _skip_limits(reader)
        case 2:
            _skip_limits(reader)
        case 3:
            reader.take(2)
        case 4:
            reader.byte()
            reader.number()
        case kind:
            raise IndexError(f"an import of the unknown kind {kind}")


def _skip_limits(reader: Reader) -> None:
    flags = reader.byte()
    reader.number()
    if flags & 1:
        reader.number()
