"""The frame every command stands in: `--json`, the errors that become exit codes, commands found on first use.

A command is a function whose first argument is an `Output`:

    @command("build", examples=("freehold build", "freehold build --json"))
    @click.option("--app")
    def build(output: Output, app: str | None) -> None: ...

Not here: which commands there are (`main.py`).
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click

from cli.errors import CommandError, ExitCode, UsageError
from cli.output import Output


def command(name: str, *, examples: tuple[str, ...]) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command of a function that takes an `Output` first; it also gets `--json`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, **parameters: Any) -> None:
            output = Output(as_json=as_json)
            try:
                function(output, **parameters)
            except CommandError as error:
                output.error(error)
                raise SystemExit(int(error.exit_code)) from None
            finally:
                output.close()

        flag = click.option("--json", "as_json", is_flag=True, help="Answer with JSON on standard output.")
        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        return click.command(name, epilog=epilog)(flag(run))

    return decorate


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named: the command line starts in a tenth of a second."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, tuple[str, str]]], **kwargs: Any) -> None:
        """Take, by section and name, where each command is found ("module:attribute") and its one line of help."""
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._modules = {name: where for rows in sections.values() for name, (where, _) in rows.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order they are used in."""
        return list(self._modules)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section, without importing any."""
        for title, rows in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(9), text) for name, (_, text) in rows.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        where = self._modules.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found


def run(group: click.Group, arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Nothing but `SystemExit` and signals gets out of it."""
    output = Output(as_json="--json" in arguments)
    try:
        result = group.main(arguments, prog_name="freehold", standalone_mode=False)
    except click.exceptions.Abort:
        sys.stderr.write("stopped\n")
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(f"{error.format_message()}\n")
        return int(ExitCode.DONE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "freehold"
        output.error(UsageError(error.format_message(), next_step=f"{path} --help", kind="usage"))
        return int(ExitCode.USAGE)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(ExitCode.ERROR)
    except Exception as error:
        traceback.print_exc()
        message = f"this is a defect in freehold ({type(error).__name__}: {error})"
        output.error(CommandError(message, next_step="report it with the traceback above", kind="internal"))
        return int(ExitCode.ERROR)
    return result if isinstance(result, int) else int(ExitCode.DONE)
