"""What one node is told: its folders, its addresses, its size. One frozen value, read and checked once, at the start.

`node.toml` in the data folder holds what `mesh create` or `mesh join` wrote and an operator may edit; the command
line of `node run` overrides it. Not here: anything that is decided by the mesh.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from node.errors import ConfigError
from protocols.changes.change import valid_name
from protocols.records.sites import valid_site_name
from runtime.native.choice import Wanted
from runtime.services.declared_providers import DeclaredProvider, ProviderKind, provider_problem

SHARED_FOLDER = Path("/tmp")  # noqa: S108  what is made in it has mode 0700, and is refused if another owns it
SOCKET_PATH_MAX_BYTES = 103
"""Of a Unix socket's address (unix(7)): where a folder's own path leaves no room, sockets lie in SHARED_FOLDER instead."""
SOCKETS_BELOW_BYTES = len("/workers/worker-64-4194304.sock")
THROWAWAY_BELOW_BYTES = len("/smoke-12345678/run/worker-64-4194304.sock")

CONFIG_NAME = "node.toml"
WRITTEN_IF_USED = frozenset({"peers", "backup", "acme", "ingress_names", "log_days", "provider", "telemetry"})
"""Settings that releases before them do not know."""
FIELD_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~]*)")
LOG_DAYS_MAX = 3650
CONFIG_MAX_BYTES = 64 * 1024
MESH_PORT_DEFAULT = 4100
API_PORT_DEFAULT = 4180
INGRESS_PORT_DEFAULT = 8080


class BackupConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where backups go (`to`, a folder), the age key they are encrypted to, how often they are made and how many stay."""

    to: str
    key: str
    every_s: int = 86_400
    keep: int = 14


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider that the operator runs, `[provider.NAME]`; its keys are told in runtime/services/declared_providers.py."""

    kind: ProviderKind
    url: str
    password_file: str = ""
    ca: str = ""
    may_lose: bool = False

    def access(self, name: str) -> DeclaredProvider:
        """What a worker is told of it."""
        return DeclaredProvider(name, self.kind, self.url, self.password_file, self.ca, self.may_lose)


LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
NAMES_MAX = 64
NAMES_MAX_CHARS = 3000
"""Of all of them: every node hears of them in one small record."""

PROPAGATION_MAX_S = 3600
INGRESS_NAMES_MAX = 4
HOST_MAX_CHARS = 253


class AcmeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[acme]`: this node takes part in getting certificates for the names of routes (RFC 8555).

    `terms_agreed` says that you agree to the authority's terms. `directory` is the authority's address, `contact` are URLs
    ("mailto:..."), `authority` a file with the certificates that vouch for the directory itself, for one of your own.
    `proof` is how control of a name is shown; "dns-01" needs a `hook` (a command; it gets "present" or "remove", the record's
    name and its text) or a `nameserver` ("HOST:PORT", RFC 2136) with `zone` and a file `tsig` ("NAME ALGORITHM SECRET").
    `wildcards` ("*.example.com", dns-01 only) are ordered in place of the names they cover. `except` are names that no node
    of the mesh orders. `profile` is one of the authority's, and `propagation_s` how long a DNS record takes to be seen.
    """

    terms_agreed: bool = False
    directory: str = LETS_ENCRYPT
    contact: tuple[str, ...] = ()
    authority: str = ""
    proof: Literal["http-01", "tls-alpn-01", "dns-01"] = "http-01"
    hook: tuple[str, ...] = ()
    nameserver: str = ""
    zone: str = ""
    tsig: str = ""
    propagation_s: int = 10
    wildcards: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = msgspec.field(default=(), name="except")
    profile: str = ""


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node's settings. Addresses are "host:port"; an empty `listen` makes a node that only dials out.

    `advertise` are the mesh addresses that others are told, by default those it listens on. `api` is the HTTPS address
    of the API, empty for none: the Unix socket is always there. `ingress_tls` are addresses where apps are served over
    TLS, with the certificates (NAME.pem: chain and key) of the folder `certificates`, by default DATA/certificates.
    `peers` are addresses at which any member that is not reached is tried, DNS names among them.
    `metrics` is a loopback address where a scraper on this machine reads metrics without a credential, empty for none.
    `workers` is how many worker processes serve apps. `proxies` are the networks whose `Forwarded` field is believed.
    `voter_after_s` is how long another node must have been connected before this one proposes it as a voter.
    `drain_s` is how long requests under way may take when it stops, `orphan_s` how long workers serve on without it.
    `smoke_ahead` keeps a worker ready for the next smoke checks, and `compiled` is a folder of compiled code that
    several nodes of one user share; by default a node has its own. `local_only` has the ingress refuse hosts and origins
    of other machines, for a node on a developer's. `backup` has apps' data backed up by a schedule. `acme` is the table of
    that name, by default none. `ingress_names` are the DNS names or IP addresses at which visitors reach this node, as
    `freehold dns` prints them; by default the hosts of its mesh addresses. `engine` is what serves apps: "python",
    "native" or "auto", which is the native engine where it is built and fits, and else Python. The log is kept as long
    as `log_max_bytes` allow, and at most `log_days` unless that is 0. `telemetry` is the table of that name, by default
    none. `provider` are the tables `[provider.NAME]`: servers of the operator in which apps' stores may lie.
    """

    name: str
    listen: tuple[str, ...] = (f"0.0.0.0:{MESH_PORT_DEFAULT}",)
    advertise: tuple[str, ...] = ()
    api: str = ""
    metrics: str = ""
    ingress: tuple[str, ...] = (f"127.0.0.1:{INGRESS_PORT_DEFAULT}",)
    ingress_tls: tuple[str, ...] = ()
    certificates: str = ""
    workers: int = 2
    proxies: tuple[str, ...] = ()
    log_max_bytes: int = 256 << 20
    voter_after_s: int = 60
    drain_s: int = 30
    orphan_s: int = 600
    smoke_ahead: bool = False
    compiled: str = ""
    local_only: bool = False
    engine: Wanted = "auto"
    peers: tuple[str, ...] = ()
    backup: BackupConfig | None = None
    ingress_names: tuple[str, ...] = ()
    acme: AcmeSettings | None = None
    log_days: int = 0
    telemetry: TelemetrySettings | None = None
    provider: dict[str, ProviderConfig] = {}

    @property
    def declared(self) -> tuple[DeclaredProvider, ...]:
        """The providers that apps' stores may lie in here."""
        return tuple(provider_config.access(name) for name, provider_config in sorted(self.provider.items()))


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[telemetry]`: this node sends its traces and logs to a collector of OpenTelemetry (OTLP over HTTP).

    `otlp` is the collector's address ("http://127.0.0.1:4318"), under which /v1/traces and /v1/logs are. `traces` is the
    share of traces that begin here and are recorded, 0 to 1; one that a client began says itself whether it is. `logs` says
    whether the log is sent. `fields` is a file of mode 0600 with a line "NAME: VALUE" for each HTTP field that the
    collector asks for.
    """

    otlp: str
    traces: float = 1.0
    logs: bool = True
    fields: str = ""


TELEMETRY_FIELDS_MAX = 16
TELEMETRY_FIELDS_MAX_BYTES = 16 * 1024


def no_node_step(folder: Path) -> str:
    """What to run where a folder holds no node: make it there, or name the one that is meant."""
    return f"freehold mesh create NAME --data {folder}, or mesh join LINE --data {folder}; or name its folder: --data DIRECTORY"


def read_config(folder: Path) -> NodeConfig:
    """Read DATA/node.toml. Raises ConfigError naming the key that is wrong and what is allowed."""
    path = folder / CONFIG_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no node", no_node_step(folder)) from None
    if len(data) > CONFIG_MAX_BYTES:
        raise ConfigError(f"{path} has over {CONFIG_MAX_BYTES} bytes")
    try:
        config = msgspec.convert(tomllib.loads(data.decode()), NodeConfig)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}", f"edit {path}") from None
    if len(config.ingress_names) > INGRESS_NAMES_MAX or any(
        len(name) > HOST_MAX_CHARS for name in config.ingress_names
    ):
        raise ConfigError(
            f"{path}: ingress_names are at most {INGRESS_NAMES_MAX} DNS names or addresses", f"edit {path}"
        )
    for declared_provider in config.declared:
        problem = (
            provider_problem(declared_provider)
            if valid_name(declared_provider.name)
            else f"provider.{declared_provider.name[:60]} is no good name"
        )
        if problem:
            raise ConfigError(f"{path}: {problem}", f"edit {path}")
    problem = acme_problem(config.acme) if config.acme is not None else ""
    if problem:
        raise ConfigError(f"{path}: [acme] {problem}", f"edit {path}")
    problem = telemetry_problem(config.telemetry) if config.telemetry is not None else ""
    if problem:
        raise ConfigError(f"{path}: [telemetry] {problem}", f"edit {path}")
    if not 0 <= config.log_days <= LOG_DAYS_MAX:
        raise ConfigError(f"{path}: log_days is 0 (no limit) to {LOG_DAYS_MAX}", f"edit {path}")
    return config


def telemetry_problem(telemetry: TelemetrySettings) -> str:
    """Return what is wrong with the table `[telemetry]`, "" for nothing."""
    address = urlsplit(telemetry.otlp)
    if address.scheme not in {"http", "https"} or not address.hostname or address.query or address.fragment:
        return 'otlp is the address of a collector, as "http://127.0.0.1:4318"'
    if address.username is not None or address.password is not None:
        return "otlp has no user or password: put the field that the collector asks for into the file `fields`"
    if not 0 <= telemetry.traces <= 1:
        return "traces is a share, 0 to 1"
    return ""


def telemetry_fields(telemetry: TelemetrySettings) -> dict[str, str]:
    """Return the HTTP fields for the collector. Raises ConfigError naming the file and what is wrong with it."""
    if not telemetry.fields:
        return {}
    path, document = Path(telemetry.fields), {}
    step = f"one line NAME: VALUE for each, then chmod 600 {path}"
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by other users", f"chmod 600 {path}")
        with path.open("rb") as file:
            data = file.read(TELEMETRY_FIELDS_MAX_BYTES + 1)
        text = data.decode("ascii")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", step) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not plain ASCII", step) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(data) > TELEMETRY_FIELDS_MAX_BYTES or len(lines) > TELEMETRY_FIELDS_MAX:
        raise ConfigError(f"{path} has over {TELEMETRY_FIELDS_MAX} fields", step)
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None or match[1].lower() in {"content-type", "content-encoding", "content-length", "host"}:
            raise ConfigError(f"{path} holds a line that is no field a collector asks for", step)
        document[match[1]] = match[2].strip()
    return document


def acme_problem(acme: AcmeSettings) -> str:
    """Return what is wrong with the table `[acme]`, "" for nothing."""
    names = (*acme.wildcards, *acme.exceptions)
    if not acme.terms_agreed:
        return f"needs terms_agreed = true: an authority issues only to who agrees to its terms ({acme.directory})"
    if not acme.directory.startswith("https://"):
        return "directory is the https address of an authority's directory"
    if len(names) > NAMES_MAX or sum(map(len, names)) > NAMES_MAX_CHARS or not all(map(valid_site_name, names)):
        return (
            f"wildcards and except are at most {NAMES_MAX} DNS names in lower case, of {NAMES_MAX_CHARS} letters in all"
        )
    if not all(name.startswith("*.") for name in acme.wildcards):
        return 'wildcards are names like "*.example.com"'
    if acme.wildcards and acme.proof != "dns-01":
        return 'wildcards can be shown by DNS alone: proof = "dns-01"'
    if acme.proof != "dns-01":
        return ""
    if bool(acme.hook) == bool(acme.nameserver):
        return 'proof = "dns-01" needs either a hook or a nameserver'
    if acme.nameserver and not (acme.zone and acme.tsig):
        return "a nameserver needs a zone and a file tsig"
    return "" if 0 <= acme.propagation_s <= PROPAGATION_MAX_S else f"propagation_s is 0 to {PROPAGATION_MAX_S}"


def write_config(folder: Path, config: NodeConfig) -> None:
    """Write DATA/node.toml for the first time."""
    lines = ["# One node's settings; see `freehold node run --help`. Restart the node after a change.\n"]
    for name, value in msgspec.to_builtins(config).items():
        if (name in WRITTEN_IF_USED and not value) or (name == "engine" and value == "auto"):
            continue  # what a release before it does not know is written only where it is used
        lines.append(f"{name} = {_toml(value)}\n")
    (folder / CONFIG_NAME).write_text("".join(lines))


def _toml(value: Any) -> str:
    """A setting as TOML has it: a table stands in one line, all else is as JSON has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + " }"
    return msgspec.json.encode(value).decode()


def certificates_folder(config: NodeConfig, data: Path) -> Path:
    """Where the ingress's certificates lie."""
    return Path(config.certificates) if config.certificates else data / "certificates"


def runtime_folder(data: Path) -> Path:
    """The volatile folder of the node in `data`: sockets, and what must be forgotten at a reboot. Mode 0700."""
    folder = _runtime_path(data)
    fallback = _fallback()
    if folder.is_relative_to(fallback):
        with contextlib.suppress(FileExistsError):
            fallback.mkdir(mode=0o700)
        _require_own(fallback)
        fallback.chmod(0o700)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to another user", "set XDG_RUNTIME_DIR to a folder of your own")
    folder.chmod(0o700)
    return folder


def throwaway_folder(runtime: Path) -> Path:
    """Where workers that live for one check have their sockets: the volatile folder, or a shorter one of this user's."""
    if _has_room(runtime, THROWAWAY_BELOW_BYTES):
        return runtime
    folder = _fallback()
    folder.mkdir(mode=0o700, exist_ok=True)
    _require_own(folder)
    return folder


def _has_room(folder: Path, below_bytes: int) -> bool:
    return len(os.fsencode(folder)) + below_bytes <= SOCKET_PATH_MAX_BYTES


def api_socket(data: Path) -> Path:
    """The Unix socket of the API of the node in `data`, which may belong to another user; nothing is made."""
    path = _runtime_path(data) / "api.sock"
    fallback = _fallback()
    if path.is_relative_to(fallback) and os.path.lexists(fallback):
        _require_own(fallback)
    return path


def _fallback() -> Path:
    """Where the volatile folders of this user lie on a machine without a better place."""
    return SHARED_FOLDER / f"freehold-{os.getuid()}"


def _require_own(folder: Path) -> None:
    """Raise ConfigError unless a folder that anybody could have made is this user's: who has it has all that is in it."""
    pair = folder.lstat()
    if not stat.S_ISDIR(pair.st_mode) or pair.st_uid != os.getuid():
        raise ConfigError(f"{folder} was made by another user", "set XDG_RUNTIME_DIR to a folder of your own")


def _runtime_path(data: Path) -> Path:
    """A service gets its folder from systemd (RUNTIME_DIRECTORY=/run/freehold), and root looks for it there."""
    name = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    path = _given_path(name)
    return path if _has_room(path.absolute(), SOCKETS_BELOW_BYTES) else _fallback() / "freehold" / name


def _given_path(name: str) -> Path:
    text = os.environ.get("RUNTIME_DIRECTORY")
    if text:
        return Path(text) / name
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    if os.getuid() == 0:
        base = Path("/run")
    if not os.access(base, os.W_OK):
        base = _fallback()
    return base / "freehold" / name
