"""A WSGI app without a framework: one greeting, from the configuration, signed so that visitors can tell it is ours."""

import hashlib
import hmac

import freehold


def app(environ, start_response):
    greeting = freehold.config.get("GREETING", "hello")
    path = environ.get("PATH_INFO", "/")
    headers = [("content-type", "text/plain; charset=utf-8")]
    if path == "/health":
        body, status = "fine\n", "200 OK"
    elif not greeting:
        # A release whose configuration forgot the greeting passes its smoke check and fails its visitors.
        raise ValueError("no greeting is configured")
    else:
        body, status = f"{greeting}\n", "200 OK"
        key = freehold.config.get("SIGNING_KEY")
        headers.append(("x-signature", hmac.new(key.encode(), body.encode(), hashlib.sha256).hexdigest()))
    start_response(status, headers)
    return [body.encode()]
