"""From an app's entry to what the component exports: the app imported, and the adapter of its kind around it.

An app is imported while its component is built, or, where its import reads configuration, on the first request of each
instance. `freehold dev` uses the second way for every app. Runs only inside the sandbox. Not here: the adapters.
"""

from __future__ import annotations

import importlib
import inspect

import freehold_environ
import freehold_files

READS_CONFIGURATION = "freehold: the import reads configuration: "
"""How a build is told that this app has to be imported later."""


def load(language: str, entry: str, prefixes, scheduled: bool = False):
    """Import the app; return the class that its component exports. Raises ImportError where the entry is not there."""
    import freehold_loop

    freehold_loop.install()
    module_name, _, name = entry.partition(":")
    module = importlib.import_module(module_name)
    made = _adapted(language, module_name, name, module, prefixes, scheduled)
    if scheduled:
        return made
    if callable(getattr(module, "message", None)):
        import freehold_messages

        made = freehold_messages.handler(made, module.message)
    if inspect.isfunction(getattr(module, "migrate", None)):
        import freehold_migrate

        made = freehold_migrate.handler(made, module.migrate)
    if callable(getattr(module, "websocket", None)):
        import freehold_websocket

        made = freehold_websocket.handler(made, module.websocket)
    return made


def _adapted(language: str, module_name: str, name: str, module, prefixes, scheduled: bool):
    if language in {"wsgi", "asgi"}:
        if not hasattr(module, name):
            raise ImportError(f"module {module_name} has no {name}; set entry in freehold.toml")
        adapter = importlib.import_module(f"freehold_{language}")
        return adapter.handler(getattr(module, name), prefixes)
    if scheduled:
        if not hasattr(module, "main"):
            raise ImportError(f"module {module_name} has no main(); a scheduled app needs one")
        import freehold_job

        return freehold_job.command(module.main)
    if hasattr(module, "IncomingHandler"):
        return module.IncomingHandler
    if hasattr(module, "handle"):
        import freehold_handler

        return freehold_handler.handler(module_name, module.handle)
    if callable(getattr(module, "message", None)):
        import freehold_messages

        return freehold_messages.nothing_else()
    raise ImportError(f"module {module_name} has no handle(request), no message(message) and no class IncomingHandler")


def built(language: str, entry: str, prefixes, scheduled: bool, declared: list[str], app_folder: str):
    """Return the class to export, with the app imported now. Raises ImportError(READS_CONFIGURATION...) if it may not be."""
    freehold_environ.watch(frozenset(declared))
    try:
        loaded = load(language, entry, prefixes, scheduled)
    finally:
        if freehold_environ.read():
            raise ImportError(READS_CONFIGURATION + " ".join(freehold_environ.read()))
    freehold_files.import_early(app_folder)
    freehold_environ.built()
    return _exported(lambda: loaded, scheduled)


def late(language: str, entry: str, prefixes, scheduled: bool, app_folder: str):
    """Return the class to export, which imports the app on first use."""
    freehold_files.import_early(app_folder)
    freehold_environ.built()
    return _exported(lambda: load(language, entry, prefixes, scheduled), scheduled)


def _exported(get, scheduled: bool):
    made = None

    def instance():
        nonlocal made
        if made is None:
            freehold_environ.fill()
            made = get()()
        return made

    if scheduled:

        class Run:
            def run(self) -> None:
                import freehold_job

                freehold_job.told(lambda: instance().run())

        return Run

    class IncomingHandler:
        def handle(self, request, response_out) -> None:
            import freehold_http

            try:
                serving = instance()
            except Exception as error:
                failure = error
            else:
                serving.handle(request, response_out)
                return

            def fail(request, body, answer):
                raise failure

            freehold_http.serve(request, response_out, fail)

    return IncomingHandler
