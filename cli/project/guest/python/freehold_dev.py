"""Runs an app from its source text, for `freehold dev`: a save is served without building a component.

The interpreter's component is built once for a set of packages. An instance asks its configuration for the source,
mounts it in memory and imports it on its first request. Such a component never becomes a release: what runs must be
what the digest names. Runs only inside the sandbox.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import traceback
import zlib

import freehold
import freehold_asgi  # noqa: F401 - imported while the interpreter is built, so that no first request waits for it
import freehold_entry
import freehold_environ
import freehold_files
import freehold_handler
import freehold_http
import freehold_messages  # noqa: F401
import freehold_static
import freehold_websocket  # noqa: F401
import freehold_wsgi  # noqa: F401

SOURCE_KEY = "freehold:dev-source"
CHECK_HOST = "candidate.freehold.invalid"
APP_FOLDER = "/1"


def warm(package_folders: list[str]) -> None:
    """Import what apps import, while the component is built, so that no request waits for it."""
    names = ["json", "datetime", "decimal", "urllib.parse", "urllib.request", "email.message", "html", "uuid", "hashlib",
             "logging", "threading", "importlib.metadata", "importlib.resources", "mimetypes", "random", "collections.abc",
             *freehold_files.CODECS]  # fmt: skip
    for folder in package_folders:
        found = sorted(os.listdir(folder))
        names += [name.removesuffix(".py") for name in found if "." not in name or name.endswith(".py")]
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:  # a package that cannot be imported here fails in the app, with its own traceback
            sys.modules.pop(name, None)


class IncomingHandler:
    """Imports the app on first use; a failed import is told to the one who checks the candidate."""

    _serve = None
    _failure = None

    def handle(self, request, response_out) -> None:
        if self._serve is None and self._failure is None:
            self._load()
        if request.authority() == CHECK_HOST or self._serve is None:
            freehold_http.serve(request, response_out, self._tell)
        else:
            self._serve.handle(request, response_out)

    def _load(self) -> None:
        try:
            freehold_environ.fill()
            told = json.loads(freehold.config[SOURCE_KEY])
            packed = json.loads(zlib.decompress(base64.b64decode(told["files"])))
            files = {name: base64.b64decode(text) for name, text in packed.items()}
            freehold_files.mount(APP_FOLDER, files)
            os.environ.pop(SOURCE_KEY, None)
            if told["language"] == "static":
                site = freehold_static.handle_of(APP_FOLDER, told["entry"], told["prefixes"], prepare=False)
                IncomingHandler._serve = freehold_handler.handler("freehold_static", site)()
                return
            IncomingHandler._serve = freehold_entry.load(told["language"], told["entry"], told["prefixes"])()
        except BaseException:
            IncomingHandler._failure = traceback.format_exc()

    def _tell(self, request, body, answer) -> None:
        failed = self._failure is not None
        answer.start(500 if failed else 200, [("content-type", b"text/plain; charset=utf-8")])
        if failed and request.authority() == CHECK_HOST:
            answer.send(self._failure.encode())
        elif failed:
            answer.send(b"Internal Server Error\n")
        answer.end()
