"""A Redis server that fails: away and back, killed under load, old, forgetful, full, put back, with rotated credentials."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.providers import ProviderError
from runtime.services.declared_providers import DeclaredProvider, ProviderUnusableError, provider_problem
from runtime.services.redis_keyvalue import OUT_OF_ORDER, RedisKeyValue
from tests.support.runtime.redis_server import RedisServer, needs_redis

OWNER = "shop/production"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    redis_server = RedisServer(tmp_path / "redis", password="first").start()
    (tmp_path / "password").write_text("first\n")
    (tmp_path / "password").chmod(0o600)
    yield redis_server
    redis_server.kill()


@pytest.fixture
def restored() -> list[str]:
    return []


@pytest.fixture
def provider(server: RedisServer, tmp_path: Path, restored: list[str]) -> Iterator[RedisKeyValue]:
    key_value = RedisKeyValue(server.declared(tmp_path / "password"), OWNER, restored.append)
    yield key_value
    key_value.close()


def failure(call: object) -> ProviderError:
    began_s = time.monotonic()
    with pytest.raises(ProviderError) as exception_info:
        call()  # type: ignore[operator]
    assert time.monotonic() - began_s < 3
    return exception_info.value


@needs_redis
def test_it_is_away_and_back_by_itself(server: RedisServer, provider: RedisKeyValue, restored: list[str]) -> None:
    bucket = provider.open("visits")
    bucket.increment("n", 1)
    server.kill()
    for call in (lambda: bucket.increment("n", 1), lambda: bucket.get("n"), lambda: provider.open("visits")):
        error = failure(call)
        assert error.text == "the provider main is away"
        assert error.retry_after_s
    server.start()
    assert bucket.increment("n", 1) == 2
    assert restored == []


@needs_redis
def test_one_that_was_closed_opens_nothing_again(provider: RedisKeyValue) -> None:
    bucket = provider.open("visits")
    provider.close()
    for call in (lambda: bucket.get("n"), lambda: bucket.set("n", b""), lambda: provider.open("visits")):
        assert failure(call).text == "the store is closed"


@needs_redis
def test_a_server_that_says_nothing_is_given_up_in_time(provider: RedisKeyValue, server: RedisServer) -> None:
    bucket = provider.open("visits")
    server.say("CLIENT", "PAUSE", "10000", "ALL")
    assert failure(lambda: bucket.get("n")).text == "the provider main is away"


@needs_redis
def test_no_acknowledged_increment_is_lost_when_it_is_killed(server: RedisServer, tmp_path: Path) -> None:
    acknowledged, in_doubt, stop = [0] * 4, [0] * 4, threading.Event()

    def work(number: int) -> None:
        own = RedisKeyValue(server.declared(tmp_path / "password"), OWNER, pytest.fail)
        bucket = None
        while not stop.is_set():
            try:
                bucket = bucket or own.open("visits")
                bucket.increment("n", 1)
                acknowledged[number] += 1
            except ProviderError:
                in_doubt[number] += bucket is not None
                time.sleep(0.02)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.3)
        server.kill()
        server.start()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    reader = RedisKeyValue(server.declared(tmp_path / "password"), OWNER, pytest.fail)
    answer = int(reader.open("visits").get("n") or b"0")
    reader.close()
    assert sum(acknowledged) > 0
    assert sum(acknowledged) <= answer <= sum(acknowledged) + sum(in_doubt)


@needs_redis
def test_a_credential_is_rotated_under_load(server: RedisServer, provider: RedisKeyValue, tmp_path: Path) -> None:
    bucket, stop, failures = provider.open("visits"), threading.Event(), []
    done = [0]

    def work() -> None:
        while not stop.is_set():
            try:
                bucket.increment("n", 1)
                done[0] += 1
            except ProviderError as error:
                failures.append(error.text)

    thread = threading.Thread(target=work)
    thread.start()
    (tmp_path / "new").write_text("second")
    (tmp_path / "new").chmod(0o600)
    server.say("CONFIG", "SET", "requirepass", "second")
    (tmp_path / "new").replace(tmp_path / "password")
    server.password = "second"
    time.sleep(0.2)
    before = done[0]
    server.say("CLIENT", "KILL", "TYPE", "normal")  # whoever comes again needs the new one
    time.sleep(0.3)
    stop.set()
    thread.join()
    assert done[0] > before
    assert set(failures) <= {"the provider main is away"}  # the call that was under way when its connection was cut
    assert len(failures) <= 1
    (tmp_path / "password").write_text("wrong")
    server.say("CONFIG", "SET", "requirepass", "third")
    server.password = "third"
    server.say("CLIENT", "KILL", "TYPE", "normal")
    assert failure(lambda: bucket.get("n")).text == "the provider main refused this node's credential"
    (tmp_path / "password").write_text("third")
    assert int(bucket.get("n") or b"0") >= done[0]


@needs_redis
def test_one_that_was_put_back_from_an_old_copy_is_noticed(
    server: RedisServer, provider: RedisKeyValue, tmp_path: Path, restored: list[str]
) -> None:
    bucket = provider.open("visits")
    bucket.set("kept", b"1")
    server.kill()
    shutil.copytree(server.folder, tmp_path / "backup")
    server.start()
    for number in range(OUT_OF_ORDER + 5):
        bucket.set("lost", b"%d" % number)
    server.kill()
    server.start()
    bucket.set("lost", b"still there")  # a mere restart is none
    assert restored == []
    server.kill()
    shutil.rmtree(server.folder)
    shutil.copytree(tmp_path / "backup", server.folder)
    server.start()
    bucket.set("new", b"1")
    assert len(restored) == 1
    assert "put back from an older copy" in restored[0]
    bucket.set("new", b"2")
    assert len(restored) == 1


@needs_redis
def test_one_that_may_lose_what_it_acknowledged_is_refused(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", fsync="everysec").start()
    try:
        strict = RedisKeyValue(server.declared(), OWNER, pytest.fail)
        assert "appendfsync always" in failure(lambda: strict.open("visits")).text
        strict.close()
        cache = RedisKeyValue(server.declared(may_lose=True), OWNER, pytest.fail)
        cache.open("visits").set("a", b"1")
        cache.close()
    finally:
        server.kill()


@needs_redis
def test_a_full_one_takes_no_more_and_still_answers(server: RedisServer, provider: RedisKeyValue) -> None:
    bucket = provider.open("visits")
    bucket.set("a", b"1")
    server.say("CONFIG", "SET", "maxmemory", "1")
    error = failure(lambda: bucket.set("b", b"x" * 1000))
    assert error.text == "the provider main takes no writes now (OOM)"
    assert error.retry_after_s
    assert bucket.get("a") == b"1"
    server.say("CONFIG", "SET", "maxmemory", "0")
    bucket.set("b", b"2")
    assert bucket.list_keys(None) == (["a", "b"], None)


@pytest.mark.parametrize("version", ["5.0.14", "6.0.20", "", "new"])
def test_an_old_server_is_refused(version: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_as, args=(listener, version))
        thread.start()
        declared_provider = DeclaredProvider("main", "redis", f"redis://127.0.0.1:{listener.getsockname()[1]}")
        provider = RedisKeyValue(declared_provider, OWNER, pytest.fail)
        assert "6.2 or newer is needed" in failure(lambda: provider.open("visits")).text
        provider.close()
        thread.join()


def answer_as(listener: socket.socket, version: str) -> None:
    """A server so old that no package of it is left: it knows its version and little else."""
    link, _ = listener.accept()
    with link:
        while asked := link.recv(4096):
            if b"INFO" in asked:
                body = f"# Server\r\nredis_version:{version}\r\n".encode()
                link.sendall(b"$%d\r\n%b\r\n" % (len(body), body))
            elif b"HELLO" in asked:
                link.sendall(b"-ERR unknown command\r\n")
            else:
                link.sendall(b"+OK\r\n" * asked.count(b"*"))


def test_a_credential_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    declared_provider = DeclaredProvider("main", "redis", "redis://127.0.0.1:1", str(file))
    with pytest.raises(ProviderUnusableError, match="cannot be read"):
        declared_provider.password()
    file.write_text("secret")
    file.chmod(0o640)
    with pytest.raises(ProviderUnusableError, match="chmod 600"):
        declared_provider.password()
    file.chmod(0o600)
    assert declared_provider.password() == "secret"
    file.write_bytes(b"x" * 5000)
    with pytest.raises(ProviderUnusableError, match="more than 4096"):
        declared_provider.password()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://10.0.0.5", "is not redis://"),
        ("redis://", "is not redis://"),
        ("redis://host:port", "is not redis://"),
        ("redis://host/one", "is not redis://"),
        ("redis://host/1?x=2", "is not redis://"),
        ("redis://apps:secret@host", "holds a password"),
    ],
    ids=["scheme", "no host", "no port", "no number", "a query", "a password"],
)
def test_an_address_that_cannot_be_is_refused_at_the_start(url: str, said: str) -> None:
    problem = provider_problem(DeclaredProvider("main", "redis", url))
    assert said in problem
    assert "secret" not in problem
    for good in ("redis://host", "rediss://apps@cache.example.com:6380/2", "redis://[::1]:6379"):
        assert provider_problem(DeclaredProvider("main", "redis", good)) == ""
