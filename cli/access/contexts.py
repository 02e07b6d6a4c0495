"""The user's folder: which meshes are known (contexts), and the keys of the principals who act from here.

    ~/.config/freehold/contexts.json         contexts, and the current one
    ~/.config/freehold/keys/NAME.json        one principal's key; a person's admin or approver key is sealed by a passphrase

On a runner neither is there: one variable, FREEHOLD_TOKEN, holds address, pin and key.

The context `dev` is none of these: it is the mesh of one of the project here, as `freehold dev` left it beside the project.
A sealed key opens only with its passphrase, typed on the terminal: whoever merely runs as this user (an agent, a
script with --yes) cannot approve or administer. Sealing: scrypt (RFC 7914, n = 2**17, r = 8, p = 1) and
ChaCha20-Poly1305 (RFC 8439).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import click
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cli.access.pasted import pasted_bytes, pasted_line
from cli.errors import CommandError, UsageError
from node.keys import write_private
from protocols.keys import SEED_BYTES, Ed25519Signer
from runtime.durable import sync_folder

SCRYPT_N = 1 << 17
PASSPHRASE_MIN_CHARACTERS = 8
ENVIRONMENT_DEFAULT = "production"
FIRST_STEP = "freehold mesh create NAME; with an invite, freehold login LINE"
"""For who has no mesh yet."""

DEV_CONTEXT = "dev"
"""What the context of the project's own mesh of one is called, everywhere; no other can be."""
DEV_ENVIRONMENT = "dev"
DEV_FOLDER = ".freehold/dev"
_AAD = b"freehold/key/1"

TOKEN_VARIABLE, TOKEN_PREFIX = "FREEHOLD_TOKEN", "fhk1."
"""A runner's context and key in one environment variable; --context and FREEHOLD_CONTEXT go before it."""
TOKEN_MAX_CHARACTERS = 2_048


class Context(msgspec.Struct, frozen=True):
    """One mesh as it is reached from here: the API's address, and the names of the keys that act in it.

    On the node's own machine that is the Unix socket; elsewhere `socket` is empty and `url` (https://HOST:PORT) leads
    to a certificate whose hex SHA-256 is `pin`. `key` signs everyday work (propose, deploy) and the requests to a url;
    `admin` is the sealed key, empty if this user has none. `start` is the command that starts the node.
    """

    mesh: str
    socket: str
    key: str
    admin: str = ""
    url: str = ""
    pin: str = ""
    start: str = "freehold node run"

    @property
    def where(self) -> str:
        """The address, for people."""
        return self.url or self.socket


class Contexts(msgspec.Struct, frozen=True):
    """All contexts, and the name of the current one."""

    current: str = ""
    contexts: dict[str, Context] = {}


class StoredKey(msgspec.Struct, frozen=True):
    """One key file. `sealed` holds the seed itself, or its ciphertext when `kind` is "sealed"."""

    kind: Literal["plain", "sealed"]
    public_key: str
    seed: bytes
    salt: bytes = b""
    nonce: bytes = b""


class RunnerToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a runner needs to act in a mesh: its id (hex), an HTTPS address, what that is believed by, and a key."""

    mesh: str
    url: str
    pin: str
    seed: bytes

    @property
    def context(self) -> Context:
        """The context it stands for; its key is read from the variable each time."""
        return Context(
            self.mesh, "", TOKEN_VARIABLE, url=self.url, pin=self.pin, start="check that the runner reaches it"
        )

    def text(self) -> str:
        """The one string, for one variable."""
        return pasted_line(TOKEN_PREFIX, msgspec.json.encode(self))


def token_of(text: str) -> RunnerToken:
    """Read the string of a runner. Raises UsageError without showing any of it."""
    step = "freehold token create ci --role deployer --runner, then put its text into the secret FREEHOLD_TOKEN"
    try:
        data = pasted_bytes(text, TOKEN_PREFIX, TOKEN_MAX_CHARACTERS)
        if data is None:
            is_bearer = text.startswith("fht1.")
            what = "a bearer token, which cannot sign" if is_bearer else f"no text that begins {TOKEN_PREFIX}"
            raise UsageError(f"{TOKEN_VARIABLE} holds {what}", next_step=step, kind="token")
        runner_token = msgspec.json.decode(data, type=RunnerToken)
    except (ValueError, msgspec.DecodeError):
        raise UsageError(f"{TOKEN_VARIABLE} is damaged or cut off", next_step=step, kind="token") from None
    if (
        len(runner_token.seed) != SEED_BYTES
        or len(runner_token.pin) != 64
        or not runner_token.url.startswith("https://")
    ):
        raise UsageError(f"{TOKEN_VARIABLE} is damaged", next_step=step, kind="token")
    return runner_token


def home_folder() -> Path:
    """The folder, made with mode 0700. FREEHOLD_HOME overrides it."""
    base = os.environ.get("FREEHOLD_HOME")
    folder = Path(base) if base else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "freehold"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def read_contexts() -> Contexts:
    """Return all contexts; none if there is no file."""
    path = home_folder() / "contexts.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contexts)
    except FileNotFoundError:
        return Contexts()
    except msgspec.DecodeError as error:
        step = f"correct {path}, or move it away and make its contexts anew (the keys beside it are kept)"
        raise _damaged(path, error, step) from None


def write_context(name: str, context: Context, *, current: bool = True) -> None:
    """Store a context and make it the current one, unless told to leave that as it is."""
    known = read_contexts()
    write_contexts(Contexts(name if current else known.current, {**known.contexts, name: context}))


def write_contexts(contexts: Contexts) -> None:
    """Replace the file."""
    path = home_folder() / "contexts.json"
    temporary = path.with_suffix(".new")
    write_durably(temporary, msgspec.json.format(msgspec.json.encode(contexts)))
    temporary.replace(path)
    sync_folder(path.parent)


def current_context(name: str | None = None) -> tuple[str, Context]:
    """Return the named or the current context. Raises UsageError if there is none."""
    named = name or os.environ.get("FREEHOLD_CONTEXT")
    if named == DEV_CONTEXT:
        return DEV_CONTEXT, read_dev_context(Path.cwd())
    if named is None and os.environ.get(TOKEN_VARIABLE):
        return TOKEN_VARIABLE, token_of(os.environ[TOKEN_VARIABLE]).context
    known = read_contexts()
    wanted = named or known.current
    if wanted not in known.contexts:
        what = f"there is no context {wanted!r}" if wanted else "no mesh is known here"
        step = "freehold context list" if wanted else FIRST_STEP
        if not wanted and has_dev_context(Path.cwd()):
            what += f", but {DEV_CONTEXT}, the mesh of one of this project"
            step = f"add --context {DEV_CONTEXT}, or set FREEHOLD_CONTEXT={DEV_CONTEXT}; to deploy elsewhere, {step}"
        raise UsageError(what, next_step=step, kind="no-context")
    return wanted, known.contexts[wanted]


def known_context(name: str | None = None) -> Context | None:
    """Return the named or the current context; None where none is named and no mesh is known here."""
    named = name or os.environ.get("FREEHOLD_CONTEXT") or os.environ.get(TOKEN_VARIABLE)
    if not named and not read_contexts().contexts:
        return None
    return current_context(name)[1]


def write_dev_context(folder: Path, context: Context) -> None:
    """Leave the context of a project's mesh of one in its folder, for `--context dev`."""
    temporary = folder / "context.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(context)))
    temporary.replace(folder / "context.json")


def read_dev_context(start: Path) -> Context:
    """Return the context of the project at `start` or in the nearest folder above it. Raises UsageError."""
    for folder in (start, *start.parents):
        try:
            return msgspec.json.decode((folder / DEV_FOLDER / "context.json").read_bytes(), type=Context)
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise UsageError(
        f"no project in {start} or above it was run by freehold dev", next_step="freehold dev", kind="no-context"
    )


def has_dev_context(start: Path) -> bool:
    """Whether `freehold dev` ran for the project at `start` or in a folder above it."""
    return any((folder / DEV_FOLDER / "context.json").is_file() for folder in (start, *start.parents))


def default_environment() -> str:
    """Where commands act unless they are told: production, or the one environment of a project's mesh of one."""
    command = click.get_current_context(silent=True)
    named = (command.params.get("context_name") if command else None) or os.environ.get("FREEHOLD_CONTEXT")
    return DEV_ENVIRONMENT if named == DEV_CONTEXT else ENVIRONMENT_DEFAULT


def require_free_name(name: str) -> None:
    """Raise UsageError if a context may not be called this."""
    if name == DEV_CONTEXT:
        raise UsageError(
            f"{DEV_CONTEXT} is what freehold dev's own mesh is called", next_step="choose another name", kind="reserved"
        )


def key_path(name: str) -> Path:
    """Where a key is kept; a name that is a path is that of a key which a project's mesh of one keeps."""
    if "/" in name:
        return Path(f"{name}.json")
    folder = home_folder() / "keys"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder / f"{name}.json"


