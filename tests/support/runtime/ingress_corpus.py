"""Requests as nobody ought to send them, and what each is answered: for the real ingress, and for mutants of its parser.

Every input is followed by a whole request for /hello that asks to close: an input that is refused must swallow it, one
that is answered must not. Not here: slow or silent clients, and limits of an app.
"""

from __future__ import annotations

from dataclasses import dataclass

FOLLOWING = b"GET /hello HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`data` on a fresh connection is answered with `statuses`, the following request's among them if it is served."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


def _head(line: bytes = b"GET /hello HTTP/1.1", *fields: bytes, host: bytes = b"Host: app.test") -> bytes:
    return b"\r\n".join([line, *((host,) if host else ()), *fields, b"", b""])


def _post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return _head(b"POST /echo HTTP/" + version, *fields) + body


def _coded(coding: bytes) -> bytes:
    return _post(b"Transfer-Encoding: " + coding, body=b"3\r\nabc\r\n0\r\n\r\n")


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


_LINES: dict[str, tuple[bytes, int]] = {
    "unknown method": (_head(b"FOO /hello HTTP/1.1"), 501),
    "unknown method that begins as a known one": (_head(b"GETS /hello HTTP/1.1"), 501),
    "lower-case method": (_head(b"get /hello HTTP/1.1"), 501),
    "method of another protocol": (_head(b"PLAY /hello HTTP/1.1"), 501),
    "method and version of another protocol": (_head(b"PLAY /hello RTSP/1.0"), 501),
    "method of streaming servers": (_head(b"SOURCE /hello HTTP/1.1"), 501),
    "tunnel": (_head(b"CONNECT app.test:443 HTTP/1.1"), 501),
    "method with a control character": (_head(b"G\x01T /hello HTTP/1.1"), 400),
    "tab behind the method": (_head(b"GET\t/hello HTTP/1.1"), 400),
    "space before the method": (_head(b" GET /hello HTTP/1.1"), 400),
    "no target": (_head(b"GET HTTP/1.1"), 400),
    "space in the target": (_head(b"GET /hel lo HTTP/1.1"), 400),
    "NUL in the target": (_head(b"GET /hel\x00lo HTTP/1.1"), 400),
    "tab in the target": (_head(b"GET /hel\tlo HTTP/1.1"), 400),
    "byte above 127 in the target": (_head(b"GET /hel\xfflo HTTP/1.1"), 400),
    "fragment in the target": (_head(b"GET /hello#x HTTP/1.1"), 400),
    "relative target": (_head(b"GET hello HTTP/1.1"), 400),
    "target that is a query": (_head(b"GET ?hello HTTP/1.1"), 400),
    "star without OPTIONS": (_head(b"GET * HTTP/1.1"), 400),
    "absolute target of another scheme": (_head(b"GET ftp://app.test/hello HTTP/1.1"), 400),
    "absolute target with user information": (_head(b"GET http://user@app.test/hello HTTP/1.1"), 400),
    "absolute target without a host": (_head(b"GET http:///hello HTTP/1.1"), 400),
    "long target": (_head(b"GET /hello?" + b"a" * 9000 + b" HTTP/1.1"), 414),
    "no version": (_head(b"GET /hello"), 505),
    "space behind the version": (_head(b"GET /hello HTTP/1.1 "), 400),
    "lower-case version": (_head(b"GET /hello http/1.1"), 400),
    "version 0.9": (_head(b"GET /hello HTTP/0.9"), 505),
    "version 2.0": (_head(b"GET /hello HTTP/2.0"), 505),
    "version 1.2": (_head(b"GET /hello HTTP/1.2"), 400),
    "version 1.10": (_head(b"GET /hello HTTP/1.10"), 400),
    "version without a dot": (_head(b"GET /hello HTTP/11"), 400),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "greeting of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "line of a proxy protocol": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + _head(), 400),
}

