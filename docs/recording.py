"""Records a terminal in asciinema's format and draws a recording as an SVG that plays by itself, without a script.

A screen is what pyte, a terminal emulator, makes of the bytes. Each line that ever stood there is drawn once; a frame is a
list of lines, and the frames pass by like a film. Not here: what is typed (pictures.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pyte

COLUMNS, ROWS = 92, 26
PROMPT_MARK = b"\x1b]133;A\x07"
"""What a shell says before each prompt (FinalTerm's mark); no terminal shows it."""
TYPING_S = 0.045
IDLE_MAX_S = 1.6
"""A pause of the recording is shown no longer than this."""
FRAME_S = 0.25
"""What happens within this time is one frame."""
SPINNER = re.compile("[\u2800-\u28ff]")
"""How a line begins that only tells how long a command waits; while nothing else changes, time is cut as in a pause."""
REST_S = 4.0
"""The last frame stays this long before the film begins anew."""
CELL_PX, LINE_PX, EDGE_PX, BAR_PX = 8.43, 18, 14, 28
COLOURS = {
    "default": "#d6dae0", "black": "#6b7480", "red": "#ff8f8f", "green": "#7fd08f", "brown": "#f0b266", "blue": "#7db8f5",
    "magenta": "#d9a3f0", "cyan": "#7fd3d8", "white": "#f4f6f8",
}  # fmt: skip
Event = tuple[float, str]
Row = tuple[tuple[str, str, bool, int], ...]
"""Runs of one look: text, colour, bold, first column."""


class Recorder:
    """A shell at a terminal, typed into as a person does. Mutable: what was shown so far, and when."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Start a shell in `folder`."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        prompt = r"\[\e]133;A\a\]\[\e[32m\]$\[\e[0m\] "
        command = ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"]
        self._shell = subprocess.Popen(  # noqa: S603 (a shell of our own)
            command, cwd=folder, stdin=slave, stdout=slave, stderr=slave,
            env={**environment, "PS1": prompt, "TERM": "xterm-256color", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
        )  # fmt: skip
        os.close(slave)
        self._began_s, self.events, self._prompts = time.monotonic(), list[Event](), 0
        self._read_until_prompt(20.0)
        self.events.clear()
        self._hear(PROMPT_MARK + b"\x1b[32m$\x1b[0m ")

    def _hear(self, data: bytes) -> None:
        self._prompts += data.count(PROMPT_MARK)
        self.events.append((time.monotonic() - self._began_s, data.decode(errors="replace")))

    def _read(self, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([self._master], [], [], left_s)[0]:
                self._hear(os.read(self._master, 65536))

    def _read_until_prompt(self, timeout_s: float) -> None:
        seen, until_s = self._prompts, time.monotonic() + timeout_s
        while self._prompts == seen:
            assert time.monotonic() < until_s, "".join(text for _, text in self.events)
            self._read(0.05)

    def run(self, line: str, timeout_s: float = 300.0) -> None:
        """Type a command, and wait until the shell asks for the next one."""
        self._read(0.8)
        for letter in line:
            os.write(self._master, letter.encode())
            self._read(TYPING_S)
        self._read(0.3)
        os.write(self._master, b"\n")
        self._read_until_prompt(timeout_s)

    def close(self) -> None:
        """End the shell."""
        self._shell.send_signal(signal.SIGHUP)
        self._shell.wait(10)
        os.close(self._master)

    def cast(self, title: str) -> str:
        """The recording in asciinema's format, version 2."""
        head = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": IDLE_MAX_S, "title": title}
        return (
            "\n".join(map(json.dumps, (head, *([round(number, 3), "o", text] for number, text in self.events)))) + "\n"
        )


def draw(cast: str) -> str:
    """The SVG of a recording."""
    head, *events = map(json.loads, cast.splitlines())
    screen = pyte.Screen(head["width"], head["height"])
    frames = _frames(screen, [(entry, text) for entry, _, text in events], head["idle_time_limit"])
    return _film(head["title"], screen, frames)


def _frames(screen: pyte.Screen, events: Sequence[Event], idle_max_s: float) -> list[tuple[float, tuple[Row, ...]]]:
    """What stood on the screen, from which second on; pauses are shortened."""
    stream, pairs = pyte.Stream(screen), list[tuple[float, tuple[Row, ...]]]()
    now_s = before_s = still_s = 0.0
    still: tuple[Row, ...] = ()
    for at_s, text in events:
        passed_s = min(at_s - before_s, idle_max_s - still_s)
        now_s, still_s, before_s = now_s + passed_s, still_s + passed_s, at_s
        stream.feed(text)
        rows = tuple(_row(screen, number) for number in range(screen.lines))
        told = tuple(row for row in rows if row and not SPINNER.match(row[0][0]))
        if told != still:
            still, still_s = told, 0.0
        if pairs and (pairs[-1][1] == rows or still_s >= idle_max_s):
            continue
        if pairs and now_s - pairs[-1][0] < FRAME_S:
            pairs[-1] = (pairs[-1][0], rows)
        else:
            pairs.append((now_s, rows))
    return pairs


def _row(screen: pyte.Screen, number: int) -> Row:
    """One line of the screen as runs of one look; a cursor is drawn by nobody."""
    runs: list[tuple[str, str, bool, int]] = []
    for column in range(screen.columns):
        cell = screen.buffer[number][column]
        look = COLOURS.get(cell.fg.removeprefix("bright"), f"#{cell.fg}"), cell.bold
        if runs and runs[-1][1:3] == look:
            runs[-1] = (runs[-1][0] + cell.data, *look, runs[-1][3])
        else:
            runs.append((cell.data, *look, column))
    return tuple(run for run in ((text.rstrip(), *look) for text, *look in runs) if run[0])  # type: ignore[misc]


def _film(title: str, screen: pyte.Screen, frames: Sequence[tuple[float, tuple[Row, ...]]]) -> str:
    width, tall = round(screen.columns * CELL_PX + 2 * EDGE_PX), screen.lines * LINE_PX + 2 * EDGE_PX
    names: dict[Row, str] = {}
    shown = []
    for index, (_, rows) in enumerate(frames):
        lines = [(number, row) for number, row in enumerate(rows) if row]
        uses = "".join(
            f'<use href="#{names.setdefault(row, f"l{len(names)}")}" y="{index * tall + EDGE_PX + number * LINE_PX}"/>'
            for number, row in lines
        )
        shown.append(uses)
    whole_s = frames[-1][0] + REST_S
    steps = "".join(
        f"{100 * number / whole_s:.2f}%{{transform:translateY(-{index * tall}px)}}"
        for index, (number, _) in enumerate(frames)
    )
    last = f"transform:translateY(-{(len(frames) - 1) * tall}px)"
    style = (
        f".film{{animation:film {whole_s:.1f}s step-end infinite}}@keyframes film{{{steps}100%{{{last}}}}}"
        f"@media(prefers-reduced-motion:reduce){{.film{{animation:none;{last}}}}}"
        "text{font:14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre}.b{font-weight:700}"
    )
    lines = "".join(f'<g id="{name}">{"".join(map(_run, row))}</g>' for row, name in names.items())
    dots = "".join(f'<circle cx="{20 + 18 * index}" cy="14" r="5" fill="#3a4047"/>' for index in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall + BAR_PX}" width="{width}" '
        f'height="{tall + BAR_PX}" role="img"><title>{escape(title)}</title><style>{style}</style><defs>{lines}</defs>'
        f'<rect width="100%" height="100%" rx="8" fill="#14171a"/>{dots}'
        f'<svg y="{BAR_PX}" width="{width}" height="{tall}" overflow="hidden"><g class="film">{"".join(shown)}</g></svg>'
        "</svg>\n"
    )


def _run(run: tuple[str, str, bool, int]) -> str:
    text, colour, bold, column = run
    width = f' textLength="{len(text) * CELL_PX:.1f}" lengthAdjust="spacingAndGlyphs"'
    place = f'x="{EDGE_PX + column * CELL_PX:.1f}" y="14" fill="{colour}"'
    strong = ' class="b"' if bold else ""
    return f"<text {place}{width}{strong}>{escape(text)}</text>"
