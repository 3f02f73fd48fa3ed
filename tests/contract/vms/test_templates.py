import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from services.vms.ports import CatalogImage
from tests.contract.vms.catalog import GIB, image_event
from tests.contract.vms.harness import Service, lab_at, running

Eventually = Callable[..., Awaitable[None]]
ADMIN = "an-administrator"


@contextlib.asynccontextmanager
async def anew(database_url: str, folder: Path, **options: Any) -> AsyncIterator[Service]:
    async with lab_at(folder) as lab, running(database_url, lab, **options) as service:
        yield service


async def ask(service: Service, **wish: Any) -> Any:
    return await service.call("POST", "/api/v1/templates", ADMIN, role="ADMIN", json=wish)


async def made(service: Service, **wish: Any) -> dict[str, Any]:
    """A template that was made to its end."""
    answer = await ask(service, **wish)
    assert answer.status_code == 202, answer.text
    ended = await service.ended(answer.json()["id"], ADMIN)
    assert ended["state"] == "succeeded", ended
    return await shown(service, answer.json()["template"]["id"])


async def shown(service: Service, template_id: str) -> dict[str, Any]:
    listed = await service.call("GET", "/api/v1/templates", ADMIN, role="ADMIN")
    found = [item for item in listed.json()["items"] if item["id"] == template_id]
    assert found, listed.text
    return dict(found[0])


def heard(service: Service, template: dict[str, Any]) -> list[str]:
    """The types of the events that told of a template so far."""
    return [event.type for event in service.heard if event.subject == template["id"]]


async def remove(service: Service, template: dict[str, Any]) -> None:
    path = f"/api/v1/templates/{template['id']}"
    answer = await service.call("DELETE", path, ADMIN, role="ADMIN")
    assert answer.status_code == 202, answer.text
    ended = await service.ended(answer.json()["id"], answer.json()["owner_id"])
    assert ended["state"] == "succeeded", ended


def leases(service: Service) -> list[tuple[Any, ...]]:
    return service.rows("SELECT vmid, state FROM vmid_leases")


def files(service: Service) -> list[str]:
    """What lies on the lab's storages of images to import and of seeds."""
    return [volume.volid for volume in service.lab.lab.storages if volume.content in ("import", "iso")]


async def test_a_template_is_made_of_an_image_once_on_shared_storage_and_machines_of_it(
    service: Service, eventually: Eventually
) -> None:
    image = service.images.add(size_gib=3)
    template = await made(service, image_id=str(image.id), memory_mib=1024)
    assert (template["state"], template["offered"], template["os_type"]) == ("ready", True, "alma-9.4")
    assert (template["image_id"], template["disk_gib"], len(template["vmids"])) == (str(image.id), 3, 1)
    machine = service.lab.lab.vms.by_id[template["vmids"][0]]
    config = machine.config
    assert config["template"] == 1
    assert "agent" in config
    assert config["scsi0"].startswith("shared:")
    assert "cloudinit" in config["ide2"]
    assert files(service) == []
    await eventually(lambda: heard(service, template) == ["vms.template.created.v1", "vms.template.ready.v1"])
    told = [event for event in service.heard if event.subject == template["id"]]
    assert told[-1].data["image_id"] == str(image.id)
    assert told[-1].data["resource"] == {"type": "template", "id": template["id"], "name": template["name"]}

    user = await service.new_user()
    vm = await service.vm(user, os_type=None, image_id=str(image.id), disk_gib=5)
    assert (vm["image_id"], vm["os_type"], vm["disk_gib"]) == (str(image.id), "alma-9.4", 5)
    assert service.machine(vm).running
    assert service.machine(vm).disk_bytes == 5 * GIB
    await eventually(lambda: bool(service.events(vm["id"])))
    assert service.events(vm["id"])[0].data["image_id"] == str(image.id)
    by_id = await service.vm(user, os_type=None, template=template["id"], start=False)
    by_system = await service.vm(user, os_type="alma", start=False)
    assert by_id["image_id"] == by_system["image_id"] == str(image.id)

    refused = await service.call("DELETE", f"/api/v1/templates/{template['id']}", ADMIN, role="ADMIN")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/template-in-use")
    for one in (vm, by_id, by_system):
        await service.done("DELETE", f"/api/v1/vms/{one['id']}", user)
    await remove(service, template)
    assert (service.machines(), service.volumes(), leases(service)) == ({}, [], [])
    await eventually(lambda: heard(service, template)[-1] == "vms.template.deleted.v1")


