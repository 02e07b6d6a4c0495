"""Key-value stores in Valkey or Redis: one pair of keys for each store, every write a script, so whole or not at all.

A store of a lane is three keys of one hash slot: its values, its keys in order, and its size in bytes. Their names are made
of the lane and the store alone, never of what a guest said. Each write counts the writes of this lane; a server
that counts less than was seen was put back from an older copy, which is said once. Not here: which store lies in which
provider (the effective configuration), where it is (`declared_providers.py`), or whether an app may open a store (the host).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from runtime.providers import ProviderError
from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError
from runtime.services.sqlite_file import PROJECT_NAME
from runtime.services.sqlite_keyvalue import STORE_NAME, StoreCaps

ANSWER_TIMEOUT_S: Final = 2.0
CONNECTIONS_MAX: Final = 16
"""Of one lane and worker process."""

OUT_OF_ORDER: Final = CONNECTIONS_MAX
"""By how much counts of writes may differ that threads tell at the same time."""

RETRY_AFTER_S: Final = 5
VERSION_LEAST: Final = (6, 2)
"""The oldest that its makers looked after when this was written."""

_WRITE: Final = """
local values, order, size, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function seen() return redis.call('INCR', epoch) end
local function grow(by, max)
  local total = tonumber(redis.call('GET', size) or '0') + by
  if by > 0 and total > max then return false end
  redis.call('SET', size, string.format('%.0f', total))
  return true
end
local function put(key, value, max)
  local old = redis.call('HSTRLEN', values, key)
  local growth = #value - old
  if redis.call('HEXISTS', values, key) == 0 then growth = growth + #key end
  if not grow(growth, max) then return false end
  redis.call('HSET', values, key, value)
  redis.call('ZADD', order, 0, key)
  return true
end
local function full() return redis.error_reply('STOREFULL') end
"""

_SET_MANY: Final = (
    _WRITE
    + """
local max, growth = tonumber(ARGV[1]), 0
local last = {}
for i = 2, #ARGV, 2 do last[ARGV[i]] = ARGV[i + 1] end
for key, value in pairs(last) do
  growth = growth + #value - redis.call('HSTRLEN', values, key)
  if redis.call('HEXISTS', values, key) == 0 then growth = growth + #key end
end
if not grow(growth, max) then return full() end
for key, value in pairs(last) do
  redis.call('HSET', values, key, value)
  redis.call('ZADD', order, 0, key)
end
return seen()
"""
)
_DELETE_MANY: Final = (
    _WRITE
    + """
local freed = 0
for i = 1, #ARGV do
  if redis.call('HEXISTS', values, ARGV[i]) == 1 then
    freed = freed + #ARGV[i] + redis.call('HSTRLEN', values, ARGV[i])
    redis.call('HDEL', values, ARGV[i])
    redis.call('ZREM', order, ARGV[i])
  end
end
if freed == 0 then return tonumber(redis.call('GET', epoch) or '0') end
grow(-freed, 0)
return seen()
"""
)
_INCREMENT: Final = (
    _WRITE
    + """
local key, delta, max = ARGV[1], ARGV[2], tonumber(ARGV[3])
local before = redis.call('HGET', values, key)
local found = redis.pcall('HINCRBY', values, key, delta)
if type(found) == 'table' and found.err then return found end
local text = redis.call('HGET', values, key)
local growth = #text - (before and #before or -#key)
if not grow(growth, max) then
  if before then redis.call('HSET', values, key, before) else redis.call('HDEL', values, key) end
  return full()
end
redis.call('ZADD', order, 0, key)
return {text, seen()}
"""
)
_SWAP: Final = (
    _WRITE
    + """
local key, absent, expected, value, max = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local now = redis.call('HGET', values, key)
if absent == '1' then
  if now then return {0, 0} end
elseif now ~= expected then
  return {0, 0}
