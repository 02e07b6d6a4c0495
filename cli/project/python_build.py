"""Builds `python`, `wsgi`, `asgi` and `static` apps: a snapshot of an interpreter that has imported the app.

componentize-py makes it, in a process of its own with an empty environment: by default it would add the site-packages of
whatever virtual environment it finds to the app's import path. Its output is not bit for bit reproducible: the snapshot
holds the interpreter's random hash seed. Not here: the app's packages (`python_packages.py`), the guest's side (`guest/`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cli.errors import BuildError, refuse_full_disk
from cli.guard import run_tool
from cli.project import native_hash, python_packages
from cli.project.model import App, ProjectFile
from cli.project.source import SourceTree
from cli.project.world import BLOBS, CONFIG, KEYVALUE, MESSAGING, SQL, WASI, WORLD, world_of, write_world

GUEST = Path(__file__).parent / "guest" / "python"
BUILD_TIMEOUT_S = 600

IMPORT_NAMES = {
    CONFIG: "config_store",
    KEYVALUE[0]: "keyvalue_store",
    SQL: "sql_databases",
    BLOBS[0]: "blob_types",
    BLOBS[1]: "blob_container",
    MESSAGING[0]: "message_types",
    MESSAGING[1]: "message_consumer",
    f"wasi:http/types@{WASI}": "types",
}
"""What the guest's side calls interfaces whose own names say too little."""

READS_CONFIGURATION: Final = "freehold: the import reads configuration: "
"""What the guest's `freehold_entry` says when an app's import reads configuration."""

STAND_INS: Final = (
    "import freehold_limits, freehold_hash, freehold_threads, freehold_sockets, freehold_ssl, freehold",
    "freehold_limits.install(); freehold_hash.install(); freehold_threads.install()",
    "freehold_sockets.install(); freehold_ssl.install(); freehold.install_sql()",
)
"""What stands in for parts of CPython; it has to be there before the app or a library looks."""

# The folders the tool mounts for the guest, in the order they are passed: the adapter, the app, its packages.
APP_MOUNT, PACKAGES_MOUNT = "/1", "/2"


class ReadsConfiguration(Exception):  # noqa: N818 - no error: the app is built the other way
    """Importing the app reads the configuration called `names`, which only an instance has."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def toolchain() -> dict[str, str]:
    """Return the tools whose versions decide the output."""
    return {"componentize-py": version("componentize-py")}


def mount_prefixes(project: ProjectFile, app: App) -> tuple[str, ...]:
    """Return the path prefixes an app is reached under in any environment, longest first."""
    everywhere = [project.base, *(project.environments[name] for name in sorted(project.environments))]
    routes = [route for settings in everywhere for route in settings.apps[app.name].routes]
    paths = {"/" + route.partition("/")[2].rstrip("/") for route in routes if "/" in route}
    return tuple(sorted(paths - {"/"}, key=lambda path: (-len(path), path)))


def declared_names(app: App) -> list[str]:
    """Return the names of configuration and secrets that freehold.toml declares for `app`."""
    return sorted({*app.config, *app.secrets})


def main_module(app: App, prefixes: tuple[str, ...], *, late: bool = False) -> str:
    """Return the source of the module the component starts from; `late`: each instance imports the app itself."""
    if app.language == "static":
        text = f"freehold_static.handle_of({APP_MOUNT!r}, {app.entry!r}, {prefixes!r}, prepare=True)"
        handler = f"IncomingHandler = freehold_handler.handler('freehold_static', {text})"
        return "\n".join(["import freehold, freehold_handler, freehold_static", handler]) + "\n"
    how = "late" if late else "built"
    arguments = [app.language, app.entry, prefixes, app.schedule is not None]
    if not late:
        arguments.append(declared_names(app))
    exported = "Run" if app.schedule else "IncomingHandler"
    return "\n".join(
        [
            "import freehold_files",
            f"freehold_files.serve({APP_MOUNT!r}, [{PACKAGES_MOUNT!r}])",
            *STAND_INS,
            "import freehold_entry",
            f"{exported} = freehold_entry.{how}({', '.join(map(repr, arguments))}, app_folder={APP_MOUNT!r})",
            "",
        ]
    )


def requirements_of(app: App, tree: SourceTree) -> bytes | None:
    """Return what the app asks pip for; a file of that name on a static site is one of its pages."""
    if app.language == "static":
        return None
    asked = tree.content("requirements.txt")
    if any(b"zoneinfo" in content for name, content in tree.files if name.endswith(".py")):
        return (asked or b"") + python_packages.ZONES
    return asked


def guest_files(app: App) -> list[Path]:
    """Return the guest modules that go into `app`."""
    return sorted(GUEST.glob("*.py"))


def write_guest(app: App, stage: Path) -> None:
    """Write the guest's modules into `stage`, the compiled one among them."""
    for path in guest_files(app):
        shutil.copy(path, stage / path.name)
    (stage / native_hash.FILE_NAME).write_bytes(native_hash.module())


