"""A stand-in for CPython's `_ssl`: TLS as a wish, which the node fulfils. Runs only inside the sandbox.

The guest has no TLS of its own: a connection that is wrapped is made with TLS by the node, which checks the certificate
against its machine's authorities, for the host that is called. What the app sets and the node cannot honour (no check, a
certificate of its own, authorities of its own, another name) is refused with the sentence that says so.
Constants are those of OpenSSL 3. Not here: any cryptography; the connection itself (`freehold_sockets.py`).
"""

from __future__ import annotations

import errno
import os
import sys
import types

from freehold_sockets import TLS_PREFACE, Socket

ALWAYS_CHECKED = "the node checks every certificate: verify=False and CERT_NONE cannot be honoured"
NO_CERTIFICATE = "a certificate of the client's own cannot be used: the node speaks TLS for the app"
NO_AUTHORITIES = "authorities of the app's own cannot be used: the node checks certificates by its machine's authorities"
NO_SERVER = "nothing listens in the sandbox: the node serves the app"


class SSLError(OSError):
    """As in CPython."""


SETTINGS = {
    "protocol": 16, "check_hostname": True, "verify_mode": 2, "options": 0, "verify_flags": 0, "minimum_version": -2,
    "maximum_version": -1, "sni_callback": None, "keylog_filename": None, "post_handshake_auth": False,
    "hostname_checks_common_name": False, "_host_flags": 0, "num_tickets": 2, "security_level": 2, "_msg_callback": None,
}  # fmt: skip


def _setting(name):
    return property(lambda self: self._set[name], lambda self, value: self._set.__setitem__(name, value))


class _Context:
    """Keeps what is set; opens nothing."""

    def __new__(cls, protocol=16, *_):
        made = super().__new__(cls)
        strict = protocol == 16
        made._set = {**SETTINGS, "protocol": protocol, "check_hostname": strict, "verify_mode": 2 if strict else 0}
        return made

    def _nothing(self, *_, **__):
        return None

    set_ciphers = set_default_verify_paths = set_ciphersuites = set_groups = _nothing
    _set_alpn_protocols = set_ecdh_curve = load_dh_params = set_psk_client_callback = set_psk_server_callback = _nothing

    def load_verify_locations(self, cafile=None, capath=None, cadata=None):
        # A package's own copy of the public authorities is as good as the machine's.
        public = cafile is not None and os.path.basename(os.fsdecode(cafile)) == "cacert.pem"
        if cadata is not None or capath is not None or not public:
            raise SSLError(NO_AUTHORITIES)

    def load_cert_chain(self, *_, **__):
        raise SSLError(NO_CERTIFICATE)

    def get_ca_certs(self, *_, **__):
        return []

    get_ciphers = get_ca_certs

    def cert_store_stats(self):
        return {"x509": 0, "crl": 0, "x509_ca": 0}

    session_stats = cert_store_stats

    def _check(self, server_side):
        if server_side:
            raise SSLError(NO_SERVER)
        if self._set["verify_mode"] != 2:
            raise SSLError(ALWAYS_CHECKED)

    def _wrap_socket(self, sock, server_side=False, server_hostname=None, owner=None, session=None):
        self._check(server_side)
        return _Secured(self, server_hostname or sock.connection.host, sock=sock)

    def _wrap_bio(self, incoming, outgoing, server_side=False, server_hostname=None, owner=None, session=None):
        self._check(server_side)
        return _Secured(self, server_hostname, incoming=incoming, outgoing=outgoing)


