"""Asking a person at the terminal: passphrases and yes or no. Nothing here reads standard input, the environment or a flag.

A passphrase comes from the controlling terminal only. That is what keeps an agent that runs as the same user, with
the socket, the key file and --yes at hand, from approving anything. Not here: what is signed afterwards.
"""

from __future__ import annotations

import getpass
import os

from cli.access import contexts
from cli.errors import CommandError, ExitCode
from cli.text.output import Output
from protocols.keys import Ed25519Signer
from runtime.core_dumps import forbid_dumps


class NeedsPersonError(CommandError):
    """A person's sealed key is needed, and there is none here or no terminal to ask for its passphrase."""

    exit_code = ExitCode.REFUSED_BY_POLICY


def ask_passphrase(prompt: str) -> str:
    """Ask at the terminal without echo. Raises NeedsPersonError if there is none."""
    try:
        handle = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise NeedsPersonError(
            "this needs a person: the key is sealed, and there is no terminal to ask for its passphrase",
            next_step="run the same command on a terminal",
            kind="needs-person",
        ) from None
    os.close(handle)
    forbid_dumps()
    return getpass.getpass(prompt)


def ask_new_passphrase(what: str) -> str:
    """Ask twice for a new passphrase."""
    first = ask_passphrase(f"A passphrase for {what}, {contexts.PASSPHRASE_MIN_CHARACTERS} characters or more: ")
    contexts.require_long(first)
    if ask_passphrase("The same again: ") != first:
        raise CommandError("the two passphrases differ", next_step="run the command again", kind="passphrase")
    return first


def unlock(name: str, purpose: str) -> Ed25519Signer:
    """Open a sealed key for one purpose, named in the prompt. One that is not sealed, as freehold dev's, asks nothing."""
    if not contexts.is_sealed(name):
        return contexts.open_plain(name)
    return contexts.open_sealed(name, ask_passphrase(f"Passphrase of {name}, to {purpose}: "))


def confirm(output: Output, question: str, yes: bool) -> None:
    """Go on only if `--yes` was given or a person says so; a missing confirmation ends with a non-zero exit."""
    if yes:
        return
    if not output.is_interactive:
        raise CommandError(f"not confirmed: {question}", next_step="add --yes", kind="not-confirmed")
    if not output.ask(question):
        raise CommandError("declined; nothing was changed", next_step="run it again when ready", kind="declined")
