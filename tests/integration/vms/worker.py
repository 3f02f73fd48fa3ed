"""Runs the vms service as a process of its own that kills itself at a chosen moment of its work with the cluster.

Called with one JSON argument: database_url, cluster, user, write (which change of the cluster, from 1), moment
(`before` it is sent, `after` its answer, `waiting` for the task it began), and wish or vm_id (what to make or delete)
or ask (method, path and body of another call) or image (what to make a template of, from images_url).
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any
from uuid import UUID

import httpx

from libs.common.bus.local import LocalBus
from libs.common.testing.identity import TestIssuer
from libs.common.testing.serving import user_event
from services.vms.adapters.proxmox.session import Session
from services.vms.main import create_app
from services.vms.ports import CatalogImage
from tests.contract.vms.catalog import FakeImages
from tests.contract.vms.harness import PLENTY, settings


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(write: int, moment: str) -> None:
    """Make the process die at that moment."""
    call = Session.call
    writes = 0

    async def counted(self: Session, method: str, path: str, **options: Any) -> Any:
        nonlocal writes
        if method == "get":
            if writes == write and moment == "waiting" and path == "cluster/tasks":
                die()
            return await call(self, method, path, **options)
        writes += 1
        mine = writes == write
        if mine and moment == "before":
            die()
        answer = await call(self, method, path, **options)
        if mine and moment == "after":
            die()
        return answer

    Session.call = counted  # type: ignore[method-assign] # that is the trap


async def main(given: dict[str, Any]) -> None:
    arm(given["write"], given["moment"])
    bus, issuer = LocalBus(), TestIssuer()
    images = FakeImages(given.get("images_url", ""))
    if "image" in given:
        image = CatalogImage(**given["image"] | {"id": UUID(given["image"]["id"])})
        images.known[image.id] = image
    chosen = settings(given["database_url"], given["cluster"])
    app = create_app(chosen, bus=bus, verifier=issuer.verifier(), images=images)
    await bus.start()
    async with app.router.lifespan_context(app):
        await bus.publish(user_event(given["user"], **PLENTY))
        transport = httpx.ASGITransport(app=app)
        headers = issuer.headers(given["user"], role="ADMIN" if "image" in given else "CLIENT")
        async with httpx.AsyncClient(transport=transport, base_url="http://vms", headers=headers) as http:
            if "wish" in given:
                answer = await http.post("/api/v1/vms", json=given["wish"])
            elif "image" in given:
                answer = await http.post("/api/v1/templates", json={"image_id": given["image"]["id"]})
            elif "ask" in given:
                method, path, body = given["ask"]
                answer = await http.request(method, path, json=body)
            else:
                answer = await http.delete(f"/api/v1/vms/{given['vm_id']}")
            if answer.status_code != 202:
                sys.exit(answer.text)
            await asyncio.sleep(100)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
