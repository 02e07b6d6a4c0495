"""Trying a built project: its own tests and its smoke checks, against the release in the sandbox, and signed evidence.

Not here: the command line, serving a project while somebody works on it (server.py), and what a policy demands.
"""

from __future__ import annotations

import asyncio

import msgspec

from cli.access import contexts
from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.principals import everyday_key
from cli.change.evidence import LOG_MAX_CHARACTERS, Ran, keep_evidence, sign_build, sign_run
from cli.change.proposal import effective_of, require_known
from cli.dev.trial import Serving, load_of, run_checks, run_command, serving
from cli.errors import CommandError, UsageError
from cli.project.build import build_project
from cli.project.bundle import BuildBundle
from cli.project.find import Found
from cli.text.output import Output
from cli.views.log_lines import described, read
from protocols.changes.effective import Effective
from protocols.envelope import digest, encode


async def require_environments(found: Found, context: Context | None, names: tuple[str, ...]) -> None:
    """Raise UsageError for a name of no environment: what is signed for one that was misspelt is evidence of nothing.

    The mesh knows which there are; where none answers, the project file says which it is written for.
    """
    if context is not None:
        try:
            async with NodeClient(context) as client:
                for name in names:
                    await require_known(client, "", name)
        except CommandError as error:
            if error.kind != "no-node":
                raise
        else:
            return
    written = {contexts.default_environment(), *found.project.environments}
    for name in names:
        if name not in written:
            raise UsageError(
                f"no mesh answers, and freehold.toml has no [env.{name}] (it names: {', '.join(sorted(written))})",
                next_step=f"add [env.{name}] to freehold.toml, or choose one that there is",
                kind="no-environment",
            )


class RunResult(msgspec.Struct, frozen=True):
    """What one run came to; `file` is where its evidence was kept, empty if it was not signed."""

    kind: str
    covers: str
    environment: str
    passed: bool
    log: str
    passed_tests: tuple[str, ...]
    failed_tests: tuple[str, ...]
    file: str


async def test_project(
    output: Output, found: Found, context: Context | None, *, environments: tuple[str, ...], timeout_s: float
) -> tuple[BuildBundle, list[RunResult]]:
    """Build and try a project in each environment's configuration; return the build and what each run came to.

    Signs the evidence if a context is given. Raises CommandError if it cannot be built or served.
    """
    if found.project.test_command is None and not found.project.smoke:
        raise UsageError("the project has no tests", next_step="add [test] command or [[test.smoke]] to freehold.toml")
    bundle = await asyncio.to_thread(build_project, found.project, found.text, found.root, output)
    if context is not None:
        built = sign_build(everyday_key(context), bytes.fromhex(context.mesh), bundle)
        keep_evidence(found.root, bundle.id, "build", built)
    results: list[RunResult] = []
    for environment in environments:
        effective = effective_of(found, bundle, environment)
        runs = await _try(found, bundle, effective, timeout_s, output)
        results += [_result(found, bundle, effective, context, ran) for ran in runs]
    return bundle, results


async def _try(found: Found, bundle: BuildBundle, effective: Effective, timeout_s: float, output: Output) -> list[Ran]:
    prepared = await load_of(found, bundle, effective, output)
    runs: list[Ran] = []
    async with serving(prepared) as served:
        if found.project.test_command is not None:
            output.step("", f"running {found.project.test_command}")
            runs.append(await run_command(found.project.test_command, found, served, timeout_s, output))
        output.step("", "running the smoke checks")
        checked = await run_checks(served)
        if checked is not None:
            output.note(checked.log)
            runs.append(checked)
    if not all(ran.passed for ran in runs):
        _tell_what_apps_wrote(served, output)
    return runs


def _tell_what_apps_wrote(served: Serving, output: Output) -> None:
    """Show the apps' own lines, which say why they failed."""
    words = [entry for line in served.lines if (entry := read(line)).get("stream") == "guest"]
    if words:
        output.note("the last that the apps wrote:")
    for entry in words:
        output.line(described(entry))


def _result(found: Found, bundle: BuildBundle, effective: Effective, context: Context | None, ran: Ran) -> RunResult:
    path = ""
    if context is not None:
        signer = everyday_key(context)
        built = bundle.manifest["apps"]
        subjects = [(app.name, app.component) for app in effective.apps]
        if ran.covers == "host":
            subjects += [(f"{name} source", bytes.fromhex(app["source_digest"])) for name, app in sorted(built.items())]
        envelope = sign_run(
            signer, bytes.fromhex(context.mesh), ran, subjects=tuple(subjects),
            configuration=digest(encode(effective)),
        )  # fmt: skip
        path = str(keep_evidence(found.root, bundle.id, f"{ran.kind}-{effective.environment}", envelope))
    return RunResult(
        kind=ran.kind, covers=ran.covers, environment=effective.environment, passed=ran.passed,
        log=ran.log[-LOG_MAX_CHARACTERS:], passed_tests=ran.names[0], failed_tests=ran.names[1], file=path,
    )  # fmt: skip
