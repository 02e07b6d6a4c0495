"""The frame every command stands in: `--json`, the errors that become exit codes, commands found on first use.

A command is a function whose first argument is an `Output`:

    @command("build", examples=("freehold build", "freehold build --json"))
    @click.option("--app")
    def build(output: Output, app: str | None) -> None: ...

Not here: which commands there are (`main.py`).
"""

from __future__ import annotations

import difflib
import errno
import functools
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click
import msgspec
from click.types import OptionHelpExtra

from cli.errors import CommandError, ExitCode, UsageError
from cli.text.going_on import nothing_goes_on, what_goes_on
from cli.text.output import Output
from cli.text.reminders import reminders
from protocols.envelope import DecodeError

MEANT_MIN = 0.7
"""How alike a command must be to what was typed: a guess that is far off sends people the wrong way."""

INTERRUPTED = 128
"""An exit code above it says which signal ended the command, as a shell does."""

SENTENCE_MAX = 200
"""Of a command's first sentence in its group's help; click would cut it at the line's end."""

REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR, errno.EEXIST}
)
"""Of the operating system: what a person can change. Any other that no command expected is a defect."""


def command(
    name: str, *, examples: tuple[str, ...], takes_json: bool = True, line_by_line: bool = False
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command of a function that takes an `Output` first; it also gets `--json`.

    `takes_json` is off where standard output belongs to a protocol, and there is no answer to give; `line_by_line` is
    on where the command keeps running, and even its error is one line.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool = False, **parameters: Any) -> None:
            context_name = parameters.get("context_name")
            step = functools.partial(in_context, name=context_name)
            output = Output(as_json=as_json, next_step=step, line_by_line=line_by_line)
            try:
                function(output, **parameters)
            except CommandError as error:
                output.error(error)
                raise SystemExit(int(error.exit_code)) from None
            except KeyboardInterrupt:
                output.error(interrupted())
                raise SystemExit(interrupted_code()) from None
            finally:
                for text in reminders():
                    output.warn(text)
                output.close()

        flag = click.option("--json", "as_json", is_flag=True, help="Answer with JSON on standard output.")
        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        return click.command(name, epilog=epilog, cls=FramedCommand)(flag(run) if takes_json else run)

    return decorate


class _Told:
    """Whether it was SIGTERM that ended the command, and not a person's Ctrl-C."""

    to_end = False


def _end(_number: int, _frame: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: what it started and its temporary folders end with it."""
    _Told.to_end = True
    signal.raise_signal(signal.SIGINT)


def interrupted() -> CommandError:
    """Return what a command that is stopped leaves under way, and how to stop that, too."""
    left = what_goes_on()
    if left is None:
        return CommandError("stopped; nothing was set going", next_step="run it again when ready", kind="interrupted")
    return CommandError(f"stopped; {left.what}", next_step=left.next_step, kind="interrupted", answer=left.answer)


def interrupted_code() -> int:
    """Return the exit code of a command that a signal ended."""
    return INTERRUPTED + (signal.SIGTERM if _Told.to_end else signal.SIGINT)


def in_context(step: str, name: str | None) -> str:
    """Return a next step for the context that this command was given as an option: it would be another's without it.

    Only where the step is one command that takes a context; words for people stay as they are.
    """
    words = step.split(" ")
    if not name or words[0] != "freehold" or "--context" in words or any(word[-1:] in ",:;" for word in words):
        return step
    context = click.get_current_context()
    found_command: click.Command | None = context.find_root().command
    for word in words[1:]:
        if not isinstance(found_command, click.Group):
            break
        found_command = found_command.get_command(context, word)
    takes = found_command is not None and any(option.name == "context_name" for option in found_command.params)
    return f"{step} --context {name}" if takes else step


class FramedCommand(click.Command):
    """A command whose every usage error knows whose it is: click's parser forgets it, and its help could not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. Raises UsageError."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Option(click.Option):
    """An option whose default is told in words: click would put them into brackets of their own."""

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Return what help says after the option's sentence."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


class Group(click.Group):
    """A group that shows examples, and answers a misspelt command with the one that was meant, wherever that is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the next word names. Raises UsageError."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = self._meant(ctx, args[0])
            if not meant:
                raise
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {meant!r}?", ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order they are used in."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each."""
        pairs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(SENTENCE_MAX)) for name, command in pairs if command])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the group's own last words, or the first example of each of its commands."""
        if self.epilog:
            return super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for example in self.first_examples(ctx):
                formatter.write(f"    {example}\n")
        return None

    def first_examples(self, ctx: click.Context) -> list[str]:
        """Return the first example of each command, and of those of a group within."""
        shown: list[str] = []
        for name in self.list_commands(ctx):
            chosen_command = self.get_command(ctx, name)
            if isinstance(chosen_command, Group):
                shown += chosen_command.first_examples(ctx)
            elif chosen_command is not None and chosen_command.epilog:
                shown.append(chosen_command.epilog.splitlines()[2].strip())
        return shown

    def _meant(self, ctx: click.Context, word: str) -> str:
        path = f"{ctx.command_path} "
        close = difflib.get_close_matches(word, self.list_commands(ctx), 1, MEANT_MIN)
        if close:
            return path + close[0]
        for name in self.list_commands(ctx):
            group = self.get_command(ctx, name)
            if isinstance(group, click.Group) and word in group.list_commands(ctx):
                return f"{path}{name} {word}"
        return ""


class LazyGroup(Group):
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
        entry = getattr(import_module(module), attribute)
        assert isinstance(entry, click.Command)
        return entry


def run(group: click.Group, arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Nothing but `SystemExit` and signals gets out of it."""
    output = Output(as_json="--json" in arguments)
    _Told.to_end = False
    nothing_goes_on()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        result = group.main(arguments, prog_name="freehold", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        output.error(interrupted())
        return interrupted_code()
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(f"{error.format_message()}\n")
        return int(ExitCode.DONE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "freehold"
        output.error(UsageError(error.format_message(), next_step=f"{path} --help", kind="usage"))
        return int(ExitCode.USAGE)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(ExitCode.ERROR)
    except OSError as error:
        if error.errno not in REFUSALS:
            return _defect(output, error)
        name = error.filename2 or error.filename  # of a copy, the one that is written
        where = f"{name}: " if name else ""
        step = "look at the room, the rights and the disk there, then run it again"
        output.error(CommandError(f"{where}{(error.strerror or str(error)).lower()}", next_step=step, kind="os"))
        return int(ExitCode.ERROR)
    except (DecodeError, msgspec.DecodeError) as error:
        message, step = (
            f"what a node or a file says cannot be read: {error}",
            "freehold doctor; freehold --version there",
        )
        output.error(CommandError(message, next_step=step, kind="unreadable"))
        return int(ExitCode.ERROR)
    except Exception as error:
        return _defect(output, error)
    return result if isinstance(result, int) else int(ExitCode.DONE)


def _defect(output: Output, error: Exception) -> int:
    output.trace(error)
    message = f"this is a defect in freehold ({type(error).__name__}: {error})"
    output.error(CommandError(message, next_step="report it with the traceback above", kind="internal"))
    return int(ExitCode.ERROR)
