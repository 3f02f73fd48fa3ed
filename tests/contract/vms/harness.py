"""The vms service on a real database and a lab over real HTTPS, and what its tests do with them."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from libs.common.events import Event
from libs.common.settings import CommonSettings
from libs.common.testing.serving import Served, serving, user_event
from libs.pvesim.app import RunningLab, serve
from libs.pvesim.faults import Fault
from libs.pvesim.qemu.model import Vm
from libs.pvesim.settings import LabSettings
from services.vms.main import create_app, migrate
from services.vms.settings import VmsSettings
from tests.contract.vms.catalog import FakeImages, catalog

_users = itertools.count(1)
UNLIMITED = -1
SCALE = 0.02
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAID4/QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xd ada@home"
FINAL = ("succeeded", "failed", "cancelled", "needs_operator")
PLENTY = {"vms": UNLIMITED, "cores": UNLIMITED, "memory_mib": UNLIMITED, "disk_gib": UNLIMITED}


@contextlib.asynccontextmanager
async def lab_at(folder: Path, **options: Any) -> AsyncIterator[RunningLab]:
    """A lab fifty times faster than a cluster, whose list is hardly behind."""
    given = {"data_dir": folder, "port": 0, "time_scale": SCALE, "stats_period_s": 1.0, **options}
    running = await serve(LabSettings(**given))
    try:
        yield running
    finally:
        await running.aclose()


def cluster_of(lab: RunningLab, **changes: Any) -> dict[str, Any]:
    """The settings of a lab, as the suite passes them."""
    return {
        "name": "lab",
        "url": lab.url,
        "token_id": lab.token_id,
        "token_secret": lab.token_secret.get_secret_value(),
        "fingerprint": lab.fingerprint,
        **changes,
    }


def settings(database_url: str, cluster: dict[str, Any] | None, **options: Any) -> VmsSettings:
    common = CommonSettings(embedded=True, auth_url="http://127.0.0.1:9", database_pool_size=10)
    quick: dict[str, Any] = {
        "task_poll_s": 0.05,
        "settle_s": 0.6,
        "sync_every_s": 0.2,
        "statistics_lag_s": 0.3,
        "sweep_every_s": 0.2,
        "drift_every_s": 1.0,
        "drift_settle_s": 0.3,
        "addresses_wanting_s": 0.2,
        "snapshots_per_vm": 4,
        "request_timeout_s": 10,
        "breaker_open_s": 0.5,
    }
    clusters = [] if cluster is None else [cluster]
    return VmsSettings(common=common, database_url=database_url, clusters=clusters, **(quick | options))


@dataclass
class Service(Served):
    """A running vms service, its cluster, and what its tests do with them."""

    lab: RunningLab
    images: FakeImages

    # Callers

    async def new_user(self, *, external_id: str | None = None, **quota: int) -> str:
        """A user whom the service has heard of; gives the id."""
        user_id = f"user-{next(_users)}-{time.time_ns()}"
        await self.bus.publish(user_event(user_id, external_id=external_id, **(PLENTY | quota)))
        return user_id

    async def call(self, method: str, path: str, user: str, **options: Any) -> httpx.Response:
        headers = {**self.as_user(user, role=options.pop("role", "CLIENT")), **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)

    async def begin(self, user: str, /, **wish: Any) -> dict[str, Any]:
        """Ask for a machine that is accepted; gives the answer."""
        body = {"name": "web", "os_type": "debian-13", "cores": 1, "memory_mib": 512, "disk_gib": 4, **wish}
        answer = await self.call("POST", "/api/v1/vms", user, json=body)
        assert answer.status_code == 202, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def vm(self, user: str, /, **wish: Any) -> dict[str, Any]:
        """A machine that was made to its end."""
        begun = await self.begin(user, **wish)
        ended = await self.ended(begun["id"], user)
        assert ended["state"] == "succeeded", ended
        return await self.shown(begun["vm"]["id"], user)

    async def shown(self, vm_id: str, user: str) -> dict[str, Any]:
        answer = await self.call("GET", f"/api/v1/vms/{vm_id}", user)
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def ended(self, operation_id: str, user: str, deadline_s: float = 90.0) -> dict[str, Any]:
        """An operation when it has ended, however."""
        until = time.monotonic() + deadline_s
        while True:
            answer = await self.call("GET", f"/api/v1/operations/{operation_id}", user)
            assert answer.status_code in (200, 503), answer.text  # fifty that ask all the time may be told to wait
            shown: dict[str, Any] = answer.json()
            if shown.get("state") in FINAL:
                return shown
            assert time.monotonic() < until, shown
            await asyncio.sleep(0.1)

    async def done(self, method: str, path: str, user: str, **options: Any) -> dict[str, Any]:
        """Do a call that is accepted, and wait for the success of its operation."""
        answer = await self.call(method, path, user, **options)
        assert answer.status_code == 202, answer.text
        body = answer.json()
        ended = await self.ended(answer.headers["location"].rpartition("/")[2], user)
        assert ended["state"] == "succeeded", ended
        return dict(body)

    # Far ends

    def machines(self) -> dict[int, Vm]:
        """What the cluster has in Telar's range of VMIDs, whoever made it."""
        first, last = self.settings.vmid_first, self.settings.vmid_last
        return {vmid: vm for vmid, vm in self.lab.lab.vms.by_id.items() if first <= vmid <= last}

    def machine(self, vm: dict[str, Any]) -> Vm:
        return self.lab.lab.vms.by_id[vm["vmid"]]

    def volumes(self) -> list[str]:
        """Disks of machines in Telar's range."""
        first, last = self.settings.vmid_first, self.settings.vmid_last
        every = self.lab.lab.storages
        return [volume.volid for vmid in range(first, last + 1) for volume in every.owned(vmid)]

    def calls(self) -> int:
        """API calls that reached the cluster so far."""
        return sum(self.lab.lab.calls.values())

    @contextlib.asynccontextmanager
    async def fault(self, kind: str, **how: Any) -> AsyncIterator[Fault]:
        fault = Fault(kind=kind, **how)  # type: ignore[arg-type] # checked by the model
        await self.lab.lab.inject(fault)
        try:
            yield fault
        finally:
            await self.lab.lab.withdraw(fault.id)

    def events(self, vm_id: str) -> list[Event]:
        return [event for event in self.heard if event.subject == vm_id]


@contextlib.asynccontextmanager
async def running(
    database_url: str, lab: RunningLab, *, cluster: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Service]:
    """Migrate and run the service in this process, beside a catalog of images; `cluster` changes its settings."""
    chosen = settings(database_url, cluster_of(lab, **(cluster or {})), **options)
    async with (
        catalog() as images,
        serving("vms", partial(create_app, images=images), migrate, chosen, timeout_s=60) as served,
    ):
        yield Service(**vars(served), lab=lab, images=images)
