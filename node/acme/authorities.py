"""Whether a certificate is by an authority that this machine believes, as visitors' machines do. Pure, but for the roots.

A member can write any chain into its record; it can have none signed for a name that it does not control. Not here: who
may serve a name (shared.py).
"""

from __future__ import annotations

import functools
import ssl
import warnings
from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

DEPTH_MAX = 4


@functools.cache
def system_roots() -> tuple[x509.Certificate, ...]:
    """Return the authorities that this machine believes; none where it knows of none."""
    certificates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # some old ones have serial numbers below 1
        for data in ssl.create_default_context().get_ca_certs(binary_form=True):
            try:
                certificates.append(x509.load_der_x509_certificate(data))
            except ValueError:
                continue
    return tuple(certificates)


def is_believed(chain: Sequence[x509.Certificate], name: str, roots: Sequence[x509.Certificate]) -> bool:
    """Return whether a chain, the leaf first, leads from `name` to one of the roots, at the leaf's beginning.

    Whether it has ended is asked elsewhere: what counts of two ends last.
    """
    if not roots or not chain:
        return False
    host = f"any{name[1:]}" if name.startswith("*.") else name
    moment = chain[0].not_valid_before_utc.replace(tzinfo=None) + timedelta(seconds=1)
    policy = PolicyBuilder().store(Store(list(roots))).time(moment).max_chain_depth(DEPTH_MAX)
    try:
        policy.build_server_verifier(x509.DNSName(host)).verify(chain[0], list(chain[1:]))
    except (VerificationError, ValueError):
        return False
    return True
