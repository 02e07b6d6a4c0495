"""The releases of the daemon that a node holds beside the installed one, and which of them runs.

    DATA/versions/NAME/      what a release's wheels hold, put before the installed packages on the path
    DATA/versions/state      which runs, which is on trial, which one failed and why (JSON, durable)

A release is prepared whole: its wheels fit this machine, bring or find all that they need, and the new code says its own
version, before a name leads to it. Not here: starting one (launcher.py), and asking for one (upgrader.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path, PurePosixPath

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from node.keys import sync_tree, write_private
from protocols.trust.upgrades import version_of
from runtime.durable import sync_folder

DISTRIBUTION = "freehold"
UNPACKED_MAX_BYTES = 512 << 20
FILES_MAX = 50_000
METADATA_MAX_BYTES = 1 << 20
CHECK_TIMEOUT_S = 120.0
SELF_CHECK = f"""
import sys, cli.main, node.daemon, protocols.core, runtime.workers.worker
from importlib.metadata import version
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] in ("cli", "node", "protocols", "runtime") and getattr(module, "__file__", None):
        assert module.__file__.startswith(sys.argv[1]), name + " is in none of the wheels"
print(version("{DISTRIBUTION}"))
"""
"""The new code loads, all of it from the wheels, and says its version."""


class ReleaseError(Exception):
    """These wheels cannot run here; nothing was kept."""


class Trial(msgspec.Struct, frozen=True):
    """A release that runs until it is found healthy or not. `order` is the digest (hex) of the admin's paper.

    `served` are the lanes, "project/environment", that were served before it; it must serve them, too. `bad` says why it
    is given up, once that is known.
    """

    name: str
    version: str
    order: str
    window_s: int
    served: tuple[str, ...] = ()
    starts: int = 0
    bad: str = ""


class Failed(msgspec.Struct, frozen=True):
    """A release that was tried and given up."""

    version: str
    order: str
    why: str


class Chosen(msgspec.Struct, frozen=True):
    """Which release runs: `name` is a folder, "" the installed one; `version` is what it was prepared as."""

    name: str = ""
    version: str = ""
    trial: Trial | None = None
    failed: Failed | None = None


class ReleasesHere:
    """The folder of releases of one node."""

    def __init__(self, data: Path) -> None:
        """Take the node's data folder; nothing is made before it is needed."""
        self.data = data
        self._folder = data / "versions"

    def path(self, name: str) -> Path:
        """What goes on the path to run a release."""
        return self._folder / name

    def read(self) -> Chosen:
        """Return which release runs. What cannot be read is nothing chosen: the installed release can always run."""
        try:
            return msgspec.json.decode((self._folder / "state").read_bytes(), type=Chosen)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Chosen()

    def write(self, chosen: Chosen) -> None:
        """Say durably which release runs. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self._folder / "state", msgspec.json.encode(chosen))

    def settled(self, installed: str) -> Chosen:
        """Return which runs, given the installed release's version: one that is not newer than that is let go."""
        chosen = self.read()
        own = version_of(installed) or (0, 0, 0)
        gone = not chosen.name or not self.path(chosen.name).is_dir() or (version_of(chosen.version) or own) <= own
        if chosen.name and gone:
            chosen = msgspec.structs.replace(chosen, name="", version="")
            self.write(chosen)
        if chosen.trial is not None and (version_of(chosen.trial.version) or own) <= own:
            chosen = msgspec.structs.replace(chosen, trial=None)
            self.write(chosen)
        return chosen

    def tidy(self) -> None:
        """Remove every release that neither runs nor is on trial."""
        chosen = self.read()
        texts = {chosen.name, chosen.trial.name if chosen.trial is not None else ""}
        for path in self._folder.glob("*"):
            if path.is_dir() and path.name not in texts:
                shutil.rmtree(path, ignore_errors=True)

    def prepare(self, version: str, order: str, wheels: Sequence[tuple[str, Path]]) -> str:
        """Make a release from wheels, each a file name and where its bytes are; return its name. Takes seconds, blocks.

        Raises ReleaseError, OSError.
        """
        name = f"{version}-{order[:12]}"
        target, making = self.path(name), self.path(name + ".new")
        if target.is_dir():
            return name
        shutil.rmtree(making, ignore_errors=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        making.mkdir(mode=0o700)
        try:
            room = _Room()
            for wheel, path in _fitting(wheels):
                _unpack(wheel, path, making, room)
            _require_everything(making, version)
            _require_it_runs(making, version)
            sync_tree(making)
            making.rename(target)
            sync_folder(self._folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return name


def environment_of(path: Path, base: dict[str, str]) -> dict[str, str]:
    """The environment in which a release runs: its packages come before the installed ones."""
    before = base.get("PYTHONPATH", "")
    return {**base, "PYTHONPATH": f"{path}{os.pathsep + before if before else ''}", "PYTHONSAFEPATH": "1"}


class _Room:
    """What may still be unpacked of one release."""

    def __init__(self) -> None:
        self.bytes, self.files = UNPACKED_MAX_BYTES, FILES_MAX

    def take(self, size_bytes: int = 0, files: int = 0) -> None:
        self.bytes -= size_bytes
        self.files -= files
        if self.bytes < 0 or self.files < 0:
            raise ReleaseError(f"the wheels hold over {UNPACKED_MAX_BYTES >> 20} MiB or {FILES_MAX} files")


def _fitting(wheels: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The wheels that are for this machine: an upgrade may bring one for each kind."""
    tags = set(sys_tags())
    pairs = []
    for name, path in wheels:
        try:
            parsed = parse_wheel_filename(name)[3]
        except InvalidWheelFilename as error:
            raise ReleaseError(str(error)) from None
        if not tags.isdisjoint(parsed):
            pairs.append((name, path))
    return pairs


def _unpack(wheel: str, path: Path, target: Path, room: _Room) -> None:
    """Unpack one wheel's packages; its scripts and data files have no place here."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                inside = _place(wheel, info.filename)
                if inside is None or info.is_dir():
                    continue
                room.take(files=1)
                place = target / inside
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, place.open("xb") as out:
                    while block := source.read(1 << 20):
                        room.take(len(block))
                        out.write(block)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReleaseError(f"{wheel} is no wheel: {error}") from None
    except FileExistsError as error:
        raise ReleaseError(f"two wheels hold {Path(error.filename).name}") from None


def _place(wheel: str, name: str) -> PurePosixPath | None:
    """Where a file of a wheel belongs; None for what is not unpacked. Raises ReleaseError for a name that leads out."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ReleaseError(f"{wheel} holds a file named {name[:80]!r}")
    if path.parts[0].endswith(".data"):
        return (
            PurePosixPath(*path.parts[2:])
            if path.parts[1:2] in {("purelib",), ("platlib",)} and path.parts[2:]
            else None
        )
    return path


def _require_everything(target: Path, version: str) -> None:
    """Raise ReleaseError unless this is the release of that version, and all that it needs is in it or installed."""
    distributions = {
        canonicalize_name(distribution.name): distribution
        for distribution in metadata.distributions(path=[str(target)])
    }
    ours = distributions.get(canonicalize_name(DISTRIBUTION))
    if ours is None:
        raise ReleaseError(f"none of the wheels that fit this machine is {DISTRIBUTION}'s")
    if ours.version != version:
        raise ReleaseError(f"the wheel is {DISTRIBUTION} {ours.version}, and the order says {version}")
    for entry in distributions.values():
        headers = HeaderParser().parsestr((entry.read_text("METADATA") or "")[:METADATA_MAX_BYTES])
        python = ".".join(map(str, sys.version_info[:3]))
        try:
            if python not in SpecifierSet(headers.get("Requires-Python", "")):
                raise ReleaseError(
                    f"{entry.name} {entry.version} needs Python {headers['Requires-Python']}; here is {python}"
                )
            needed = [Requirement(text) for text in headers.get_all("Requires-Dist", [])]
        except (InvalidSpecifier, InvalidRequirement) as error:
            raise ReleaseError(f"{entry.name} says badly what it needs: {error}") from None
        for need in needed:
            _require(need, distributions.get(canonicalize_name(need.name)), entry.name)


def _require(need: Requirement, brought: metadata.Distribution | None, by: str) -> None:
    if need.marker is not None and not need.marker.evaluate({"extra": ""}):
        return
    try:
        have = (brought or metadata.distribution(need.name)).version
    except metadata.PackageNotFoundError:
        have = ""
    if not have or not need.specifier.contains(have, prereleases=True):
        word = f"this node has {have}" if have else "this node has none"
        raise ReleaseError(f"{by} needs {need.name}{need.specifier}, and {word}: add its wheel to the upgrade")


def _require_it_runs(target: Path, version: str) -> None:
    """Raise ReleaseError unless the new code can be imported and says that it is this version."""
    command = (sys.executable, "-P", "-c", SELF_CHECK, f"{target}{os.sep}")
    try:
        done = subprocess.run(  # noqa: S603  the wheels are an admin's
            command, env=environment_of(target, dict(os.environ)), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=CHECK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"the new release did not load within {CHECK_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0 or done.stdout.strip() != version:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ReleaseError(f"the new release does not load: {last[:300]}")
