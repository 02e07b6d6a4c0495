"""A command that several admins sign one after the other: one line of text that goes from hand to hand.

Nobody who carries it can change it: each signature covers the whole command, which names the sequence it was made at.
Not here: showing what it does, and asking for a passphrase.
"""

from __future__ import annotations

from cli.access.pasted import pasted_bytes, pasted_line
from cli.errors import UsageError
from protocols.envelope import DecodeError, decode, encode, signing_bytes
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.state.commands import COMMAND_DOMAIN, Command, SetAdmins, Signature, SignedCommand

PREFIX = "fhs1."
TEXT_MAX_CHARACTERS = 16_384
STEP = "freehold mesh admins, then make the statement anew"


def write_statement(signed: SignedCommand) -> str:
    """Return the line."""
    return pasted_line(PREFIX, encode(signed))


def read_statement(text: str, mesh: bytes) -> tuple[SignedCommand, Command, SetAdmins]:
    """Return what a line holds, its signatures verified. Raises UsageError."""
    try:
        data = pasted_bytes(text, PREFIX, TEXT_MAX_CHARACTERS)
        if data is None:
            raise UsageError(f"a statement begins {PREFIX}", next_step=STEP, kind="statement")
        signed: SignedCommand = decode(data, SignedCommand)
        command: Command = decode(signed.payload, Command)
    except (DecodeError, ValueError):
        raise UsageError("the statement is damaged or cut off", next_step=STEP, kind="statement") from None
    if not isinstance(command.action, SetAdmins) or command.project or command.environment:
        raise UsageError("the statement is about something else than the admins", next_step=STEP, kind="statement")
    message = signing_bytes(COMMAND_DOMAIN, mesh, signed.payload)
    for signature in signed.signatures:
        if len(signature.key) != 32 or not Ed25519Verifier().verify(signature.key, message, signature.signature):
            raise UsageError("a signature of the statement is not good in this mesh", next_step=STEP, kind="statement")
    return signed, command, command.action


def add_signature(signed: SignedCommand, mesh: bytes, signer: Ed25519Signer) -> SignedCommand:
    """Return the command with one more signature; the same key's again changes nothing."""
    signatures = {signature.key: signature for signature in signed.signatures}
    signatures[signer.public_key] = Signature(
        signer.public_key, signer.sign(signing_bytes(COMMAND_DOMAIN, mesh, signed.payload))
    )
    return SignedCommand(signed.payload, tuple(signatures[key] for key in sorted(signatures)), signed.exhibits)
