"""How the gateway's own questions reach services: by the same replicas, in the same turn, as what it relays."""

from collections.abc import Iterable
from time import monotonic

import httpx

from gateway.proxy.replicas import REST_S, Replicas
from libs.common.trust import system_trust


class ReplicaTransport(httpx.AsyncBaseTransport):
    """Sends a request for any URL of a service to the replica whose turn it is, and to the next if it is not there.

    Each service has connections of its own: those that wait for one which hangs keep nobody from another.
    """

    def __init__(self, services: Iterable[Replicas]) -> None:
        self._elsewhere = _connections()
        self._services = {
            (one.host, one.port): (replicas, transport)
            for replicas, transport in ((replicas, _connections()) for replicas in services)
            for one in replicas.endpoints
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises the last replica's ConnectError or ConnectTimeout if none can be reached."""
        known = self._services.get((request.url.host, request.url.port or 80))
        if known is None:
            return await self._elsewhere.handle_async_request(request)
        replicas, transport = known
        replicas.next()
        failure: httpx.TransportError | None = None
        for endpoint in replicas.in_turn():
            # The Host header was set for the name; only the address that is dialled is another.
            request.url = request.url.copy_with(host=endpoint.address, port=endpoint.port)
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                endpoint.rests_until = monotonic() + REST_S
                failure = error
        raise failure or httpx.ConnectError("no replica is known", request=request)

    async def aclose(self) -> None:
        for transport in {self._elsewhere, *(transport for _, transport in self._services.values())}:
            await transport.aclose()


def _connections() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(verify=system_trust())