end
if not put(key, value, max) then return full() end
return {1, seen()}
"""
)


class RedisKeyValue:
    """A `KeyValueProvider` over one server, for one lane; safe from any thread.

    `owner` is whose stores they are: "PROJECT", or "PROJECT/ENVIRONMENT". `restored` hears once that the provider lost writes.
    """

    def __init__(
        self, access: DeclaredProvider, owner: str, restored: Callable[[str], None], caps: StoreCaps | None = None
    ) -> None:
        if not all(PROJECT_NAME.fullmatch(name) for name in owner.split("/")):
            raise ProviderError("other", "bad project or environment name")
        self._access = access
        self._owner = owner
        self._caps = caps or StoreCaps()
        self._restored = restored
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._former: redis.Redis | None = None
        self._closed = False
        self._password: str | None = None
        self._seen = 0

    def open(self, store: str) -> RedisBucket:
        """Open `store`; raises `ProviderError`, with a time after which to try again if the provider is away."""
        if not STORE_NAME.fullmatch(store):
            raise ProviderError("no-such-store", "bad store name")
        self.asked(lambda client: client.ping())
        return RedisBucket(self, store, self._caps)

    def names(self, store: str) -> tuple[str, ...]:
        """The keys of a store, in the order in which the scripts take them. Braces put them into one hash slot."""
        slot = f"freehold:{{{self._owner}}}"
        return f"{slot}:{store}:values", f"{slot}:{store}:order", f"{slot}:{store}:size", f"{slot}:writes"

    def asked(self, call: Callable[[redis.Redis], Any]) -> Any:
        """Ask the server; a refused credential is read again once, since it may have been rotated."""
        with self._errors():
            try:
                return call(self._connected())
            except redis.AuthenticationError:
                if not self._renewed():
                    raise
                return call(self._connected())

    def wrote(self, count: int) -> None:
        """Take down how many writes the provider counts; fewer than before: it was put back from an older copy."""
        with self._lock:
            seen = self._seen
            was_restored = count < seen - OUT_OF_ORDER
            self._seen = count if was_restored else max(seen, count)
        if was_restored:
            self._restored(
                f"the provider {self._access.name} counts {count} writes of {self._owner} and had counted {seen}:"
                " it was put back from an older copy, and what was written after that is gone"
            )

    def close(self) -> None:
        """Close its connections, for good: every later call is refused."""
        with self._lock:
            self._closed = True
            held = [client for client in (self._client, self._former) if client is not None]
            self._client = self._former = None
        for client in held:
            client.connection_pool.disconnect()

    def _connected(self) -> redis.Redis:
        with self._lock:
            if self._closed:
                raise ProviderUnusableError("the store is closed")
            present = self._client
        if present is not None:
            return present
        password = self._access.password()
        client = self._made(password)
        try:
            _check_server(client, self._access)
        except BaseException:
            client.connection_pool.disconnect()
            raise
        with self._lock:
            if self._client is None and not self._closed:
                self._client, self._password = client, password
                return client
        client.connection_pool.disconnect()  # another thread was first, or it was closed meanwhile
        return self._connected()

    def _made(self, password: str | None) -> redis.Redis:
        access = self._access
        options: dict[str, Any] = {
            "host": access.host, "port": access.port, "db": access.database_number, "username": access.user or None,
            "password": password, "max_connections": CONNECTIONS_MAX, "timeout": ANSWER_TIMEOUT_S,
            "socket_timeout": ANSWER_TIMEOUT_S, "socket_connect_timeout": ANSWER_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0), "retry_on_error": [], "protocol": 2,
        }  # fmt: skip
        if access.tls:
            options |= {"connection_class": redis.SSLConnection, "ssl_ca_certs": access.ca or None}
        make_pool: Any = redis.BlockingConnectionPool  # it has no types
        return redis.Redis(connection_pool=make_pool(**options))

    def _renewed(self) -> bool:
        """Have the next call connect anew if the credential is another one now; whether it is."""
        if self._access.password() == self._password:
            return False
        with self._lock:
            former, self._former, self._client = self._former, self._client, None
        if former is not None:  # of the rotation before; calls may be under way on what was used until now
            former.connection_pool.disconnect()
        return True

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        name = self._access.name
        try:
            yield
        except ProviderUnusableError as error:
            raise ProviderError("other", str(error), retry_after_s=RETRY_AFTER_S) from error
        except redis.AuthenticationError as error:
            said = f"the provider {name} refused this node's credential"
            raise ProviderError("other", said, retry_after_s=RETRY_AFTER_S) from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError) as error:
            raise ProviderError("other", f"the provider {name} is away", retry_after_s=RETRY_AFTER_S) from error
        except redis.ResponseError as error:
            raise _refusal(name, error, self._caps) from error
        except redis.RedisError as error:
            raise ProviderError("other", f"the provider {name} failed") from error


class RedisBucket:
    """One open store of a `RedisKeyValue`."""

    def __init__(self, provider: RedisKeyValue, store: str, caps: StoreCaps) -> None:
        self._provider = provider
        self._names = provider.names(store)
        self._caps = caps

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""
        content: bytes | None = self._provider.asked(lambda client: client.hget(self._names[0], _encoded(key)))
        return content

    def set(self, key: str, value: bytes) -> None:
        """Store `value` under `key`."""
        self.set_many(((key, value),))

    def delete(self, key: str) -> None:
        """Remove `key`; no error if absent."""
        self.delete_many((key,))

    def exists(self, key: str) -> bool:
        """Whether `key` is present."""
        return bool(self._provider.asked(lambda client: client.hexists(self._names[0], _encoded(key))))

    def list_keys(self, cursor: str | None) -> tuple[Sequence[str], str | None]:
        """Return a page of keys in byte order after `cursor`, which is the last key of the page before, or None."""
        limit = self._caps.page_max_keys
        after = "-" if cursor is None else b"(" + cursor.encode()
        entry = self._provider.asked(
            lambda client: client.zrangebylex(self._names[1], after, "+", start=0, num=limit + 1)
        )
        keys = [key.decode() for key in entry]
        return keys[:limit], keys[limit - 1] if len(keys) > limit else None

    def increment(self, key: str, delta: int) -> int:
        """Add `delta` to the decimal integer kept as text under `key`, 0 if absent; the sum must fit 64 bits."""
        self._check(((key, b""),))
        text, count = self._run(_INCREMENT, key, delta, self._caps.store_max_bytes)
        self._provider.wrote(count)
        return int(text)

    def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Store `value` only if the present value is `expected` (None: absent), atomically; whether it did."""
        self._check(((key, value),))
        absent = "1" if expected is None else "0"
        swapped, count = self._run(_SWAP, key, absent, expected or b"", value, self._caps.store_max_bytes)
        if swapped:
            self._provider.wrote(count)
        return bool(swapped)

    def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the values of `keys`, in their order."""
        self._check_batch(len(keys))
        if not keys:
            return []
        encoded = [_encoded(key) for key in keys]
        values: list[bytes | None] = self._provider.asked(lambda client: client.hmget(self._names[0], encoded))
        return values

    def set_many(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs, or none of them."""
        self._check_batch(len(pairs))
        self._check(pairs)
        flat = [entry for pair in pairs for entry in pair]
        self._provider.wrote(self._run(_SET_MANY, self._caps.store_max_bytes, *flat))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove all keys, or none of them."""
        self._check_batch(len(keys))
        self._provider.wrote(self._run(_DELETE_MANY, *keys))

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._provider.asked(lambda client: client.register_script(script)(keys=self._names, args=arguments))

    def _check_batch(self, count: int) -> None:
        if count > self._caps.batch_max_keys:
            raise ProviderError("other", f"more than {self._caps.batch_max_keys} keys in one call")

    def _check(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        for key, value in pairs:
            if len(_encoded(key)) > self._caps.key_max_bytes:
                raise ProviderError("other", f"a key has more than {self._caps.key_max_bytes} bytes")
            if len(value) > self._caps.value_max_bytes:
                raise ProviderError("other", f"a value has more than {self._caps.value_max_bytes} bytes")


def _encoded(key: str) -> bytes:
    return key.encode()


_NO_WRITES: Final[tuple[tuple[type[redis.ResponseError], str], ...]] = (
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.NoScriptError, "MISCONF"),
    (redis.exceptions.NoScriptError, "NOREPLICAS"),
)
"""Refusals that pass; the last two have no class of their own, and scripts are never missing here."""


def _refusal(name: str, error: redis.ResponseError, caps: StoreCaps) -> ProviderError:
    """What a server's refusal of one call means to a guest; its own words may name keys of others."""
    said = str(error)
    if "STOREFULL" in said:
        return ProviderError("other", f"the store would exceed {caps.store_max_bytes} bytes")
    if "not an integer" in said:
        return ProviderError("other", "the value under this key is not a decimal integer")
    if "overflow" in said:
        return ProviderError("other", "the sum does not fit 64 bits")
    for kind, word in _NO_WRITES:
        if isinstance(error, kind) or said.startswith(word):
            return ProviderError(
                "other", f"the provider {name} takes no writes now ({word})", retry_after_s=RETRY_AFTER_S
            )
    if isinstance(error, redis.exceptions.NoPermissionError):
        return ProviderError("other", f"the provider {name} does not permit this node what it needs")
    return ProviderError("other", f"the provider {name} refused the call")


def _check_server(client: redis.Redis, access: DeclaredProvider) -> None:
    """Raise ProviderUnusableError if it is too old, or may forget what it acknowledged and nobody said that it may."""
    server: Any = client.info("server")
    said = str(server.get("valkey_version") or server.get("redis_version") or "")
    version = tuple(int(part) for part in said.split(".")[:2] if part.isdigit())
    if version < VERSION_LEAST:
        raise ProviderUnusableError(
            f"the provider {access.name} is of version {said or 'unknown'}; 6.2 or newer is needed"
        )
    if access.may_lose:
        return
    try:
        entry: Any = {**client.config_get("appendonly"), **client.config_get("appendfsync")}
    except redis.ResponseError as error:
        raise ProviderUnusableError(
            f"the provider {access.name} does not tell whether it syncs what it acknowledges;"
            " permit CONFIG GET, or set may_lose = true for it in node.toml"
        ) from error
    if (entry.get("appendonly"), entry.get("appendfsync")) != ("yes", "always"):
        raise ProviderUnusableError(
            f"the provider {access.name} may lose what it acknowledged: set appendonly yes and appendfsync always there,"
            " or may_lose = true for it in node.toml"
        )