_FIELDS: dict[str, tuple[bytes, int]] = {
    "lines that end with LF": (b"GET /hello HTTP/1.1\nHost: app.test\n\n", 400),
    "one field that ends with LF": (b"GET /hello HTTP/1.1\r\nHost: app.test\nX: y\r\n\r\n", 400),
    "lines that end with CR": (b"GET /hello HTTP/1.1\rHost: app.test\r\r", 400),
    "CR within a value": (_head(b"GET /hello HTTP/1.1", b"X: a\rb"), 400),
    "field without a colon": (_head(b"GET /hello HTTP/1.1", b"X y"), 400),
    "field without a name": (_head(b"GET /hello HTTP/1.1", b": y"), 400),
    "space behind a name": (_head(b"GET /hello HTTP/1.1", b"X : y"), 400),
    "tab behind a name": (_head(b"GET /hello HTTP/1.1", b"X\t: y"), 400),
    "parenthesis in a name": (_head(b"GET /hello HTTP/1.1", b"X(y): z"), 400),
    "NUL in a name": (_head(b"GET /hello HTTP/1.1", b"X\x00: y"), 400),
    "byte above 127 in a name": (_head(b"GET /hello HTTP/1.1", b"X\xc3: y"), 400),
    "NUL in a value": (_head(b"GET /hello HTTP/1.1", b"X: a\x00b"), 400),
    "control character in a value": (_head(b"GET /hello HTTP/1.1", b"X: a\x01b"), 400),
    "DEL in a value": (_head(b"GET /hello HTTP/1.1", b"X: a\x7fb"), 400),
    "folded value": (_head(b"GET /hello HTTP/1.1", b"X: a", b" b"), 400),
    "space before the first field": (b"GET /hello HTTP/1.1\r\n Host: app.test\r\n\r\n", 400),
    "no Host": (_head(host=b""), 400),
    "two Hosts": (_head(b"GET /hello HTTP/1.1", b"Host: other.test"), 400),
    "two equal Hosts": (_head(b"GET /hello HTTP/1.1", b"Host: app.test"), 400),
    "empty Host": (_head(host=b"Host:"), 400),
    "Host with user information": (_head(host=b"Host: user@app.test"), 400),
    "Host with a space": (_head(host=b"Host: app test"), 400),
    "Host with a path": (_head(host=b"Host: app.test/hello"), 400),
    "Host with a bad port": (_head(host=b"Host: app.test:abc"), 400),
    "Host with two values": (_head(host=b"Host: app.test, other.test"), 400),
    "too many fields": (_head(b"GET /hello HTTP/1.1", *[b"X: y"] * 120), 431),
    "too long a field": (_head(b"GET /hello HTTP/1.1", b"X: " + b"y" * 70_000), 431),
    "too much in all fields": (_head(b"GET /hello HTTP/1.1", *[b"X: " + b"y" * 7_000] * 10), 431),
    "expectation that nobody knows": (_head(b"GET /hello HTTP/1.1", b"Expect: miracles"), 417),
}

