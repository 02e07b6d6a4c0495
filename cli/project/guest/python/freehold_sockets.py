"""A stand-in for CPython's `_socket`, so that HTTP clients run as they are. Runs only inside the sandbox.

A connection reads the client's bytes as HTTP/1.1, calls out over wasi:http, and gives the response back as bytes. So
http.client, urllib3, requests, httpx, aiohttp and what stands on them reach the hosts in allow_hosts, and no others. TLS
is the node's work: `freehold_ssl` only notes that a connection is to have it. Each connection carries one request.
What it cannot honour is refused. Not here: other protocols, listening, names' addresses, the event loop's side.
"""

from __future__ import annotations

import errno
import re
import sys
from http import HTTPStatus

import freehold_outbound

HEAD_MAX_BYTES = 128 * 1024
BACKLOG_MAX_BYTES = 256 * 1024
FIRST_FD = 1_000_000
TLS_PREFACE = b"\0freehold-tls\0"
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) (\S+) HTTP/1\.[01]")
TOKEN_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
# The node writes these itself, for its own connection to the other side.
DROPPED = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"host", b"expect", b"http2-settings"}
RESPONSE_DROPPED = {"connection", "transfer-encoding", "keep-alive"}
HTTP_ONLY = "the sandbox's sockets carry HTTP/1.1 only"
NO_SERVER = "nothing listens in the sandbox: the node serves the app"


