"""A WSGI app without a framework: one greeting, from the configuration."""

import freehold


def app(environ, start_response):
    greeting = freehold.config.get("GREETING", "hello")
    path = environ.get("PATH_INFO", "/")
    if path == "/health":
        body, status = "fine\n", "200 OK"
    elif not greeting:
        # A release whose configuration forgot the greeting passes its smoke check and fails its visitors.
        raise ValueError("no greeting is configured")
    else:
        body, status = f"{greeting}\n", "200 OK"
    start_response(status, [("content-type", "text/plain; charset=utf-8")])
    return [body.encode()]
