"""One thread's connection to a cluster's API, over which proxmoxer speaks: HTTP/1.1 on verified TLS, kept alive.

The standard library's client takes a quarter of the processor time that proxmoxer's own, requests, takes for a call;
when hundreds of machines are made at once, calls are most of what that costs.
"""

import hashlib
import http.client
import io
import json
import secrets
import select
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode, urlsplit

import certifi

from services.vms.settings import ClusterSettings

_PORT = 8006
_IDLE_S = 3.0
"""pveproxy closes connections that rest for 5 s; a change sent into a closing one would have an unknown outcome."""
_CONNECT_TIMEOUT_S = 10.0
_REDIRECTS = range(300, 400)
_FAILURES = 400
_FORM = "application/x-www-form-urlencoded"


class NotConnected(Exception):
    """Nothing was sent: there is no connection."""


class NotTrusted(NotConnected):
    """Nothing was sent: the server's certificate is not the trusted one."""


class Unanswered(Exception):
    """What was sent got no answer that can be used; `lost` if the connection broke."""

    def __init__(self, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Answer:
    """What proxmoxer and its serializer look at; `reason` is a failure's text."""

    status_code: int
    reason: str
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


def trust(cluster: ClusterSettings) -> ssl.SSLContext:
    """How a cluster's certificate is judged: by an authority, or by `require_pinned`, whoever signed it.

    Raises ValueError if the authority's file cannot be read.
    """
    if cluster.fingerprint is None:
        try:
            return ssl.create_default_context(cafile=str(cluster.ca or certifi.where()))
        except OSError as error:
            raise ValueError(f"the cluster {cluster.name}'s ca {cluster.ca} is no file with certificates") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def require_pinned(cluster: ClusterSettings, certificate: bytes | None) -> None:
    """Raise SSLCertVerificationError unless the certificate that a server has shown is the pinned one, if one is."""
    if cluster.fingerprint not in (None, hashlib.sha256(certificate or b"").hexdigest()):
        raise ssl.SSLCertVerificationError("the certificate is not the pinned one")


class Connection:
    """What proxmoxer calls a session. One thread at a time uses it; any may close it while none does."""

    def __init__(self, cluster: ClusterSettings, trusted: ssl.SSLContext, timeout_s: float) -> None:
        url = urlsplit(cluster.url)
        self._origin = f"https://{url.netloc}"
        self.base_url = f"{self._origin}/api2/json"
        self.peer: str | None = None
        """The address that answered last; a name may stand for several nodes."""
        self._cluster = cluster
        self._timeout_s = timeout_s
        token = f"{cluster.token_id}={cluster.token_secret.get_secret_value()}"
        self._headers = {"Authorization": f"PVEAPIToken={token}", "Accept": "application/json"}
        self._http = http.client.HTTPSConnection(
            url.hostname or "", url.port or _PORT, timeout=min(_CONNECT_TIMEOUT_S, timeout_s), context=trusted
        )
        self._used_at = 0.0
        self._in_use = threading.Lock()

    def request(
        self, method: str, url: str, data: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> Answer:
        """Send one request and read its answer whole. Raises NotConnected, NotTrusted or Unanswered."""
        target = url.removeprefix(self._origin)
        if params:
            target += f"?{urlencode(params, doseq=True)}"
        body, kind = _body(data)
        headers = self._headers if kind is None else self._headers | {"Content-Type": kind}
        with self._in_use:
            self._connect()
            try:
                self._http.request(method, target, body, headers)
                response = self._http.getresponse()
                status, reason, content = response.status, response.reason, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._http.close()
                lost = isinstance(error, OSError) and not isinstance(error, TimeoutError)
                raise Unanswered(type(error).__name__, lost=lost) from error
            self._used_at = time.monotonic()
        if status in _REDIRECTS:
            raise Unanswered(f"{status} from the cluster's API")
        return Answer(status, _message(content) or reason if status >= _FAILURES else reason, content)

    def close(self) -> None:
        """Close it, unless a request is under way."""
        if self._in_use.acquire(blocking=False):
            self._http.close()
            self._in_use.release()

    def _connect(self) -> None:
        """See to a connection that lives: one that rested, or on which the server has said something, is left."""
        if self._http.sock is not None:
            if time.monotonic() - self._used_at <= _IDLE_S and _is_quiet(self._http.sock):
                return
            self._http.close()
        try:
            self._http.connect()
            require_pinned(self._cluster, self._http.sock.getpeercert(binary_form=True))
            self._http.sock.settimeout(self._timeout_s)
            self.peer = str(self._http.sock.getpeername()[0])
        except ssl.SSLCertVerificationError as error:
            self._http.close()
            raise NotTrusted from error
        except OSError as error:
            self._http.close()
            raise NotConnected from error


def _is_quiet(connected: Any) -> bool:
    """Whether nothing waits to be read: a server that ends a connection says so, or closes its side."""
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return not poll.poll(0)


def _body(data: Mapping[str, Any] | None) -> tuple[bytes | None, str | None]:
    """A request's body and its type: a form, of several parts if there are files."""
    if not data:
        return None, None
    if not any(isinstance(value, io.BytesIO) for value in data.values()):
        return urlencode(data, doseq=True).encode(), _FORM
    boundary = secrets.token_hex(16)
    body = bytearray()
    for name, value in sorted(data.items(), key=lambda item: isinstance(item[1], io.BytesIO)):  # files come last
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if isinstance(value, io.BytesIO):
            file_name = PurePath(getattr(value, "name", name)).name
            body += f'; filename="{file_name}"\r\nContent-Type: application/octet-stream'.encode()
        content = value.getvalue() if isinstance(value, io.BytesIO) else str(value).encode()
        body += b"\r\n\r\n" + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body), f"multipart/form-data; boundary={boundary}"


def _message(content: bytes) -> str | None:
    """The text in the body, which newer servers give; proxies drop the reason phrase that proxmoxer relies on."""
    try:
        message = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return message.strip() if isinstance(message, str) else None