class Connection:
    """One connection: takes the bytes of a request, gives the bytes of its response. `step` never waits."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.tls = False
        self.timeout_s = None
        self.out = bytearray()
        self.ended = False
        self._failure = None
        self._in = bytearray()
        self._call = None
        self._method = b""
        self._rest = 0
        self._in_chunks = self._after_chunk = False
        self._whole = False
        self._told = False
        self._chunked = False

    @property
    def authority(self) -> str:
        """Where it goes, as a URL names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def backlog_bytes(self) -> int:
        """How much of what was sent waits for the other side; none once it has answered."""
        return self._call.unsent_bytes if self._call is not None and self._call.status is None else 0

    @property
    def readable(self) -> bool:
        """Whether a reader would be told something now."""
        return bool(self.out) or self.ended or self._failure is not None

    def feed(self, data) -> None:
        """Take bytes that the client sends. Raises OSError for what cannot be sent, and then whenever it is asked."""
        self._in += data
        self._or_fail(self._take)

    def _or_fail(self, do) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            do()
        except OSError as error:
            self._failure = error
            raise

    def _take(self) -> None:
        if self._in.startswith(TLS_PREFACE) and self._call is None:
            name, found, _ = bytes(self._in[len(TLS_PREFACE) :]).partition(b"\0")
            if found:
                self.secure(name.decode())
                del self._in[: len(TLS_PREFACE) + len(name) + 1]
        if self._call is None:
            self._begin()
        if self._call is not None:
            self._pass_body()

    def secure(self, server_name: str) -> None:
        """The client asks for TLS, with this name in the certificate."""
        if server_name.lower().rstrip(".") != self.host.lower().rstrip("."):
            raise PermissionError(
                errno.EACCES, f"the node checks the certificate for {self.host}, to which it connects, not for {server_name}"
            )
        self.tls = True

    def step(self) -> None:
        """Send and receive what can be now. Raises OSError when the call has failed."""
        if not self.ended:
            self._or_fail(self._move)

    def _move(self) -> None:
        if self._call is None:
            return
        self._call.step()
        if self._call.status is not None and not self._told:
            self._tell_head()
        if self._told and not self.ended:
            self._pass_response()

    def subscribe(self):
        """Return pollables, any of which means that a step may do something."""
        return [] if self._call is None or self.ended else self._call.subscribe()

    def release(self) -> None:
        """End it, at any moment."""
        self.ended = True
        if "freehold_loop" in sys.modules:
            sys.modules["freehold_loop"].let_go(self)
        if self._call is not None:
            self._call.release()

    def _begin(self) -> None:
        if self._in and not TOKEN_START.match(self._in) and not self._in.startswith(TLS_PREFACE[: len(self._in)]):
            raise ConnectionAbortedError(errno.ECONNABORTED, f"{HTTP_ONLY}; this begins with {bytes(self._in[:8])!r}")
        line, found, _ = bytes(self._in[: HEAD_MAX_BYTES + 4]).partition(b"\r\n")
        if found and not REQUEST_LINE.fullmatch(line):
            raise ConnectionAbortedError(errno.ECONNABORTED, f"{HTTP_ONLY}; this begins with {line[:40]!r}")
        head, found, _ = bytes(self._in[: HEAD_MAX_BYTES + 4]).partition(b"\r\n\r\n")
        if not found:
            if len(self._in) > HEAD_MAX_BYTES:
                raise OSError(errno.EMSGSIZE, f"the request's head is over {HEAD_MAX_BYTES} bytes")
            return
        del self._in[: len(head) + 4]
        lines = head.split(b"\r\n")
        self._method, target, _ = lines[0].split(b" ", 2)
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]
        self._call = freehold_outbound.Call()
        self._start(target, fields)

    def _start(self, target, fields) -> None:
        named = dict(fields)
        if self._method == b"CONNECT" or (named.get(b"upgrade") and b"upgrade" in named.get(b"connection", b"").lower()):
            raise PermissionError(errno.EACCES, f"{HTTP_ONLY}; tunnels and WebSockets are not")
        target = self._checked_target(target, named)
        self._in_chunks = b"chunked" in named.get(b"transfer-encoding", b"").lower()
        if not self._in_chunks:
            self._rest = int(named.get(b"content-length", b"0"))
        kept = [(name.decode("latin-1"), value) for name, value in fields if name not in DROPPED]
        if named.get(b"expect", b"").lower() == b"100-continue":
            self.out += b"HTTP/1.1 100 Continue\r\n\r\n"
        self._call.start(self._method.decode(), self.tls, self.authority, target, kept, self.timeout_s)
        if not self._in_chunks and not self._rest:
            self._end()

    def _checked_target(self, target, named) -> str:
        """Return path and query; another host than the connected one is a proxy's or a forger's, and is refused."""
        asked = named.get(b"host", self.authority.encode()).decode("latin-1").lower()
        if target.lower().startswith((b"http://", b"https://")):
            asked, slash, path = target.decode("latin-1").partition("://")[2].partition("/")
            asked, target = asked.lower(), (slash + path).encode("latin-1") or b"/"
        plain = f"{self.host}:{self.port}".lower()
        if asked not in {self.authority.lower(), plain, f"[{self.host}]:{self.port}".lower()}:
            raise PermissionError(
                errno.EACCES, f"the request is for {asked}, the connection is to {self.authority}: proxies cannot be used"
            )
        return target.decode("latin-1")

    def _pass_body(self) -> None:
        while self._in and not self._whole:
            if self._rest:
                piece = bytes(self._in[: self._rest])
                del self._in[: len(piece)]
                self._rest -= len(piece)
                self._call.send(piece)
                if not self._rest and not self._in_chunks:
                    self._end()
            elif not self._take_chunk_line():
                return
        if self._whole and self._in.strip(b"\r\n"):
            raise BrokenPipeError(errno.EPIPE, "a connection of the sandbox carries one request")

    def _take_chunk_line(self) -> bool:
        """Take the line before a chunk, or the empty one after it; False while it is not here."""
        line, found, _ = bytes(self._in[:4096]).partition(b"\r\n")
        if not found:
            return False
        size = CHUNK_SIZE.fullmatch(line) if line or not self._after_chunk else None
        if size is None and (line or not self._after_chunk):
            raise OSError(errno.EBADMSG, f"{line[:20]!r} is no size of a chunk")
        del self._in[: len(line) + 2]
        self._after_chunk = size is not None
        self._rest = int(size[1], 16) if size is not None else 0
        if size is not None and not self._rest:
            self._in.clear()  # trailers: no client here sends any
            self._end()
        return True

    def _end(self) -> None:
        self._whole = True
        self._call.finish()

    def _tell_head(self) -> None:
        status, fields = self._call.status, self._call.fields
        lines = [f"HTTP/1.1 {status} {_phrase(status)}".encode()]
        lines += [name.encode("latin-1") + b": " + value for name, value in fields if name not in RESPONSE_DROPPED]
        lines.append(b"connection: close")
        bodiless = self._method == b"HEAD" or status in {204, 304}
        self._chunked = not bodiless and all(name != "content-length" for name, _ in fields)
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        self.out += b"\r\n".join(lines) + b"\r\n\r\n"
        self._told = True
        if bodiless:
            self.release()

    def _pass_response(self) -> None:
        if len(self.out) > BACKLOG_MAX_BYTES:
            return
        piece = self._call.take()
        if piece:
            self.out += b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece
        if self._call.ended:
            self.out += b"0\r\n\r\n" if self._chunked else b""
            self.ended = True


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


