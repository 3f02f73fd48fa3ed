"""How much time, room and patience one guarded download gets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one download, redirects included; the defaults suit a picture."""

    connect_timeout_s: float = 10.0
    """Name lookup, TCP and TLS, for each hop."""
    response_timeout_s: float = 30.0
    """From the request sent to its answer's last header, for each hop."""
    total_deadline_s: float = 120.0
    """From the call to the body's last byte, over all hops."""
    max_bytes: int = 50_000_000
    """Body bytes on the wire."""
    max_decoded_bytes: int = 50_000_000
    """Body bytes after undoing a Content-Encoding that the server applied unasked."""
    min_rate_bytes_per_s: float = 1_000.0
    """Least average over each window of waiting for the server; time the caller spends elsewhere does not count."""
    rate_window_s: float = 10.0
    max_redirects: int = 5
    max_header_bytes: int = 65_536
    """Status line and headers of one answer; also all trailers and chunk framing between two pieces of body."""
    allow_downgrade: bool = False
    """Whether a redirect may lead from https to http."""
