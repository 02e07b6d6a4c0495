"""What a freehold.toml may hold: every table, key, kind and default, once.

The validator (`parse.py`) walks these tables; `published_schema()` turns them into docs/reference/freehold.schema.json and
`reference_page()` into docs/reference/freehold-toml.md, so editor, page and command cannot disagree. Not here: rules that span
several keys (`rules.py`) and the values' own rules (`kinds.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from cli.project.kinds import LIST_ITEMS_MAX, Choice, Count, Flag, Kind, Percentage, Text, duration, size
from protocols.changes.demands import APPROVALS_MAX

NAME: Final = Text(
    "a name of a-z, 0-9 and dashes, starting with a letter, at most 40 characters", r"[a-z][a-z0-9-]{0,39}"
)
SUBJECT: Final = Text(
    "a name of a-z, 0-9 and dashes, or up to seven of them with dots between",
    r"[a-z][a-z0-9-]{0,39}(\.[a-z][a-z0-9-]{0,39}){0,6}",
)
LINE: Final = Text("one line of text, not empty", r"[^\u0000-\u001f\u007f]{1,500}")
CONFIG_KEY: Final = Text("a key of letters, digits, _ . and -, starting with a letter", r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
SECRET_NAME: Final = Text("a name such as STRIPE_KEY: A-Z, 0-9 and _", r"[A-Z][A-Z0-9_]{0,99}")
PATH: Final = Text('a path inside the project, such as "web"', r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\u0000-\u001f\\]{1,200}")
ROUTE: Final = Text(
    'a host ("guestbook.example.com"), a path prefix ("/guestbook"), or both ("example.com/guestbook")',
    r"(?=[^/]|/)(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]{0,200})?",
)
REMOTE: Final = Text(
    '"host:port", or "*.example.org:443" for every host below it',
    r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?:[0-9]{1,5}",
)
NETWORK: Final = Text('a private network, like "10.0.5.0/24"', r"[0-9a-f.:]{2,45}/[0-9]{1,3}")
STAGE_SIZE: Final = Text(
    'a number of nodes ("1"), a percentage ("25%"), or a node label ("zone=north")',
    r"[1-9][0-9]{0,3}|(?:[1-9][0-9]?|100)%|[a-z][a-z0-9._-]{0,62}=[A-Za-z0-9._-]{1,63}",
)
CRON: Final = Text(
    'five fields, minute hour day month weekday, such as "*/5 * * * *"', r"[0-9*,/-]{1,60}(?: [0-9*,/-]{1,60}){4}"
)
PAUSE: Final = Text('a duration such as "10m", or "approve"', r"approve|[0-9]{1,9}(?:ms|s|m|h|d)")
EVIDENCE: Final = Text(
    '"KIND:AGE" or "KIND:AGE:node", such as "smoke:24h:node"; kinds: test, smoke, build',
    r"(?:test|smoke|build):[1-9][0-9]{0,5}(?:s|m|h|d)(?::node)?",
)
ORIGIN: Final = Text(
    'an origin such as "https://www.example.com", or "*" for any',
    r"\*|https?://[a-z0-9](?:[a-z0-9.-]{0,180}[a-z0-9])?(?::[0-9]{1,5})?",
)
HTTP_PATH: Final = Text('a path such as "/"', r"/[^\u0000-\u0020\u007f#]{0,999}")

LANGUAGES: Final = ("python", "wsgi", "asgi", "javascript", "typescript", "static", "component")


@dataclass(frozen=True, slots=True)
class Table:
    """A table with fixed keys."""

    fields: tuple[Field, ...]

    def field(self, key: str) -> Field | None:
        """Return the field called `key`, if there is one."""
        return next((field for field in self.fields if field.key == key), None)


@dataclass(frozen=True, slots=True)
class Named:
    """A table whose keys are names the developer chooses."""

    name: Text
    value: Shape


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of at most `LIST_ITEMS_MAX` entries."""

    value: Shape
    low: int = 0


@dataclass(frozen=True, slots=True)
class Either:
    """A short form (a plain value) or a table that says more; `key` is where the short form's value goes."""

    short: Kind
    table: Table
    key: str


Shape = Kind | Table | Named | Listed | Either


@dataclass(frozen=True, slots=True)
class Field:
    """One key: its shape, what it is for, and what holds when it is absent (None: nothing)."""

    key: str
    shape: Shape
    doc: str
    required: bool = False
    default: str | int | list[str] | dict[str, str] | None = None


CONFIG: Final = Named(CONFIG_KEY, Text("a string", r"[^\u0000]*"))

