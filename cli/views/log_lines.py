"""The workers' log lines on a developer's terminal. The guest's words are marked as the guest's: they are untrusted."""

from __future__ import annotations

import json

from rich.text import Text

from cli.text.foreign import one_line
from cli.text.output import Output
from cli.text.times import time_of_day

LEVEL_STYLES = {"error": "red", "critical": "bold red", "warn": "yellow", "debug": "dim", "trace": "dim"}
SHOWN_APART = frozenset(
    {"time", "level", "event", "node", "project", "app", "release", "stream", "message", "request_id", "trace_id"}
)

LogEntry = dict[str, object]
"""The fields of one log line: whoever wrote it chose their types."""


def is_of_rollout(line: bytes) -> bool:
    """Whether a line is the node's word on a rollout, which `freehold dev` tells in its own."""
    entry = read(line)
    return "stream" not in entry and "app" not in entry


def show(output: Output, line: bytes, *, answer: bool = False, node: bool = False) -> None:
    """Show one log line: as it is with --json, else for a person, on standard output if it is the command's answer.

    With `node`, for a person too, it says which node wrote it.
    """
    entry = read(line)
    if output.as_json:
        output.event({"event": "log", "log": entry})
        return
    output.line(described(entry, node=node), answer=answer)


def read(line: bytes) -> LogEntry:
    """Return the fields of a log line; of one that is no log line, itself as the message of an odd one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if isinstance(entry, dict):
        return entry
    return {"level": "warn", "event": "log.odd", "message": line.decode(errors="backslashreplace")}


def described(entry: LogEntry, *, node: bool = False) -> Text:
    """Return one log entry as a line: time, node if that is asked for, app, who speaks, and what was said.

    A field of another type than it has makes the entry an odd one, shown as it came.
    """
    try:
        return _described(entry, node=node)
    except (ValueError, TypeError, OverflowError, AttributeError):
        return Text(f"odd line: {one_line(json.dumps(entry))}", "yellow")


def _described(entry: LogEntry, *, node: bool) -> Text:
    guest = entry.get("stream") == "guest"
    level = str(entry.get("level", "info"))
    if entry.get("event") == "request" and "path" in entry:
        said, rest = _request(entry), ""
    elif entry.get("event") == "run" and not guest:
        said, rest = _run(entry), ""
    else:
        said = _plain(entry.get("message", "")) if guest else str(entry.get("event", ""))
        rest = " ".join(f"{key}={_plain(value)}" for key, value in entry.items() if key not in SHOWN_APART)
    return Text.assemble(
        (_plain(time_of_day(str(entry.get("time", "")))) + " ", "dim"),
        (f"{_plain(entry.get('node', ''))} " if node else "", "blue"),
        (f"{_plain(entry['app'])} " if entry.get("app") else "", "cyan"),
        ("| " if guest else "· ", "magenta" if guest else "dim"),
        (said, LEVEL_STYLES.get(level, "")),
        (f"  {rest}" if rest and not guest else "", "dim"),
    )


def _run(entry: LogEntry) -> str:
    """A release that a node serves from now on: the one that runs, or the one that is on trial."""
    role = {"base": "as what runs", "candidate": "as the candidate"}.get(str(entry.get("role")), "")
    return _plain(f"{entry.get('message', '')} {str(entry.get('release', ''))[:12]} {role}".rstrip())


def _request(entry: LogEntry) -> str:
    """One answered request, short enough for a terminal; `--json` has the rest."""
    outcome = str(entry.get("outcome", "completed"))
    words = [
        entry.get("method"),
        entry.get("path"),
        entry.get("status"),
        f"{float(str(entry.get('duration_ms', 0))):.0f} ms",
    ]
    if outcome != "completed":
        words.append(outcome.replace("_", " "))
    if entry.get("forwarded"):
        words.append(f"through {str(entry['forwarded'])[-6:]}")
    return " ".join(_plain(word) for word in words)


def _plain(value: object) -> str:
    """Return text without control characters, so that a guest cannot move the cursor or clear the screen."""
    return one_line(str(value).rstrip("\r\n").replace("\t", " "))
