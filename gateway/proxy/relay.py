"""Forward one authorised request to its service and stream the answer back."""

import asyncio
import contextlib

import structlog
from starlette.types import Receive, Scope, Send

from gateway.proxy.connection import ClientGoneError, ConnectionLostError, Exchange
from gateway.proxy.forwarded import TrustedProxies
from gateway.proxy.headers import RequestHead, answer_fields, request_head
from gateway.proxy.target import checked_target
from gateway.proxy.upstream import Upstream
from libs.common.errors import TelarError

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_CONTINUE_TIMEOUT_S = 1.0
_LINGER_S = 2.0
_BODYLESS = frozenset({204, 304})

_log = structlog.get_logger()


class Relay:
    """Forwards requests; holds no state of its own but whom to believe about the client's address."""

    def __init__(self, proxies: TrustedProxies) -> None:
        self._proxies = proxies

    async def forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        upstream: Upstream,
        *,
        authorization: bytes,
        request_id: bytes,
        traceparent: bytes,
        session: str = "",
    ) -> None:
        """Relay one HTTP request; `authorization` is the whole field value, or empty for an anonymous call.

        Raises TelarError (AmbiguousPath, or one of the upstream's `failures`) only before the answer has begun. A
        failure after that returns with the answer incomplete, upon which the server closes the client's connection:
        no body ever looks whole that is not. `session` names what `Upstream.end_sessions` may cut.
        """
        head = request_head(
            scope,
            checked_target(scope),
            authorization=authorization,
            request_id=request_id,
            traceparent=traceparent,
            forwarded=self._proxies.fields(scope),
        )
        first, more = b"", head.expects_continue
        if head.length_bytes != 0 and not more:
            # The first of the body comes before the upstream is bothered: most bodies are no longer than that.
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            first = _framed(message.get("body", b""), head, last=not more)
        upstream.admit()
        method: str = scope["method"]
        connection = upstream.idle_connection() or await upstream.new_connection()
        exchange = Exchange(connection, receive, method, session, upstream.tick)
        if not await _attempt(exchange, send, upstream, head, first, more=more):
            exchange = Exchange(await upstream.new_connection(), receive, method, session, upstream.tick)
            await _attempt(exchange, send, upstream, head, first, more=more)


async def _attempt(
    exchange: Exchange, send: Send, upstream: Upstream, head: RequestHead, first: bytes, *, more: bool
) -> bool:
    """Ask once and answer the client; False if the request is to be sent once more, on a new connection."""
    upstream.begin(exchange)
    try:
        connection = exchange.connection
        connection.start(exchange, head.data + connection.host_line + first)
        if more:
            await _begin_upload(exchange, head, upstream)
        while not exchange.answered and exchange.failure is None:
            await exchange.progress()
        if exchange.failure is not None:
            return _give_up(exchange, exchange.failure, upstream, more=more)
        if upstream.breaker.failures:
            upstream.breaker.succeeded()
        await _answer(exchange, send, upstream, head)
        return True
    finally:
        upstream.finish(exchange)


def _give_up(exchange: Exchange, failure: Exception, upstream: Upstream, *, more: bool) -> bool:
    """Say why there is no answer: raise, or return False if the request can safely be sent again."""
    if isinstance(failure, ClientGoneError):
        return True
    if isinstance(failure, TelarError):
        raise failure
    lost = isinstance(failure, ConnectionLostError)
    # A kept-alive connection may close just as a request is written to it; the service never saw that request.
    stale = lost and exchange.connection.reused and not exchange.touched
    if stale and not more and exchange.method in _IDEMPOTENT:
        return False
    _log.warning("upstream_failed", service=upstream.name, error=type(failure).__name__, reason=str(failure))
    what = "closed the connection before it answered" if lost else "gave an answer that cannot be read"
    raise upstream.failures.failed(f"The {upstream.name} service {what}.", retry_after_s=1.0) from failure


async def _begin_upload(exchange: Exchange, head: RequestHead, upstream: Upstream) -> None:
    exchange.request_sent = exchange.request_received = False
    if head.expects_continue:
        # The client's 100 follows the service's: the first receive() sends it. Some services never say it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONTINUE_TIMEOUT_S):
                while not (exchange.continued or exchange.answered or exchange.failure):
                    await exchange.progress()
        if exchange.answered or exchange.failure:
            return
    exchange.watcher = asyncio.create_task(_upload(exchange, head, upstream))


async def _upload(exchange: Exchange, head: RequestHead, upstream: Upstream) -> None:
    """Pass the rest of the body on as fast as the upstream takes it; afterwards watch whether the client stays.

    Once the answer is complete the body is of no more use: it is read and dropped.
    """
    connection = exchange.connection
    while not exchange.request_received:
        await connection.drained()
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            exchange.fail(ClientGoneError())
            return
        exchange.request_received = not message.get("more_body", False)
        if not exchange.discards:
            connection.write(_framed(message.get("body", b""), head, last=exchange.request_received))
            exchange.since_tick = upstream.tick
    if not exchange.discards:
        exchange.request_sent = True
        await exchange.watch()


async def _answer(exchange: Exchange, send: Send, upstream: Upstream, head: RequestHead) -> None:
    fields, framed = answer_fields(exchange.fields, status=exchange.status)
    if not framed and not exchange.is_head and exchange.status not in _BODYLESS:
        # Its end could not be told from a crash of the service.
        _log.warning("upstream_answer_without_length", service=upstream.name, status=exchange.status)
        raise upstream.failures.failed(f"The {upstream.name} service gave an answer without a length.")
    await send({"type": "http.response.start", "status": exchange.status, "headers": fields})
    if exchange.watcher is None and not exchange.request_received:
        # Refused before the client was told to go on: what it sends all the same is dropped.
        exchange.discards = True
        exchange.watcher = asyncio.create_task(_upload(exchange, head, upstream))
    flushed = False
    while exchange.failure is None:
        data, complete = exchange.take(), exchange.complete
        if complete and not exchange.request_received:
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await _linger(exchange)
            data = b""
        # The head goes out with the first of the body, be it empty: a client of a silent event stream waits for it.
        if data or complete or not flushed:
            await send({"type": "http.response.body", "body": data, "more_body": not complete})
            flushed = True
        if complete:
            return
        if not exchange.chunks and not exchange.complete and exchange.failure is None:
            await exchange.progress()
    if not isinstance(exchange.failure, ClientGoneError):
        _log.warning("answer_cut_short", service=upstream.name, error=type(exchange.failure).__name__)


async def _linger(exchange: Exchange) -> None:
    """Read on for a moment before the connection closes under an upload that was answered early.

    A close with unread bytes resets the connection, and the client might lose the answer (RFC 9112, section 9.6).
    """
    exchange.discards = True
    exchange.connection.abort()
    if exchange.watcher is not None:
        await asyncio.wait({exchange.watcher}, timeout=_LINGER_S)


def _framed(body: bytes, head: RequestHead, *, last: bool) -> bytes:
    if head.length_bytes is not None:
        return body
    end = b"0\r\n\r\n" if last else b""
    return b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