async def test_a_template_is_made_on_every_node_where_disks_are_local(new_database_url: str, tmp_path: Path) -> None:
    async with anew(new_database_url, tmp_path, cluster={"image_storage": "local-lvm"}) as service:
        template = await made(service, image_id=str(service.images.add().id))
        copies = [service.lab.lab.vms.by_id[vmid] for vmid in template["vmids"]]
        assert sorted(copy.node for copy in copies) == ["sv1", "sv2", "sv3", "sv4", "sv5"]
        assert all(copy.config["scsi0"].startswith("local-lvm:") for copy in copies)
        user = await service.new_user()
        vm = await service.vm(user, os_type=None, template=template["name"], node="sv4")
        assert (vm["node"], service.machine(vm).node) == ("sv4", "sv4")
        refused = await service.call(
            "POST", "/api/v1/vms", user, json={"name": "ha", "template": template["name"], "ha": True}
        )
        assert refused.status_code == 409
        assert "high availability needs a template on shared storage" in refused.json()["detail"]
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
        await remove(service, template)
        assert (service.machines(), service.volumes(), leases(service), files(service)) == ({}, [], [], [])


async def test_a_template_of_a_cluster_is_registered_under_another_name_and_stays_when_it_is_forgotten(
    service: Service,
) -> None:
    template = await made(service, vmid=9002, name="lab-stream", os_type="stream-10")
    assert template["vmids"] == [9002]
    user = await service.new_user()
    vm = await service.vm(user, os_type="stream-10", disk_gib=10, start=False)
    assert (vm["template"], vm["image_id"]) == ("lab-stream", None)
    assert (await ask(service, vmid=9002)).json()["type"] == "/problems/template-state"
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    await remove(service, template)
    assert 9002 in service.lab.lab.vms.by_id
    offered = (await service.call("GET", "/api/v1/templates", user)).json()["items"]
    assert "centos-stream-10" in {item["os_type"] for item in offered}


