"""What users own and use in other services, as auth learns it from their events."""

import random
from typing import Any
from uuid import uuid4

from tests.contract.auth.harness import Service, event


def _vm_events(owner: str) -> list[Any]:
    """A life of two VMs, as the vms service tells it."""

    def vm(kind: str, name: str, sequence: int, used: tuple[int, int]) -> Any:
        data = {
            "resource": {"type": "vm", "id": f"{owner}-{name}", "name": name if sequence < 3 else f"{name}-renamed"},
            "usage": {"used": {"vms": used[0], "cores": used[0] * 2}, "sequence": used[1]},
        }
        return event(f"vms.vm.{kind}.v1", owner, sequence=sequence, data=data, subject=f"{owner}-{name}")

    return [
        vm("created", "one", 1, (1, 1)),
        vm("created", "two", 1, (2, 2)),
        vm("state_changed", "one", 2, (2, 2)),
        vm("updated", "one", 3, (2, 3)),
        vm("deleted", "two", 2, (1, 4)),
    ]


async def test_events_three_times_in_any_order_leave_the_same_as_once_in_order(service: Service) -> None:
    tidy, messy = await service.person(), await service.person()
    for one in _vm_events(tidy.id):
        await service.bus.publish(one)
    shuffled = _vm_events(messy.id) * 3
    random.Random(7).shuffle(shuffled)  # noqa: S311 - a repeatable disorder
    for one in shuffled:
        await service.bus.publish(one)

    async def usage(person: Any) -> dict[str, Any]:
        answer = await service.http.get("/api/v1/users/me/usage", headers=person.headers)
        document: dict[str, Any] = answer.json()
        document["resources"] = [{**one, "id": one["id"].removeprefix(person.id)} for one in document["resources"]]
        return document

    assert await usage(messy) == await usage(tidy)
    told = await usage(tidy)
    assert (told["used"]["vms"], told["used"]["cores"], told["used"]["stacks"]) == (1, 2, 0)
    assert [one["name"] for one in told["resources"]] == ["one-renamed"]


async def test_use_is_added_up_over_services(service: Service) -> None:
    person = await service.person()
    for kind, used in (
        ("vms.vm.created", {"disk_gib": 20}),
        ("containers.stack.created", {"stacks": 1, "disk_gib": 5}),
    ):
        resource = {"type": kind.split(".")[1], "id": str(uuid4()), "name": "x"}
        data = {"resource": resource, "usage": {"used": used, "sequence": 1}}
        await service.bus.publish(event(f"{kind}.v1", person.id, sequence=1, data=data, subject=resource["id"]))
    used = (await service.http.get("/api/v1/users/me/usage", headers=person.headers)).json()["used"]
    assert (used["disk_gib"], used["stacks"]) == (25, 1)


async def test_an_owner_is_deleted_only_after_the_last_resource(service: Service) -> None:
    person = await service.person()
    for one in _vm_events(person.id)[:2]:
        await service.bus.publish(one)
    path = f"/api/v1/users/{person.id}"
    refused = await service.http.delete(path, headers=service.admin)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/user-owns-resources")
    assert "vm one" in refused.json()["detail"]
    assert "vm two" in refused.json()["detail"]
    for name in ("one", "two"):
        data = {"resource": {"type": "vm", "id": f"{person.id}-{name}", "name": name}, "usage": None}
        await service.bus.publish(event("vms.vm.deleted.v1", person.id, sequence=9, data=data))
    assert (await service.http.delete(path, headers=service.admin)).status_code == 204


async def test_a_use_that_changed_without_a_resource_is_kept(service: Service) -> None:
    person = await service.person()
    for sequence, used_bytes in ((2, 7), (1, 9)):
        usage = {"used": {"image_bytes": used_bytes}, "sequence": sequence}
        told = event("images.usage.changed.v1", person.id, sequence=sequence, data={"usage": usage}, subject=person.id)
        await service.bus.publish(told)
    answer = (await service.http.get("/api/v1/users/me/usage", headers=person.headers)).json()
    assert (answer["used"]["image_bytes"], answer["resources"]) == (7, [])
