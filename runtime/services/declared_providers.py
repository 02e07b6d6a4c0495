"""Where a node reaches the providers that its operator runs, and with which credential: `[provider.NAME]` of node.toml.

A guest never sees any of it. The credential is a file of its own, read at each connection, so it is rotated by replacing the
file. Not here: what a provider does (`redis_keyvalue.py`), which store lies in which one (the effective configuration).
"""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

PROVIDERS_FILE: Final = "providers.json"
"""What the daemon writes for its workers, mode 0600; it names files of credentials and holds none."""

PASSWORD_MAX_BYTES: Final = 4096
PORTS: Final = {"redis": 6379, "postgres": 5432}

ProviderKind = Literal["redis", "postgres"]
"""What is declared: key-value stores may lie in "redis", databases of SQL in "postgres"."""


class ProviderUnusableError(Exception):
    """A provider cannot be used as it is; the text says what is wrong and what to do."""


class DeclaredProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them: `url` is redis://[USER@]HOST[:PORT][/NUMBER], rediss:// for TLS; or postgres://USER@HOST[:PORT][/DATABASE].

    PostgreSQL is reached over TLS, but on this machine or where `?sslmode=disable` says so.
    `password_file` holds its credential and nothing else, readable by nobody but the node's user. `ca` is a file of the
    certificates that are trusted, by default the system's. `may_lose` permits one that does not sync what it
    acknowledges: good for caches.
    """

    name: str
    kind: ProviderKind
    url: str
    password_file: str = ""
    ca: str = ""
    may_lose: bool = False

    @property
    def host(self) -> str:
        """Its name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url).port or PORTS[self.kind]

    @property
    def user(self) -> str:
        """Who this node is there, "" for the default user."""
        return urlsplit(self.url).username or ""

    @property
    def tls(self) -> bool:
        """Whether it is reached over TLS."""
        parts = urlsplit(self.url)
        if self.kind == "redis":
            return parts.scheme == "rediss"
        return parts.query != PLAIN and (parts.query == SAFE or not _is_here(self.host))

    @property
    def database_number(self) -> int:
        """The numbered database."""
        return int(urlsplit(self.url).path.strip("/") or 0)

    @property
    def database(self) -> str:
        """The database in which the node's own user makes others."""
        return urlsplit(self.url).path.strip("/") or "postgres"

    def password(self) -> str | None:
        """Read the credential as it is now, None if there is none. Raises ProviderUnusableError."""
        if not self.password_file:
            return None
        path = Path(self.password_file)
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ProviderUnusableError(f"the credential of {self.name} can be read by others: chmod 600 {path}")
            with path.open("rb") as file:
                read = file.read(PASSWORD_MAX_BYTES + 1)
        except OSError as error:
            raise ProviderUnusableError(f"the credential of {self.name} cannot be read: {error.strerror}") from error
        if len(read) > PASSWORD_MAX_BYTES:
            raise ProviderUnusableError(f"the credential of {self.name} has more than {PASSWORD_MAX_BYTES} bytes")
        try:
            return read.decode().strip()
        except UnicodeDecodeError:
            raise ProviderUnusableError(f"the credential of {self.name} is no text") from None


def provider_problem(access: DeclaredProvider) -> str:
    """Return what is wrong with a table `[provider.NAME]` of node.toml, "" if nothing is."""
    try:
        parts = urlsplit(access.url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0) and not parts.fragment
    except ValueError:
        good, parts = False, urlsplit("")
    path = parts.path.strip("/")
    if access.kind == "redis":
        good = good and parts.scheme in {"redis", "rediss"} and not parts.query and (not path or path.isdecimal())
        form = "redis://[USER@]HOST[:PORT][/NUMBER], or rediss:// for TLS"
    else:
        good = good and parts.scheme in {"postgres", "postgresql"} and "/" not in path and bool(parts.username)
        good = good and parts.query in {"", PLAIN, SAFE}
        form = f"postgres://USER@HOST[:PORT][/DATABASE], with ?{PLAIN} where there is no TLS"
    if not good:
        return f"the url of provider.{access.name} is not {form}"
    if parts.password is not None:
        return f"the url of provider.{access.name} holds a password; put it into a file: password_file"
    if access.kind == "postgres" and not access.password_file:
        return f"provider.{access.name} has no password_file; roles of databases get passwords made of its content"
    return ""


PLAIN: Final = "sslmode=disable"
SAFE: Final = "sslmode=verify-full"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_providers(path: Path) -> dict[str, DeclaredProvider]:
    """Read what the daemon wrote for its workers; none if there is no file. Raises ProviderUnusableError."""
    try:
        declared_providers = msgspec.json.decode(path.read_bytes(), type=tuple[DeclaredProvider, ...])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ProviderUnusableError(f"the node's providers cannot be read: {error}") from error
    return {provider.name: provider for provider in declared_providers}


def write_providers(path: Path, providers: tuple[DeclaredProvider, ...]) -> None:
    """Write them for the workers, in place of those of an earlier start."""
    temporary = path.with_suffix(".new")
    temporary.touch(0o600)
    temporary.chmod(0o600)
    temporary.write_bytes(msgspec.json.encode(providers))
    temporary.replace(path)
