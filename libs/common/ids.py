"""Identifiers: time-ordered UUIDs (RFC 9562, version 7) and operation ids that name their service."""

import os
import time
import uuid

_MONOTONIC_BITS = 12
_last_tick = 0


def uuid7() -> uuid.UUID:
    """Make a UUID that sorts after every one this process made before (RFC 9562, section 6.2, method 3).

    Its first 48 bits are Unix milliseconds, the next 12 after the version a millisecond's 4096ths, 62 are random.
    """
    global _last_tick  # noqa: PLW0603  # the one word that makes ids of the same moment sort
    _last_tick = max(_last_tick + 1, (time.time_ns() << _MONOTONIC_BITS) // 1_000_000)
    unix_ms, fraction = _last_tick >> _MONOTONIC_BITS, _last_tick & (1 << _MONOTONIC_BITS) - 1
    random_bits = int.from_bytes(os.urandom(8), "big") >> 2
    return uuid.UUID(int=unix_ms << 80 | 0x7 << 76 | fraction << 64 | 0x2 << 62 | random_bits)


def new_operation_id(service: str) -> str:
    """Make an id such as `op_vms_0193…`, from which the gateway reads where to route it."""
    return f"op_{service}_{uuid7().hex}"
