"""Calls to one cluster's API: proxmoxer in worker threads, each with a client of its own, over verified TLS."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from proxmoxer import ProxmoxResource
from proxmoxer.backends.https import Backend
from proxmoxer.core import ResourceException
from requests.adapters import HTTPAdapter

from services.vms.adapters.proxmox.breaker import Breakers
from services.vms.adapters.proxmox.failures import SILENCE, call_failure, unanswered
from services.vms.errors import ProxmoxFailure, ProxmoxUnavailable
from services.vms.settings import ClusterSettings

T = TypeVar("T")
_PARTING_S = 1.0
_IDLE_S = 3.0
"""pveproxy closes connections that rest for 5 s; a change sent into a closing one would have an unknown outcome."""
_CONNECT_TIMEOUT_S = 10.0
_REDIRECTS = range(300, 400)
_FAILURES = 400


class _Adapter(HTTPAdapter):
    """Pins a certificate, refuses redirects, and puts the text of a failure where proxmoxer looks for it."""

    def __init__(self, fingerprint: str | None) -> None:
        self._fingerprint = fingerprint
        self.peer: str | None = None
        """The address that answered last; a name may stand for several nodes."""
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        if self._fingerprint is not None:
            options["assert_fingerprint"] = self._fingerprint
        super().init_poolmanager(*args, **options)

    def send(self, *args: Any, **options: Any) -> requests.Response:
        response = super().send(*args, **options)
        connected = getattr(response.raw.connection, "sock", None)
        self.peer = None if connected is None else str(connected.getpeername()[0])
        if response.status_code in _REDIRECTS:
            response.close()
            raise requests.exceptions.TooManyRedirects(f"{response.status_code} from the cluster's API")
        if response.status_code >= _FAILURES:
            response.reason = _message(response) or response.reason or ""
        return response


def _message(response: requests.Response) -> str | None:
    """The text in the body, which newer servers give; proxies drop the reason phrase that proxmoxer relies on."""
    try:
        message = response.json()["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return message.strip() if isinstance(message, str) else None


def _verification(cluster: ClusterSettings) -> bool | str:
    """How requests judges the certificate; a pinned one is trusted as it is, whoever signed it."""
    if cluster.fingerprint is not None:
        return False
    return True if cluster.ca is None else str(cluster.ca)


class _Client:
    """One thread's client."""

    def __init__(self, cluster: ClusterSettings, timeout_s: float) -> None:
        url = urlsplit(cluster.url)
        user, _, token = cluster.token_id.partition("!")
        host = url.hostname or ""
        backend = Backend(
            f"[{host}]" if ":" in host else host,
            port=url.port,
            user=user,
            token_name=token,
            token_value=cluster.token_secret.get_secret_value(),
            verify_ssl=_verification(cluster),
            timeout=(min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s),
        )
        self.session = backend.get_session()
        self.session.trust_env = False
        self.adapter = _Adapter(cluster.fingerprint)
        self.session.mount("https://", self.adapter)
        self.api = ProxmoxResource(
            base_url=backend.get_base_url(), session=self.session, serializer=backend.get_serializer()
        )
        self.used_at = 0.0


def _not_sent(error: requests.exceptions.ConnectionError) -> ProxmoxUnavailable | None:
    """The failure of a call that never left: no connection was made, or it was to a server that is not trusted."""
    told = repr(error)
    if "CERTIFICATE_VERIFY_FAILED" in told or "Fingerprints did not match" in told:
        return ProxmoxUnavailable("The cluster's certificate is not the trusted one", reason="certificate")
    refused = "NewConnectionError" in told or "NameResolutionError" in told
    if refused or isinstance(error, requests.exceptions.ConnectTimeout):
        return ProxmoxUnavailable("The cluster cannot be reached", reason="not connected")
    return None


class Session:
    """The API of one cluster. Failures are raised as `services.vms.errors` say."""

    def __init__(
        self, cluster: ClusterSettings, *, timeout_s: float, connections: int, breakers: Breakers | None = None
    ) -> None:
        logging.getLogger("proxmoxer").setLevel(logging.WARNING)  # it logs the data of every POST at INFO
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._breakers = breakers
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix=f"proxmox-{cluster.name}")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._clients: list[_Client] = []
        self._closed = False
        self._under_way: set[Future[Any]] = set()

    async def call(self, method: str, path: str, *, node: str | None = None, **parameters: Any) -> Any:
        """Do one call. `path` consists of checked ids only; `node` is the one that the call is about."""
        return await self._guarded(node, self._call, method, path, node, parameters)

    async def call_at(
        self, method: str, path: str, *, node: str | None = None, **parameters: Any
    ) -> tuple[Any, str | None]:
        """Do one call; gives its answer and the address that gave it, where that is known."""
        return await self._guarded(node, self._call_at, method, path, node, parameters)

    async def close(self) -> None:
        """Take no more calls, and give those under way a moment to end; the others end by themselves."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        under_way = [asyncio.wrap_future(running) for running in tuple(self._under_way)]
        if under_way:
            await asyncio.wait(under_way, timeout=_PARTING_S)
            for one in under_way:
                if one.done() and not one.cancelled():
                    one.exception()  # its caller has it; here it only had to end
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            client.session.close()

    async def _guarded(self, node: str | None, work: Callable[..., T], *given: Any) -> T:
        """Do a call in a thread, unless its node is left alone just now; the breaker hears how it went."""
        if self._closed:
            raise ProxmoxUnavailable("The service is stopping")
        if self._breakers is None or node is None:
            return await self._in_thread(work, *given)
        self._breakers.check(node)
        try:
            answer = await self._in_thread(work, *given)
        except ProxmoxFailure as error:
            if error.silent:
                self._breakers.failed(node)
            else:
                self._breakers.answered(node)
            raise
        self._breakers.answered(node)
        return answer

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run in one of the session's threads, which goes on when its caller is cancelled."""
        running = self._threads.submit(work, *given)
        self._under_way.add(running)
        running.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(running)

    def _call_at(self, method: str, path: str, node: str | None, parameters: dict[str, Any]) -> tuple[Any, str | None]:
        answer = self._call(method, path, node, parameters)
        return answer, self._local.client.adapter.peer

    def _call(self, method: str, path: str, node: str | None, parameters: dict[str, Any]) -> Any:
        changes = method != "get"
        client = self._client()
        try:
            return getattr(client.api(path), method)(**parameters)
        except ResourceException as error:
            text = str(error.content or "")
            if isinstance(error.errors, dict):
                text += "".join(f" {name}: {told}" for name, told in error.errors.items() if isinstance(told, str))
            failure = call_failure(error.status_code, text, node=node, changes=changes)
            failure.silent = error.status_code in SILENCE
            raise failure from error
        except requests.exceptions.ConnectionError as error:
            raise _not_sent(error) or unanswered(type(error).__name__, node=node, changes=changes) from error
        except (requests.exceptions.RequestException, KeyError, TypeError, ValueError) as error:
            raise unanswered(type(error).__name__, node=node, changes=changes) from error
        finally:
            client.used_at = time.monotonic()
            if self._closed:
                client.session.close()

    def _client(self) -> _Client:
        client: _Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = _Client(self._cluster, self._timeout_s)
            with self._lock:
                self._clients.append(client)
        elif time.monotonic() - client.used_at > _IDLE_S:
            client.session.close()  # its next call connects anew
        return client