APP_OVERLAY_FIELDS: Final = (
    Field("routes", Listed(ROUTE, 1), "Hosts and path prefixes that lead here; the longest match wins."),
    Field("schedule", CRON, "When to run it as a job, in UTC; runs on the node the mesh names, one at a time."),
    Field("timeout", duration("1ms", "1h"), "Wall-clock time one request (or one job run) may take.", default="10s"),
    Field("memory_max", size("1MiB", "4GiB"), "Memory one instance may hold.", default="256MiB"),
    Field(
        "instances",
        Choice(("fresh", "reuse")),
        "A new instance for each request, or one kept.",
        default="fresh",
    ),
    Field("allow_hosts", Listed(REMOTE), "Where it may call out to; nothing else resolves.", default=[]),
    Field(
        "private_networks",
        Listed(NETWORK),
        "Networks inside of which hosts may have their addresses, where the environment allows it.",
        default=[],
    ),
    Field("keyvalue", Listed(NAME), "Key-value stores it may open.", default=[]),
    Field("sql", Listed(NAME), "SQL databases it may open.", default=[]),
    Field("blobs", Listed(NAME), "Containers of blobs it may open.", default=[]),
    Field(
        "providers",
        Named(NAME, NAME),
        "What a key-value store or a database lies in, of what the nodes' operators declared.",
        default={},
    ),
    Field(
        "migrate",
        Flag(),
        "Whether its `migrate` function runs on its data, once for each release, before visitors come.",
        default=False,
    ),
    Field("publish", Listed(SUBJECT), "Queues it may put messages into.", default=[]),
    Field(
        "subscribe",
        Listed(SUBJECT),
        "Queues whose messages it handles: each is a call of its `message` function.",
        default=[],
    ),
    Field(
        "websocket", HTTP_PATH, "Path at which it takes WebSockets: each message is a call of its `websocket` function."
    ),
    Field("websocket_origins", Listed(ORIGIN), "Origins of pages, other than its own, that may open one.", default=[]),
    Field("config", CONFIG, "Values it reads through `wasi:config`; strings only.", default={}),
    Field("secrets", Listed(SECRET_NAME), "Secrets it may read, by name; values never stand here.", default=[]),
)

APP: Final = Table(
    (
        Field("language", Choice(LANGUAGES), "How it is built.", required=True),
        Field("source", PATH, "Its folder; for `component` the `.wasm` file.", required=True),
        Field(
            "entry",
            LINE,
            "wsgi, asgi: `module:callable`; python: a module; static: the page for unknown paths; others: a file.",
        ),
        *APP_OVERLAY_FIELDS,
    )
)

STAGE: Final = Either(
    STAGE_SIZE,
    Table(
        (
            Field("nodes", STAGE_SIZE, "How many nodes, what share of them, or those with a label.", required=True),
            Field("min_healthy_time", duration("0s", "1d"), "How long a node must stay ready to pass."),
            Field("healthy_deadline", duration("1s", "7d"), "By when a node must be ready."),
            Field("pause", PAUSE, "What to wait for after this stage."),
        )
    ),
    "nodes",
)

ROLLOUT: Final = Table(
    (
        Field("stages", Listed(STAGE, 1), "The shares of the placed nodes, in order; the last is all of them.",
              default=["1", "25%", "100%"]),
        Field("min_healthy_time", duration("0s", "1d"), "How long a node must stay ready to pass.", default="10s"),
        Field("healthy_deadline", duration("1s", "7d"), "By when a node must be ready.", default="5m"),
        Field("progress_deadline", duration("1s", "7d"), "By when a stage must be decided.", default="10m"),
        Field("candidate_ttl", duration("10s", "30d"),
              "How long a node that no longer hears a majority of the voters keeps an unfinished release.",
              default="30m"),
        Field("replicas", Count(1, 1000), "How many of the environment's nodes run it; by default all of them."),
        Field("max_parallel", Count(1, 1000), "Nodes that change at the same moment.", default=1),
        Field("auto_promote", Flag(), "Go on to the next stage when one has passed.", default=True),
        Field("auto_revert", Flag(), "Roll back when a stage has failed.", default=True),
        Field("pause", PAUSE, "What to wait for between stages.", default="0s"),
        Field("analysis", Table((
            Field("max_error_rate", Percentage(), "Answers of 5xx, as a share of requests."),
            Field("max_latency_p99", duration("1ms", "1h"), "The slowest hundredth of answers."),
            Field("failure_limit", Count(0, 1000), "Failed measurements a stage may have.", default=0),
        )), "What the numbers must say for a stage to pass; inconclusive pauses.", default={}),
    )
)  # fmt: skip

SMOKE: Final = Table(
    (
        Field("app", NAME, "The app to call.", required=True),
        Field("path", HTTP_PATH, "Path and query of the GET request.", default="/"),
        Field("status", Count(100, 599), "The status it must answer with.", default=200),
        Field("contains", LINE, "Text its body must contain."),
    )
)

POLICY: Final = Table(
    (
        Field("approvals", Count(0, APPROVALS_MAX), "How many other people must approve a change.", default=0),
        Field("approver_roles", Listed(Choice(("approver", "admin"))), "Which role they hold; by default either.",
              default=[]),
        Field("approval", Choice(("key", "passkey")), "How it is given; `passkey`: a touch shows that the person was there.",
              default="key"),
        Field("evidence", Listed(EVIDENCE), "What must have PASSED, and how old it may be; `:node`: run again by a node.",
              default=[]),
    )
)  # fmt: skip

