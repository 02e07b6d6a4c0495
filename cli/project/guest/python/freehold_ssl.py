"""A stand-in for CPython's `_ssl`, so that libraries which import `ssl` can be imported. Runs only inside the sandbox.

The guest has no TLS of its own: the node speaks TLS for it. So a context can be made and set up, as libraries do when they
are imported or when a client is made, and a connection is refused with the sentence that says what to use.
Constants are those of OpenSSL 3. Not here: any cryptography.
"""

from __future__ import annotations

import sys
import types

REFUSED = "the sandbox has no TLS of its own; call out with freehold.fetch, the node speaks TLS for it"


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

    set_ciphers = load_verify_locations = load_cert_chain = set_default_verify_paths = _nothing
    _set_alpn_protocols = set_ecdh_curve = load_dh_params = set_psk_client_callback = set_psk_server_callback = _nothing

    def get_ca_certs(self, *_, **__):
        return []

    get_ciphers = get_ca_certs

    def cert_store_stats(self):
        return {"x509": 0, "crl": 0, "x509_ca": 0}

    session_stats = cert_store_stats

    def _refuse(self, *_, **__):
        raise SSLError(REFUSED)

    _wrap_socket = _wrap_bio = _refuse


for _name in SETTINGS:  # ssl.SSLContext reads and writes them on its base class
    setattr(_Context, _name, _setting(_name))


class _Buffer:
    """MemoryBIO's place; nothing ever comes through it."""

    pending = 0
    eof = False

    def read(self, *_):
        return b""

    def write(self, data):
        raise SSLError(REFUSED)

    def write_eof(self):
        return None


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
FEATURES = ("SNI", "ECDH", "NPN", "ALPN", "SSLv2", "SSLv3", "TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3", "PSK", "PHA")
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
    module = types.ModuleType("_ssl", REFUSED)
    for name in ("SSLZeroReturnError", "SSLWantReadError", "SSLWantWriteError", "SSLSyscallError", "SSLEOFError"):
        setattr(module, name, type(name, (SSLError,), {"__module__": "ssl"}))
    module.SSLError = SSLError
    module.SSLCertVerificationError = type("SSLCertVerificationError", (SSLError, ValueError), {"__module__": "ssl"})
    for name, value in CONSTANTS.items():
        setattr(module, name, value)
    for feature in FEATURES:
        setattr(module, f"HAS_{feature}", False)
    module.HAS_TLS_UNIQUE = module.HAS_PSK_TLS13 = False
    module.OPENSSL_VERSION_NUMBER, module._OPENSSL_API_VERSION = 0x30000000, (3, 0, 0, 0, 0)
    module.OPENSSL_VERSION_INFO, module.OPENSSL_VERSION = (3, 0, 0, 0, 0), "none: the node speaks TLS"
    module._DEFAULT_CIPHERS = "DEFAULT"
    module._SSLContext, module.MemoryBIO, module.SSLSession = _Context, _Buffer, type("SSLSession", (), {})
    module._SSLSocket, module.Certificate = type("_SSLSocket", (), {}), type("Certificate", (), {})
    module.txt2obj, module.nid2obj = _object, lambda number: _object(str(number))
    module.RAND_status, module.RAND_add = lambda: True, lambda *_: None
    module.RAND_bytes = __import__("os").urandom
    module.get_default_verify_paths = lambda: ("SSL_CERT_FILE", "", "SSL_CERT_DIR", "")
    module.get_sigalgs = lambda: []
    sys.modules["_ssl"] = module
