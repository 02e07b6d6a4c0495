"""The same components, the same requests, an independent host and ours: the answers must agree.

Every case is held against the recorded answers of `wasmtime serve`; where the binary is there the records are checked
against it too, and `jco serve` is always asked live. Differences that are meant are in `cases.py`, with reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.messages import AppLoad, JobDone, ReleaseLoad
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.spec import AppSpec
from runtime.workers.pool import WorkerPool
from runtime.workers.pool_settings import PoolSettings
from tests.conformance import peer
from tests.conformance.cases import BY_FIXTURE, COMMANDS, REUSABLE, Case, CommandCase
from tests.conformance.compare import ask, differences
from tests.conformance.ours import serve_ours
from tests.conformance.record import golden, peer_answers, peer_command
from tests.conformance.upstream import DEAD_AUTHORITY, upstream
from tests.conformance.wire import Answer
from tests.fixtures.build import CACHE

EVERY = [pytest.param(case, id=f"{fixture}: {case.name}") for fixture, cases in BY_FIXTURE.items() for case in cases]
JCO_FIXTURES = ("probe", "hello", "javascript")


@pytest.fixture(scope="module")
def authority() -> Iterator[str]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def our_port(component: Callable[[str], Path], authority: str) -> Iterator[Callable[[str], int]]:
    """The port of our host serving a fixture; started at first use, one at a time, fresh instances."""
    with contextlib.ExitStack() as stack:
        running: dict[str, int] = {}

        def port(fixture: str) -> int:
            if fixture not in running:
                stack.pop_all().close()
                running.clear()
                hosts = (authority, DEAD_AUTHORITY)
                server = serve_ours(component(fixture), allow_hosts=hosts, allow_loopback=True)
                running[fixture] = stack.enter_context(server).port
            return running[fixture]

        yield port


@pytest.mark.parametrize("case", EVERY)
def test_we_answer_as_wasmtime_serve_does(case: Case, our_port: Callable[[str], int], authority: str) -> None:
    theirs = Answer.from_json(golden(case.fixture)["answers"][case.name])
    ours = ask(our_port(case.fixture), case, authority)
    assert not differences(ours, theirs, case), ours


@pytest.mark.parametrize("fixture", REUSABLE)
def test_a_reused_instance_answers_as_a_fresh_one(
    fixture: str, component: Callable[[str], Path], authority: str
) -> None:
    recorded = golden(fixture)["answers"]
    hosts = (authority, DEAD_AUTHORITY)
    with serve_ours(component(fixture), instances="reuse", allow_hosts=hosts, allow_loopback=True) as server:
        table = {
            case.name: differences(ask(server.port, case, authority), Answer.from_json(recorded[case.name]), case)
            for case in BY_FIXTURE[fixture]
        }
    assert not {name: sentences for name, sentences in table.items() if sentences}


@pytest.mark.parametrize("fixture", JCO_FIXTURES)
def test_we_answer_as_jco_serve_does(
    fixture: str, component: Callable[[str], Path], our_port: Callable[[str], int], authority: str
) -> None:
    cases = [replace(case, pieces=False) for case in BY_FIXTURE[fixture] if case.jco]  # node may join two writes
    with peer.jco_serve(component(fixture)) as server:
        theirs = {case.name: ask(server.port, case, authority) for case in cases}
    port = our_port(fixture)
    table = {case.name: differences(ask(port, case, authority), theirs[case.name], case) for case in cases}
    assert not {name: sentences for name, sentences in table.items() if sentences}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_peer_can_be_had() -> None:
    assert peer.wasmtime(build=True) is not None, (CACHE / "tools" / "wasmtime.log").read_text()[-2000:]


@pytest.mark.parametrize("fixture", list(BY_FIXTURE))
def test_the_recorded_answers_are_what_the_peer_says(fixture: str) -> None:
    binary = peer.wasmtime()
    if binary is None:
        pytest.skip(peer.NOTHING_TO_ASK)
    recorded = golden(fixture)["answers"]
    said = peer_answers(binary, fixture, recorded)
    assert list(recorded) == [case.name for case in BY_FIXTURE[fixture]]
    for case in BY_FIXTURE[fixture]:
        unmeant = replace(case, ours=None)
        assert not differences(said[case.name], Answer.from_json(recorded[case.name]), unmeant), case.name


def test_every_meant_difference_is_one() -> None:
    for fixture, cases in BY_FIXTURE.items():
        recorded = golden(fixture)["answers"]
        for case in cases:
            if case.ours is not None:
                theirs = Answer.from_json(recorded[case.name])
                assert differences(theirs, theirs, case), f"{fixture}: {case.name} no longer differs; drop its `ours`"


# --- commands ---------------------------------------------------------------------------------------------------------


async def run_jobs(component: Callable[[str], Path], folder: Path) -> dict[str, JobDone]:
    """Run every command case in one worker of a real pool."""
    cache = CompileCache(CACHE / "compiled")
    settings = PoolSettings(("127.0.0.1:0",), folder / "run", folder / "data", "conformance", workers=1)
    pool = WorkerPool(settings, on_logs=lambda batch: None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pool.run())
        await pool.started()
        apps = []
        for fixture in dict.fromkeys(case.fixture for case in COMMANDS):
            path = component(fixture)
            digest = file_digest(path)
            artifact = await cache.ensure(path, digest)
            kind = "module" if fixture.endswith("preview1") else "command"
            greeting = {"GREETING": "hello"}
            apps.append(AppLoad(AppSpec("p", fixture, digest, artifact, digest, kind=kind, environment=greeting)))
        await pool.load(ReleaseLoad("jobs", "0" * 64, "p", tuple(apps)))
        done = {
            case.name: await pool.run_job("jobs", case.fixture, case.arguments, timeout_ms=20_000) for case in COMMANDS
        }
        await pool.stop()
        await running
    return done


@pytest.fixture(scope="module")
def jobs(component: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, JobDone]:
    return asyncio.run(run_jobs(component, tmp_path_factory.mktemp("jobs")))


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.name)
def test_commands_end_as_under_wasmtime_run(case: CommandCase, jobs: dict[str, JobDone]) -> None:
    theirs, ours = golden("commands")["answers"][case.name], jobs[case.name]
    assert ours.stdout.decode() == theirs["stdout"]
    if case.traps:
        assert ours.outcome == "trapped"
        assert theirs["exit_code"] not in (0, 1)
    else:
        assert (ours.exit_code, ours.stderr.decode()) == (theirs["exit_code"], theirs["stderr"])


def test_the_recorded_commands_are_what_the_peer_does() -> None:
    binary = peer.wasmtime()
    if binary is None:
        pytest.skip(peer.NOTHING_TO_ASK)
    recorded = golden("commands")["answers"]
    for case in COMMANDS:
        said = peer_command(binary, case.fixture, case.arguments)
        assert (said["exit_code"], said["stdout"]) == (recorded[case.name]["exit_code"], recorded[case.name]["stdout"])
