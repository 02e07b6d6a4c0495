"""The app's `migrate()` behind wasi:http: asked once for each release, before visitors come, on a copy of its data.

Runs only inside the sandbox. What it raises is the answer, for whoever deploys: no visitor's request has this path. Not
here: when it is asked (docs/guides/data.md).
"""

from __future__ import annotations

import inspect
import traceback

import freehold_http

PATH = "/.freehold/migrate"


def handler(inner, migrate):
    """Return the component's handler class: the node's question goes to `migrate`, all else to what `inner` makes."""
    if inspect.iscoroutinefunction(migrate):
        raise TypeError("migrate is async; write it as a plain function")

    class IncomingHandler:
        def __init__(self) -> None:
            self._inner = inner()

        def handle(self, request, response_out) -> None:
            if request.path_with_query() != PATH:
                self._inner.handle(request, response_out)
                return
            freehold_http.serve(request, response_out, lambda request, body, answer: _respond(migrate, answer))

    return IncomingHandler


def _respond(migrate, answer) -> None:
    try:
        migrate()
    except (Exception, SystemExit):  # management commands end so
        text = traceback.format_exc()
        print(text)
        answer.start(500, [("content-type", b"text/plain; charset=utf-8")])
        answer.send(text.encode())
    else:
        answer.start(204, [])
    answer.end()
