"""A guest on a real node whose store lies in a Redis server, and the messages it handles, as metrics count them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Machine, until
from tests.support.mesh.python_app import PythonApp, node_alone
from tests.support.runtime.redis_server import RedisServer, needs_redis

APP = """
import json
import freehold

def message(message):
    job = message.json()
    if job == "bad":
        raise ValueError(job)
    freehold.store("visits").increment("handled")

def handle(request):
    if request.path.startswith("/publish/"):
        freehold.messaging.publish("jobs", json.dumps(request.path[9:]))
    if request.path == "/count":
        return str(freehold.store("sessions").increment("n"))
    return json.dumps({name: {key: store.get(key).decode() for key in store.keys()}
                       for name in ("sessions", "visits") for store in (freehold.store(name),)})
"""
SETTINGS = """
keyvalue = ["sessions", "visits"]
publish = ["jobs"]
subscribe = ["jobs"]
providers = { sessions = "cache" }
"""
PROVIDER = '[provider.cache]\nkind = "redis"\nurl = "redis://127.0.0.1:{port}"\npassword_file = "{file}"\n'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with node_alone(tmp_path_factory.mktemp("providers"), "shop", "other") as machine:
        yield machine


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), password="first").start()
    yield server
    server.kill()


def app_of(folder: Path, name: str) -> PythonApp:
    python_app = PythonApp(folder, name, rest=SETTINGS)
    python_app.write({"app.py": APP})
    return python_app


@needs_redis
@pytest.mark.timeout(280)
def test_a_guests_store_lies_in_the_operators_redis_through_its_absence_and_a_new_credential(
    node: Machine, redis: RedisServer, tmp_path: Path
) -> None:
    shop, other = app_of(tmp_path, "shop"), app_of(tmp_path, "other")
    refused = shop.deploy(node)
    assert refused.code != 0
    assert "[provider.cache] in node.toml" in refused.stdout + refused.stderr, refused

    credential = tmp_path / "cache.password"
    credential.write_text("first")
    credential.chmod(0o600)
    with (node.data / "node.toml").open("a") as file:
        file.write(PROVIDER.format(port=redis.port, file=credential))
    assert node.stop() == 0
    node.start()
    until(lambda: shop.get(node)[0] == 200, 90, "what was refused to start, now that its provider is declared")
    other.deployed(node)
    assert [shop.get(node, "/count")[1] for _ in range(3)] == ["1", "2", "3"]
    assert other.get(node, "/count")[1] == "1", "one store of two projects"
    assert json.loads(shop.get(node)[1]) == {"sessions": {"n": "3"}, "visits": {}}
    assert "visits" not in redis.say("keys", "*"), "what is not mapped lies with the node"

    redis.kill()
    shop.refused_for_a_while(node, "/count")
    redis.start()
    until(lambda: shop.get(node, "/count")[0] == 200, 30, "the provider to be used again")
    assert shop.get(node, "/count")[1] == "5", "an increment was lost, or counted twice"

    redis.say("config", "set", "requirepass", "second")
    redis.password = "second"
    credential.write_text("second")
    redis.say("client", "kill", "type", "normal")
    until(lambda: shop.get(node, "/count")[0] == 200, 30, "the new credential to be used")


@needs_redis
@pytest.mark.timeout(280)
def test_what_became_of_messages_is_counted_by_queue(node: Machine, redis: RedisServer, tmp_path: Path) -> None:
    app = PythonApp(tmp_path, "shop", rest=SETTINGS.replace('providers = { sessions = "cache" }\n', ""))
    app.write({"app.py": APP})
    app.deployed(node)
    for job in ("good", "bad", "good"):
        assert app.get(node, f"/publish/{job}")[0] == 200
    until(lambda: json.loads(app.get(node)[1])["visits"] == {"handled": "2"}, 30, "both good ones to be handled")

    def counted() -> dict[str, float]:
        lines = node.get("/metrics").decode().splitlines()
        mine = [line for line in lines if line.startswith("freehold_messages_total{") and 'project="shop"' in line]
        return {text.split('outcome="')[1].split('"')[0]: float(text.rpartition(" ")[2]) for text in mine}

    until(lambda: counted().get("failed", 0) >= 2, 30, "the bad one to be tried again")
    assert counted()["done"] == 2
    assert counted()["dead"] == 0
