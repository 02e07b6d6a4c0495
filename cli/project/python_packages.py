"""A Python app's packages: its requirements.txt resolved by pip for the sandbox's Python and unpacked into a folder.

Only pure Python runs in the sandbox. pip resolves as if native wheels were welcome, so that a package without a pure
one is known by name; then each native one is replaced by its pure wheel, or stripped of a native part that is only a
speed-up, or refused with the alternative. Not here: the build itself (`python_build.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from cli import cache
from cli.errors import BuildError, refuse_full_disk
from cli.guard import run_tool
from cli.project import wheels
from cli.project.foreign_builds import WHEELS_ONLY, check_requirements
from cli.project.wheels import WheelRecipe

GUEST_PYTHON: Final = "3.14"
PIP_TIMEOUT_S: Final = 600
NATIVE_PLATFORMS: Final = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")

NATIVE_PART_OPTIONAL: Final = frozenset(
    {
        "aiohttp", "frozenlist", "markupsafe", "msgpack", "multidict", "propcache", "pyyaml", "simplejson", "sqlalchemy",
        "wrapt", "yarl",
    }
)  # fmt: skip
"""Packages that work without their compiled modules, only slower."""

SERVER_PARTS: Final = frozenset({"granian", "httptools", "rignore", "uvloop", "watchfiles"})
"""Native helpers of servers and of their commands, which `uvicorn[standard]` and `fastapi[standard]` ask for.

The node is the server, so they are left out; an app that imports one is told when it does.
"""

SERVERS: Final = frozenset({"daphne", "granian", "gunicorn", "hypercorn", "uvicorn", "waitress"})
"""Servers that a project names for other places; harmless here, and unused."""

ZONES: Final = b"\n# its source names zoneinfo, so the time zones of tzdata come with it\n"
"""Added to what an app asks for whose source needs time zones: the sandbox has none of a system's."""

UNREACHABLE: Final = "Retry(total=0,"
"""What pip says of its last attempt to reach an index, before it reports that there is no such package."""

FETCH: Final = "call out with freehold.fetch"
STORE: Final = "keep data in freehold.store"
UNUSABLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("pycurl",), f"it opens sockets itself; {FETCH}"),
    **dict.fromkeys(("uwsgi",), "the node is the web server; remove it"),
    **dict.fromkeys(("sanic", "tornado"), "it is its own server; use Starlette, Quart, Flask or Bottle"),
    **dict.fromkeys(("gevent", "eventlet", "greenlet", "trio"), "it schedules threads and sockets; remove it"),
    **dict.fromkeys(("celery", "rq", "apscheduler"), "give the job an app of its own with a schedule"),
    **dict.fromkeys(
        ("psycopg", "psycopg2", "psycopg2-binary", "asyncpg", "pymysql", "mysqlclient", "redis", "pymongo"),
        f"it needs a database connection; {STORE}",
    ),
    **dict.fromkeys(("grpcio",), f"it needs sockets; {FETCH}"),
    **dict.fromkeys(("numpy", "pandas", "scipy", "pillow", "lxml", "cryptography", "orjson"),
                    "it is native code; use a pure Python library, or build that part as its own component"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resolved:
    """One package pip chose: its normal name, version and the file name of the wheel.

    `needed_by` leads from what requirements.txt names to what needs this package; empty if it names the package itself.
    """

    name: str
    version: str
    wheel: str
    needed_by: tuple[str, ...] = ()

    @property
    def is_pure(self) -> bool:
        """Whether the wheel runs on any platform."""
        return self.wheel.endswith("-none-any.whl")


def packages_digest(requirements: bytes) -> str:
    """Return the digest that names the vendored packages of a requirements.txt."""
    rules = f"{GUEST_PYTHON}\0{sorted(UNUSABLE)}\0{wheels.RECIPES.read_text()}\0"
    return hashlib.sha256(rules.encode() + requirements).hexdigest()


def vendor(app: str, requirements: bytes) -> Path:
    """Return a folder that holds the packages, from the cache if they were fetched before. Raises `BuildError`."""
    return cache.entry("packages", packages_digest(requirements), lambda work: _fetch(app, requirements, work))


def named(requirements: bytes) -> set[str]:
    """Return the packages that a requirements.txt names itself."""
    lines = requirements.decode("utf-8", "replace").splitlines()
    matches = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()) for line in lines)
    return {normal_name(entry[0]) for entry in matches if entry}


