"""One version of a project made ready to serve: every app's code compiled, its configuration, its routes, one key.

Not here: loading it into workers, or deciding that it serves (`server.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cli.dev.compiled import Compiled, app_load, routes_of
from cli.dev.from_source import SOURCE_KEY, from_source
from cli.dev.secrets import read_secrets
from cli.errors import BuildError
from cli.output import Output
from cli.project.build import STATE_FOLDER, build_app
from cli.project.find import Found
from cli.project.model import App
from runtime.compile_cache import CompileCache
from runtime.component import ComponentError
from runtime.control import ReleaseLoad, Route

COMPILE_QUIET_S: Final = 0.5
"""Code that is in the cache is there well before this; only a real compilation is worth a line."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the workers are to serve next. `from_source` names the apps that import their source at run time."""

    load: ReleaseLoad
    routes: tuple[Route, ...]
    from_source: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Code:
    """An app's compiled code, what is added to its configuration, and whether it runs from source."""

    compiled: Compiled
    config: Mapping[str, str]
    from_source: bool


async def prepare(found: Found, cache: CompileCache, output: Output, *, exact: bool) -> Candidate:
    """Build and compile every app; apps run from source where they can unless `exact`. Raises `CommandError`."""
    secrets = read_secrets(found.root / STATE_FOLDER / "secrets")
    codes: dict[str, _Code] = {}
    for name, app in found.project.base.apps.items():
        for missing in [secret for secret in app.secrets if secret not in secrets]:
            output.warn(f"{name}: secret {missing} has no value; put {missing}=... into {STATE_FOLDER}/secrets")
        codes[name] = await _code(found, app, cache, output, exact=exact)
    apps = found.project.base.apps
    extra = {
        name: {**{secret: secrets[secret] for secret in apps[name].secrets if secret in secrets}, **code.config}
        for name, code in codes.items()
    }
    facts = {name: [asdict(apps[name]), code.compiled.digest, extra[name]] for name, code in codes.items()}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    release = f"dev-{key[:12]}"
    loads = tuple(app_load(found.project, apps[name], release, code.compiled, extra[name])
                  for name, code in codes.items())  # fmt: skip
    return Candidate(
        load=ReleaseLoad(key, release, found.project.name, loads),
        routes=tuple(route for app in apps.values() for route in routes_of(app, key)),
        from_source=tuple(name for name, code in codes.items() if code.from_source),
    )


async def _code(found: Found, app: App, cache: CompileCache, output: Output, *, exact: bool) -> _Code:
    running = None if exact else await asyncio.to_thread(from_source, found, app, output)
    if running is not None:
        artifact = await _compile(app, cache, running.component, running.digest, output)
        return _Code(Compiled(artifact, running.digest, "http"), {SOURCE_KEY: running.source}, from_source=True)
    built = await asyncio.to_thread(build_app, found.project, app, found.root, output)
    if built.kind == "module":
        return _Code(Compiled(built.component, built.digest, "module"), {}, from_source=False)
    artifact = await _compile(app, cache, built.component, built.digest, output)
    return _Code(Compiled(artifact, built.digest, built.kind), {}, from_source=False)


async def _compile(app: App, cache: CompileCache, component: Path, digest: str, output: Output) -> Path:
    """Return the compiled code, telling the developer only if it has to be made."""
    making = asyncio.ensure_future(cache.ensure(component, digest))
    done, _ = await asyncio.wait({making}, timeout=COMPILE_QUIET_S)
    if not done:
        output.step(app.name, "compiling to machine code (once per component)")
    try:
        return await making
    except ComponentError as error:
        step = f"correct the app, then run: freehold build --app {app.name}"
        raise BuildError(app.name, str(error), next_step=step, kind="component-refused") from None