PROJECT: Final = Table(
    (
        Field("name", NAME, "The project's name, unique in the mesh.", required=True),
        Field("description", LINE, "What it is, in a sentence."),
        Field("owners", Listed(LINE), "Who answers for it; shown by `freehold why`.", default=[]),
    )
)

TEST: Final = Table(
    (
        Field("command", LINE, "Run on this machine with FREEHOLD_URL set to the app in the sandbox."),
        Field("smoke", Listed(SMOKE), "Requests that must be answered as said, after every deploy.", default=[]),
    )
)

OVERLAY: Final = Table(
    (
        Field("app", Named(NAME, Table(APP_OVERLAY_FIELDS)), "Settings of an app, here only."),
        Field("rollout", ROLLOUT, "Rollout settings, here only."),
        Field("policy", POLICY, "What a change needs, here only."),
    )
)

FILE: Final = Table(
    (
        Field("project", PROJECT, "What this is and who owns it.", required=True),
        Field("app", Named(NAME, APP), "One table for each app, `[app.NAME]`.", required=True),
        Field("test", TEST, "How the project is tested before a deploy.", default={}),
        Field("rollout", ROLLOUT, "How a release replaces the one before it.", default={}),
        Field("policy", POLICY, "What a change needs beyond the mesh's policy before it may start.", default={}),
        Field("env", Named(NAME, OVERLAY), "Settings that differ in an environment, `[env.NAME]`.", default={}),
    )
)


POLICY_NOTE: Final = (
    "Asked for beside the policy of the mesh or the environment (`freehold policy show`), never instead of it: each must "
    "be met. The machines hold a release to what its own file says."
)

OVERLAY_NOTE: Final = (
    "Only what differs: `app.NAME` takes every key of `[app.NAME]` but `language`, `source` and `entry`, because the "
    "same release goes to every environment. Tables such as `config` are merged key by key; lists are replaced."
)


def published_schema() -> dict[str, object]:
    """Return the JSON Schema (2020-12) of the whole file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "freehold.toml",
        "description": "A Freehold project: its apps, tests, rollout and per-environment settings.",
        **_json_schema(FILE),
    }


def _json_schema(shape: Shape) -> dict[str, object]:
    match shape:
        case Table(fields):
            properties = {field.key: _json_schema(field.shape) | _annotations(field) for field in fields}
            required = [field.key for field in fields if field.required]
            document: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
            return document | {"required": required} if required else document
        case Named(name, value):
            return {
                "type": "object",
                "propertyNames": name.json_schema(),
                "additionalProperties": _json_schema(value),
                "maxProperties": LIST_ITEMS_MAX,
            }
        case Listed(value, low):
            return {"type": "array", "items": _json_schema(value), "minItems": low, "maxItems": LIST_ITEMS_MAX}
        case Either(short, table, _):
            return {"oneOf": [_json_schema(short), _json_schema(table)]}
        case _:
            return shape.json_schema()


def _annotations(field: Field) -> dict[str, object]:
    default = {} if field.default is None else {"default": field.default}
    return {"description": field.doc, **default}


def allowed(shape: Shape) -> str:
    """Say in words what may stand in a place of this shape."""
    match shape:
        case Table():
            return "a table"
        case Named(name, _):
            return f"a table; each key is {name.allowed}"
        case Listed(value, low):
            return f"a list{' of at least one entry' if low else ''}; each entry: {allowed(value)}"
        case Either(short, table, _):
            return f"{short.allowed}; or a table with {', '.join(field.key for field in table.fields)}"
        case _:
            return shape.allowed


def reference_page() -> str:
    """Return docs/reference/freehold-toml.md: one table of keys for each table of the file."""
    sections = (
        ("[project]", PROJECT, ""),
        ("[app.NAME]", APP, "An app has `routes` or a `schedule`, not both."),
        ("[test]", TEST, ""),
        ("[[test.smoke]]", SMOKE, ""),
        ("[rollout]", ROLLOUT, "An entry of `stages` is a string, or a table with the keys of the next section."),
        ("[[rollout.stages]]", STAGE.table, ""),
        ("[policy]", POLICY, POLICY_NOTE),
        ("[env.NAME]", OVERLAY, OVERLAY_NOTE),
    )  # fmt: skip
    lines = [
        "# freehold.toml",
        "",
        "Generated from `cli/project/schema.py`, like the [JSON Schema](freehold.schema.json) for editors.",
    ]
    for title, table, note in sections:
        lines += ["", f"## `{title}`", "", *([note, ""] if note else [])]
        lines += ["| key | what it is | allowed | default |", "|---|---|---|---|"]
        lines += [_row(field) for field in table.fields]
    return "\n".join(lines) + "\n"


def _row(field: Field) -> str:
    default = "required" if field.required else "" if field.default is None else f"`{json.dumps(field.default)}`"
    words = allowed(field.shape).replace("|", "\\|")
    return f"| `{field.key}` | {field.doc} | {words} | {default} |"
