"""What a clone takes over from its template, and must not keep."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.vms.harness import Service, lab_at, running

Eventually = Callable[..., Awaitable[None]]
DEBIAN = 9001
OPTIONS = {"sockets": 2, "cores": 2, "balloon": 1024, "protection": 1}


@pytest.fixture(scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("lab")) as lab:
        lab.lab.vms.by_id[DEBIAN].config |= OPTIONS
        yield lab


@pytest.fixture(scope="module")
async def service(database_url: str, lab: RunningLab) -> AsyncIterator[Service]:
    async with running(database_url, lab) as service:
        yield service


async def test_a_machine_has_the_sizes_asked_for_and_can_be_removed_whatever_its_template_had(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=2, memory_mib=512)
    machine = service.machine(vm)
    assert (machine.cpus, machine.memory_mib, machine.config["balloon"]) == (2, 512, 512)
    await service.done("PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 3, "memory_mib": 256, "restart": True})
    assert (machine.cpus, machine.memory_mib, machine.config["balloon"]) == (3, 256, 256)
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)


async def test_a_machine_that_was_given_more_sockets_or_balloon_is_resized_all_the_same(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=1, memory_mib=1024, start=False)
    machine = service.machine(vm)
    machine.config |= {"sockets": 4, "balloon": 1024}
    await service.done("PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 2, "memory_mib": 512})
    assert (machine.cpus, machine.memory_mib) == (2, 512)


async def test_a_cancelled_clone_of_a_protected_template_leaves_nothing(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    async with service.fault("slow_call", method="PUT", path="config$", seconds=100):
        begun = await service.begin(user)
        made = service.machines
        await eventually(lambda: begun["vm"]["vmid"] in made() and made()[begun["vm"]["vmid"]].lock is None)
        await service.call("DELETE", f"/api/v1/operations/{begun['id']}", user)
        assert (await service.ended(begun["id"], user))["state"] == "cancelled"
    assert begun["vm"]["vmid"] not in service.machines()


async def test_a_machine_that_is_protected_by_others_is_left_as_it_is(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    machine = service.machine(vm)
    machine.config["protection"] = 1
    begun = await service.call("DELETE", f"/api/v1/vms/{vm['id']}", user)
    ended = await service.ended(begun.json()["id"], user)
    assert (ended["state"], "take its protection off" in ended["error"]["detail"]) == ("failed", True)
    shown = await service.shown(vm["id"], user)
    assert (shown["state"], shown["reason"], machine.running) == ("running", ended["error"]["detail"], True)
    machine.config["protection"] = 0
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
