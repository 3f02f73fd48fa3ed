"""How one service proves itself to another: client-credentials tokens of the gateway (RFC 6749, section 4.4)."""

import asyncio
import time

import httpx
from pydantic import SecretStr

from libs.common.errors import Unavailable


class ServiceTokens:
    """Fetches and keeps this service's access token; renews it a minute before it runs out."""

    def __init__(self, service: str, *, gateway_url: str, secret: SecretStr, http: httpx.AsyncClient) -> None:
        self._service = service
        self._url = gateway_url.rstrip("/") + "/oauth/token"
        self._secret = secret
        self._http = http
        self._token = ""
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def headers(self) -> dict[str, str]:
        """The Authorization header for a call to another service; raises Unavailable if the gateway is away."""
        async with self._lock:
            if time.monotonic() >= self._renew_at:
                await self._renew()
        return {"authorization": f"Bearer {self._token}"}

    async def _renew(self) -> None:
        try:
            answer = await self._http.post(
                self._url,
                data={"grant_type": "client_credentials"},
                auth=(self._service, self._secret.get_secret_value()),
                timeout=5,
            )
            answer.raise_for_status()
            document = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable("The gateway issues no service token now", retry_after_s=1) from error
        self._token = document["access_token"]
        self._renew_at = time.monotonic() + max(1.0, document["expires_in"] - 60)
