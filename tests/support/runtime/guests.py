"""Releases made of the built test components, for tests that run real guests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from runtime.messages import AppLimits, AppLoad, ReleaseLoad
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.spec import AppSpec
from tests.fixtures.build import CACHE, component


async def guest(name: str, *, kind: str = "http", limits: AppLimits | None = None, **spec: Any) -> AppLoad:
    """One app named after its component, compiled in the shared cache; `spec` are further fields of its `AppSpec`."""
    path = component(name)
    digest = file_digest(path)
    artifact = await CompileCache(CACHE / "compiled").ensure(path, digest)
    return AppLoad(AppSpec("project", name, "r1", artifact, digest, kind=kind, **spec), limits or AppLimits())  # type: ignore[arg-type]


def release(*apps: AppLoad, key: str = "r1") -> ReleaseLoad:
    return ReleaseLoad(key, key, "project", apps)


def moved(load: AppLoad, artifact: Path) -> AppLoad:
    """The same app with its artifact elsewhere."""
    return msgspec.structs.replace(load, spec=dataclasses.replace(load.spec, artifact=artifact))