_open: dict[int, Socket] = {}
_next_fd = FIRST_FD


class _Descriptor:
    """What a file descriptor stands for: a socket may hand it to another object, as `ssl` does."""

    def __init__(self) -> None:
        self.connection = None
        self.timeout_s = None


class Socket:
    """`_socket.socket`: what CPython's `socket.socket` is made of."""

    __slots__ = ("_descriptor", "_fd", "_kind")

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None) -> None:
        import _socket

        global _next_fd
        self._kind = (
            _socket.AF_INET if family == -1 else int(family),
            _socket.SOCK_STREAM if type == -1 else int(type),
            0 if proto == -1 else int(proto),
        )
        if fileno is None:
            self._fd, self._descriptor = _next_fd, _Descriptor()
            self._descriptor.timeout_s = _socket.getdefaulttimeout()
            _open[self._fd] = self._descriptor
            _next_fd += 1
        elif fileno in _open:
            self._fd, self._descriptor = fileno, _open[fileno]
        else:
            raise OSError(errno.EBADF, "Bad file descriptor")

    family = property(lambda self: self._kind[0])
    type = property(lambda self: self._kind[1])
    proto = property(lambda self: self._kind[2])

    @property
    def timeout(self):
        return self._descriptor.timeout_s

    @property
    def connection(self) -> Connection:
        """The connection; raises OSError where there is none."""
        if self._fd < 0 or self._descriptor.connection is None:
            raise OSError(*((errno.EBADF, "Bad file descriptor") if self._fd < 0 else (errno.ENOTCONN, "not connected")))
        return self._descriptor.connection

    def connect(self, address) -> None:
        import _socket

        if self._kind[1] != _socket.SOCK_STREAM:
            raise PermissionError(errno.EACCES, f"{HTTP_ONLY}; this is no stream")
        host, port = address[0], address[1]
        self._descriptor.connection = Connection(host.decode() if isinstance(host, bytes) else host, port)
        self._descriptor.connection.timeout_s = self._descriptor.timeout_s or None

    def connect_ex(self, address) -> int:
        self.connect(address)
        return 0

    def settimeout(self, timeout_s) -> None:
        if timeout_s is not None and timeout_s < 0:
            raise ValueError("Timeout value out of range")
        self._descriptor.timeout_s = timeout_s
        if self._descriptor.connection is not None:
            self._descriptor.connection.timeout_s = timeout_s or None

    def gettimeout(self):
        return self._descriptor.timeout_s

    def setblocking(self, flag) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._descriptor.timeout_s != 0.0

    def send(self, data, flags=0) -> int:
        connection = self.connection
        data = memoryview(data).cast("B")
        connection.feed(data)
        connection.step()
        if connection.backlog_bytes and self.getblocking():
            freehold_outbound.wait_for(connection, lambda: not connection.backlog_bytes, self.gettimeout())
        return len(data)

    def sendall(self, data, flags=0) -> None:
        self.send(data)

    def sendmsg(self, buffers, *_) -> int:
        return sum(self.send(buffer) for buffer in buffers)

    def sendto(self, data, *_):
        raise PermissionError(errno.EACCES, f"{HTTP_ONLY}; this is no stream")

    recvfrom = recvfrom_into = recvmsg = sendto

    def recv(self, size, flags=0) -> bytes:
        connection = self.connection
        here = lambda: connection.out or connection.ended  # noqa: E731
        if self.getblocking():
            try:
                freehold_outbound.wait_for(connection, here, self.gettimeout())
            except TimeoutError:
                if connection.subscribe():
                    raise
                raise TimeoutError(errno.ETIMEDOUT, f"timed out: {HTTP_ONLY}, and no request was sent whole") from None
        else:
            connection.step()
            if not here():
                raise BlockingIOError(errno.EAGAIN, "nothing is here yet")
        piece = bytes(connection.out[:size])
        del connection.out[:size]
        return piece

    def recv_into(self, buffer, nbytes=0, flags=0) -> int:
        view = memoryview(buffer).cast("B")
        piece = self.recv(nbytes or len(view))
        view[: len(piece)] = piece
        return len(piece)

    def getsockopt(self, level, option, size=0):
        import _socket

        return self._kind[1] if (level, option) == (_socket.SOL_SOCKET, _socket.SO_TYPE) else 0

    def setsockopt(self, *_) -> None:
        """The node sets its own connection's options."""

    def getpeername(self):
        connection = self.connection
        return (connection.host, connection.port)

    def getsockname(self):
        return ("0.0.0.0", 0)

    def shutdown(self, how) -> None:
        """A request says itself where it ends."""

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            _open.pop(self._fd, None)
            self._fd = -1
            if self._descriptor.connection is not None:
                self._descriptor.connection.release()

    def bind(self, address) -> None:
        if address[1] != 0:
            raise PermissionError(errno.EACCES, NO_SERVER)

    def listen(self, *_):
        raise PermissionError(errno.EACCES, NO_SERVER)

    _accept = listen

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def descriptor(number):
    """Return what the descriptor stands for, None where it is none of ours."""
    return _open.get(number)


