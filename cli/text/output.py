"""What a command says, and where: results on standard output, everything else on standard error.

With `--json` the one object on standard output is the whole answer, with a stable shape: `{"ok": true, ...}` or
`{"ok": false, "error": {"kind", "message", "next_step"}, ...}`. Without a terminal there is no colour and no moving
progress. Not here: what commands do.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cli.errors import CommandError
from cli.text.foreign import harmless, json_text, one_line

if TYPE_CHECKING:
    from rich.progress import Progress

ANNOTATIONS_MAX = 10
PLACE = re.compile(r"(?P<file>[^\s:]{1,200}):(?P<line>[0-9]{1,7}):(?P<column>[0-9]{1,7}): (?P<said>.*)")

FIRST_COLUMN = re.compile(r"\s*\S+(?: \S+)*?\s{2,}(?=\S)")
"""A line's label, up to the gap before what is said of it."""


def fold(text: str, width: int) -> str:
    """Return text with its long lines broken between words, their rest under the second column or indented.

    Words are never broken: a path or a digest that is longer than a line stays whole, to be copied.
    """
    return "\n".join(_fold_line(line, width) for line in text.split("\n"))


def workflow_commands(message: str, environment: Mapping[str, str]) -> list[str]:
    """Return an error as workflow commands, which GitHub's and Forgejo's runners show at the line of the file they name."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    texts: list[str] = []
    for line in message.splitlines()[:ANNOTATIONS_MAX]:
        place = PLACE.fullmatch(line.strip())
        where = f" file={_property(place['file'])},line={place['line']},col={place['column']}" if place else ""
        said = place["said"] if place else line
        if place or len(texts) == 0:
            texts.append(f"::error{where}::{_data(said)}")
    return texts


def _data(text: str) -> str:
    """Text as the data of a workflow command: a line break would begin another command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _fold_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    label = FIRST_COLUMN.match(line)
    indent = len(line) - len(line.lstrip()) + 2
    if label is not None and label.end() <= width // 2:
        indent = label.end()
    folded = textwrap.wrap(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(folded)


def _moving_line(console: Console) -> Progress:
    """A spinner, a text cut to the line, and the seconds; imported here because it takes as long as all the rest."""
    from rich.progress import Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    text = TextColumn("{task.description}", "dim", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return Progress(SpinnerColumn(), text, TextColumn("{task.elapsed:.0f} s"), console=console, transient=True)


class Output:
    """One command's voice. It is also the `Progress` that builds report to."""

    def __init__(self, *, as_json: bool, next_step: Callable[[str], str] = str, line_by_line: bool = False) -> None:
        """`next_step` makes what a command knows to be next right for how it was called.

        `line_by_line` is of a command that keeps running, and answers with one JSON object a line.
        """
        self.as_json = as_json
        self._line_by_line = line_by_line
        self._next_step = next_step
        # Rich breaks lines at 80 columns where there is no terminal, which would cut paths and digests in two.
        width = None if sys.stderr.isatty() else 10_000
        self._err = Console(stderr=True, highlight=False, width=width, soft_wrap=True)
        self._moving: Progress | None = None
        self._done: Text | None = None
        self._since_s = 0.0

    @property
    def is_interactive(self) -> bool:
        """Whether a person may be asked something."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def step(self, app: str, text: str) -> None:
        """Tell what is being done now, for one app ("" for the whole project); on a terminal with its seconds."""
        app, text = one_line(app), one_line(text)
        line = Text.assemble("  ", (f"{app}: " if app else "", "cyan"), text)
        if not self._err.is_terminal:
            self._err.print(line)
            return
        self._settle()
        self._done = line
        self._move(f"{app}: {text}" if app else text)

    def live(self, text: str) -> None:
        """On a terminal, show in one moving line where things stand; it leaves nothing behind."""
        if not self._err.is_terminal:
            return
        if self._done is not None:
            self._settle()
        self._move(one_line(text))

    def _move(self, text: str) -> None:
        if self._moving is None:
            self._moving = _moving_line(self._err)
            self._moving.start()
            self._moving.add_task(text)
            self._since_s = time.monotonic()
        self._moving.update(self._moving.task_ids[0], description=text)

    def happened(self, text: str) -> None:
        """Tell what has just happened; what moves goes on moving."""
        self._err.print(Text(self._folded(f"  {text}")))

    def _settle(self) -> None:
        """Take the moving line away: what it told of is over, and stands above with the seconds it took."""
        if self._moving is None:
            return
        self._moving.stop()
        self._moving = None
        seconds = time.monotonic() - self._since_s
        if self._done is not None:
            self._err.print(self._done.append(f"  {seconds:.0f} s" if seconds >= 1 else "", "dim"))
        self._done = None

    def close(self) -> None:
        """End what moves, however the command ends: the cursor is shown again."""
        self._settle()

    def _folded(self, text: str) -> str:
        text = harmless(text)
        return fold(text, self._err.width) if self._err.is_terminal else text

    def note(self, text: str) -> None:
        """Tell something worth knowing."""
        self._settle()
        self._err.print(Text(self._folded(text)))

    def ask(self, question: str) -> bool:
        """Ask a person at the terminal a question of yes or no; anything but a yes is a no."""
        self._settle()
        self._err.print(Text(f"{harmless(question)} [y/N] "), end="")
        return input().strip().lower() in {"y", "yes"}

    def warn(self, text: str) -> None:
        """Tell something that may need the reader."""
        self._err.print(Text.assemble(("warning: ", "yellow"), self._folded(f"warning: {text}")[9:]))

    def hint(self, text: str) -> None:
        """Tell what to run next."""
        self._err.print(Text.assemble(("next: ", "green"), one_line(self._next_step(text))))

    def mask(self, secret: str) -> None:
        """Have a runner that reads workflow commands hide a text wherever it comes up in the job's log."""
        if os.environ.get("GITHUB_ACTIONS") == "true":
            sys.stderr.write(f"::add-mask::{_data(secret)}\n")

    def line(self, text: Text, *, answer: bool = False) -> None:
        """Print one styled line on standard error; on standard output if it is part of the answer."""
        if (shown := harmless(text.plain)) != text.plain:
            text = Text(shown)
        console = Console(highlight=False) if answer else self._err
        if console.is_terminal:
            console.print(text, soft_wrap=False)
        else:
            console.print(text, soft_wrap=True)

    def result(self, value: Mapping[str, object], human: str) -> None:
        """Give the command's answer: `value` for programs, `human` for people."""
        self._settle()
        if self.as_json:
            sys.stdout.write(json_text({"ok": True, **value}, indent=2) + "\n")
        elif human := harmless(human):
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            sys.stdout.write((fold(human, width) if width else human) + "\n")
        sys.stdout.flush()

    def anew(self, text: str) -> None:
        """Show a text for people again, changed: on a terminal in place of what was there."""
        if self.as_json:
            return
        text = harmless(text)
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        width = shutil.get_terminal_size().columns if clear else None
        sys.stdout.write(f"{clear}{fold(text, width) if width else text}\n")
        sys.stdout.flush()

    def event(self, value: Mapping[str, object]) -> None:
        """Give one of many answers of a command that keeps running: one JSON object a line, only with `--json`."""
        if self.as_json:
            self._line_by_line = True
            sys.stdout.write(json_text(value) + "\n")
            sys.stdout.flush()

    def error(self, error: CommandError) -> None:
        """Say why the command failed and what to do."""
        if self.as_json:
            told = {"kind": error.kind, "message": str(error), "next_step": self._next_step(error.next_step)}
            indent = None if self._line_by_line else 2
            value = {"ok": False, "error": told, **error.answer}
            sys.stdout.write(json_text(value, indent) + "\n")
            sys.stdout.flush()
        self.failure(error)

    def trace(self, error: Exception) -> None:
        """Show where a defect came up; what an exception tells may be anybody's text."""
        self._settle()
        sys.stderr.write(harmless("".join(traceback.format_exception(error))))

    def failure(self, error: CommandError) -> None:
        """Say what went wrong without ending the command."""
        self._settle()
        for line in workflow_commands(str(error), os.environ):
            sys.stderr.write(f"{line}\n")
        self._err.print(Text.assemble(("error: ", "bold red"), self._folded(f"error: {error}")[7:]))
        self.hint(error.next_step)
