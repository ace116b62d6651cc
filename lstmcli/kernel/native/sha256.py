"""SHA-256 without OpenSSL, where that takes longer to load than to compute it."""

import sys
from typing import Any

LARGE = 1 << 20  # bytes, for which Python's own takes 3 ms; so long OpenSSL takes to load

try:
    if sys.version_info >= (3, 12):
        from _sha2 import sha256 as own
    else:
        from _sha256 import sha256 as own  # type: ignore[import-not-found]
except ImportError:  # a Python that was built without its own, or a later one
    from hashlib import sha256 as own


def sha256(data: bytes, more: int = 0) -> Any:
    """Begin the SHA-256 of `data`, and of about `more` bytes that follow: an object of hashlib."""
    if len(data) + more < LARGE:
        return own(data)
    from hashlib import sha256 as openssl

    return openssl(data)