class _Secured:
    """`_ssl._SSLSocket`: over a socket of the sandbox, or over two buffers whose bytes reach one in the end."""

    def __init__(self, context, server_hostname, *, sock=None, incoming=None, outgoing=None) -> None:
        self.context, self.server_hostname, self.owner, self.session = context, server_hostname, None, None
        self.session_reused, self.server_side = False, False
        self._sock, self._incoming, self._outgoing = sock, incoming, outgoing
        self._begun = False

    def do_handshake(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._sock is not None:
            self._secure(self._sock.connection)
        elif not self.server_hostname:
            raise SSLError("the name to check the certificate for is missing (server_hostname)")
        else:
            self._outgoing.write(TLS_PREFACE + self.server_hostname.encode("idna") + b"\0")

    def _secure(self, connection) -> None:
        try:
            connection.secure(self.server_hostname)
        except PermissionError as error:
            raise sys.modules["_ssl"].SSLCertVerificationError(errno.EACCES, error.strerror) from None

    def read(self, size=65536, buffer=None):
        piece = self._sock_read(size) if self._sock is not None else self._buffer_read(size)
        if buffer is None:
            return piece
        memoryview(buffer).cast("B")[: len(piece)] = piece
        return len(piece)

    def _sock_read(self, size):
        try:
            return Socket.recv(self._sock, size)
        except BlockingIOError:
            raise sys.modules["_ssl"].SSLWantReadError(2, "nothing is here yet") from None

    def _buffer_read(self, size):
        if not self._incoming.pending and not self._incoming.eof:
            raise sys.modules["_ssl"].SSLWantReadError(2, "nothing is here yet")
        return self._incoming.read(size)

    def write(self, data) -> int:
        if self._sock is not None:
            return Socket.send(self._sock, data)
        return self._outgoing.write(data)

    def pending(self) -> int:
        return self._incoming.pending if self._sock is None else len(self._sock.connection.out)

    def shutdown(self):
        return self._sock

    def getpeercert(self, binary=False):
        name = self.server_hostname or ""
        return b"" if binary else {"subject": ((("commonName", name),),), "subjectAltName": (("DNS", name),)}

    def cipher(self):
        return ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)

    def version(self):
        return "TLSv1.3"

    def _none(self, *_):
        return None

    shared_ciphers = compression = selected_alpn_protocol = selected_npn_protocol = get_channel_binding = _none
    verify_client_post_handshake = get_verified_chain = get_unverified_chain = _none


for _name in SETTINGS:  # ssl.SSLContext reads and writes them on its base class
    setattr(_Context, _name, _setting(_name))


class _Buffer:
    """`_ssl.MemoryBIO`."""

    def __init__(self) -> None:
        self._data, self._ended = bytearray(), False

    @property
    def pending(self) -> int:
        return len(self._data)

    @property
    def eof(self) -> bool:
        return self._ended and not self._data

    def read(self, size=-1) -> bytes:
        piece = bytes(self._data if size < 0 else self._data[:size])
        del self._data[: len(piece)]
        return piece

    def write(self, data) -> int:
        if self._ended:
            raise SSLError("cannot write() after write_eof()")
        self._data += data
        return len(data)

    def write_eof(self) -> None:
        self._ended = True