def store_plain(name: str, seed: bytes) -> Ed25519Signer:
    """Keep an everyday key, readable by this user alone."""
    signer = Ed25519Signer(seed)
    _store(name, StoredKey("plain", signer.public_key.hex(), seed))
    return signer


def require_long(passphrase: str) -> None:
    """Raise UsageError for a passphrase that is too short."""
    if len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
        raise UsageError(
            f"a passphrase needs at least {PASSPHRASE_MIN_CHARACTERS} characters",
            next_step="run the command again",
            kind="passphrase",
        )


def store_sealed(name: str, seed: bytes, passphrase: str, entropy: bytes) -> Ed25519Signer:
    """Keep a key that opens only with its passphrase; `entropy` is 28 fresh random bytes."""
    require_long(passphrase)
    signer = Ed25519Signer(seed)
    salt, nonce = entropy[:16], entropy[16:28]
    sealed = ChaCha20Poly1305(_stretch(passphrase, salt)).encrypt(nonce, seed, _AAD)
    _store(name, StoredKey("sealed", signer.public_key.hex(), sealed, salt, nonce))
    return signer


def change_passphrase(name: str, signer: Ed25519Signer, seed: bytes, passphrase: str | None, entropy: bytes) -> None:
    """Keep a key under another passphrase, or under none: the file is the old one or the new one, whatever happens."""
    if passphrase is None:
        stored = StoredKey("plain", signer.public_key.hex(), seed)
    else:
        require_long(passphrase)
        salt, nonce = entropy[:16], entropy[16:28]
        sealed = ChaCha20Poly1305(_stretch(passphrase, salt)).encrypt(nonce, seed, _AAD)
        stored = StoredKey("sealed", signer.public_key.hex(), sealed, salt, nonce)
    write_private(key_path(name), msgspec.json.format(msgspec.json.encode(stored)))


def seed_of(name: str, passphrase: str | None) -> bytes:
    """Return a key's seed, to keep it elsewhere. Raises CommandError if the passphrase is wrong."""
    stored = _read(name)
    if stored.kind == "plain":
        return stored.seed
    try:
        return ChaCha20Poly1305(_stretch(passphrase or "", stored.salt)).decrypt(stored.nonce, stored.seed, _AAD)
    except InvalidTag:
        raise CommandError("the passphrase is wrong", next_step="run the command again", kind="passphrase") from None


def public_key(name: str) -> bytes:
    """Return a key's public part without opening it."""
    return bytes.fromhex(_read(name).public_key)


def open_plain(name: str) -> Ed25519Signer:
    """Return an everyday key's signer. Raises CommandError for a sealed one."""
    stored = _read(name)
    if stored.kind != "plain" or len(stored.seed) != SEED_BYTES:
        raise CommandError(f"the key {name} is sealed", next_step="run this on a terminal", kind="sealed-key")
    return Ed25519Signer(stored.seed)


def open_sealed(name: str, passphrase: str) -> Ed25519Signer:
    """Open a sealed key. Raises CommandError if the passphrase is wrong."""
    return Ed25519Signer(seed_of(name, passphrase))


def is_sealed(name: str) -> bool:
    """Whether a key needs a passphrase."""
    return _read(name).kind == "sealed"


def _read(name: str) -> StoredKey:
    if not name:
        raise UsageError(
            "this context has no key to act with: it only looks at what its node sees",
            next_step="freehold context use NAME, of one that has (freehold context list); or freehold login LINE",
            kind="no-key",
        )
    if name == TOKEN_VARIABLE:
        seed = token_of(os.environ.get(TOKEN_VARIABLE, "")).seed
        return StoredKey("plain", Ed25519Signer(seed).public_key.hex(), seed)
    try:
        return msgspec.json.decode(key_path(name).read_bytes(), type=StoredKey)
    except FileNotFoundError:
        raise UsageError(f"there is no key {name} here", next_step="freehold context list", kind="no-key") from None
    except msgspec.DecodeError as error:
        raise _damaged(key_path(name), error, "restore the file from a backup, or log in again") from None


def _damaged(path: Path, error: Exception, step: str) -> CommandError:
    return CommandError(f"{path} is damaged: {error}", next_step=step, kind="damaged")


def _store(name: str, stored: StoredKey) -> None:
    path = key_path(name)
    if path.exists():
        raise UsageError(f"there is a key {name} already", next_step="choose another name", kind="key-exists")
    temporary = path.with_suffix(".new")
    write_durably(temporary, msgspec.json.format(msgspec.json.encode(stored)))
    temporary.rename(path)  # whole, or not there
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that survives a power cut; its name takes a `sync_folder`."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=8, p=1).derive(passphrase.encode())
