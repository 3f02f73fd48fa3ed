"""Users of a suite's gateway who wait for what they began."""

import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from .conftest import PASSWORD, RunningSuite, log_in

Within = Callable[..., float]
ENDED = ("succeeded", "failed", "cancelled", "needs_operator")


@dataclass
class Caller:
    """A user of the gateway."""

    http: httpx.Client
    name: str

    def done(self, answer: httpx.Response, within: Within) -> dict[str, Any]:
        """What an accepted call answered, once its operation has succeeded."""
        assert answer.status_code == 202, answer.text
        operation: dict[str, Any] = {}

        def ended() -> bool:
            operation.update(self.http.get(answer.headers["location"]).json())
            return operation["state"] in ENDED

        within(ended, 180)
        assert operation["state"] == "succeeded", operation
        return dict(answer.json())

    def usage(self) -> Counter[str]:
        """How many resources of each type auth has been told of."""
        resources = self.http.get("/api/v1/users/me/usage").json()["resources"]
        return Counter(one["type"] for one in resources)


@contextlib.contextmanager
def asked(caller: Caller, path: str) -> Iterator[Counter[int]]:
    """Ask for a path all the while; the answers by their status."""
    stop, statuses = threading.Event(), Counter[int]()

    def ask() -> None:
        while not stop.is_set():
            statuses[caller.http.get(path).status_code] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield statuses
    finally:
        stop.set()
        asking.join()


def uploaded(caller: Caller, content: bytes) -> str:
    """The path of an image named `kept`, made of these bytes."""
    fields = {"name": "kept", "os_type": "Debian"}
    answer = caller.http.post("/api/v1/images/upload", data=fields, files={"file": ("a.img", content)})
    assert answer.status_code == 201, answer.text
    return f"/api/v1/images/{answer.json()['image']['id']}"


def caller_of(suite: RunningSuite, name: str, password: str) -> Caller:
    token = log_in(suite.url, name, password)["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    return Caller(httpx.Client(base_url=suite.url, headers=headers, timeout=60, trust_env=False), name)


def client_of(suite: RunningSuite, admin: Caller, **quota: int) -> Caller:
    """A new user; `quota` limits what it may have."""
    name = f"client-{secrets.token_hex(4)}"
    body = {"email": f"{name}@example.org", "username": name, "password": PASSWORD}
    made = admin.http.post("/api/v1/users/", json=body)
    assert made.status_code == 201, made.text
    if quota:
        allowed = admin.http.patch(f"/api/v1/users/{made.json()['id']}", json={"quota": quota})
        assert allowed.status_code == 200, allowed.text
    return caller_of(suite, name, PASSWORD)
