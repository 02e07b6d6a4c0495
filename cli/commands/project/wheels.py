"""`freehold wheels build|list`: packages written in Rust, built on this machine for the sandbox.

Not here: how they are built (cli/project/wheels.py).
"""

from __future__ import annotations

import click

from cli.errors import UsageError
from cli.frame import Group, command
from cli.project.wheels import build_wheel, found, recipes
from cli.text.output import Output
from cli.text.table import table


@command("build", examples=("freehold wheels build pydantic-core",))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def build(output: Output, names: tuple[str, ...]) -> None:
    """Compile packages for the sandbox, once for this machine; needs a Rust toolchain and minutes.

    Sources are fetched by pip, pinned by digest, and crates by cargo, pinned by each source's own lock file.
    """
    known = recipes()
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"there is no recipe for {', '.join(unknown)} (there are: {', '.join(sorted(known))})",
            next_step="freehold wheels list", kind="no-recipe",
        )  # fmt: skip
    rows = []
    for name in names:
        path = build_wheel(known[name], lambda text, name=name: output.step(name, text))  # type: ignore[misc]
        rows.append(
            {"name": name, "version": known[name].version, "path": str(path), "size_bytes": path.stat().st_size}
        )
    output.result({"wheels": rows}, "\n".join(f"{row['name']} {row['version']} is ready" for row in rows))
    output.hint("freehold build")


@command("list", examples=("freehold wheels list", "freehold wheels list --json"))
def list_all(output: Output) -> None:
    """List the packages that have a recipe, and which were built on this machine."""
    rows = [
        (recipe.name, recipe.version, "built" if found(recipe) else "not built yet") for recipe in recipes().values()
    ]
    value = {"wheels": [{"name": name, "version": version, "built": state == "built"} for name, version, state in rows]}
    output.result(value, table(("package", "version", "here"), rows))


@click.group("wheels", cls=Group)
def wheels() -> None:
    """Packages written in Rust, built for the sandbox."""


for _one in (build, list_all):
    wheels.add_command(_one)
