"""Misbehaves on request: /trap, /spin, /grow. Anything else is answered."""

import os

from freehold import Request, Response


def handle(request: Request) -> Response:
    match request.path:
        case "/trap":
            os.abort()
        case "/spin":
            while True:
                pass
        case "/grow":
            held = []
            while True:
                held.append(bytearray(1 << 20))
    return Response("fine\n")
