"""The answer to a guarded call: its head, and its body as a stream under the call's limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from libs.common.http.decoding import decoder_for
from libs.common.http.errors import Reason, UpstreamTooSlow
from libs.common.http.exchange import Exchange
from libs.common.http.limits import Limits
from libs.common.http.pool import Connection
from libs.common.http.url import OutboundUrl

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Response:
    """A response of any status. The body can be read once, inside the `async with` that opened it."""

    def __init__(
        self, url: OutboundUrl, connection: Connection, exchange: Exchange, limits: Limits, *, deadline: float
    ) -> None:
        self.status = exchange.status
        self.headers: Mapping[str, str] = exchange.headers
        """Lower-case names; repeated headers are joined with a comma (RFC 9110, 5.3)."""
        self.redirects = 0
        """How many redirects led here."""
        self._url = url
        self.connection = connection
        self.exchange = exchange
        self._limits = limits
        self._deadline = deadline

    @property
    def url(self) -> str:
        """The URL that answered, after redirects, normalised."""
        return str(self._url)

    @property
    def content_length(self) -> int | None:
        """The declared size of the body on the wire; the body is checked against it."""
        return self.exchange.content_length

    @property
    def received_bytes(self) -> int:
        """Body bytes off the wire so far."""
        return self.exchange.received_bytes

    @property
    def location(self) -> str | None:
        """Where a redirect points to, as the server wrote it."""
        raw = self.headers.get("location") if self.status in _REDIRECTS else None
        if raw is None or raw.isascii():
            return raw
        try:
            return raw.encode("latin-1").decode()
        except UnicodeDecodeError:
            return raw

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.exchange.complete and self.exchange.keep_alive and self.exchange.error is None

    async def read(self) -> bytes:
        """The whole body. Raises what `chunks` raises."""
        return b"".join([piece async for piece in self.chunks()])

    async def chunks(self, *, decoded: bool = True) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive; at most about 1 MiB is buffered.

        A Content-Encoding is undone unless `decoded` is False: some servers name that of a stored `.gz` file there.
        Raises BodyTooLarge, UpstreamTooSlow or ExchangeFailed; what was yielded before is then worthless.
        """
        headers = dict(self.headers) if decoded else {}
        decoder = decoder_for(headers, max_decoded_bytes=self._limits.max_decoded_bytes)
        async for raw in self._raw_chunks():
            if decoder is None:
                yield raw
                continue
            for piece in decoder.feed(raw):
                yield piece
        if decoder is not None and self.received_bytes:
            decoder.finish()

    async def _raw_chunks(self) -> AsyncIterator[bytes]:
        exchange = self.exchange
        loop = asyncio.get_running_loop()
        window_s = self._limits.rate_window_s
        waited_s, mark = 0.0, exchange.received_bytes
        while True:
            now = loop.time()
            if exchange.error is not None:
                raise exchange.error
            if now >= self._deadline:
                raise UpstreamTooSlow(Reason.DEADLINE, "The download took longer than allowed.")
            if exchange.buffer:
                yield exchange.take()
                self.connection.drained()
            elif exchange.complete:
                return
            else:
                await exchange.wait(min(self._deadline, now + window_s - waited_s))
                waited_s += loop.time() - now
                if waited_s >= window_s and not exchange.complete:
                    self._check_rate(exchange.received_bytes - mark, waited_s)
                    waited_s, mark = 0.0, exchange.received_bytes

    def _check_rate(self, received_bytes: int, waited_s: float) -> None:
        if received_bytes < self._limits.min_rate_bytes_per_s * waited_s:
            raise UpstreamTooSlow(
                Reason.RATE_TOO_LOW,
                f"The server sent less than {self._limits.min_rate_bytes_per_s:g} bytes a second.",
            )
