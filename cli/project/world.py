"""The WIT world of one app: exactly the interfaces its table in freehold.toml grants, so that a component cannot even
ask for more, and the list of its imports is the list of its capabilities.

Not here: the interfaces themselves (`wit/`, data from the WASI proposals).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from cli.project.model import App, ProjectFile

WASI = "0.2.10"
"""The version the JavaScript engine exports; any 0.2 host serves it."""

WORLD = "app"
WIT = Path(__file__).parent / "wit" / "deps"

KEYVALUE = ("wasi:keyvalue/store@0.2.0-draft2", "wasi:keyvalue/atomics@0.2.0-draft2")
CONFIG = "wasi:config/store@0.2.0-rc.1"
SQL = "freehold:sql/databases@0.1.0"
BLOBS = tuple(f"wasi:blobstore/{name}@0.2.0-draft" for name in ("types", "container", "blobstore"))
MESSAGING = ("wasmcloud:messaging/types@0.2.0", "wasmcloud:messaging/consumer@0.2.0")
LOGGING = "wasi:logging/logging@0.1.0-draft"


def granted_anywhere(project: ProjectFile, app: App) -> App:
    """Return `app` with what any environment grants it: one component serves them all, and each grants its own part."""
    everywhere = [app, *(settings.apps[app.name] for settings in project.environments.values())]
    return replace(
        app,
        config={name: value for app in everywhere for name, value in app.config.items()},
        secrets=tuple(dict.fromkeys(name for app in everywhere for name in app.secrets)),
        keyvalue=tuple(dict.fromkeys(name for app in everywhere for name in app.keyvalue)),
        sql=tuple(dict.fromkeys(name for app in everywhere for name in app.sql)),
        blobs=tuple(dict.fromkeys(name for app in everywhere for name in app.blobs)),
        publish=tuple(dict.fromkeys(name for app in everywhere for name in app.publish)),
        allow_hosts=tuple(dict.fromkeys(host for app in everywhere for host in app.allow_hosts)),
    )


def world_of(app: App) -> str:
    """Return the text of the world that `app` is built for."""
    imports = [
        f"wasi:clocks/monotonic-clock@{WASI}",
        f"wasi:clocks/wall-clock@{WASI}",
        f"wasi:random/random@{WASI}",
        f"wasi:cli/stdout@{WASI}",
        f"wasi:cli/stderr@{WASI}",
        f"wasi:io/poll@{WASI}",
        f"wasi:http/types@{WASI}",
        LOGGING,
    ]
    if app.config or app.secrets:
        imports.append(CONFIG)
    if app.keyvalue:
        imports += KEYVALUE
    if app.sql:
        imports.append(SQL)
    if app.blobs:
        imports += BLOBS
    if app.publish:
        imports += MESSAGING
    if app.allow_hosts:
        imports.append(f"wasi:http/outgoing-handler@{WASI}")
    if app.schedule:
        imports.append(f"wasi:cli/exit@{WASI}")
    export = f"wasi:cli/run@{WASI}" if app.schedule else f"wasi:http/incoming-handler@{WASI}"
    lines = [*(f"  import {name};" for name in imports), f"  export {export};"]
    return "\n".join(["package freehold:guest;", f"world {WORLD} {{", *lines, "}"]) + "\n"


def write_world(world: str, folder: Path) -> None:
    """Write the world and the interfaces it names into `folder`, as the toolchains read them."""
    shutil.copytree(WIT, folder / "deps")
    (folder / "world.wit").write_text(world)