_FRAMING: dict[str, tuple[bytes, int]] = {
    "both framings": (_post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "both framings, the other way round": (
        _post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"), 400,
    ),
    "both framings in version 1.0": (
        _post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"1.0"), 400,
    ),
    "two equal lengths": (_post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "two lengths": (_post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400),
    "a list of lengths": (_post(b"Content-Length: 3, 3", body=b"abc"), 400),
    "signed length": (_post(b"Content-Length: +3", body=b"abc"), 400),
    "negative length": (_post(b"Content-Length: -3", body=b"abc"), 400),
    "hexadecimal length": (_post(b"Content-Length: 0x3", body=b"abc"), 400),
    "empty length": (_post(b"Content-Length:", body=b"abc"), 400),
    "length with a space inside": (_post(b"Content-Length: 3 3", body=b"abc"), 400),
    "length beyond 64 bits": (_post(b"Content-Length: 99999999999999999999", body=b"abc"), 400),
    "length beyond the app's limit": (_post(b"Content-Length: 99999999999", body=b"abc"), 413),
    "coding gzip, chunked": (_coded(b"gzip, chunked"), 501),
    "coding gzip in a field of its own": (
        _post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 501,
    ),
    "coding gzip": (_coded(b"gzip"), 501),
    "coding identity": (_coded(b"identity"), 501),
    "coding that ends with chunked": (_coded(b"xchunked"), 501),
    "coding in quotes": (_coded(b'"chunked"'), 501),
    "coding with a parameter": (_coded(b"chunked;q=1"), 501),
    "coding chunked, gzip": (_coded(b"chunked, gzip"), 400),
    "coding chunked twice": (_coded(b"chunked, chunked"), 400),
    "two fields chunked": (
        _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400,
    ),
    "empty coding": (_coded(b""), 400),
    "coding with a space behind its name": (_post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    "coding in a folded value": (_post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), 400),
}  # fmt: skip

_CHUNKS: dict[str, tuple[bytes, int]] = {
    "chunk that is longer than its size": (_chunked(b"3\r\nabcX\r\n0\r\n\r\n"), 400),
    "chunk that is shorter than its size": (_chunked(b"5\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk that ends with LF": (_chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "size that ends with LF": (_chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "size that ends with CR": (_chunked(b"3\rabc\r\n0\r\n\r\n"), 400),
    "extension that ends with LF": (_chunked(b"3;a\nabc\r\n0\r\n\r\n"), 400),
    "signed size": (_chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "negative size": (_chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "size with a prefix": (_chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "size with a space before it": (_chunked(b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "size with a space behind it": (_chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "size with an underscore": (_chunked(b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"), 400),
    "empty size": (_chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "size beyond 60 bits": (_chunked(b"1000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    "extension without a name": (_chunked(b"3;=b\r\nabc\r\n0\r\n\r\n"), 400),
    "extension with an open quote": (_chunked(b'3;a="b\r\nabc\r\n0\r\n\r\n'), 400),
    "extension with a control character": (_chunked(b"3;a=\x01\r\nabc\r\n0\r\n\r\n"), 400),
    "long extension": (_chunked(b"3;a=" + b"b" * 5_000 + b"\r\nabc\r\n0\r\n\r\n"), 431),
    "many extensions on tiny chunks": (_chunked((b"1;a=" + b"b" * 1_000 + b"\r\nx\r\n") * 40 + b"0\r\n\r\n"), 431),
    "trailer without a colon": (_chunked(b"3\r\nabc\r\n0\r\nX y\r\n\r\n"), 400),
    "trailer that ends with LF": (_chunked(b"3\r\nabc\r\n0\r\nX: y\n\r\n"), 400),
    "trailer with a control character": (_chunked(b"3\r\nabc\r\n0\r\nX: a\x00b\r\n\r\n"), 400),
    "folded trailer": (_chunked(b"3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n"), 400),
    "too many trailers": (_chunked(b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 120 + b"\r\n"), 431),
    "too long a trailer": (_chunked(b"3\r\nabc\r\n0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"), 431),
    "request line where a trailer may be": (_chunked(b"3\r\nabc\r\n0\r\n"), 400),
}

_SOUND: dict[str, bytes] = {
    "empty lines before a request": b"\r\n\r\n" + _head(),
    "two spaces behind the method": _head(b"GET  /hello HTTP/1.1"),
    "a method of WebDAV": _head(b"PROPFIND /hello HTTP/1.1"),
    "an absolute target": _head(b"GET http://app.test/hello HTTP/1.1"),
    "a byte above 127 in a value": _head(b"GET /hello HTTP/1.1", b"X: \xff"),
    "a host with white space around it": _head(host=b"Host: \tapp.test \t"),
    "a length with a space behind it": _post(b"Content-Length: 3 ", body=b"abc"),
    "a coding in capitals": _coded(b"CHUNKED"),
    "a coding with white space around it": _coded(b"\tchunked "),
    "a size with zeros before it": _chunked(b"0000000000000000000003\r\nabc\r\n000\r\n\r\n"),
    "an extension": _chunked(b"3;a=b\r\nabc\r\n0;c\r\n\r\n"),
    "an extension in quotes": _chunked(b'3;a="b; \\" c"\r\nabc\r\n0\r\n\r\n'),
    "white space before an extension": _chunked(b"3 ;a=b\r\nabc\r\n0\r\n\r\n"),
    "white space all around extensions": _chunked(b"3 ; a = b\t;\tc ; d=\"e\"\r\nabc\r\n0\r\n\r\n"),
    "a trailer": _chunked(b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
    "a trailer named as a field of the head": _chunked(b"3\r\nabc\r\n0\r\nContent-Length: 7\r\n\r\n"),
    "a body of what looks like a request": _post(b"Content-Length: 32", body=b"GET /nowhere HTTP/1.1\r\nHost: a\r\n"),
    "chunks of what looks like a request": _chunked(b"17\r\nGET /nowhere HTTP/1.1\r\n\r\n0\r\n\r\n"),
    "a wish to switch protocols": _head(b"GET /hello HTTP/1.1", b"Upgrade: h2c", b"Connection: upgrade"),
    "a wish to switch protocols, with a body": _post(
        b"Upgrade: h2c", b"Connection: upgrade", b"Content-Length: 3", body=b"abc"
    ),
    "a wish to switch protocols, with chunks": _post(
        b"Upgrade: h2c", b"Connection: upgrade", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"
    ),
}  # fmt: skip

CLOSED: tuple[Case, ...] = tuple(
    Case(name, data, (200,))
    for name, data in {
        "chunks in version 1.0": _post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n", version=b"1.0"),
        "chunks in version 1.0 that would be kept alive": _post(
            b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n", version=b"1.0"
        ),
        "version 1.0": _head(b"GET /hello HTTP/1.0"),
        "a wish to close": _head(b"GET /hello HTTP/1.1", b"Connection: close"),
    }.items()
)
REFUSED: tuple[Case, ...] = tuple(
    Case(name, data, (status,))
    for name, (data, status) in {**_LINES, **_FIELDS, **_FRAMING, **_CHUNKS}.items()
)  # fmt: skip
SERVED: tuple[Case, ...] = tuple(Case(name, data, (200, 200)) for name, data in _SOUND.items())
CASES: tuple[Case, ...] = (*REFUSED, *CLOSED, *SERVED)
