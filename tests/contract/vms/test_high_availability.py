from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from libs.common.testing.serving import user_event
from libs.pvesim.app import RunningLab
from tests.contract.vms.harness import Service, lab_at, running

Eventually = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("version", ["9.1.4", "8.4.1"])
async def test_a_machine_is_kept_by_the_ha_manager_moves_when_its_node_dies_and_is_removed_whole(
    new_database_url: str, tmp_path: Path, eventually: Eventually, version: str
) -> None:
    async with (
        lab_at(tmp_path, version=version, ha_round_s=2.0, ha_fence_s=5.0) as lab,
        running(new_database_url, lab) as service,
    ):
        user = await service.new_user()
        vm = await service.vm(user, ha=True)
        ha = lab.lab.ha
        assert vm["ha"] is True
        assert ha.resources[f"vm:{vm['vmid']}"]["state"] == "started"
        places = ha.rules if version.startswith("9") else ha.groups
        assert list(places) == [f"telar-vm-{vm['vmid']}"]
        assert set(places[f"telar-vm-{vm['vmid']}"]["nodes"].split(",")) == {"sv1", "sv2", "sv3", "sv4", "sv5"}

        async with service.fault("node_down", node=vm["node"]):

            async def elsewhere() -> bool:
                shown = await service.shown(vm["id"], user)
                return bool(shown["node"] != vm["node"] and shown["state"] == "running")

            await eventually(elsewhere, 30)
        await service.done("POST", f"/api/v1/vms/{vm['id']}/stop", user)
        assert not service.machine(vm).running
        await service.done("POST", f"/api/v1/vms/{vm['id']}/start", user)
        assert service.machine(vm).running
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
        assert (service.machines(), service.volumes(), ha.resources, dict(places)) == ({}, [], {}, {})


async def test_a_machine_that_cannot_be_protected_is_undone(service: Service) -> None:
    user = await service.new_user()
    async with service.fault("error", method="POST", path="/cluster/ha/resources", message="not today"):
        begun = await service.begin(user, ha=True)
        ended = await service.ended(begun["id"], user)
    assert ended["state"] == "failed"
    assert (service.machines(), service.volumes(), service.lab.lab.ha.resources) == ({}, [], {})
    assert service.used(user) == {}
    await service.done("DELETE", f"/api/v1/vms/{begun['vm']['id']}", user)


async def test_a_machine_that_a_local_seed_would_pin_is_not_made_highly_available(
    new_database_url: str, lab: RunningLab
) -> None:
    async with running(new_database_url, lab, cluster={"iso_storage": "local"}) as service:
        user = await service.new_user()
        begun = await service.begin(user, ha=True, user_data="#cloud-config")
        ended = await service.ended(begun["id"], user)
        assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/no-storage-fits")
        assert "shared storage called local" in ended["error"]["detail"]
        await service.done("DELETE", f"/api/v1/vms/{begun['vm']['id']}", user)
        vm = await service.vm(user, user_data="#cloud-config", start=False)
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)


async def test_a_limit_that_was_lowered_keeps_machines_from_starting(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=2, start=False)
    await service.bus.publish(user_event(user, vms=5, cores=1, memory_mib=9000, disk_gib=100, sequence=2))
    refused = await service.call("POST", f"/api/v1/vms/{vm['id']}/start", user)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/quota-exceeded")
    assert "cores" in refused.json()["detail"]
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
