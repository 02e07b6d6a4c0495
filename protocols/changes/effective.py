"""The effective configuration: what one release runs with in one environment, whole, as one value with one digest.

It is made from `freehold.toml` and its overlay by whoever proposes a change; the change, its approvals and its
evidence name its digest, so nothing a node runs with can differ from what was approved. Secrets stand here by name
only. Not here: the file itself (the CLI reads it), and what a sandbox makes of it (node/serving/workloads.py).
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from protocols.changes.change import NAME_MAX, Route, route_of, valid_name
from protocols.changes.networks import networks_problem
from protocols.envelope import DIGEST_BYTES, DecodeError, decode

EFFECTIVE_MAX_BYTES = 256 * 1024
APPS_MAX = 64
VALUES_MAX = 512
PATH_MAX = 200
ORIGINS_MAX = 16
MEMORY_MAX_BYTES = 4 << 30
TIMEOUT_MAX_MS = 3_600_000


class EffectiveApp(msgspec.Struct, frozen=True):
    """One app: its component (32-byte digest), trigger, limits and grants.

    `kind` "http" has routes; "command" and "module" run by `schedule` (cron, five fields) or by hand. `config` pairs
    are in ascending order of key; `secrets` are names. `publish` names queues it may put messages into, `subscribe` those
    whose messages it handles, each a POST to `/.freehold/messages/SUBJECT`; one app handles a queue. `providers` are pairs
    of a key-value store or a database and the operator's provider it lies in, ascending. `migrate`: it is asked to migrate
    its data, once for a release, by a POST to `/.freehold/migrate`. `websocket` is the path at which it takes
    WebSockets, and `websocket_origins` name pages of elsewhere that may open one. `private_networks` are those of whose
    addresses the hosts may be, where the environment allows it. What is not set is not written, so that a configuration
    without it has the digest it had before it was.
    """

    name: str
    component: bytes
    kind: Literal["http", "command", "module"]
    timeout_ms: int
    memory_max_bytes: int
    instances: Literal["fresh", "reuse"]
    routes: tuple[Route, ...] = ()
    schedule: str = ""
    allow_hosts: tuple[str, ...] = ()
    keyvalue: tuple[str, ...] = ()
    config: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    websocket: str | msgspec.UnsetType = msgspec.UNSET
    websocket_origins: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    private_networks: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    publish: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    subscribe: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    providers: tuple[tuple[str, str], ...] | msgspec.UnsetType = msgspec.UNSET
    migrate: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def networks(self) -> tuple[str, ...]:
        """The private networks that it asks for, empty for none."""
        return self.private_networks or ()

    @property
    def socket(self) -> tuple[str, tuple[str, ...]]:
        """Path and origins of its WebSockets, empty for none."""
        return self.websocket or "", self.websocket_origins or ()

    @property
    def queues(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Queues it may put messages into, and queues whose messages it handles."""
        return self.publish or (), self.subscribe or ()

    @property
    def migrates(self) -> bool:
        """Whether it migrates its data before its release takes visitors."""
        return self.migrate is True

    @property
    def mapped(self) -> dict[str, str]:
        """What a key-value store or a database lies in, by its name; the others lie with the node's own data."""
        return dict(self.providers or ())

    @property
    def keeps_data(self) -> bool:
        """Whether it uses an embedded provider, whose data lies on one node."""
        own = {*self.keyvalue, *self.sql} - self.mapped.keys()
        return bool(own or self.blobs or self.publish or self.subscribe)


def effective_app(written: Any, component: bytes, kind: Literal["http", "command", "module"]) -> EffectiveApp:
    """What nodes run of an app as a project file or a draft says it, which has an attribute for each further field.

    There routes are texts, pairs are mappings, and no schedule may be None.
    """
    return EffectiveApp(
        name=written.name,
        component=component,
        kind=kind,
        timeout_ms=written.timeout_ms,
        memory_max_bytes=written.memory_max_bytes,
        instances=written.instances,
        routes=tuple(sorted(map(route_of, written.routes))),
        schedule=written.schedule or "",
        allow_hosts=written.allow_hosts,
        keyvalue=written.keyvalue,
        sql=written.sql,
        blobs=written.blobs,
        publish=written.publish or msgspec.UNSET,
        subscribe=written.subscribe or msgspec.UNSET,
        providers=tuple(sorted(written.providers.items())) or msgspec.UNSET,
        migrate=written.migrate or msgspec.UNSET,
        websocket=written.websocket or msgspec.UNSET,
        websocket_origins=written.websocket_origins or msgspec.UNSET,
        private_networks=written.private_networks or msgspec.UNSET,
        config=tuple(sorted(written.config.items())),
        secrets=written.secrets,
    )