async def test_a_template_of_a_cluster_is_registered_once_however_many_ask(service: Service) -> None:
    answers = await asyncio.gather(*(ask(service, vmid=9002, name=f"name-{number}") for number in range(4)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409]
    made_once = next(answer.json() for answer in answers if answer.status_code == 202)
    assert (await service.ended(made_once["id"], ADMIN))["state"] == "succeeded"
    await remove(service, made_once["template"])


async def test_an_image_that_is_withdrawn_takes_its_templates_out_of_offer_and_back(service: Service) -> None:
    image = service.images.add()
    template = await made(service, image_id=str(image.id))
    user = await service.new_user()
    wish = {"name": "web", "image_id": str(image.id)}
    await service.bus.publish(image_event(image, "deactivated", 3))

    async def offered() -> bool:
        return bool((await shown(service, template["id"]))["offered"])

    until = await shown(service, template["id"])
    assert (until["offered"], until["reason"]) == (False, "Its image was deactivated")
    refused = await service.call("POST", "/api/v1/vms", user, json=wish)
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/template-not-found")
    assert template["id"] not in (await service.call("GET", "/api/v1/templates", user)).text
    await service.bus.publish(image_event(image, "activated", 2))  # older than what is known
    assert not await offered()
    await service.bus.publish(image_event(image, "activated", 4))
    assert await offered()
    vm = await service.vm(user, os_type=None, image_id=str(image.id), start=False)
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    await remove(service, template)


async def test_a_private_image_gives_machines_to_its_readers_alone(service: Service) -> None:
    image = service.images.add(visibility="private")
    template = await made(service, image_id=str(image.id))
    user = await service.new_user()
    assert template["id"] not in (await service.call("GET", "/api/v1/templates", user)).text
    for wish in ({"template": template["name"]}, {"template": template["id"]}, {"os_type": template["os_type"]}):
        answer = await service.call("POST", "/api/v1/vms", user, json={"name": "web", **wish})
        assert answer.json()["type"] == "/problems/template-not-found", answer.text
    service.images.hidden_from_users.add(image.id)
    answer = await service.call("POST", "/api/v1/vms", user, json={"name": "web", "image_id": str(image.id)})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/image-unknown")
    placed = await service.call("POST", "/api/v1/placements", user, json={"image_id": str(image.id)})
    assert placed.json()["type"] == "/problems/image-unknown"
    service.images.hidden_from_users.clear()
    vm = await service.vm(user, os_type=None, image_id=str(image.id), start=False)
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    await remove(service, template)


async def test_a_removal_that_fails_leaves_a_template_what_it_was(service: Service) -> None:
    template = await made(service, image_id=str(service.images.add().id))
    await service.change("UPDATE templates SET state = 'failed' WHERE id = %s", template["id"])
    path = f"/api/v1/templates/{template['id']}"
    async with service.fault("task_failure", task_type="qmdestroy", message="no"):
        begun = await service.call("DELETE", path, ADMIN, role="ADMIN")
        assert (await service.ended(begun.json()["id"], ADMIN))["state"] == "failed"
    assert (await shown(service, template["id"]))["state"] == "failed"
    await remove(service, template)


async def test_a_template_is_offered_to_whom_its_image_is(service: Service) -> None:
    image = service.images.add(visibility="public")
    template = await made(service, image_id=str(image.id))
    user = await service.new_user()
    for number, visibility, offered in ((7, "private", False), (6, "public", False), (8, "public", True)):
        await service.bus.publish(image_event(replace(image, visibility=visibility), "updated", number))
        listed = (await service.call("GET", "/api/v1/templates", user)).text
        assert (template["id"] in listed) == offered, visibility
        placed = await service.call("POST", "/api/v1/placements", user, json={"template": template["name"]})
        assert (placed.status_code == 200) == offered, visibility
    assert (await shown(service, template["id"]))["offered"]
    await remove(service, template)


@pytest.mark.parametrize(
    ("policy", "visibility", "expected"),
    [("all", "private", 1), ("public", "private", 0), ("none", "public", 0)],
)
async def test_a_template_is_made_unasked_as_the_policy_says(
    new_database_url: str, lab: RunningLab, eventually: Eventually, policy: str, visibility: str, expected: int
) -> None:
    async with running(new_database_url, lab, template_policy=policy) as service:
        image = service.images.add(visibility=visibility)
        for sequence in (2, 2, 3):
            await service.bus.publish(image_event(image, "activated", sequence))
        rows = service.rows("SELECT count(*) FROM templates WHERE image_id = %s", image.id)
        assert rows == [(expected,)]
        await eventually(
            lambda: service.rows("SELECT count(*) FROM templates WHERE state = 'ready'") == [(expected,)], 30
        )
        for (template_id,) in service.rows("SELECT id FROM templates"):
            await remove(service, {"id": template_id})


async def test_what_is_no_disk_becomes_no_template_and_changes_nothing(service: Service) -> None:
    iso, rejected = service.images.add(image_format="iso"), service.images.add()
    service.images.change(rejected, status="deactivated")
    user = await service.new_user()
    before = service.rows("SELECT count(*) FROM templates")
    missing = "01890000-0000-7000-8000-000000000000"
    for wish, status, slug in (
        ({"image_id": str(iso.id)}, 409, "image-unfit"),
        ({"image_id": str(rejected.id)}, 409, "image-unfit"),
        ({"image_id": missing}, 422, "image-unknown"),
        ({"vmid": 4242}, 422, "template-not-found"),
        ({"vmid": 9000, "cores": 4}, 422, "invalid"),
        ({}, 422, "invalid"),
        ({"vmid": 9000, "name": "../etc"}, 422, "invalid"),
        ({"image_id": str(rejected.id), "cluster": "nowhere"}, 422, "template-not-found"),
    ):
        answer = await ask(service, **wish)
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (status, slug), answer.text
    assert (await service.call("POST", "/api/v1/templates", user, json={"vmid": 9000})).status_code == 403
    assert service.rows("SELECT count(*) FROM templates") == before
    service.images.away = True
    assert (await ask(service, image_id=str(iso.id))).status_code == 503
    service.images.away = False
    gone = await service.call("DELETE", f"/api/v1/templates/{missing}", ADMIN, role="ADMIN")
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/template-unknown")


def _damaged(service: Service, image: CatalogImage) -> None:
    service.images.files[image.id] = b"something else"


@pytest.mark.parametrize("task", ["download", "qmtemplate"])
async def test_a_template_that_cannot_be_made_leaves_nothing(
    service: Service, eventually: Eventually, task: str
) -> None:
    image = service.images.add()
    async with service.fault("task_failure", task_type=task):
        answer = await ask(service, image_id=str(image.id))
        ended = await service.ended(answer.json()["id"], ADMIN)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/no-storage-fits")
    failed = await shown(service, answer.json()["template"]["id"])
    assert (failed["state"], failed["vmids"]) == ("failed", [])
    assert (service.machines(), service.volumes(), leases(service), files(service)) == ({}, [], [], [])
    await eventually(lambda: heard(service, failed)[-1] == "vms.template.failed.v1")
    await remove(service, failed)


async def test_a_file_that_is_not_the_images_is_refused(service: Service) -> None:
    image = service.images.add()
    _damaged(service, image)
    answer = await ask(service, image_id=str(image.id))
    ended = await service.ended(answer.json()["id"], ADMIN)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/file-damaged")
    assert (service.machines(), files(service), leases(service)) == ({}, [], [])
    await remove(service, await shown(service, answer.json()["template"]["id"]))


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "lost"])
async def test_calls_for_a_template_without_an_answer_are_looked_up(service: Service, applied: bool) -> None:
    image = service.images.add()
    async with contextlib.AsyncExitStack() as stack:
        for path in ("/download-url$", "/qemu$", "/template$"):
            fault = service.fault("gateway_timeout", method="POST", path=path, applied=applied, count=1)
            await stack.enter_async_context(fault)
        template = await made(service, image_id=str(image.id))
    assert sorted(service.machines()) == template["vmids"]
    assert files(service) == []
    await remove(service, template)


