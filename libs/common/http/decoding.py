"""Undo a Content-Encoding that a server applied although it was asked not to, in small bounded steps."""

import zlib
from collections.abc import Iterator

from libs.common.http.errors import BodyTooLarge, ExchangeFailed, Reason

_STEP_BYTES = 262_144
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's own numbers: 31 expects a gzip header, 15 a zlib one


class Decoder:
    """Decodes one body under a cap; no step holds more than 256 KiB of output, whatever the ratio."""

    def __init__(self, encoding: str, *, max_decoded_bytes: int) -> None:
        if encoding not in _WINDOW_BITS:
            raise ExchangeFailed(
                Reason.ENCODING_REFUSED, "The server compressed the body in a way that is not accepted."
            )
        self._zlib = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._max_bytes = max_decoded_bytes
        self._bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decoded pieces. Raises BodyTooLarge, or ExchangeFailed if the data is not what it claims to be."""
        more = bool(data)
        while more:
            try:
                piece = self._zlib.decompress(data, _STEP_BYTES)
            except zlib.error:
                raise self._invalid() from None
            self._bytes += len(piece)
            if self._bytes > self._max_bytes:
                raise BodyTooLarge(
                    Reason.DECODED_TOO_LARGE, f"The decompressed body is larger than {self._max_bytes} bytes."
                )
            if self._zlib.unused_data:
                raise self._invalid()
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail
            more = bool(data) or len(piece) == _STEP_BYTES  # a full step may leave output inside zlib

    def finish(self) -> None:
        """Raises ExchangeFailed if the compressed body was cut."""
        if not self._zlib.eof:
            raise self._invalid()

    def _invalid(self) -> ExchangeFailed:
        return ExchangeFailed(Reason.ENCODING_INVALID, "The server's compressed body is damaged.")


def decoder_for(headers: dict[str, str], *, max_decoded_bytes: int) -> Decoder | None:
    """The decoder that an answer's headers ask for; None if its body came as it is."""
    encoding = headers.get("content-encoding", "").strip().lower()
    return None if encoding in {"", "identity"} else Decoder(encoding, max_decoded_bytes=max_decoded_bytes)