CONSTANTS = {
    "PROTOCOL_SSLv23": 2, "PROTOCOL_TLS": 2, "PROTOCOL_TLS_CLIENT": 16, "PROTOCOL_TLS_SERVER": 17, "PROTOCOL_TLSv1": 3,
    "PROTOCOL_TLSv1_1": 4, "PROTOCOL_TLSv1_2": 5, "PROTO_MINIMUM_SUPPORTED": -2, "PROTO_MAXIMUM_SUPPORTED": -1,
    "PROTO_SSLv3": 768, "PROTO_TLSv1": 769, "PROTO_TLSv1_1": 770, "PROTO_TLSv1_2": 771, "PROTO_TLSv1_3": 772,
    "CERT_NONE": 0, "CERT_OPTIONAL": 1, "CERT_REQUIRED": 2, "VERIFY_DEFAULT": 0, "VERIFY_CRL_CHECK_LEAF": 4,
    "VERIFY_CRL_CHECK_CHAIN": 12, "VERIFY_X509_STRICT": 32, "VERIFY_X509_TRUSTED_FIRST": 32768,
    "VERIFY_ALLOW_PROXY_CERTS": 64, "VERIFY_X509_PARTIAL_CHAIN": 524288, "OP_ALL": 2147483728, "OP_NO_SSLv2": 0,
    "OP_NO_SSLv3": 33554432, "OP_NO_TLSv1": 67108864, "OP_NO_TLSv1_1": 268435456, "OP_NO_TLSv1_2": 134217728,
    "OP_NO_TLSv1_3": 536870912, "OP_CIPHER_SERVER_PREFERENCE": 4194304, "OP_SINGLE_DH_USE": 0, "OP_SINGLE_ECDH_USE": 0,
    "OP_NO_COMPRESSION": 131072, "OP_NO_TICKET": 16384, "OP_NO_RENEGOTIATION": 1073741824, "OP_LEGACY_SERVER_CONNECT": 4,
    "OP_ENABLE_MIDDLEBOX_COMPAT": 1048576, "OP_IGNORE_UNEXPECTED_EOF": 128, "OP_ENABLE_KTLS": 8, "HOSTFLAG_NEVER_CHECK_SUBJECT": 32,
    "SSL_ERROR_SSL": 1, "SSL_ERROR_WANT_READ": 2, "SSL_ERROR_WANT_WRITE": 3, "SSL_ERROR_WANT_X509_LOOKUP": 4,
    "SSL_ERROR_SYSCALL": 5, "SSL_ERROR_ZERO_RETURN": 6, "SSL_ERROR_WANT_CONNECT": 7, "SSL_ERROR_EOF": 8,
    "SSL_ERROR_INVALID_ERROR_CODE": 10, "ENCODING_PEM": 1, "ENCODING_DER": 2, "ALERT_DESCRIPTION_CLOSE_NOTIFY": 0,
    "ALERT_DESCRIPTION_HANDSHAKE_FAILURE": 40, "ALERT_DESCRIPTION_INTERNAL_ERROR": 80,
}  # fmt: skip
HAD = ("SNI", "ALPN", "ECDH", "TLSv1_2", "TLSv1_3")
NOT_HAD = ("NPN", "SSLv2", "SSLv3", "TLSv1", "TLSv1_1", "PSK", "PHA", "TLS_UNIQUE", "PSK_TLS13")
PURPOSES = {"1.3.6.1.5.5.7.3.1": (129, "serverAuth", "TLS Web Server Authentication"),
            "1.3.6.1.5.5.7.3.2": (130, "clientAuth", "TLS Web Client Authentication")}  # fmt: skip


def _object(text, name=False):
    number, short, long = PURPOSES.get(text, (0, text, text))
    return number, short, long, text


def install() -> None:
    """Offer the stand-in where the interpreter has no `_ssl`; a real one is left alone."""
    try:
        import _ssl  # noqa: F401
    except ImportError:
        pass
    else:
        return
    module = types.ModuleType("_ssl", __doc__)
    for name in ("SSLZeroReturnError", "SSLWantReadError", "SSLWantWriteError", "SSLSyscallError", "SSLEOFError"):
        setattr(module, name, type(name, (SSLError,), {"__module__": "ssl"}))
    module.SSLError = SSLError
    module.SSLCertVerificationError = type("SSLCertVerificationError", (SSLError, ValueError), {"__module__": "ssl"})
    for name, value in CONSTANTS.items():
        setattr(module, name, value)
    for feature in (*HAD, *NOT_HAD):
        setattr(module, f"HAS_{feature}", feature in HAD)
    module.OPENSSL_VERSION_NUMBER, module._OPENSSL_API_VERSION = 0x30000000, (3, 0, 0, 0, 0)
    module.OPENSSL_VERSION_INFO, module.OPENSSL_VERSION = (3, 0, 0, 0, 0), "OpenSSL 3.0.0 (a stand-in: the node speaks TLS)"
    module._DEFAULT_CIPHERS = "DEFAULT"
    module._SSLContext, module.MemoryBIO, module.SSLSession = _Context, _Buffer, type("SSLSession", (), {})
    module._SSLSocket, module.Certificate = _Secured, type("Certificate", (), {})
    module.txt2obj, module.nid2obj = _object, lambda number: _object(str(number))
    module.RAND_status, module.RAND_add = lambda: True, lambda *_: None
    module.RAND_bytes = os.urandom
    module.get_default_verify_paths = lambda: ("SSL_CERT_FILE", "", "SSL_CERT_DIR", "")
    module.get_sigalgs = lambda: []
    sys.modules["_ssl"] = module
