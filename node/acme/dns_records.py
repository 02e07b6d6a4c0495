"""DNS-01 (RFC 8555, 8.4): the TXT record that shows control of a zone, set by a command of yours or by RFC 2136.

A command gets "present" or "remove", the record's name and its text; it ends with 0 when the record is set. A name server
gets a signed update (TSIG, RFC 8945) by dnspython, which is loaded for that alone. Not here: when a record is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Final, Literal

from node.acme.client import AcmeError
from node.acme.jose import base64url
from node.config import AcmeSettings

HOOK_TIMEOUT_S: Final = 300.0
UPDATE_TIMEOUT_S: Final = 20.0
HOOK_SAID_MAX_BYTES: Final = 4096
TTL_S: Final = 60
ALGORITHMS: Final = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
"""RFC 8945, 6, without those that nobody should use."""

Act = Literal["present", "remove"]


def proof_name(name: str) -> str:
    """Where the record stands for a name; a wildcard's stands where its domain's does."""
    return "_acme-challenge." + name.removeprefix("*.")


def proof_text(authorization: str) -> str:
    """What the record says."""
    return base64url(hashlib.sha256(authorization.encode("ascii")).digest())


async def set_record(settings: AcmeSettings, act: Act, name: str, authorization: str) -> None:
    """Set or remove the record of a name, and when it was set wait until it can be seen. Raises AcmeError."""
    where, text = proof_name(name), proof_text(authorization)
    if settings.hook:
        await _run_hook((*settings.hook, act, where, text))
    else:
        await _update(settings, act, where, text)
    if act == "present":
        await asyncio.sleep(settings.propagation_s)


async def _run_hook(command: tuple[str, ...]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ},
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise AcmeError("hook", f"{command[0]}: {error.strerror}") from None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(HOOK_TIMEOUT_S):
            said = await process.stderr.read(HOOK_SAID_MAX_BYTES)
            while await process.stderr.read(HOOK_SAID_MAX_BYTES):
                pass  # a command that says much must not wait for a reader
            code = await process.wait()
    except TimeoutError:
        raise AcmeError("hook", f"{command[0]} took over {HOOK_TIMEOUT_S:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.kill()
    if code != 0:
        line = said.decode("utf-8", "replace").strip().splitlines()
        raise AcmeError("hook", f"{command[0]} ended with {code}: {line[-1] if line else 'without a word'}")


async def _update(settings: AcmeSettings, act: Act, where: str, text: str) -> None:
    import dns.asyncquery
    import dns.exception
    import dns.name
    import dns.rcode
    import dns.tsig
    import dns.tsigkeyring
    import dns.update

    key, algorithm, secret = read_tsig(Path(settings.tsig))
    host, _, port = settings.nameserver.rpartition(":")
    try:
        zone = dns.name.from_text(settings.zone)
        keyring = dns.tsigkeyring.from_text({key: secret})
        message = dns.update.UpdateMessage(zone, keyring=keyring, keyalgorithm=algorithm)
        name = dns.name.from_text(where).relativize(zone)
        if act == "present":
            message.add(name, TTL_S, "TXT", f'"{text}"')
        else:
            message.delete(name, "TXT", f'"{text}"')
        addresses = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port))
        answer = await dns.asyncquery.tcp(message, str(addresses[0][4][0]), UPDATE_TIMEOUT_S, int(port))
    except (dns.exception.DNSException, OSError, ValueError, EOFError) as error:
        raise AcmeError("nameserver", f"{settings.nameserver}: {type(error).__name__}: {error}") from None
    if answer.rcode() != dns.rcode.NOERROR:
        raise AcmeError("nameserver", f"{settings.nameserver} refuses the update: {dns.rcode.to_text(answer.rcode())}")


def read_tsig(path: Path) -> tuple[str, str, str]:
    """Return name, algorithm (of ALGORITHMS) and secret (base64) of a key file that only its user may read.

    Raises AcmeError.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise AcmeError("nameserver", f"{path} can be read by other users; run: chmod 600 {path}")
        parts = path.read_bytes()[:1024].decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise AcmeError("nameserver", f"{path} cannot be read: {error}") from None
    if len(parts) != 3 or parts[1].rstrip(".") not in ALGORITHMS:
        raise AcmeError("nameserver", f"{path} holds NAME ALGORITHM SECRET, for example: acme. hmac-sha256 c2Vj...")
    return parts[0], parts[1], parts[2]
