"""The rules that span several keys of a freehold.toml, and the step from checked values to a `ProjectFile`.

Every rule complains at the key that breaks it. Not here: what one key may hold (`schema.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from cli.project.kinds import MILLISECONDS
from cli.project.locate import KeyPath
from cli.project.model import (
    ENTRY_DEFAULTS,
    AnalysisSettings,
    App,
    ProjectFile,
    RolloutSettings,
    Settings,
    Smoke,
    StageSettings,
)
from cli.project.schema import APP, POLICY, PROJECT, ROLLOUT, SMOKE, Field, Listed, Named, Table
from protocols.changes.change import ENVIRONMENTS_NAMED_MAX
from protocols.changes.demands import DEMANDS_MAX, Demands, EvidenceDemand
from protocols.changes.networks import NETWORKS_MAX, network_problem
from runtime.cron import schedule_problem
from runtime.outbound.destinations import address_inside

Values = Mapping[str, Any]

CRON_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
UNSCHEDULED = {"wsgi": "a WSGI app", "asgi": "an ASGI app", "static": "a static site"}
FOR_CODE = (
    "keyvalue", "sql", "blobs", "publish", "subscribe", "migrate", "allow_hosts", "private_networks", "secrets", "config",
    "websocket",
)  # fmt: skip
RESERVED_PREFIXES = ("/.freehold", "/.well-known/acme-challenge", "/.well-known/pki-validation")
CONFIG_TOTAL_MAX_BYTES = 64 * 1024
"""All of an app's configuration travels in one control message to each worker."""


class Complain(Protocol):
    """Records a problem at a path of the file."""

    def __call__(self, path: KeyPath, message: str, permitted: str = "", suggestion: str = "") -> None:
        """Record it."""
        ...


