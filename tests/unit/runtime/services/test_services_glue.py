"""The other wasi interfaces, called without a guest: poll, clocks, streams, random, cli, key-value, config, logging."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest

from runtime.call import DeadlinePassed, GuestCall
from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import CAPTURE_MAX_BYTES, HANDLES_MAX, ExitCalled, Guest, GuestServices, GuestTrap
from runtime.providers import Bucket, ProviderError, Providers
from runtime.wasi import INTERFACES, cli, clocks, poll, random, refused, services
from runtime.wasi.poll import AlwaysReady
from runtime.wasi.streams import CLOSED, EmptyInput, streams
from tests.support.runtime.wasm_parts import SilentLog, a_spec


class FakeBucket:
    """A bucket in a dict; pages have two keys."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        if key == "broken":
            raise ProviderError("other", "disk on fire")
        return self.values.get(key)

    def set(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def exists(self, key: str) -> bool:
        return key in self.values

    def list_keys(self, cursor: str | None) -> tuple[Sequence[str], str | None]:
        keys = sorted(key for key in self.values if cursor is None or key > cursor)
        return keys[:2], keys[1] if len(keys) > 2 else None

    def increment(self, key: str, delta: int) -> int:
        self.values[key] = str(int(self.values.get(key, b"0")) + delta).encode()
        return int(self.values[key])

    def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        if self.values.get(key) != expected:
            return False
        self.values[key] = value
        return True

    def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return [self.values.get(key) for key in keys]

    def set_many(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        self.values.update(pairs)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.values.pop(key, None)


class FakeKeyValue:
    """One bucket for every store."""

    def __init__(self) -> None:
        self.bucket = FakeBucket()

    def open(self, store: str) -> Bucket:
        return self.bucket


@pytest.fixture
def log() -> SilentLog:
    return SilentLog()


@pytest.fixture
def guest(log: SilentLog) -> Guest:
    spec = a_spec(
        keyvalue=("visitors",), config={"K": "v"}, environment={"E": "1"}, log_line_max_bytes=20, log_call_max_bytes=100
    )
    new_guest = Guest(GuestServices(spec, log, Providers(FakeKeyValue()), None))
    new_guest.begin(GuestCall(math.inf), None)
    return new_guest


def test_no_function_name_is_served_twice_under_one_version() -> None:
    names = [(interface.name, interface.versions.pattern) for interface in INTERFACES]
    assert len(names) == len(set(names))


def test_poll_gives_the_ready_ones_and_waits_for_the_nearest_clock(guest: Guest) -> None:
    later = clocks.monotonic.functions["subscribe-duration"](guest, 3_600_000_000_000)
    soon = clocks.monotonic.functions["subscribe-duration"](guest, 2_000_000)
    poll_function = poll.poll.functions["poll"]
    assert poll_function(guest, [later, AlwaysReady(), AlwaysReady()]) == [1, 2]
    assert poll_function(guest, [later, soon]) == [1]
    assert not later.ready()


def test_poll_of_nothing_traps_and_a_wait_ends_with_the_call(guest: Guest) -> None:
    with pytest.raises(GuestTrap):
        poll.poll.functions["poll"](guest, [])
    guest.begin(GuestCall(time.monotonic() + 0.005), None)
    never = clocks.monotonic.functions["subscribe-instant"](guest, 2**64 - 1)
    with pytest.raises(DeadlinePassed):
        poll.poll.functions["[method]pollable.block"](guest, never)


def test_clocks_are_the_machines(guest: Guest) -> None:
    before = time.monotonic_ns()
    assert before <= clocks.monotonic.functions["now"](guest) <= time.monotonic_ns()
    seconds, nanoseconds = clocks.wall.functions["now"](guest)
    assert abs(seconds - time.time()) < 5
    assert 0 <= nanoseconds < 10**9
    assert clocks.monotonic.functions["resolution"](guest) >= 1


def test_random_bytes_have_the_asked_length_and_a_largest_one(guest: Guest) -> None:
    assert len(random.random.functions["get-random-bytes"](guest, 1000)) == 1000
    with pytest.raises(GuestTrap):
        random.random.functions["get-random-bytes"](guest, 2**40)


def test_handles_have_a_largest_number_and_children_outlive_nobody(guest: Guest) -> None:
    stream = EmptyInput()
    rep, _ = guest.give(stream)
    child, _ = guest.give(streams.functions["[method]input-stream.subscribe"](guest, stream))
    with pytest.raises(GuestTrap):
        guest.drop(rep)
    guest.drop(child)
    guest.drop(rep)
    for _ in range(HANDLES_MAX):
        guest.give(AlwaysReady())
    with pytest.raises(GuestTrap):
        guest.give(AlwaysReady())


def test_standard_output_becomes_lines_within_the_calls_share(guest: Guest, log: SilentLog) -> None:
    out = cli.stdout.functions["get-stdout"](guest)
    out.put(b"one\ntw")
    out.put(b"o\n" + b"x" * 50 + b"\n")
    assert log.entries == [("info", "stdout", "one"), ("info", "stdout", "two"), ("info", "stdout", "x" * 20)]
    out.put(b"y" * 30)
    count = len(log.entries)
    out.put(b"more\n" * 5000)
    assert len(log.entries) <= count + 5
    guest.flush_output()
    guest.begin(GuestCall(math.inf), None)
    out.put(b"next call\n")
    assert log.entries[-1] == ("info", "stdout", "next call")


def test_a_commands_output_is_kept_up_to_a_limit(guest: Guest) -> None:
    guest.stdout.captured = bytearray()
    guest.stdout.write(b"z" * (CAPTURE_MAX_BYTES + 5))
    assert len(guest.stdout.captured) == CAPTURE_MAX_BYTES


def test_cli_gives_environment_and_an_empty_input_and_exits(guest: Guest) -> None:
    assert cli.environment.functions["get-environment"](guest) == [("E", "1")]
    assert cli.environment.functions["initial-cwd"](guest) is None
    assert cli.stdin.functions["get-stdin"](guest).read(10) == CLOSED
    assert cli.terminal_stdin.functions["get-terminal-stdin"](guest) is None
    for status, code in ((Ok(), 0), (Err(), 1)):
        with pytest.raises(ExitCalled) as ended:
            cli.exit_.functions["exit"](guest, status)
        assert ended.value.code == code


def test_there_is_no_directory_and_no_socket(guest: Guest) -> None:
    assert refused.filesystem_preopens.functions["get-directories"](guest) == []
    assert refused.tcp_create_socket.functions["create-tcp-socket"](guest, "ipv4") == Err("access-denied")
    network = refused.instance_network.functions["instance-network"](guest)
    assert refused.ip_name_lookup.functions["resolve-addresses"](guest, network, "a") == Err("access-denied")
    with pytest.raises(GuestTrap):
        refused.tcp.find("[method]tcp-socket.start-bind")(guest)  # type: ignore[misc]


def test_only_granted_stores_open(guest: Guest) -> None:
    assert services.store1.functions["open"](guest, "secrets") == Err(("access-denied", None))
    guest.services.providers = Providers()
    assert services.store1.functions["open"](guest, "visitors") == Err(("no-such-store", None))


@pytest.mark.parametrize("store", [services.store1, services.store2])
def test_a_bucket_gets_sets_deletes_and_reports_failures(guest: Guest, store: services.Interface) -> None:
    bucket = store.functions["open"](guest, "visitors")
    assert store.functions["[method]bucket.get"](guest, bucket, "a") is None
    assert store.functions["[method]bucket.set"](guest, bucket, "a", b"1") is None
    assert store.functions["[method]bucket.exists"](guest, bucket, "a") is True
    assert store.functions["[method]bucket.get"](guest, bucket, "a") == b"1"
    assert store.functions["[method]bucket.delete"](guest, bucket, "a") is None
    assert store.functions["[method]bucket.get"](guest, bucket, "broken") == Err(("other", "disk on fire"))
    assert store.functions["[method]bucket.get"](guest, bucket, "").value[0] == "other"
    assert store.functions["[method]bucket.set"](guest, bucket, "a", bytes(9_000_000)).value[0] == "other"


def test_both_drafts_page_through_all_keys(guest: Guest) -> None:
    for store in (services.store1, services.store2):
        bucket = store.functions["open"](guest, "visitors")
        for key in "abcde":
            bucket.bucket.set(key, b"")
        seen: list[str] = []
        cursor = None
        while True:
            keys, cursor = store.functions["[method]bucket.list-keys"](guest, bucket, cursor)
            seen += keys
            if cursor is None:
                break
        assert seen == list("abcde")
    bucket = services.store1.functions["open"](guest, "visitors")
    assert services.store1.functions["[method]bucket.list-keys"](guest, bucket, 7).value[0] == "other"


def test_atomics_count_and_compare(guest: Guest) -> None:
    bucket = services.store2.functions["open"](guest, "visitors")
    assert services.atomics2.functions["increment"](guest, bucket, "n", -2) == -2
    assert services.atomics1.functions["increment"](guest, bucket, "n", 1).value[0] == "other"
    assert services.atomics1.functions["increment"](guest, bucket, "n", 3) == 2
    new, current, swap = (services.atomics2.functions[n] for n in ("[static]cas.new", "[method]cas.current", "swap"))
    first, second = new(guest, bucket, "k"), new(guest, bucket, "k")
    assert current(guest, first) is None
    assert swap(guest, first, b"1") is None
    failed = swap(guest, second, b"2")
    assert failed.value[0] == "cas-failed"
    assert current(guest, failed.value[1]) == b"1"
    assert swap(guest, failed.value[1], b"3") is None


def test_batches_have_a_largest_size_and_say_which_keys_are_absent(guest: Guest) -> None:
    bucket = services.store1.functions["open"](guest, "visitors")
    assert services.batch1.functions["set-many"](guest, bucket, [("a", b"1"), ("b", b"2")]) is None
    assert services.batch1.functions["get-many"](guest, bucket, ["b", "x"]) == [("b", b"2"), None]
    assert services.batch1.functions["delete-many"](guest, bucket, ["a", "x"]) is None
    assert services.batch1.functions["get-many"](guest, bucket, ["a"] * 2000).value[0] == "other"


def test_configuration_and_logging_reach_their_places(guest: Guest, log: SilentLog) -> None:
    assert services.config.functions["get"](guest, "K") == "v"
    assert services.config.functions["get"](guest, "nothing") is None
    assert services.config.functions["get-all"](guest) == [("K", "v")]
    services.logging.functions["log"](guest, "critical", "auth", "message")
    assert log.entries == [("critical", "auth", "message")]


def test_a_call_that_says_too_much_keeps_its_last_lines(guest: Guest, log: SilentLog) -> None:
    for number in range(3000):
        guest.stdout.write(b"%05d\n" % number)
    guest.flush_output()
    said = [text for _, _, text in log.entries]
    assert said[:16] == [f"{number:05d}" for number in range(16)]
    assert said[-1] == "02999"
    assert said[18:] == [f"{number:05d}" for number in range(3000 - len(said[18:]), 3000)]
    dropped = int(said[17].partition(" ")[0])
    assert dropped == 3000 * 6 - 100 - sum(len(text) + 1 for text in said[18:])
    guest.begin(GuestCall(math.inf), None)
    guest.stdout.write(b"again\n")
    guest.flush_output()
    assert log.entries[-1] == ("info", "stdout", "again")


def test_a_call_that_says_a_little_too_much_loses_nothing(guest: Guest, log: SilentLog) -> None:
    text = "".join(f"{number:03d}\n" for number in range(40))
    guest.stdout.write(text.encode())
    guest.flush_output()
    assert [line for _, _, line in log.entries] == text.split()


def test_one_line_without_end_is_cut_and_its_end_kept(guest: Guest, log: SilentLog) -> None:
    guest.stdout.write(b"x" * 100_000 + b"\nthe end")
    guest.flush_output()
    assert log.entries[-1] == ("info", "stdout", "the end")
    assert sum(len(text) for _, _, text in log.entries) < 10_000
