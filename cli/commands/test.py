"""`freehold test`: the project's own tests and its smoke checks against the built release, and signed evidence of both.

The evidence is signed by the everyday key and marked self-attested wherever the author ran it. Not here: what a policy
demands, and smoke checks that nodes run again.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from cli.access import contexts as home
from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.principals import everyday_key
from cli.change.deploy import effective_of, release_id, require_known
from cli.change.evidence import LOG_MAX_CHARACTERS, Ran, keep_evidence, sign_build, sign_run
from cli.dev.trial import Serving, load_of, run_checks, run_command, serving
from cli.errors import CommandError, UsageError
from cli.frame import command
from cli.project.build import build_project
from cli.project.bundle import Bundle
from cli.project.find import Found, find_project
from cli.text.output import Output
from cli.text.units import duration_ms
from cli.views.log_lines import described
from protocols.changes.effective import Effective
from protocols.envelope import digest, encode


@command("test", examples=("freehold test", "freehold test --env staging --json", "freehold test --timeout 30m"))
@click.option("--env", "environments", multiple=True, help="With the configuration of this environment; may repeat.")
@click.option("--timeout", default="10m", show_default=True, metavar="DURATION", help="Of the test command.")
@click.option("--context", "context_name", help="The mesh the evidence is for, if not the current context.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def test(output: Output, environments: tuple[str, ...], timeout: str, context_name: str | None, folder: Path) -> None:
    """Build the project, serve it in the sandbox with throwaway data, run its tests and smoke checks against it.

    Leaves signed evidence under .freehold/evidence, of the build and of each run, bound to the digests of components and
    configuration; `freehold propose` and `deploy` send it along. The test command gets FREEHOLD_URL.
    """
    found = find_project(folder)
    timeout_s = duration_ms(timeout) / 1000
    context = home.known_context(context_name)
    asyncio.run(require_environments(found, context, environments))
    bundle, results = asyncio.run(
        test_project(
            output, found, context, environments=environments or (home.default_environment(),), timeout_s=timeout_s
        )
    )
    failed = [one for one in results if not one["passed"]]
    lines = [
        f"{'PASSED' if one['passed'] else 'FAILED'}  {one['kind']} in {one['environment']}, covers {one['covers']}"
        for one in results
    ]
    lines += sorted({f"signed    {Path(one['file']).parent}" for one in results if one["file"]})
    if context is None:
        output.warn("no mesh is known here: the results are not signed, so they are no evidence")
    author = None if context is None else everyday_key(context).public_key
    release = None if author is None else release_id(found, bundle, author)
    answer = {"build": bundle.id, "release": release, "self_attested": True, "results": results}
    if failed:
        for line in lines:
            output.note(line)
        raise CommandError(
            f"{len(failed)} of {len(results)} runs failed",
            next_step="correct the app, then freehold test",
            kind="failed",
            answer=answer,
        )
    output.result(answer, "\n".join(lines))
    output.hint("freehold diff" if context is not None else "freehold dev; to deploy, freehold mesh create NAME")


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
    written = {home.default_environment(), *found.project.environments}
    for name in names:
        if name not in written:
            raise UsageError(
                f"no mesh answers, and freehold.toml has no [env.{name}] (it names: {', '.join(sorted(written))})",
                next_step=f"add [env.{name}] to freehold.toml, or choose one that there is",
                kind="no-environment",
            )


async def test_project(
    output: Output, found: Found, context: Context | None, *, environments: tuple[str, ...], timeout_s: float
) -> tuple[Bundle, list[dict[str, Any]]]:
    """Build and try a project in each environment's configuration; return the build and what each run came to.

    Signs the evidence if a context is given. Raises CommandError if it cannot be built or served.
    """
    if found.project.test_command is None and not found.project.smoke:
        raise UsageError("the project has no tests", next_step="add [test] command or [[test.smoke]] to freehold.toml")
    bundle = await asyncio.to_thread(build_project, found.project, found.text, found.root, output)
    if context is not None:
        built = sign_build(everyday_key(context), bytes.fromhex(context.mesh), bundle)
        keep_evidence(found.root, bundle.id, "build", built)
    results: list[dict[str, Any]] = []
    for environment in environments:
        effective = effective_of(found, bundle, environment)
        runs = await _try(found, bundle, effective, timeout_s, output)
        results += [_result(found, bundle, effective, context, ran) for ran in runs]
    return bundle, results


async def _try(found: Found, bundle: Bundle, effective: Effective, timeout_s: float, output: Output) -> list[Ran]:
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
    words = [entry for line in served.lines if (entry := json.loads(line)).get("stream") == "guest"]
    if words:
        output.note("the last that the apps wrote:")
    for entry in words:
        output.line(described(entry))


def _result(found: Found, bundle: Bundle, effective: Effective, context: Context | None, ran: Ran) -> dict[str, Any]:
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
    return {
        "kind": ran.kind, "covers": ran.covers, "environment": effective.environment, "passed": ran.passed,
        "log": ran.log[-LOG_MAX_CHARACTERS:], "passed_tests": list(ran.names[0]), "failed_tests": list(ran.names[1]),
        "file": path,
    }  # fmt: skip
