"""`freehold test`: the project's own tests and its smoke checks against the built release, and signed evidence of both.

The evidence is signed by the everyday key and marked self-attested wherever the author ran it. Not here: what a policy
demands, and smoke checks that nodes run again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from cli.access import contexts
from cli.access.principals import everyday_key
from cli.change.proposal import release_id
from cli.dev.testing import require_environments, test_project
from cli.errors import CommandError
from cli.frame import command
from cli.project.find import find_project
from cli.text.output import Output
from cli.text.units import duration_ms


@command("test", examples=("freehold test", "freehold test --env staging --json", "freehold test --timeout 30m"))
@click.option("--env", "environments", multiple=True, help="With the configuration of this environment; may repeat.")
@click.option(
    "--timeout", default="10m", show_default=True, metavar="DURATION", help="How long the test command may take."
)
@click.option("--context", "context_name", help="The mesh the evidence is for, if not the current context.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(),
              help="The project's folder; by default the current one.")  # fmt: skip
def test(output: Output, environments: tuple[str, ...], timeout: str, context_name: str | None, folder: Path) -> None:
    """Build the project, serve it in the sandbox with throwaway data, run its tests and smoke checks against it.

    Leaves signed evidence under .freehold/evidence, of the build and of each run, bound to the digests of components and
    configuration; `freehold propose` and `deploy` send it along. The test command gets FREEHOLD_URL.
    """
    project = find_project(folder)
    timeout_s = duration_ms(timeout) / 1000
    context = contexts.known_context(context_name)
    asyncio.run(require_environments(project, context, environments))
    bundle, results = asyncio.run(
        test_project(
            output,
            project,
            context,
            environments=environments or (contexts.default_environment(),),
            timeout_s=timeout_s,
        )
    )
    failed = [result for result in results if not result.passed]
    lines = [
        f"{'PASSED' if result.passed else 'FAILED'}  {result.kind} in {result.environment}, covers {result.covers}"
        for result in results
    ]
    lines += sorted({f"signed    {Path(result.file).parent}" for result in results if result.file})
    if context is None:
        output.warn("no mesh is known here: the results are not signed, so they are no evidence")
    author = None if context is None else everyday_key(context).public_key
    release = None if author is None else release_id(project, bundle, author)
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
