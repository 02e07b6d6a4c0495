"""Packages of npm's that cannot work in the sandbox, by name: refused before they are installed.

Not here: installing what is not refused (node.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from cli.errors import BuildError

_STORE: Final = "keep data in the app's own key-value store, SQL database or blobs"
_NATIVE: Final = "it is native code"
UNUSABLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("amqplib", "cassandra-driver", "ioredis", "kafkajs", "mongodb", "mongoose", "mssql", "mysql", "mysql2", "pg",
         "postgres", "redis"), f"it needs a connection of its own; {_STORE}",
    ),
    **dict.fromkeys(("better-sqlite3", "level", "lmdb", "sqlite3"), f"{_NATIVE} and needs files; {_STORE}"),
    **dict.fromkeys(("argon2", "bcrypt"), f"{_NATIVE}; use bcryptjs, or PBKDF2 of node:crypto"),
    **dict.fromkeys(("canvas", "sharp", "snappy"), f"{_NATIVE}; use a library of plain JavaScript"),
    **dict.fromkeys(("@grpc/grpc-js", "nodemailer", "ssh2"), "it opens sockets itself; call a service over HTTP with fetch"),
    **dict.fromkeys(("socket.io", "ws"), "there are no WebSockets; use server-sent events"),
    **dict.fromkeys(("playwright", "puppeteer"), "there are no processes, so no browser; call a service over HTTP with fetch"),
    **dict.fromkeys(("@sveltejs/kit", "next", "nuxt"),
                    "it needs a build and a server of its own; serve its static export with language = \"static\""),
    **dict.fromkeys(("@prisma/client", "prisma"), f"its engine is native code; {_STORE}"),
    **dict.fromkeys(("agenda", "bull", "bullmq", "node-cron"), "give the job an app of its own with a schedule"),
    **dict.fromkeys(("cluster", "piscina", "workerpool"), "there are no threads and processes; remove it"),
    **dict.fromkeys(("chokidar", "nodemon", "pm2"), "the node runs the app and starts it anew; remove it"),
}  # fmt: skip


def refuse_unusable(app: str, package_json: bytes) -> None:
    """Raise BuildError naming each package of `dependencies` that cannot work; npm says what is wrong with a broken file."""
    try:
        wanted = json.loads(package_json).get("dependencies", {})
    except (ValueError, AttributeError):
        return
    told = (
        [f"{name}: {UNUSABLE[name]}" for name in sorted(wanted) if name in UNUSABLE] if isinstance(wanted, dict) else []
    )
    if told:
        raise BuildError(
            app,
            "cannot run in the sandbox: " + "; ".join(told),
            next_step="change package.json",
            kind="package-refused",
        )
