"""Five WSGI apps under one roof."""

import with_bottle
import with_django
import with_falcon
import with_flask
import with_werkzeug
from werkzeug.middleware.dispatcher import DispatcherMiddleware


def plain(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [environ["PATH_INFO"].encode("latin-1")]


app = DispatcherMiddleware(
    plain,
    {
        "/flask": with_flask.app,
        "/bottle": with_bottle.app,
        "/falcon": with_falcon.app,
        "/django": with_django.app,
        "/werkzeug": with_werkzeug.app,
        "/plain": plain,
    },
)
