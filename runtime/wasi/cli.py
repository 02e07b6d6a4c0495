"""wasi:cli: environment, arguments, exit and the standard streams; a guest has no terminal and its stdin is empty.

Output goes to the guest's log. Not here: `run`, which a command exports (`sandbox.py` calls it).
"""

from __future__ import annotations

from typing import Final

from runtime.engine.codecs import Err, Ok
from runtime.engine.guest import ExitCalled, Guest, GuestLog, Resource
from runtime.engine.interface import Interface
from runtime.wasi.streams import EmptyInput, InputStream, OutputStream

OUTPUT_PERMIT_BYTES: Final = 64 * 1024


class TerminalInput(Resource, wit="terminal-input"):
    """Never made."""

    __slots__ = ()


class TerminalOutput(Resource, wit="terminal-output"):
    """Never made."""

    __slots__ = ()


class LogOutput(OutputStream):
    """Standard output or error, as log lines."""

    __slots__ = ("_log",)

    def __init__(self, log: GuestLog) -> None:
        super().__init__()
        self._log = log

    def permit(self) -> int | Err:
        """Always open: the log itself drops what is over its limit."""
        return OUTPUT_PERMIT_BYTES

    def put(self, data: bytes) -> Err | None:
        """Write to the log."""
        self._log.write(data)
        return None


environment: Final = Interface("wasi:cli/environment")
exit_: Final = Interface("wasi:cli/exit")
stdin: Final = Interface("wasi:cli/stdin")
stdout: Final = Interface("wasi:cli/stdout")
stderr: Final = Interface("wasi:cli/stderr")
terminal_input: Final = Interface("wasi:cli/terminal-input")
terminal_output: Final = Interface("wasi:cli/terminal-output")
terminal_stdin: Final = Interface("wasi:cli/terminal-stdin")
terminal_stdout: Final = Interface("wasi:cli/terminal-stdout")
terminal_stderr: Final = Interface("wasi:cli/terminal-stderr")

INTERFACES: Final = (
    environment, exit_, stdin, stdout, stderr,
    terminal_input, terminal_output, terminal_stdin, terminal_stdout, terminal_stderr,
)  # fmt: skip


@environment.function("get-environment")
def _get_environment(guest: Guest) -> list[tuple[str, str]]:
    return list(guest.services.spec.environment.items())


@environment.function("get-arguments")
def _get_arguments(guest: Guest) -> list[str]:
    return list(guest.arguments)


@environment.function("initial-cwd")
def _initial_cwd(guest: Guest) -> None:
    return None


@exit_.function("exit")
def _exit(guest: Guest, status: Ok | Err) -> None:
    raise ExitCalled(0 if isinstance(status, Ok) else 1)


@exit_.function("exit-with-code")
def _exit_with_code(guest: Guest, code: int) -> None:
    raise ExitCalled(code)


@stdin.function("get-stdin")
def _get_stdin(guest: Guest) -> InputStream:
    return EmptyInput()


@stdout.function("get-stdout")
def _get_stdout(guest: Guest) -> OutputStream:
    return LogOutput(guest.stdout)


@stderr.function("get-stderr")
def _get_stderr(guest: Guest) -> OutputStream:
    return LogOutput(guest.stderr)


@terminal_stdin.function("get-terminal-stdin")
@terminal_stdout.function("get-terminal-stdout")
@terminal_stderr.function("get-terminal-stderr")
def _no_terminal(guest: Guest) -> None:
    return None