def build(
    app: App, prefixes: tuple[str, ...], tree: SourceTree, packages: Path | None, work: Path, *, late: bool = False
) -> Path:
    """Return the component of `app`, made in the folder `work`. Raises `BuildError`, `ReadsConfiguration` unless `late`."""
    stage, source, wit = work / "stage", work / "app", work / "wit"
    for folder in (stage, source, work / "packages", work / "env" / "lib" / "site-packages"):
        folder.mkdir(parents=True)
    write_guest(app, stage)
    (stage / "freehold_main.py").write_text(main_module(app, prefixes, late=late))
    tree.write(source)
    write_world(world_of(app), wit)
    return componentize(app, [stage, source, packages or work / "packages"], work)


def componentize(app: App, paths: list[Path], work: Path) -> Path:
    """Run componentize-py on freehold_main; its failure becomes a `BuildError` that shows the app's own traceback."""
    wit, output = work / "wit", work / "component.wasm"
    command = [sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())"]
    command += ["--wit-path", str(wit), "--world", WORLD]
    world = (wit / "world.wit").read_text()
    for interface, name in IMPORT_NAMES.items():
        if interface in world:
            command += ["--import-interface-name", f"{interface}={name}"]
    command += [
        "componentize",
        *(part for path in paths for part in ("-p", str(path))),
        "freehold_main",
        "-o",
        str(output),
    ]
    # A virtual environment of its own, empty, or the tool adds the packages of the developer's.
    environment = {"VIRTUAL_ENV": str(work / "env"), "PATH": "", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    (work / "tmp").mkdir(exist_ok=True)
    environment["TMPDIR"] = str(work / "tmp")
    try:
        done = run_tool(command, environment=environment, timeout_s=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BuildError(
            app.name,
            f"importing the app took longer than {BUILD_TIMEOUT_S} s",
            next_step="move work out of the module's top level; it runs at build time",
        ) from None
    if done.returncode != 0 or not output.is_file():
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        refuse_full_disk(app.name, said)
        told = re.search(rf"{READS_CONFIGURATION}(\w+(?: \w+)*)", said)
        if told is not None:
            raise ReadsConfiguration(told[1].split())
        raise _failure(app, said)
    return output


def _failure(app: App, said: str) -> BuildError:
    """Turn the tool's output into the app's own traceback."""
    text = said.partition("AssertionError: ")[2] or said
    text = re.split(r"\n\s*(?:Stack backtrace|Caused by):", text)[0].strip()
    text = re.sub(r'File "/1/', f'File "{app.source.rstrip("/")}/', text).replace('File "/2/', 'File "packages/')
    lines = text.splitlines()
    texts: list[str] = []
    skip = False
    for line in lines:
        frame = re.match(r'  File "(/0/|<frozen importlib|/python/lib/python3.14/importlib)', line)
        skip = bool(frame) or (skip and line.startswith("    "))
        if not skip:
            texts.append(line)
    missing = python_packages.step_for_missing(text, app.source)
    if missing:
        step = missing
    elif unset := re.search(r"KeyError: '([A-Za-z_]\w*)'", text) if "<frozen os>" in said else None:
        step = f"add {unset[1]} to config or secrets of [app.{app.name}] in freehold.toml"
    elif "SyntaxError" in text:
        step = f"correct the syntax; apps run on Python 3.14: freehold build --app {app.name}"
    else:
        step = f"correct the app, then run: freehold build --app {app.name}"
    return BuildError(app.name, "importing it failed:\n" + "\n".join(texts[-60:]), next_step=step, kind="import-failed")