PORTS = {"http": 80, "https": 443, None: 0, "": 0}


def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    """Return the name itself as the one address: the node resolves it when it calls."""
    import _socket

    if host is None or host in {"", b""}:
        raise _socket.gaierror(-2, NO_SERVER)
    name = host.decode() if isinstance(host, bytes) else host
    if not name.isascii():
        name = name.encode("idna").decode()
    number = PORTS[port] if port in PORTS else int(port)
    if ":" in name:
        return [(_socket.AF_INET6, _socket.SOCK_STREAM, 6, "", (name, number, 0, 0))]
    if family not in {0, _socket.AF_INET}:
        raise _socket.gaierror(-2, f"{name} has no address of that family in the sandbox")
    return [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", (name, number))]


def _no_names(name, *_):
    import _socket

    raise _socket.gaierror(-2, f"the node resolves {name} when it calls; the sandbox cannot")


MISSING = {
    "TCP_NODELAY": 1, "SO_KEEPALIVE": 9, "SOL_SOCKET": 1, "IPPROTO_TCP": 6, "SHUT_RD": 0, "SHUT_WR": 1, "SHUT_RDWR": 2,
    "SO_TYPE": 3, "SO_ERROR": 4, "SO_REUSEADDR": 2, "AF_INET": 2, "AF_INET6": 10, "SOCK_STREAM": 1, "SOCK_DGRAM": 2,
    "AI_PASSIVE": 1, "AI_CANONNAME": 2, "EAI_FAMILY": -6, "EAI_NONAME": -2, "NI_NUMERICHOST": 1, "SO_SNDBUF": 7, "SO_RCVBUF": 8,
    "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6,
}  # fmt: skip


def install() -> None:
    """Put the stand-in in place of `_socket`'s own functions, before the app or a library looks."""
    import _socket

    for name, value in MISSING.items():
        if not hasattr(_socket, name):
            setattr(_socket, name, value)
    _socket.socket = _socket.SocketType = Socket
    _socket.getaddrinfo = getaddrinfo
    _socket.gethostbyname = _socket.gethostbyaddr = _socket.gethostbyname_ex = _no_names
    _socket.has_ipv6 = False
    import freehold_select

    freehold_select.install()
    if "socket" in sys.modules:
        import importlib

        importlib.reload(sys.modules["socket"])
