"""What of other people's packages would run on the developer's machine, and is refused: build scripts, of any language.

Packages come as what they are: wheels and npm tarballs, unpacked and never run here. Source distributions, direct references
and packages in Git are built by scripts of their own before anybody has looked at them, so none is taken, whoever asks for
it. Not here: fetching what is taken (python_packages.py, node.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from cli.errors import BuildError

REQUIREMENTS_MAX: Final = 2_000
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\s*(?:\[[A-Za-z0-9._, -]*\])?\s*"
    r"(?:\(?\s*(?:(?:[<>=!~]=|===|[<>])\s*[A-Za-z0-9.*+!_-]+\s*,?\s*)*\)?)\s*(?:;[^@:/]*)?(?:\s+--hash=[a-z0-9]+:[0-9a-f]+)*\s*"
)

WHEELS_ONLY: Final = """\
import runpy
import sys
from pip._internal.distributions.sdist import SourceDistribution
from pip._internal.exceptions import InstallationError

def refuse(self, *arguments, **options):
    raise InstallationError(f"{self.req.name or self.req.link} comes as source, whose build would run its own scripts here")

assert callable(SourceDistribution.prepare_distribution_metadata)
SourceDistribution.prepare_distribution_metadata = refuse
sys.argv = ["pip", *sys.argv[1:]]
runpy.run_module("pip", run_name="__main__")
"""
"""Runs pip with one thing taken away: whatever led to a source distribution, it is not built."""

_RANGE: Final = re.compile(r"(?:npm:(?:@[a-z0-9._~-]+/)?[a-z0-9._~-]+@)?[0-9A-Za-z.*xX<>=~^| +-]*")
_TAG: Final = re.compile(r"[a-z][a-z0-9._-]*")
DEPENDENCIES: Final = ("dependencies", "optionalDependencies", "peerDependencies", "devDependencies")


def check_requirements(app: str, requirements: bytes) -> None:
    """Raise BuildError for a line of a requirements.txt that is more than a package, its versions and hashes."""
    try:
        lines = list(_lines(requirements.decode()))
    except UnicodeDecodeError:
        raise _refused(app, "requirements.txt is not UTF-8", "correct requirements.txt") from None
    if len(lines) > REQUIREMENTS_MAX:
        raise _refused(app, f"requirements.txt has more than {REQUIREMENTS_MAX} lines", "correct requirements.txt")
    for number, line in lines:
        if line.startswith("-"):
            what = f"the option {line.split()[0].partition('=')[0]}"
            step = "remove it; where packages come from is pip's own setting (pip config)"
        elif not _REQUIREMENT.fullmatch(line):
            what, step = "more than a name and versions", "name a package of an index that has wheels: name==version"
        else:
            continue
        raise _refused(
            app, f"line {number} of requirements.txt has {what}, which may run a package's own scripts here", step
        )


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each requirement with its line's number: without comments, and with continued lines as one."""
    held, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first if held else number
        if line.rstrip().endswith("\\"):
            held += line.rstrip()[:-1] + " "
            continue
        whole, held = re.sub(r"(^|\s)#.*", "", held + line).strip(), ""
        if whole:
            yield first, whole
    if held.strip():
        yield first, held.strip()


def check_dependencies(app: str, package_json: bytes, lock: bytes | None) -> None:
    """Raise BuildError for a package that npm would take from Git, a folder or an address, which may run scripts."""
    for name, data in (("package.json", package_json), ("package-lock.json", lock or b"{}")):
        try:
            described = json.loads(data)
        except ValueError:
            continue  # npm says what is wrong with it
        for package, wanted in _wanted(described):
            if not (isinstance(wanted, str) and (_RANGE.fullmatch(wanted) or _TAG.fullmatch(wanted))):
                raise _refused(
                    app, f"{name} takes {package} from {str(wanted)[:100]!r}, where its own scripts may have to run here",
                    "name a version of it in the registry, or copy its files into the app",
                )  # fmt: skip


def _wanted(described: object) -> Iterator[tuple[str, object]]:
    if not isinstance(described, dict):
        return
    packages = described.get("packages")
    for place in (described, *(packages.values() if isinstance(packages, dict) else ())):
        if not isinstance(place, dict):
            continue
        for kind in DEPENDENCIES:
            named = place.get(kind)
            if isinstance(named, dict):
                yield from ((str(package), wanted) for package, wanted in named.items() if not isinstance(wanted, dict))
        resolved = place.get("resolved")
        if place is not described and isinstance(resolved, str) and not resolved.startswith("https://"):
            yield "a package", resolved
    yield from _overridden(described.get("overrides"))


def _overridden(overrides: object) -> Iterator[tuple[str, object]]:
    if isinstance(overrides, dict):
        for package, wanted in overrides.items():
            if isinstance(wanted, dict):
                yield from _overridden(wanted)
            elif not (isinstance(wanted, str) and wanted.startswith("$")):
                yield str(package), wanted


def _refused(app: str, what: str, step: str) -> BuildError:
    return BuildError(app, what, next_step=step, kind="foreign-build")
