"""Reading HTTP message signatures as any conforming client writes them (RFC 9421): label, order and key id are free.

One signature is taken: the first that is Ed25519, names its time, and covers enough that it is good for this request
alone. Header fields beyond that may be covered too. Not here: whose the key is, time, replays (callers.py), and what our
own client covers (protocols/trust/request_signatures.py).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import http_sf
from multidict import CIMultiDictProxy
from yarl import URL

FIELD_MAX_CHARS = 4_096
LABELS_MAX = 4
COMPONENTS_MAX = 24
TEXT_MAX_CHARS = 256
SIGNATURE_BYTES = 64

WHOLE_TARGETS = (("@target-uri",), ("@authority", "@request-target"), ("@authority", "@path", "@query"))
"""Sets of components any of which says where a request goes, whole."""

_FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_HEX_KEY = re.compile("(?:ed25519:)?([0-9a-fA-F]{64})")
_BASE64_KEY = re.compile("(?:ed25519:)?([A-Za-z0-9+/_-]{43})=?")


class UnreadableError(Exception):
    """Why no signature of a request can be taken, for who sent it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: the method, the Host field, the path with its query as sent, and all header fields."""

    method: str
    scheme: str
    authority: str
    raw_path: str
    headers: CIMultiDictProxy[str]


@dataclass(frozen=True, slots=True)
class Presented:
    """A signature as presented: times in Unix seconds (`expires_s` 0: none); `base` is what it must cover."""

    keyid: str
    created_s: int
    expires_s: int
    nonce: str
    covered: tuple[str, ...]
    signature: bytes
    base: bytes


def read_signature(target: Target, *, has_body: bool) -> Presented:
    """Return the signature to verify. Raises UnreadableError naming what is missing or wrong with the first one."""
    inputs = _dictionary(target.headers, "Signature-Input")
    signatures = _dictionary(target.headers, "Signature")
    if not inputs or not signatures:
        raise UnreadableError("the fields Signature-Input and Signature are missing (RFC 9421)")
    if len(inputs) > LABELS_MAX:
        raise UnreadableError(f"{len(inputs)} signatures; at most {LABELS_MAX} are read")
    problems = []
    for label, member in inputs.items():
        try:
            return _read(label, member, signatures.get(label), target, has_body=has_body)
        except UnreadableError as error:
            problems.append(str(error))
    raise UnreadableError(problems[0])


def key_named(keyid: str) -> bytes | None:
    """Return the 32-byte key that a key id spells, in hex or base64; None if it is a name."""
    if answer := _HEX_KEY.fullmatch(keyid):
        return bytes.fromhex(answer[1])
    if answer := _BASE64_KEY.fullmatch(keyid):
        return base64.urlsafe_b64decode(answer[1].replace("+", "-").replace("/", "_") + "=")
    return None


def _dictionary(headers: CIMultiDictProxy[str], name: str) -> dict[str, Any]:
    text = ", ".join(headers.getall(name, ()))
    if len(text) > FIELD_MAX_CHARS:
        raise UnreadableError(f"the field {name} is over {FIELD_MAX_CHARS} characters")
    if not text:
        return {}
    twice: list[str] = []

    def on_duplicate(key: str, context: str) -> None:
        twice.append(f"{context} {key}")

    try:
        parsed: Any = http_sf.parse(text.encode("ascii"), tltype="dictionary", on_duplicate_key=on_duplicate)
    except (ValueError, RecursionError):  # StructuredFieldError and UnicodeEncodeError are ValueErrors
        raise UnreadableError(f"the field {name} is no dictionary of structured fields (RFC 9651)") from None
    if twice:
        raise UnreadableError(f"the field {name} names something twice")
    return dict(parsed)


def _read(label: str, member: Any, signature: Any, target: Target, *, has_body: bool) -> Presented:
    components, parameters = member if isinstance(member, tuple) and len(member) == 2 else (None, {})
    if not isinstance(components, list) or not isinstance(parameters, dict):
        raise UnreadableError(f"Signature-Input of {label[:40]} is no list of components")
    if len(components) > COMPONENTS_MAX:
        raise UnreadableError(f"over {COMPONENTS_MAX} components are covered")
    raw = signature[0] if isinstance(signature, tuple) else None
    if not isinstance(raw, bytes) or len(raw) != SIGNATURE_BYTES:
        raise UnreadableError(f"Signature has no {SIGNATURE_BYTES} bytes under the label {label[:40]}")
    alg = parameters.get("alg", "ed25519")
    if alg != "ed25519":
        raise UnreadableError("alg must be ed25519, or be left out")
    created_s, expires_s = parameters.get("created"), parameters.get("expires", 0)
    if type(created_s) is not int or type(expires_s) is not int:
        raise UnreadableError("the parameter created, in Unix seconds, is missing or no whole number")
    keyid, nonce = _text(parameters, "keyid"), _text(parameters, "nonce")
    if not keyid:
        raise UnreadableError("the parameter keyid is missing: the public key in hex or base64, or its holder's name")
    names = tuple(_component(component) for component in components)
    if len(set(names)) != len(names):
        raise UnreadableError("a component is covered twice")
    _require_covered(names, target, has_body=has_body)
    lines = [f'"{name}": {_value(name, target)}' for name in names]
    written = http_sf.ser({label: (components, parameters)}).removeprefix(f"{label}=")
    base = "\n".join((*lines, f'"@signature-params": {written}'))
    try:
        return Presented(keyid, created_s, expires_s, nonce, names, raw, base.encode("ascii"))
    except UnicodeEncodeError:
        raise UnreadableError("a covered component is not ASCII") from None


def _text(parameters: Mapping[str, Any], name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str) or len(value) > TEXT_MAX_CHARS:
        raise UnreadableError(f"the parameter {name} is no text of at most {TEXT_MAX_CHARS} characters")
    return value


def _component(item: Any) -> str:
    name, parameters = item if isinstance(item, tuple) else (None, None)
    if not isinstance(name, str) or parameters:
        raise UnreadableError("components are plain names: no parameters such as sf, key, bs, req")
    return name


def _require_covered(names: tuple[str, ...], target: Target, *, has_body: bool) -> None:
    if "@method" not in names:
        raise UnreadableError('"@method" is not covered')
    if not any(set(target) <= set(names) for target in WHOLE_TARGETS):
        raise UnreadableError('"@target-uri" is not covered (nor "@authority" with "@request-target")')
    if "content-digest" not in names and (has_body or "Content-Digest" in target.headers):
        raise UnreadableError('"content-digest" is not covered, and there is a body (RFC 9530)')


def _value(name: str, target: Target) -> str:
    url = URL(f"{target.scheme}://{target.authority}{target.raw_path}", encoded=True)
    match name:
        case "@method":
            return target.method
        case "@target-uri":
            return f"{target.scheme}://{target.authority}{target.raw_path}"
        case "@authority":
            default = ":443" if target.scheme == "https" else ":80"
            return target.authority.lower().removesuffix(default)
        case "@scheme":
            return target.scheme
        case "@request-target":
            return target.raw_path
        case "@path":
            return url.raw_path or "/"
        case "@query":
            return f"?{target.raw_path.partition('?')[2]}"
        case _:
            pass
    if name.startswith("@") or not _FIELD_NAME.fullmatch(name):
        raise UnreadableError(f"the component {name[:40]!r} is not known here")
    values = target.headers.getall(name, None)
    if values is None:
        raise UnreadableError(f"the covered field {name} is not there")
    return ", ".join(value.strip() for value in values)