class _Counted:
    """Passes complaints on and counts them."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self.problems = 0

    def __call__(self, path: KeyPath, message: str, permitted: str = "", suggestion: str = "") -> None:
        self.problems += 1
        self._complain(path, message, permitted, suggestion)


def build_project(values: Values, complain: Complain) -> ProjectFile:
    """Return the project; problems go to `complain`, and the result is meant to be used only if there were none."""
    count = _Counted(complain)
    project = _with_defaults(PROJECT, values["project"])
    if not values["app"]:
        count(("app",), "has no app in it", "one table [app.NAME] for each app")
    test = values.get("test", {})
    base = _settings(values, test, (), count)
    smoke = tuple(_smoke(item, index, base, count) for index, item in enumerate(test.get("smoke", ())))
    environments: dict[str, Settings] = {}
    if not count.problems:  # else every overlay would repeat what is wrong above it
        for name, overlay in sorted(values.get("env", {}).items()):
            environments[name] = _overlaid(values, overlay, name, count)
    if sum(environment.demands != base.demands for environment in environments.values()) >= ENVIRONMENTS_NAMED_MAX:
        count(("env",), f"differ in policy in more than {ENVIRONMENTS_NAMED_MAX - 1} environments")
    return ProjectFile(
        name=project["name"],
        description=project.get("description") or "",
        owners=project["owners"],
        base=base,
        test_command=test.get("command"),
        smoke=smoke,
        environments=environments,
    )


def _with_defaults(table: Table, values: Values) -> Values:
    """Fill absent keys with the schema's defaults, read by the same kinds as the file's own values."""
    return {field.key: values.get(field.key, _default(field)) for field in table.fields}


def _default(field: Field) -> object:
    if field.default is None:
        return None
    match field.shape, field.default:
        case Listed(value), list(items):
            short = getattr(value, "short", None)
            return tuple({"nodes": item} if short else item for item in items)
        case Named() | Table(), dict(entries):
            return dict(entries)
        case kind, default:
            return kind.read(default)  # type: ignore[union-attr]


def _settings(values: Values, test: Values, above: KeyPath, complain: Complain) -> Settings:
    apps = sorted(values["app"].items())
    read = {name: _app(name, own, (*above, "app", name), complain) for name, own in apps}
    _routes_do_not_clash(read, above, complain)
    _one_handler_a_queue(read, above, complain)
    demands = _demands(values.get("policy", {}), test, (*above, "policy"), complain)
    moves = _rollout(values.get("rollout", {}), (*above, "rollout"), complain)
    keeping = [name for name, app in read.items() if app.keeps_data]
    if keeping and moves.replicas > 1:
        complain(
            (*above, "rollout", "replicas"), f"cannot be more than 1: {keeping[0]} keeps its data on one node", "1"
        )
    return Settings(read, moves, demands)


def _overlaid(values: Values, overlay: Values, name: str, complain: Complain) -> Settings:
    above: KeyPath = ("env", name)
    apps = {app: dict(own) for app, own in values["app"].items()}
    for app, changes in overlay.get("app", {}).items():
        if app not in apps:
            complain((*above, "app", app), "names an app that does not exist", ", ".join(sorted(apps)))
            continue
        config = {**apps[app].get("config", {}), **changes.get("config", {})}
        apps[app] = {**apps[app], **changes, "config": config}
    own = values.get("rollout", {})
    changes = overlay.get("rollout", {})
    analysis = {**own.get("analysis", {}), **changes.get("analysis", {})}
    rollout = {**own, **changes, "analysis": analysis}
    policy = {**values.get("policy", {}), **overlay.get("policy", {})}
    return _settings({"app": apps, "rollout": rollout, "policy": policy}, values.get("test", {}), above, complain)


def _app(name: str, values: Values, path: KeyPath, complain: Complain) -> App:
    filled = _with_defaults(APP, values)
    language, routes, schedule = filled["language"], filled["routes"] or (), filled["schedule"]
    if routes and schedule:
        complain((*path, "schedule"), "stands beside routes; an app has one or the other")
    if not routes and not schedule and not filled["subscribe"]:
        permitted = 'routes = ["/"], schedule = "*/5 * * * *", or subscribe = ["jobs"]'
        complain(path, "has neither routes, nor a schedule, nor a queue to handle", permitted)
    if schedule:
        _scheduled(language, schedule, (*path, "schedule"), complain)
    for index, route in enumerate(routes):
        reserved = next(
            (prefix for prefix in RESERVED_PREFIXES if "/" in route and _lies_below(_path_of(route), prefix)), None
        )
        if reserved is not None:
            complain((*path, "routes", index), "is reserved", f"any path not under {reserved}")
    _private(filled, path, complain)
    good = [entry for entry in filled["private_networks"] if network_problem(entry) is None]
    _reachable(filled["allow_hosts"], good, (*path, "allow_hosts"), complain)
    for secret in filled["secrets"]:
        if secret in filled["config"]:
            complain((*path, "config", secret), "is also the name of a secret of this app")
    if filled["websocket_origins"] and not filled["websocket"]:
        complain((*path, "websocket_origins"), "stands without websocket", 'websocket = "/ws"')
    _mapped(filled, path, complain)
    if filled["migrate"] and not (
        {*filled["keyvalue"], *filled["sql"]} - filled["providers"].keys() or filled["blobs"]
    ):
        complain((*path, "migrate"), "stands without data that lies on a node", 'sql = ["main"]')
    if schedule:
        _only_scheduled(filled, path, complain)
    if language == "static":
        _no_code(filled, path, complain)
    if sum(len(key) + len(text.encode()) for key, text in filled["config"].items()) > CONFIG_TOTAL_MAX_BYTES:
        complain((*path, "config"), f"holds more than {CONFIG_TOTAL_MAX_BYTES // 1024} KiB in all")
    return App(
        name=name,
        language=language,
        source=filled["source"],
        entry=_entry(language, filled["entry"], path, complain),
        routes=routes,
        schedule=schedule,
        timeout_ms=filled["timeout"],
        memory_max_bytes=filled["memory_max"],
        instances="reuse" if language == "static" else filled["instances"],  # nothing of a request stays in it
        allow_hosts=filled["allow_hosts"],
        private_networks=filled["private_networks"],
        keyvalue=filled["keyvalue"],
        sql=filled["sql"],
        blobs=filled["blobs"],
        publish=filled["publish"],
        subscribe=filled["subscribe"],
        providers=filled["providers"],
        migrate=filled["migrate"],
        websocket=filled["websocket"] or "",
        websocket_origins=filled["websocket_origins"],
        config=filled["config"],
        secrets=filled["secrets"],
    )


def _only_scheduled(filled: Values, path: KeyPath, complain: Complain) -> None:
    if filled["subscribe"]:
        complain(
            (*path, "subscribe"),
            "stands beside a schedule; messages are handled by an app with routes, or with neither",
        )
    for key in ("websocket", "migrate"):
        if filled[key]:
            complain((*path, key), "is for an app with routes")


def _mapped(filled: Values, path: KeyPath, complain: Complain) -> None:
    for store in filled["providers"]:
        places = [key for key in ("keyvalue", "sql") if store in filled[key]]
        if not places:
            allowed = ", ".join((*filled["keyvalue"], *filled["sql"]))
            complain((*path, "providers", store), "is no key-value store and no database of this app", allowed)
        elif len(places) > 1:
            complain(
                (*path, "providers", store), "is a key-value store and a database of this app; give one another name"
            )


def _private(filled: Values, path: KeyPath, complain: Complain) -> None:
    networks = filled["private_networks"]
    for index, network in enumerate(networks):
        problem = network_problem(network)
        if problem:
            complain((*path, "private_networks", index), "is no network that may be allowed", problem)
    if networks and not filled["allow_hosts"]:
        complain((*path, "private_networks"), "stands without allow_hosts", 'allow_hosts = ["db.example.org:443"]')
    if len(networks) > NETWORKS_MAX or len(set(networks)) != len(networks):
        complain((*path, "private_networks"), "has too many entries, or one twice", f"at most {NETWORKS_MAX}")


def _reachable(allow_hosts: Sequence[str], networks: Sequence[str], path: KeyPath, complain: Complain) -> None:
    for index, remote in enumerate(allow_hosts):
        if not 1 <= int(remote.rpartition(":")[2]) <= 65535:
            complain((*path, index), "has a port out of range", "ports 1 to 65535")
        if address_inside(remote, networks):
            complain(
                (*path, index),
                "is an address that no node connects to",
                "names, public addresses, and addresses of private_networks, where the environment allows them",
            )


def _scheduled(language: str, schedule: str, path: KeyPath, complain: Complain) -> None:
    if language in UNSCHEDULED:
        complain(path, f"cannot run {UNSCHEDULED[language]}", "language python, javascript, typescript or component")
    _cron(schedule, path, complain)


def _no_code(filled: Values, path: KeyPath, complain: Complain) -> None:
    for key in FOR_CODE:
        if filled[key]:
            complain((*path, key), "is for code, and a static site has none", "language python or javascript")


def _entry(language: str, entry: str | None, path: KeyPath, complain: Complain) -> str:
    if entry is None:
        return ENTRY_DEFAULTS[language]
    forms = {
        "python": (r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", 'a module, such as "app"'),
        "wsgi": (r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", 'module:callable, such as "app:app"'),
        "asgi": (r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", 'module:callable, such as "app:app"'),
        "javascript": (r"(?!/)(?!.*\.\.)[\w@./-]+\.m?js", 'a file in the source folder, such as "app.js"'),
        "typescript": (r"(?!/)(?!.*\.\.)[\w@./-]+\.tsx?", 'a file in the source folder, such as "app.ts"'),
        "static": (
            r"(?!/)(?!.*\.\.)[\w@./-]+\.html?",
            'a page in the source folder, such as "404.html" or "index.html"',
        ),
        "component": (r"(?!)", "nothing: the component is its own entry"),
    }
    pattern, permitted = forms[language]
    if not re.fullmatch(pattern, entry, re.ASCII):
        complain((*path, "entry"), f"does not fit language {language}", permitted)
    return entry


def _lies_below(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and (prefix == "/.freehold" or path[len(prefix) :][:1] in {"", "/"})


def _path_of(route: str) -> str:
    return "/" + route.partition("/")[2]


def _routes_do_not_clash(apps: Mapping[str, App], above: KeyPath, complain: Complain) -> None:
    claimed: dict[str, str] = {}
    for name, app in apps.items():
        for index, route in enumerate(app.routes):
            normal = route.rstrip("/") or "/"
            if normal in claimed:
                complain((*above, "app", name, "routes", index), f"is already a route of app {claimed[normal]}")
            claimed[normal] = name


def _one_handler_a_queue(apps: Mapping[str, App], above: KeyPath, complain: Complain) -> None:
    handlers: dict[str, str] = {}
    for name, app in apps.items():
        for index, subject in enumerate(app.subscribe):
            if handlers.setdefault(subject, name) != name:
                complain((*above, "app", name, "subscribe", index), f"is already handled by app {handlers[subject]}")


def _cron(schedule: str, path: KeyPath, complain: Complain) -> None:
    """Check five fields of numbers, ranges, lists and steps (POSIX crontab, without names)."""
    for text, (noun, low, high) in zip(schedule.split(" "), CRON_RANGES, strict=True):
        for part in text.split(","):
            match = re.fullmatch(r"(?:\*|([0-9]{1,4})(?:-([0-9]{1,4}))?)(?:/([0-9]{1,4}))?", part)
            numbers = [int(group) for group in (match[1], match[2]) if group] if match else [high + 1]
            ordered = numbers == sorted(numbers) and all(low <= number <= high for number in numbers)
            if match is None or not ordered or (match[3] is not None and int(match[3]) == 0):
                complain(
                    path, f"has the {noun} {part!r}", f"{low} to {high}, *, ranges (1-5), lists (1,2), steps (*/5)"
                )
                return
    problem = schedule_problem(schedule)
    if problem:
        complain(path, f"cannot be run: {problem}", "a moment that comes, such as */5 * * * *")


def _smoke(values: Values, index: int, base: Settings, complain: Complain) -> Smoke:
    filled = _with_defaults(SMOKE, values)
    app = base.apps.get(filled["app"])
    if app is None:
        complain(("test", "smoke", index, "app"), "names an app that does not exist", ", ".join(sorted(base.apps)))
    elif not app.routes:
        complain(("test", "smoke", index, "app"), "names an app without routes; only one with routes answers requests")
    return Smoke(filled["app"], filled["path"], filled["status"], filled["contains"])


def _rollout(values: Values, path: KeyPath, complain: Complain) -> RolloutSettings:
    filled = _with_defaults(ROLLOUT, values)
    analysis = filled["analysis"]
    shares = [int(stage["nodes"][:-1]) for stage in filled["stages"] if stage["nodes"].endswith("%")]
    if shares != sorted(set(shares)):
        complain((*path, "stages"), "has percentages that do not rise")
    if filled["stages"][-1]["nodes"] != "100%":
        complain((*path, "stages", len(filled["stages"]) - 1), "is the last stage but not all nodes", 'end with "100%"')
    stages = []
    for index, stage in enumerate(filled["stages"]):
        wait = stage.get("min_healthy_time", filled["min_healthy_time"])
        deadline = stage.get("healthy_deadline", filled["healthy_deadline"])
        if wait >= deadline:
            complain((*path, "stages", index), "must be healthy for longer than its healthy_deadline allows")
        stages.append(StageSettings(stage["nodes"], wait, deadline, _pause(stage.get("pause", filled["pause"]))))
    return RolloutSettings(
        stages=tuple(stages),
        progress_deadline_ms=filled["progress_deadline"],
        candidate_ttl_ms=filled["candidate_ttl"],
        replicas=filled["replicas"] or 0,
        max_parallel=filled["max_parallel"],
        auto_promote=filled["auto_promote"],
        auto_revert=filled["auto_revert"],
        analysis=AnalysisSettings(
            analysis.get("max_error_rate"), analysis.get("max_latency_p99"), analysis.get("failure_limit", 0)
        ),
    )


def _demands(values: Values, test: Values, path: KeyPath, complain: Complain) -> Demands:
    filled = _with_defaults(POLICY, values)
    made_by = {"smoke": ("test.smoke", test.get("smoke")), "test": ("test.command", test.get("command"))}
    evidence = []
    for index, text in enumerate(filled["evidence"]):
        kind, age, *node = text.split(":")
        where, there = made_by.get(kind, ("", True))
        if not there:
            complain((*path, "evidence", index), f"asks for what nothing here can show: there is no {where}")
        evidence.append(EvidenceDemand(kind, int(age[:-1]) * MILLISECONDS[age[-1]], bool(node)))
    if len(evidence) > DEMANDS_MAX:
        complain((*path, "evidence"), f"has more than {DEMANDS_MAX} entries")
    asked = (*dict.fromkeys(filled["approver_roles"]), *(("passkey",) if filled["approval"] == "passkey" else ()))
    if "passkey" in asked and not filled["approvals"]:
        complain((*path, "approval"), "asks for a passkey and for no approval; set approvals = 1 or more")
    return Demands(filled["approvals"], asked, tuple(evidence))


def _pause(text: str) -> int | Literal["approve"]:
    if text == "approve":
        return "approve"
    match = re.fullmatch(r"([0-9]+)([a-z]+)", text)
    assert match is not None, "the schema checked the form"
    return int(match[1]) * MILLISECONDS[match[2]]
