"""Who a database of a lane is in PostgreSQL: a database and a role of its own, made when it is first needed.

A guest's statements run as that role in that database, and PostgreSQL reaches no other from there. The node's own
user makes them and is never seen by a guest. Not here: connections for guests (`postgres_sql.py`), the protocol.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import time
from hashlib import sha256
from typing import Final

from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError
from runtime.services.postgres_link import ExchangeBounds, Login, PostgresLink, ServerRefusedError, scram_verifier

MAKE_MAX_S: Final = 20.0
"""For all of making a database, which copies and syncs some 7 MB."""

VERSION_LEAST: Final = 15
"""The oldest that its makers looked after when this was written."""

THROWN_AWAY: Final = "freehold_smoke_"
KEPT_S: Final = 3600
"""How long what is thrown away may be there: whoever made it may have been killed."""

_TURN: Final = 0x46_72_65_65_68_6F_6C_64
"""The lock under which databases and roles are made, on the whole server."""

_MAKING: Final = {"statement_timeout": "20s", "lock_timeout": "20s", "client_encoding": "UTF8"}

LOGIN_REFUSED: Final = frozenset({"28P01", "28000", "3D000", "42501"})
"""States of a login as a role that is not there yet, or has another password, or no database."""


def place_of(owner: str, name: str) -> str:
    """The database, and the role, of a database of a lane. Names of tenants are not in it: every role can list them."""
    return f"freehold_{sha256(f'{owner}/{name}'.encode()).hexdigest()[:32]}"


def thrown_away_place() -> str:
    """A place for a smoke check, which no other has and which says when it was made."""
    return f"{THROWN_AWAY}{int(time.time()):x}_{secrets.token_hex(8)}"


def credential(access: DeclaredProvider) -> str:
    """The node's own credential as it is now. Raises ProviderUnusableError."""
    password = access.password()
    if not password:
        raise ProviderUnusableError(f"the provider {access.name} has no credential: password_file")
    return password


def role_password(node_password: str, place: str) -> str:
    """A role's password: every node that has the provider's credential makes the same one, and it is rotated with it."""
    return hmac.digest(node_password.encode(), f"freehold/postgres-role/1\0{place}".encode(), "sha256").hex()


def make(access: DeclaredProvider, place: str) -> None:
    """Make the database and its role, or give the role its present password.

    Raises ProviderUnusableError, LostError, StoppedError, ServerRefusedError.
    """
    password = credential(access)
    verifier = scram_verifier(role_password(password, place))
    end_s = time.monotonic() + MAKE_MAX_S
    link = _as_the_node(access, password, end_s)
    try:
        _say(link, end_s, f"SELECT pg_catalog.pg_advisory_lock({_TURN})")
        rights = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        verb = "ALTER" if _has(link, end_s, "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1", place) else "CREATE"
        _say(link, end_s, f"{verb} ROLE \"{place}\" LOGIN {'' if verb == 'ALTER' else rights} PASSWORD '{verifier}'")
        if not _has(link, end_s, "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", place):
            _say(link, end_s, f'GRANT "{place}" TO CURRENT_USER')  # to own what another one owns
            _say(link, end_s, f'CREATE DATABASE "{place}" OWNER "{place}" TEMPLATE template0 ENCODING \'UTF8\'')
        _say(link, end_s, f'REVOKE ALL ON DATABASE "{place}" FROM PUBLIC')
        if place.startswith(THROWN_AWAY):
            _sweep(link, end_s)
    except ServerRefusedError as error:
        if error.state == "42501":
            user = access.user
            raise ProviderUnusableError(
                f"the provider {access.name} does not permit {user} what it needs: ALTER ROLE {user} CREATEROLE CREATEDB"
            ) from error
        raise
    finally:
        link.shut()


def throw_away(access: DeclaredProvider, place: str) -> None:
    """Remove a database and its role, with all that is in it. Raises as `make`."""
    end_s = time.monotonic() + MAKE_MAX_S
    link = _as_the_node(access, credential(access), end_s)
    try:
        _drop(link, end_s, place)
    finally:
        link.shut()


def _sweep(link: PostgresLink, end_s: float) -> None:
    """Remove what was thrown away by who did not live to do it. One that cannot be removed holds up nobody's check."""
    asked = "SELECT datname FROM pg_catalog.pg_database WHERE datname LIKE $1"
    for (database,) in link.ask(asked, (f"{THROWN_AWAY}%",), ExchangeBounds(end_s)).rows:
        name = str(database)
        stamp = name.removeprefix(THROWN_AWAY).partition("_")[0]
        if all(digit in "0123456789abcdef" for digit in stamp) and stamp and int(stamp, 16) < time.time() - KEPT_S:
            with contextlib.suppress(ServerRefusedError):
                _drop(link, end_s, name)


def _drop(link: PostgresLink, end_s: float, place: str) -> None:
    """Its guest owns it, and may have called it a template, which is not dropped."""
    if _has(link, end_s, "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1 AND datistemplate", place):
        _say(link, end_s, f'ALTER DATABASE "{place}" IS_TEMPLATE false')
    _say(link, end_s, f'DROP DATABASE IF EXISTS "{place}" WITH (FORCE)')
    _say(link, end_s, f'DROP ROLE IF EXISTS "{place}"')


def _as_the_node(access: DeclaredProvider, password: str, end_s: float) -> PostgresLink:
    try:
        return PostgresLink(access, Login(access.user, password, access.database, _MAKING), ExchangeBounds(end_s))
    except ServerRefusedError as error:
        if error.state in LOGIN_REFUSED:
            raise ProviderUnusableError(f"the provider {access.name} refused this node's credential") from error
        raise


def _say(link: PostgresLink, end_s: float, statement: str) -> None:
    link.ask(statement, (), ExchangeBounds(end_s))


def _has(link: PostgresLink, end_s: float, statement: str, place: str) -> bool:
    return bool(link.ask(statement, (place,), ExchangeBounds(end_s)).rows)


def check_server(link: PostgresLink) -> int:
    """Return how far its log is on the disk. Raises ProviderUnusableError if it is not one to keep acknowledged data."""
    access = link.access
    said = str(link.parameter_statuses.get("server_version", ""))
    major = re.match(r"[0-9]{1,4}", said)
    if major is None or int(major[0]) < VERSION_LEAST:
        raise ProviderUnusableError(
            f"the provider {access.name} is of version {said[:40] or 'unknown'}; {VERSION_LEAST} or newer is needed"
        )
    asked = (
        "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('fsync'),"
        " pg_catalog.current_setting('synchronous_commit'), pg_catalog.current_setting('full_page_writes')"
    )
    ((is_copy, fsync, commits, pages),) = link.ask(asked, (), ExchangeBounds(time.monotonic() + 2)).rows
    if is_copy:
        raise ProviderUnusableError(f"the provider {access.name} is a copy that takes no writes; name its primary")
    if not access.may_lose and (fsync, commits == "off", pages) != ("on", False, "on"):
        raise ProviderUnusableError(
            f"the provider {access.name} may lose what it acknowledged: set fsync, full_page_writes and"
            " synchronous_commit to on there, or may_lose = true for it in node.toml"
        )
    return log_position(link.ask(f"SELECT {LOG_POSITION}", (), ExchangeBounds(time.monotonic() + 2)).rows[0][0])


LOG_POSITION: Final = "pg_catalog.pg_current_wal_flush_lsn()"


def log_position(text: object) -> int:
    """The position as a number: it only grows, unless the server was put back."""
    high, _, low = str(text).partition("/")
    return int(high, 16) << 32 | int(low, 16)