class SmokeCheck(msgspec.Struct, frozen=True):
    """One request that must be answered with `status` and, if it is not empty, a body that contains `contains`."""

    app: str
    path: str
    status: int = 200
    contains: str = ""


class Effective(msgspec.Struct, frozen=True, tag="effective"):
    """Everything a node needs to run a release in an environment, beside the components' bytes and secrets."""

    project: str
    environment: str
    apps: tuple[EffectiveApp, ...]
    smoke: tuple[SmokeCheck, ...] = ()

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every route of every app, ascending, each once."""
        return tuple(sorted({route for app in self.apps for route in app.routes}))

    @property
    def keeps_data(self) -> bool:
        """Whether an app opens a store of the embedded provider, which lives on one node."""
        return any(app.keeps_data for app in self.apps)


_SUBJECT = re.compile(r"[a-z][a-z0-9-]{0,39}(\.[a-z][a-z0-9-]{0,39}){0,6}")


def valid_subject(subject: str) -> bool:
    """Whether a queue may bear this name: up to seven words of a-z, 0-9 and dash, with dots between them."""
    return _SUBJECT.fullmatch(subject) is not None


def decode_effective(data: bytes) -> Effective:
    """Decode and check an effective configuration. Raises DecodeError naming the first bound that is broken."""
    effective: Effective = decode(data, Effective, EFFECTIVE_MAX_BYTES)
    problem = effective_problem(effective)
    if problem:
        raise DecodeError(f"effective configuration: {problem}")
    return effective


def effective_problem(effective: Effective) -> str | None:
    """Return which bound a configuration breaks, or None."""
    if not valid_name(effective.project) or not valid_name(effective.environment):
        return f"a name is not 1 to {NAME_MAX} of a-z, 0-9 and dash"
    names = [app.name for app in effective.apps]
    if not 0 < len(names) <= APPS_MAX or len(set(names)) != len(names):
        return f"there must be 1 to {APPS_MAX} apps with distinct names"
    if any(check.app not in names or not check.path.startswith("/") for check in effective.smoke):
        return "a smoke check names an unknown app, or a path that does not start with /"
    handled = [subject for app in effective.apps for subject in app.queues[1]]
    if len(handled) != len(set(handled)):
        return "two apps handle the messages of one queue"
    return next((problem for app in effective.apps if (problem := _app_problem(app))), None)


def _app_problem(app: EffectiveApp) -> str | None:
    if not valid_name(app.name) or len(app.component) != DIGEST_BYTES:
        return f"app {app.name[:NAME_MAX]!r} has a malformed name or component digest"
    if not 0 < app.timeout_ms <= TIMEOUT_MAX_MS or not 0 < app.memory_max_bytes <= MEMORY_MAX_BYTES:
        return f"app {app.name!r} has a timeout or a memory limit out of bounds"
    path, origins = app.socket
    if (
        (path and (not path.startswith("/") or len(path) > PATH_MAX))
        or len(origins) > ORIGINS_MAX
        or (origins and not path)
    ):
        return f"app {app.name!r} has a malformed WebSocket path, or too many origins"
    problem = networks_problem(app.networks)
    if problem:
        return f"app {app.name!r}: {problem}"
    if any(":" in key for key, _ in app.config):
        return f"app {app.name!r} has a configuration key with a colon; those are the node's"
    publish, subscribe = app.queues
    pairs = app.providers or ()
    listed = (
        app.config, app.secrets, app.allow_hosts, app.keyvalue, app.sql, app.blobs, app.routes, publish, subscribe, pairs,
    )  # fmt: skip
    if sum(len(pair) for pair in listed) > VALUES_MAX:
        return f"app {app.name!r} has over {VALUES_MAX} values"
    return _data_problem(app)


def _data_problem(app: EffectiveApp) -> str | None:
    publish, subscribe = app.queues
    if not all(map(valid_subject, (*publish, *subscribe))):
        return f"app {app.name!r} has a malformed name of a queue"
    if subscribe and app.kind != "http":
        return f"app {app.name!r} handles messages, but does not answer requests"
    if app.migrates and (app.kind != "http" or not app.keeps_data):
        return f"app {app.name!r} is to migrate data, but keeps none on a node, or does not answer requests"
    if list(app.providers or ()) != sorted(app.mapped.items()) or not app.mapped.keys() <= {*app.keyvalue, *app.sql}:
        return f"app {app.name!r} has a provider for what is no key-value store and no database of it, or two for one"
    if app.mapped.keys() & set(app.keyvalue) & set(app.sql):
        return f"app {app.name!r} has a provider for a name that both a key-value store and a database of it bear"
    if not all(map(valid_name, app.mapped.values())):
        return f"app {app.name!r} has a malformed name of a provider"
    return None