async def test_a_node_that_dies_while_a_template_is_made_is_left_for_another(
    service: Service, eventually: Eventually
) -> None:
    image = service.images.add()
    async with service.fault("slow_task", task_type="qmcreate", factor=500) as slow:
        answer = await ask(service, image_id=str(image.id))
        await eventually(lambda: bool(service.machines()))
        first = next(iter(service.machines().values()))
        async with service.fault("node_down", node=first.node):
            await service.lab.lab.withdraw(slow.id)
            ended = await service.ended(answer.json()["id"], ADMIN)
            assert ended["state"] == "succeeded", ended
            template = await shown(service, answer.json()["template"]["id"])
            assert service.lab.lab.vms.by_id[template["vmids"][0]].node != first.node
    # What a dead node left half made carries no mark yet: it is never touched, and its VMID is given to nobody.
    assert (first.vmid, "leftover") in leases(service)
    service.lab.lab.vms.remove(first)  # an operator's work
    await remove(service, template)
    await eventually(lambda: leases(service) == [], 20)


async def test_each_replica_lists_a_template_as_soon_as_it_is_made(new_database_url: str, tmp_path: Path) -> None:
    async with (
        lab_at(tmp_path) as lab,
        running(new_database_url, lab) as one,
        running(new_database_url, lab) as other,
    ):
        other.images.known, other.images.files = one.images.known, one.images.files  # one catalog
        for service in (one, other):  # each has looked at the cluster a moment ago
            assert (await service.call("GET", "/api/v1/templates", ADMIN, role="ADMIN")).status_code == 200
        template = await made(one, image_id=str(one.images.add().id))
        user = await one.new_user()
        for service in (one, other):
            offered = (await service.call("GET", "/api/v1/templates", user)).json()["items"]
            assert [item["vmids"] for item in offered if item["id"] == template["id"]] == [template["vmids"]]