def servers_named(requirements: bytes) -> list[str]:
    """Return the web servers that a requirements.txt names."""
    return sorted(named(requirements) & SERVERS)


def versions(folder: Path) -> dict[str, str]:
    """Return name and version of each package in a vendored folder."""
    table = {}
    for info in sorted(folder.glob("*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        table[normal_name(name)] = version
    return table


def normal_name(name: str) -> str:
    """Return a package name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def step_for_missing(said: str, source: str) -> str:
    """Return what to do about a package that an import did not find; empty if `said` tells of none."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", said)
    if missing is None:
        return ""
    name = missing[1].partition(".")[0]
    why = UNUSABLE.get(normal_name(name))
    if why is not None:
        return f"{name} cannot run in the sandbox: {why}"
    if name in sys.stdlib_module_names:
        return f"the sandbox's Python is built without its module {name.lstrip('_')}; do without it"
    return f"add {name} to {source.rstrip('/')}/requirements.txt, if it is a package of pure Python"


def _fetch(app: str, requirements: bytes, target: Path) -> None:
    check_requirements(app, requirements)
    # Those it names itself are refused before pip, which would say of one without wheels that there is no such package.
    _refuse_unusable(app, [Resolved(name, "", "") for name in sorted(named(requirements))])
    with cache.scratch() as scratch:
        listed = scratch / "requirements.txt"
        listed.write_bytes(requirements)
        chosen = _resolve(app, listed, scratch / "report.json") if _asks(requirements) else []
        _refuse_unusable(app, chosen)
        pure = [package for package in chosen if package.is_pure]
        if pure:
            wanted = [f"{package.name}=={package.version}" for package in pure]
            flags = ["install", "--no-deps", "--no-compile", "--target", str(target)]
            _pip(app, [*flags, *_platform("any"), *wanted])
        for package in chosen:
            if not package.is_pure:
                compiled = _compiled(app, package)
                _unpack(_without_native_part(app, package, scratch, has_module=compiled is not None), target)
                if compiled is not None:
                    recipe, module = compiled
                    shutil.copy(module, target / f"{recipe.module}{wheels.SUFFIX}")
    if not (target / "tzdata").exists() and (requirements.endswith(ZONES) or _names_zones(target)):
        _pip(app, ["install", "--no-deps", "--no-compile", "--target", str(target), *_platform("any"), "tzdata"])


def _asks(requirements: bytes) -> bool:
    lines = [line.strip() for line in requirements.splitlines()]
    return any(line and not line.startswith(b"#") for line in lines)


def _names_zones(folder: Path) -> bool:
    return any(b"zoneinfo" in path.read_bytes() for path in folder.rglob("*.py"))


def _platform(*platforms: str) -> list[str]:
    implementation = ["py", "none"] if platforms == ("any",) else ["cp", "cp314"]
    flags = ["--only-binary", ":all:", "--python-version", GUEST_PYTHON, "--implementation", implementation[0]]
    return [*flags, "--abi", implementation[1], *(part for name in platforms for part in ("--platform", name))]


def _resolve(app: str, listed: Path, report: Path) -> list[Resolved]:
    flags = [
        "install",
        "--dry-run",
        "--ignore-installed",
        "--report",
        str(report),
        "--target",
        str(listed.parent / "t"),
    ]
    kept_to = listed.parent / "constraints.txt"
    kept_to.write_text(wheels.constraints())
    _pip(app, [*flags, *_platform(*NATIVE_PLATFORMS), "-r", str(listed), "-c", str(kept_to)])
    return resolved(json.loads(report.read_bytes())["install"])


class _PackageMetadata(TypedDict):
    name: str
    version: str
    requires_dist: NotRequired[list[str]]


class _Download(TypedDict):
    url: str


class InstallItem(TypedDict):
    """One package in pip's report, as far as it is read here."""

    metadata: _PackageMetadata
    download_info: _Download
    requested: NotRequired[bool]


def resolved(items: list[InstallItem]) -> list[Resolved]:
    """Return the packages of pip's report (its "install" list), each with what needs it."""
    named = {normal_name(item["metadata"]["name"]): item for item in items}
    needed_by: dict[str, tuple[str, ...]] = {name: () for name, item in named.items() if item.get("requested")}
    waiting = list(needed_by)
    while waiting:
        name = waiting.pop(0)
        for text in named[name]["metadata"].get("requires_dist", ()):
            other = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
            needed = normal_name(other[0]) if other else ""
            if needed in named and needed not in needed_by:
                needed_by[needed] = (*needed_by[name], name)
                waiting.append(needed)
    return [
        Resolved(
            name, item["metadata"]["version"], item["download_info"]["url"].rpartition("/")[2], needed_by.get(name, ())
        )
        for name, item in named.items()
        if name not in SERVER_PARTS
    ]


def _called(package: Resolved) -> str:
    """Name a package as the user can find it: itself, and what of requirements.txt leads to it."""
    return (
        f"{package.name} (needed by {', by '.join(reversed(package.needed_by))})" if package.needed_by else package.name
    )


def _refuse_unusable(app: str, chosen: list[Resolved]) -> None:
    refused = [package for package in chosen if package.name in UNUSABLE]
    if refused:
        told = "; ".join(f"{_called(package)}: {UNUSABLE[package.name]}" for package in sorted(refused, key=_called))
        raise BuildError(
            app, f"cannot run in the sandbox: {told}", next_step="change requirements.txt", kind="package-refused"
        )


def _compiled(app: str, package: Resolved) -> tuple[WheelRecipe, Path] | None:
    """Return a package's recipe and its module as built on this machine; None if it has no recipe. Raises `BuildError`."""
    recipe = wheels.recipes().get(package.name)
    if recipe is None or recipe.version != package.version:
        return None
    module = wheels.found(recipe)
    if module is None:
        raise BuildError(
            app, f"{_called(package)} {package.version} is written in Rust, and not yet built for the sandbox on this machine",
            next_step=f"freehold wheels build {recipe.name}", kind="wheel-missing",
        )  # fmt: skip
    return recipe, module


def _without_native_part(app: str, package: Resolved, scratch: Path, *, has_module: bool) -> Path:
    """Return a wheel of `package` for its plain files: its pure one, or any if no native part of it is needed."""
    folder = scratch / package.name
    wanted = f"{package.name}=={package.version}"
    platforms: list[tuple[str, ...]] = [("any",)]
    if package.name in NATIVE_PART_OPTIONAL or has_module:
        platforms.append(NATIVE_PLATFORMS)
    for names in platforms:
        done = _run_pip(["download", "--no-deps", "--dest", str(folder), *_platform(*names), wanted])
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
    raise BuildError(
        app,
        f"{_called(package)} {package.version} needs native code ({package.wheel}), which cannot run in the sandbox",
        next_step="use a pure Python package in its place, or build that part as its own component",
        kind="package-refused",
    )


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith((".so", ".pyd", ".dylib")) and ".." not in name.split("/"):
                archive.extract(name, target)


def _run_pip(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-P", "-c", WHEELS_ONLY, *arguments, *quiet]
    with cache.scratch() as work:
        return run_tool(command, environment={**os.environ, "TMPDIR": str(work)}, timeout_s=PIP_TIMEOUT_S)


def _pip(app: str, arguments: list[str]) -> None:
    done = _run_pip(arguments)
    errors = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        refuse_full_disk(app, errors)
        if UNREACHABLE in errors:
            raise BuildError(
                app,
                "its packages could not be fetched: the package index cannot be reached",
                next_step="connect this machine to the network, or tell pip where packages are (pip config)",
                kind="packages-failed",
            )
        said = [line.removeprefix("ERROR: ") for line in errors.splitlines() if line.startswith("ERROR: ")]
        if "No module named 'pip" in errors:
            raise BuildError(app, "pip is not installed", next_step=f"run: {sys.executable} -m ensurepip")
        raise BuildError(
            app,
            "its packages could not be installed: " + " ".join(said or errors.splitlines()[-3:]),
            next_step="correct requirements.txt; only packages with pure Python wheels run in the sandbox",
            kind="packages-failed",
        )
