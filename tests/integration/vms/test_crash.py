import pytest

from libs.common.ids import uuid7
from libs.pvesim.app import RunningLab
from services.vms.main import migrate
from tests.contract.vms.catalog import catalog
from tests.contract.vms.harness import cluster_of, running, settings
from tests.integration.vms.killing import free_leases, killed

WISH = {"name": "web", "os_type": "debian", "cores": 1, "memory_mib": 512, "disk_gib": 7}
IN_SHORT = {("clone", "waiting"), ("configure", "after"), ("start", "after")}
CREATE = [
    pytest.param(
        *(write, step, moment), id=f"{moment}-{step}", marks=() if (step, moment) in IN_SHORT else pytest.mark.long
    )
    for write, step in enumerate(("clone", "configure", "resize", "start"), start=1)
    for moment in ("before", "after", "waiting")
    if (step, moment) != ("configure", "waiting")  # it has no task
]


@pytest.mark.parametrize(("write", "step", "moment"), CREATE)
async def test_a_creation_that_is_killed_goes_on_without_an_orphan(
    database_url: str, lab: RunningLab, write: int, step: str, moment: str
) -> None:
    user = f"user-{uuid7()}"
    await migrate(settings(database_url, None))
    assert await killed(
        {
            "database_url": database_url,
            "cluster": cluster_of(lab),
            "user": user,
            "write": write,
            "moment": moment,
            "wish": WISH,
        }
    )
    async with running(database_url, lab) as service:
        rows = service.rows("SELECT id, step FROM operations WHERE owner_id = %s", user)
        assert rows[0][1] == step
        await free_leases(service)
        assert (await service.ended(rows[0][0], user))["state"] == "succeeded"
        vm = (await service.call("GET", "/api/v1/vms", user)).json()["items"][0]
        machine = service.machine(vm)
        assert machine.running
        assert machine.disk_bytes == 7 * 1024**3
        assert sorted(service.machines()) == [vm["vmid"]]
        assert len(service.volumes()) == 2


@pytest.mark.parametrize(
    ("write", "moment"),
    [
        (2, "after"),
        *(
            pytest.param(*point, marks=pytest.mark.long)
            for point in ((1, "after"), (1, "waiting"), (2, "before"), (2, "waiting"))
        ),
    ],
)
async def test_a_removal_that_is_killed_goes_on_and_leaves_nothing(
    database_url: str, lab: RunningLab, write: int, moment: str
) -> None:
    async with running(database_url, lab) as service:
        user = await service.new_user()
        vm = await service.vm(user)
    assert await killed(
        {
            "database_url": database_url,
            "cluster": cluster_of(lab),
            "user": user,
            "write": write,
            "moment": moment,
            "vm_id": vm["id"],
        }
    )
    async with running(database_url, lab) as service:
        await free_leases(service)
        operation = service.rows("SELECT id FROM operations WHERE kind = 'vm.delete' AND owner_id = %s", user)[0][0]
        assert (await service.ended(operation, user))["state"] == "succeeded"
        assert service.machines() == {}
        assert service.volumes() == []
        assert service.used(user) == {}


# Download, create, convert, remove the file.
TEMPLATE = [
    (2, "waiting"),
    *(
        pytest.param(*point, marks=pytest.mark.long)
        for point in ((1, "waiting"), (2, "after"), (3, "after"), (4, "waiting"))
    ),
]


@pytest.mark.parametrize(("write", "moment"), TEMPLATE)
async def test_a_template_whose_making_is_killed_goes_on_without_an_orphan(
    database_url: str, lab: RunningLab, write: int, moment: str
) -> None:
    user = f"user-{uuid7()}"
    await migrate(settings(database_url, None))
    async with catalog() as images:
        image = images.add()
        given = {"database_url": database_url, "cluster": cluster_of(lab), "user": user, "write": write}
        told = {name: getattr(image, name) for name in image.__slots__} | {"id": str(image.id)}
        assert await killed(given | {"moment": moment, "image": told, "images_url": images.url})
        async with running(database_url, lab) as service:
            service.images.known, service.images.files = images.known, images.files
            await free_leases(service)
            [(operation,)] = service.rows("SELECT id FROM operations WHERE owner_id = %s", user)
            assert (await service.ended(operation, user))["state"] == "succeeded"
            [(copies,)] = service.rows("SELECT copies FROM templates WHERE owner_id = %s", user)
            assert [copy["vmid"] for copy in copies] == sorted(service.machines())
            assert all(machine.config["template"] == 1 for machine in service.machines().values())
            assert not [volume for volume in service.lab.lab.storages if volume.content == "import"]
            await service.change("DELETE FROM templates")
            await service.change("DELETE FROM vmid_leases")
