"""Whom this process's TLS clients trust."""

import functools
import ssl


@functools.cache
def system_trust() -> ssl.SSLContext:
    """The system's trust store, or SSL_CERT_FILE's; one for all clients, since reading it takes as long as 50 calls."""
    return ssl.create_default_context()
