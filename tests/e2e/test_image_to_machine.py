"""From a disk image to a machine and back to nothing, through the gateway, on the lab that stands in for a cluster."""

import secrets
from collections.abc import Callable
from typing import Any

import httpx

from tests.corpora.images import disks

from .conftest import Account, RunningSuite

Within = Callable[..., float]
GIB = 1024**3


def done(account: Account, within: Within, method: str, path: str, **options: Any) -> dict[str, Any]:
    """A call that is accepted, and the success of its operation; gives the answer to the call."""
    answer = account.http.request(method, path, **options)
    assert answer.status_code == 202, answer.text
    ended: dict[str, Any] = {}

    def final() -> bool:
        ended.update(account.http.get(answer.headers["location"]).json())
        return ended["state"] not in ("pending", "running")

    within(final, 60)
    assert ended["state"] == "succeeded", ended
    return dict(answer.json())


def test_an_uploaded_disk_becomes_a_template_a_machine_and_nothing_again(
    suite: RunningSuite, admin: Account, client: Account, within: Within
) -> None:
    system = f"lab-{secrets.token_hex(3)}"
    fields = {"name": "Lab", "os_type": system, "version": "1.0", "architecture": "x86_64", "visibility": "public"}
    content = disks.qcow2(virtual_size=2 * GIB)
    uploaded = admin.http.post(
        "/api/v1/images/upload", data=fields | {"description": "of a test"}, files={"file": ("lab.qcow2", content)}
    )
    assert uploaded.status_code == 201, uploaded.text
    image = uploaded.json()["image"]

    refused = client.http.post("/api/v1/templates", json={"image_id": image["id"]})
    assert refused.status_code == 403
    template = done(admin, within, "POST", "/api/v1/templates", json={"image_id": image["id"]})["template"]
    offered = client.http.get("/api/v1/templates").json()["items"]
    assert [one["os_type"] for one in offered if one["id"] == template["id"]] == [f"{system}-1.0"]
    within(lambda: admin.http.delete(f"/api/v1/images/{image['id']}").status_code == 409, 10)  # it is in use

    wish = {"name": "web", "image_id": image["id"], "cores": 1, "memory_mib": 1024, "disk_gib": 3}
    vm = done(client, within, "POST", "/api/v1/vms", json=wish)["vm"]
    shown: dict[str, Any] = {}

    def addressed() -> bool:
        shown.update(client.http.get(f"/api/v1/vms/{vm['id']}").json())
        return bool(shown["addresses"])

    within(addressed, 60)
    assert (shown["state"], shown["image_id"], shown["live"]["status"]) == ("running", image["id"], "running")
    done(client, within, "PATCH", f"/api/v1/vms/{vm['id']}", json={"disk_gib": 5, "cores": 2, "restart": True})
    resized = client.http.get(f"/api/v1/vms/{vm['id']}").json()
    assert (resized["disk_gib"], resized["cores"], resized["restart_needed"]) == (5, 2, False)
    shrunk = client.http.patch(f"/api/v1/vms/{vm['id']}", json={"disk_gib": 4})
    assert (shrunk.status_code, shrunk.json()["type"]) == (409, "/problems/disk-only-grows")
    in_use = admin.http.delete(f"/api/v1/templates/{template['id']}")
    assert in_use.json()["type"] == "/problems/template-in-use"

    done(client, within, "DELETE", f"/api/v1/vms/{vm['id']}")
    assert client.http.get(f"/api/v1/vms/{vm['id']}").status_code == 404
    done(admin, within, "DELETE", f"/api/v1/templates/{template['id']}")
    assert left_on_the_lab(suite, {vm["vmid"], *template["vmids"]}) == []
    within(lambda: admin.http.delete(f"/api/v1/images/{image['id']}").status_code in (200, 202, 204), 10)


def left_on_the_lab(suite: RunningSuite, vmids: set[int]) -> list[str]:
    """What the lab still has of those VMIDs, and files on their way to a template."""
    if not suite.data_dir.name or not (suite.data_dir / "pvesim" / "secrets.json").exists():
        return []
    secret = httpx.Response(200, content=(suite.data_dir / "pvesim" / "secrets.json").read_bytes()).json()
    headers = {"authorization": f"PVEAPIToken=telar@pve!telar={secret['token_secret']}"}
    with httpx.Client(base_url=f"{suite.lab_url}/api2/json", headers=headers, verify=False, trust_env=False) as lab:  # noqa: S501 - the lab's own certificate
        machines = lab.get("/cluster/resources", params={"type": "vm"}).json()["data"]
        files = lab.get("/nodes/sv1/storage/shared/content").json()["data"]
    told = [str(machine["vmid"]) for machine in machines if machine["vmid"] in vmids]
    return told + [
        volume["volid"] for volume in files if volume.get("vmid") in vmids or volume["content"] in ("import", "iso")
    ]
