"""From a table in node.toml to an app's store: only what is mapped lies in the provider, and smoke checks never do."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import NodeConfig, ProviderConfig, read_config, write_config
from node.errors import ConfigError
from runtime.engine.guest import GuestServices
from runtime.providers import ProviderError, Providers, SqlError
from runtime.services.declared_providers import PROVIDERS_FILE, read_providers, write_providers
from runtime.services.sqlite_keyvalue import SqliteKeyValue
from runtime.services.sqlite_sql import SqliteSql
from runtime.spec import AppSpec
from runtime.workers.app_host import LaneProviders
from tests.support.runtime.redis_server import RedisServer, needs_redis


class Silent:
    def emit(self, level: str, context: str, message: str) -> bool:
        return True

    def keep(self, entries: object) -> None:
        """Nothing is kept."""


def services(tmp_path: Path, declared: LaneProviders | None, owner: str = "shop/production") -> GuestServices:
    spec = AppSpec(
        "shop", "web", "r1", tmp_path, "", keyvalue=("own", "mapped", "absent"), stores=owner,
        providers={"mapped": "main", "absent": "nowhere"},
    )  # fmt: skip
    providers = Providers(SqliteKeyValue(tmp_path, owner), declared=declared.open if declared is not None else None)
    return GuestServices(spec, Silent(), providers, None)


@needs_redis
def test_only_what_is_mapped_lies_in_the_provider(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis").start()
    try:
        file = tmp_path / PROVIDERS_FILE
        config = NodeConfig("a", provider={"main": ProviderConfig("redis", f"redis://127.0.0.1:{server.port}")})
        write_providers(file, config.declared)
        assert file.stat().st_mode & 0o777 == 0o600
        lane = LaneProviders(file, "shop/production")
        guest_services = services(tmp_path, lane)
        guest_services.open_bucket("mapped").set("a", b"in the server")
        guest_services.open_bucket("own").set("a", b"in the file")
        assert server.say("HGET", "freehold:{shop/production}:mapped:values", "a") == "in the server"
        assert services(tmp_path, None).open_bucket("mapped").get("a") is None  # as a smoke check sees it
        assert guest_services.open_bucket("own").get("a") == b"in the file"
        with pytest.raises(ProviderError, match="this node has no provider nowhere"):
            guest_services.open_bucket("absent")
        with pytest.raises(ProviderError) as exception_info:
            guest_services.open_bucket("other")
        assert exception_info.value.kind == "access-denied"
        lane.close()
        with pytest.raises(ProviderError, match="closed"):
            guest_services.open_bucket("mapped")
    finally:
        server.kill()


def test_tables_of_providers_are_read_and_judged(tmp_path: Path) -> None:
    write_config(tmp_path, NodeConfig("a"))
    assert "provider" not in (tmp_path / "node.toml").read_text()
    plain = (tmp_path / "node.toml").read_text()
    (tmp_path / "node.toml").write_text(
        plain + '[provider.main]\nkind = "redis"\nurl = "redis://cache"\nmay_lose = true\n'
    )
    (declared,) = read_config(tmp_path).declared
    assert (declared.name, declared.host, declared.port, declared.may_lose) == ("main", "cache", 6379, True)
    for table, said in (
        ('[provider.main]\nkind = "redis"\nurl = "redis://u:p@cache"\n', "holds a password"),
        ('[provider."a b"]\nkind = "redis"\nurl = "redis://cache"\n', "is no good name"),
        ('[provider.main]\nkind = "etcd"\nurl = "redis://cache"\n', "etcd"),
        ('[provider.main]\nkind = "redis"\nurl = "redis://cache"\npassword = "p"\n', "password"),
    ):
        (tmp_path / "node.toml").write_text(plain + table)
        with pytest.raises(ConfigError, match=said):
            read_config(tmp_path)
    assert read_providers(tmp_path / "absent.json") == {}


def test_a_provider_holds_what_its_kind_can(tmp_path: Path) -> None:
    file = tmp_path / PROVIDERS_FILE
    tables = {
        "cache": ProviderConfig("redis", "redis://127.0.0.1:1"),
        "pg": ProviderConfig("postgres", "postgres://apps@127.0.0.1:1", str(tmp_path / "absent")),
    }
    write_providers(file, NodeConfig("a", provider=tables).declared)
    lane = LaneProviders(file, "shop/production")
    with pytest.raises(ProviderError, match="pg has databases and no key-value stores"):
        lane.open("pg")
    with pytest.raises(SqlError, match="cache has key-value stores and no databases"):
        lane.open_sql("cache")
    with pytest.raises(SqlError, match="this node has no provider other"):
        lane.open_sql("other")
    with pytest.raises(SqlError, match="the credential of pg cannot be read"):
        lane.open_sql("pg").open("main").execute("SELECT 1")
    lane.close()
    with pytest.raises(SqlError, match="closed"):
        lane.open_sql("pg")


def test_only_a_database_that_is_mapped_leaves_the_node(tmp_path: Path) -> None:
    asked: list[str] = []

    def declared_sql(name: str) -> SqliteSql:
        asked.append(name)
        return SqliteSql(tmp_path / "server", "shop/production")

    spec = AppSpec(
        "shop", "web", "r1", tmp_path, "", sql=("own", "mapped"), stores="shop/production", providers={"mapped": "pg"}
    )
    own = SqliteSql(tmp_path / "node", "shop/production")
    services = GuestServices(spec, Silent(), Providers(sql=own, declared_sql=declared_sql), None)
    services.open_database("mapped").execute("CREATE TABLE n (x INTEGER)")
    with pytest.raises(SqlError, match="no such table"):
        services.open_database("own").execute("SELECT x FROM n")
    assert asked == ["pg"]
    with pytest.raises(SqlError) as refusal:
        services.open_database("pg")
    assert refusal.value.code == "SQLITE_AUTH"
    checked = GuestServices(spec, Silent(), Providers(sql=own), None)
    with pytest.raises(SqlError, match="no such table"):
        checked.open_database("mapped").execute("SELECT x FROM n")
