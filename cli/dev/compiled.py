"""From a built component to what a worker hosts: compiled code and the app's limits and grants as an `AppSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from cli.cache import cache_folder
from cli.project.model import App, ProjectFile
from runtime.messages import AppLoad
from runtime.sandbox.compile_cache import CompileCache
from runtime.spec import AppSpec


def compile_cache() -> CompileCache:
    """Return the developer's cache of compiled code, shared by all projects."""
    return CompileCache(cache_folder() / "compiled")


@dataclass(frozen=True, slots=True)
class Compiled:
    """Code ready to load: the artifact, the digest of the component it came from, and what kind it is."""

    artifact: Path
    digest: str
    kind: str


def app_load(project: ProjectFile, app: App, release: str, code: Compiled, config: Mapping[str, str]) -> AppLoad:
    """Return one app as a worker loads it; `config` is added to its own configuration."""
    kind = cast("Literal['http', 'command', 'module']", code.kind)
    return AppLoad(
        AppSpec(
            project=project.name,
            app=app.name,
            release=release,
            artifact=code.artifact,
            artifact_digest=code.digest,
            kind=kind,
            timeout_ms=app.timeout_ms,
            memory_max_bytes=app.memory_max_bytes,
            instances=app.instances,
            allow_hosts=app.allow_hosts,
            keyvalue=app.keyvalue,
            sql=app.sql,
            blobs=app.blobs,
            publish=app.publish,
            websocket=app.websocket,
            websocket_origins=app.websocket_origins,
            config={**app.config, **config},
        )
    )
