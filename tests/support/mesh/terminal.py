"""A person at a terminal of 80 columns: commands are typed into a shell of its own session, answers to prompts as well.

Both outputs come through one pseudo-terminal, as a person sees them; colours are taken away. Not here: what is typed.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
OVERWRITTEN = re.compile(rb"[^\n]*\r(?!\n|\Z)")
"""What stood on a line before the cursor went back to its beginning: a moving line's earlier states."""
ROWS, COLUMNS = 50, 80


class Terminal:
    """One command in a terminal of its own, until it ends; `said` is all that it has shown so far."""

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Start `command` in `folder`, as a shell would, with this terminal as the controlling one."""
        self.command = command
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        in_session = ["setsid", "--ctty", "bash", "-c", f"exec {command}"]
        self.process = subprocess.Popen(
            in_session,
            cwd=folder,
            env={**environment, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._raw = b""
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._master], [], [], 0.2)
            try:
                data = os.read(self._master, 65536) if ready else None
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            with self._grown:
                if data:
                    self._raw += data
                self._grown.notify_all()
            if data == b"" or (data is None and self.process.poll() is not None):
                return

    @property
    def said(self) -> str:
        """What stands on the terminal, without colours."""
        shown = OVERWRITTEN.sub(b"", ANSI.sub(b"", self._raw).replace(b"\r\r", b"\r"))
        return shown.replace(b"\r", b"").decode(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float, after: int = 0) -> re.Match[str]:
        """Wait until the terminal shows a pattern, behind the first `after` characters."""
        wanted = re.compile(pattern, re.MULTILINE)
        deadline_s = time.monotonic() + timeout_s
        with self._grown:
            while (answer := wanted.search(self.said, after)) is None:
                left_s = deadline_s - time.monotonic()
                told = f"{self.command}: no {pattern!r} within {timeout_s:.0f} s in:\n{self.said}"
                assert left_s > 0, told
                assert self._reader.is_alive(), told
                self._grown.wait(min(left_s, 1.0))
        return answer

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, text.encode() + b"\n")

    def end(self, timeout_s: float, typing: Sequence[tuple[str, str]] = ()) -> tuple[int, str]:
        """Answer each prompt as it comes, wait for the end, and return the exit code and what was shown."""
        seen = 0
        for prompt, text in typing:
            seen = self.wait_for(prompt, timeout_s, seen).end()
            self.type(text)
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        os.close(self._master)
        return code, self.said

    def interrupt(self, timeout_s: float = 60) -> tuple[int, str]:
        """Press Ctrl-C, and wait for the end."""
        os.write(self._master, b"\x03")
        return self.end(timeout_s)

    def kill(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(10)
