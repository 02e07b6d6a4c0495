"""Where a node reaches the providers that its operator runs, and with which credential: `[provider.NAME]` of node.toml.

A guest never sees any of it. The credential is a file of its own, read at each connection, so it is rotated by replacing the
file. Not here: what a provider does (`redis_keyvalue.py`), which store lies in which one (the effective configuration).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

PROVIDERS_FILE: Final = "providers.json"
"""What the daemon writes for its workers, mode 0600; it names files of credentials and holds none."""

PASSWORD_MAX_BYTES: Final = 4096
PORT: Final = 6379


class ProviderUnusableError(Exception):
    """A provider cannot be used as it is; the text says what is wrong and what to do."""


class DeclaredProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them: `url` is redis://[USER@]HOST[:PORT][/NUMBER], rediss:// for TLS.

    `password_file` holds its credential and nothing else, readable by nobody but the node's user. `ca` is a file of the
    certificates that are trusted, by default the system's. `may_lose` permits one that does not sync what it
    acknowledges: good for caches.
    """

    name: str
    kind: Literal["redis"]
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
        return urlsplit(self.url).port or PORT

    @property
    def user(self) -> str:
        """Who this node is there, "" for the default user."""
        return urlsplit(self.url).username or ""

    @property
    def tls(self) -> bool:
        """Whether it is reached over TLS."""
        return urlsplit(self.url).scheme == "rediss"

    @property
    def database_number(self) -> int:
        """The numbered database."""
        return int(urlsplit(self.url).path.strip("/") or 0)

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
        number = parts.path.strip("/")
        good = parts.scheme in {"redis", "rediss"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good, number, parts = False, "", urlsplit("")
    if not good or (number and not number.isdecimal()) or parts.query or parts.fragment:
        return f"the url of provider.{access.name} is not redis://[USER@]HOST[:PORT][/NUMBER], or rediss:// for TLS"
    if parts.password is not None:
        return f"the url of provider.{access.name} holds a password; put it into a file: password_file"
    return ""


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
