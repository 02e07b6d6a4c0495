"""Writes the reference pages that come from the code: the commands, the API, the limits.

The pages are made at each build of the site and are not committed, so they cannot go stale. Not here: pages that people
write, and the project file's reference (`python -m cli.project.publish`, held by a test).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocols", "runtime", "node", "cli")
FIELD = re.compile(r"^[a-z_]+_(max|extra)(_[a-z]+)?$")
LIMIT = re.compile(r"^[A-Z][A-Z0-9_]*_MAX(_[A-Z_]+)?$|^MAX_[A-Z_]+$")


FIELDS = {
    "Shares of the record store": ("protocols/records/quotas.py", "RecordLimits"),
    "Limits of one app at the ingress": ("runtime/messages.py", "AppLimits"),
    "Limits of one worker's ingress": ("runtime/ingress/settings.py", "IngressSettings"),
    "Limits of one app in its sandbox": ("runtime/spec.py", "AppSpec"),
}


def write_all(folder: Path) -> None:
    """Write `commands.md`, `http-api.md` and `constants.md` into `folder`."""
    (folder / "commands.md").write_text(commands_page())
    (folder / "http-api.md").write_text(api_page())
    (folder / "constants.md").write_text(constants_page())


def _command_sections(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _command_sections(below, f"{path} {name}")
        return
    text = re.sub("\x1b\\[[0-9;]*m", "", command.get_help(context))
    yield f"## {path}\n\n```text\n{text}\n```\n"


def commands_page() -> str:
    """Return every command's help, as `--help` prints it."""
    from cli import main
    from cli.main import main as entry  # noqa: F401 (the import makes the groups)

    root = next(value for value in vars(main).values() if isinstance(value, click.Group))
    return "# Commands\n\nGenerated from the command line itself.\n\n" + "\n".join(_command_sections(root, "freehold"))


def api_page() -> str:
    """Return the operations of the API's own OpenAPI document, one table row each."""
    from node.api.server import VERSION

    rows = ["| operation | who | what |", "|---|---|---|"]
    rows.extend(
        f"| `{operation.method} {operation.path}` | {operation.access} | {operation.summary.replace('|', '/')} |"
        for operation in sorted(_operations(), key=lambda each: (each.path, each.method))
    )
    head = f"# HTTP API\n\nVersion {VERSION}. A node serves the whole document at `/v1/openapi.json`.\n"
    who = (
        "\n`open`: anybody. `known`: the socket or any key. `read`: any principal. `write`: a principal, idempotent.\n"
    )
    return head + who + "\n" + "\n".join(rows) + "\n"


def _operations() -> list[Any]:
    from node.api.handlers import OPERATIONS

    return list(OPERATIONS)


def limits_of(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each named limit of a file: name, value, and the reason that stands beside it."""
    yield from _named(ast.parse(path.read_text()).body, LIMIT)


def fields_of(path: Path, owner: str) -> Iterator[tuple[str, str, str]]:
    """Yield each limit among the fields of a class, in the same way."""
    classes = [
        entry for entry in ast.parse(path.read_text()).body if isinstance(entry, ast.ClassDef) and entry.name == owner
    ]
    yield from _named(classes[0].body, FIELD)


def _named(body: list[ast.stmt], wanted: re.Pattern[str]) -> Iterator[tuple[str, str, str]]:
    for statement, after in zip(body, [*body[1:], None], strict=True):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        if wanted.match(name):
            reason = ""
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                reason = " ".join(after.value.value.split())
            yield name, ast.unparse(value), reason


def limited() -> Iterator[tuple[str, str, str, str]]:
    """Yield every named limit of the code: its file, name, value and reason."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "templates" in path.parts or "guest" in path.parts:
                continue
            for name, value, reason in limits_of(path):
                yield path.relative_to(ROOT).as_posix(), name, value, reason


def constants_page() -> str:
    """Return every named limit of the code, with who pays and the reason that stands beside it."""
    from payers import PAYERS, payer_of

    parts = [
        "# Named limits in the code\n",
        "Every queue, table and body has a limit, and somebody who pays: at whose cost it is met, so that nobody else",
        "waits or loses anything. The [trust model](../concepts/trust.md) says why.",
        *_shares(PAYERS),
    ]
    package = ""
    for place, name, value, reason in limited():
        if not place.startswith(f"{package}/"):
            package = place.partition("/")[0]
            parts.append(f"\n## {package}\n\n| limit | value | who pays | where | why |\n|---|---|---|---|---|")
        why = reason.replace("|", "/")
        parts.append(f"| `{name}` | `{value}` | {payer_of(place, name)} | {place} | {why} |")
    return "\n".join(parts) + "\n"


def _shares(payers: dict[str, Any]) -> Iterator[str]:
    """The shares of callers and of the record store, whose limits are fields and no constants."""
    from node.api.callers.shares import SHARES

    yield "\n## Shares of those who call the API\n"
    yield "The caller pays: the principal behind the key, whose other keys count as one; of `admissions` the address.\n"
    yield "| at once | from the network | on the socket | of one caller |\n|---|---|---|---|"
    for share in SHARES:
        yield f"| {share.name} | {share.remote_max} | {share.local_max} | {share.principal_max} |"
    for title, (place, owner) in FIELDS.items():
        yield f"\n## {title}\n\n| limit | value | who pays | why |\n|---|---|---|---|"
        for name, value, reason in fields_of(ROOT / place, owner):
            yield f"| `{name}` | `{value}` | {payers[f'{place}:{owner}'][name]} | {reason.replace('|', '/')} |"
