"""What an app's own Python source asks for that no sandbox has, found before the build: refused with file, line and way out.

Only the app's own files are read, only imports, and calls by a module's full name, and none below `if __name__ == "__main__"`
or in a `try` that catches what such a call raises here. Not here: packages (`python_packages.py`), and what shows when the app
is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from cli.errors import BuildError
from cli.project.source import SourceTree

_PROCESSES: Final = "the sandbox has no processes; give the work an app of its own, or call a service over HTTP"
_THREADS: Final = (
    "the sandbox has no threads beside a request; use an asyncio task, or give the work an app with a schedule"
)
_SERVERS: Final = "the node is the web server; name the app object as entry of [app.{app}] and remove this call"

REFUSED: Final = {
    **dict.fromkeys(
        ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output",
         "os.system", "os.popen", "os.fork", "os.execv", "os.spawnv", "multiprocessing.Process", "multiprocessing.Pool",
         "concurrent.futures.ProcessPoolExecutor", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
        _PROCESSES,
    ),
    **dict.fromkeys(("threading.Timer", "sched.scheduler", "signal.alarm"), _THREADS),
    **dict.fromkeys(
        ("uvicorn.run", "hypercorn.run", "waitress.serve", "wsgiref.simple_server.make_server", "http.server.HTTPServer",
         "http.server.ThreadingHTTPServer", "socketserver.TCPServer", "asyncio.start_server"),
        _SERVERS,
    ),
}  # fmt: skip
"""Calls that cannot work, by what to do in their place."""


ABSENT: Final = frozenset(
    {"bz2", "ctypes", "curses", "dbm", "fcntl", "grp", "lzma", "mmap", "pwd", "readline", "resource", "syslog", "termios",
     "tkinter", "tty"}
)  # fmt: skip
"""Modules of the standard library that the sandbox's Python is built without."""

_WITHOUT: Final = "the sandbox's Python is built without it; do without it"

CAUGHT: Final = frozenset(
    {"Exception", "BaseException", "OSError", "RuntimeError", "NotImplementedError", "ImportError"}
)


def refuse_impossible(app: str, source: str, tree: SourceTree) -> None:
    """Raise `BuildError` naming each call that the sandbox has nothing for."""
    texts = [
        f"{source.rstrip('/')}/{name}:{line}: {call}: {REFUSED.get(call, _WITHOUT).format(app=app)}"
        for name, content in tree.files
        if name.endswith(".py") and not _is_test(name)
        for line, call in impossible(content)
        if not _is_own_module(call, tree)
    ]
    if texts:
        raise BuildError(
            app, "it asks for what the sandbox has not:\n" + "\n".join(texts[:20]),
            next_step=f"change these lines, then run: freehold build --app {app}", kind="source-refused",
        )  # fmt: skip


def _is_own_module(name: str, tree: SourceTree) -> bool:
    return any(path in (f"{name}.py", f"{name}/__init__.py") for path, _ in tree.files)


def impossible(content: bytes) -> list[tuple[int, str]]:
    """Return line and name of each refused call and import in a module; none where it cannot be parsed here."""
    try:
        module = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # the sandbox's own Python, which may be newer, tells of it
    names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names.update({name.asname or name.name.partition(".")[0]: name.name if name.asname else name.name.partition(".")[0]
                          for name in node.names})  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})
    seen = [pair for node in _unguarded(module) for pair in _asked(node, names)]
    return [(line, name) for line, name in seen if name in REFUSED or name in ABSENT]


def _asked(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        yield node.lineno, _full_name(node.func, names)
    elif isinstance(node, ast.Import):
        yield from ((node.lineno, name.name.partition(".")[0]) for name in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.lineno, node.module.partition(".")[0]


def _unguarded(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "__main__" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Try) and any(_provides(handler) for handler in child.handlers):
            continue
        yield child
        yield from _unguarded(child)


def _provides(handler: ast.ExceptHandler) -> bool:
    caught = ast.unparse(handler.type) if handler.type else "Exception"
    return any(name in CAUGHT for name in re.findall(r"\w+", caught))


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return ""
    return ".".join([names[node.id], *reversed(parts)])


def _is_test(name: str) -> bool:
    parts = name.split("/")
    return "tests" in parts[:-1] or parts[-1].startswith("test_") or parts[-1] in ("conftest.py", "manage.py")
