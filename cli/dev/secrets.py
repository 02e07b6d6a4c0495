"""Secrets of a development run: `.freehold/secrets`, a git-ignored file of NAME=VALUE lines. Not: any real secret.

They take the way of every secret: sealed to the node, versioned, named by a change. Beside the mesh of one lies a digest
of each value that was set, so that a value that stayed the same gets no new version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from cli.access.client import NodeClient
from cli.access.contexts import DEV_ENVIRONMENT
from cli.access.secrets import rows_of, set_secret
from cli.errors import UsageError
from cli.project.find import Found
from cli.text.output import Output
from protocols.keys import Ed25519Signer

FILE_MAX_BYTES = 64 * 1024


def read_secrets(path: Path) -> dict[str, str]:
    """Return name and value of each line; no file, no secrets. Raises `UsageError` naming the line, never the value."""
    if not path.is_file():
        return {}
    table: dict[str, str] = {}
    for number, line in enumerate(path.read_text()[:FILE_MAX_BYTES].splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name.strip()):
            step = f"write NAME=VALUE on line {number} of {path}"
            raise UsageError(f"{path.name}:{number}: this is not NAME=VALUE", next_step=step, kind="secrets-file")
        table[name.strip()] = value.strip()
    return table


def with_secrets(found: Found, values: Mapping[str, str], output: Output) -> Found:
    """Return the project whose apps name, in the environment of dev, only the secrets that have a value; warn of others."""
    settings = found.project.settings(DEV_ENVIRONMENT)
    apps = {}
    for name, app in settings.apps.items():
        for missing in [secret for secret in app.secrets if not values.get(secret)]:
            output.warn(f"{name}: secret {missing} has no value; put {missing}=... into .freehold/secrets")
        apps[name] = replace(app, secrets=tuple(secret for secret in app.secrets if values.get(secret)))
    environments = {**found.project.environments, DEV_ENVIRONMENT: replace(settings, apps=apps)}
    return replace(found, project=replace(found.project, environments=environments))


async def set_changed(
    client: NodeClient, signer: Ed25519Signer, found: Found, values: Mapping[str, str], marks: Path
) -> None:
    """Set each secret that an app names and whose value is not the one set last; `marks` keeps what was."""
    project = found.project
    named = sorted({name for app in project.settings(DEV_ENVIRONMENT).apps.values() for name in app.secrets})
    if not named:
        return
    known = {row.name for row in await rows_of(client, project.name, DEV_ENVIRONMENT)}
    before = _read_marks(marks)
    now = {name: hashlib.sha256(f"{name}={values[name]}".encode()).hexdigest() for name in named}
    for name in named:
        if name not in known or before.get(name) != now[name]:
            await set_secret(client, signer, (project.name, DEV_ENVIRONMENT, name), values[name].encode())
    if now != before:
        _write_marks(marks, {**before, **now})


def _read_marks(path: Path) -> dict[str, str]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}


def _write_marks(path: Path, marks: Mapping[str, str]) -> None:
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(marks))
