import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from libs.common.testing.serving import serving
from libs.pvesim.app import RunningLab
from services.vms.main import create_app, migrate
from services.vms.settings import ClusterSettings
from tests.contract.vms.catalog import catalog
from tests.contract.vms.harness import Service, cluster_of, lab_at, running, settings

Eventually = Callable[..., Awaitable[None]]
ADMIN = "an-administrator"
WISH = {"os_type": "debian", "cores": 1, "memory_mib": 512}


async def placed(service: Service, user: str, **wish: Any) -> dict[str, Any]:
    answer = await service.call("POST", "/api/v1/placements", user, json=WISH | wish)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def nodes(service: Service) -> dict[str, dict[str, Any]]:
    answer = await service.call("GET", "/api/v1/nodes", ADMIN, role="ADMIN")
    return {node["name"]: node for node in answer.json()["items"]}


async def test_a_node_under_maintenance_gets_nothing_new_until_it_is_released(service: Service) -> None:
    user = await service.new_user()
    path = "/api/v1/nodes/sv3/maintenance"
    assert (await service.call("PUT", path, user, json={})).status_code == 403
    missing = await service.call("PUT", "/api/v1/nodes/sv9/maintenance", ADMIN, role="ADMIN")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/node-unknown")
    elsewhere = await service.call("PUT", f"{path}?cluster=none", ADMIN, role="ADMIN")
    assert (elsewhere.status_code, elsewhere.json()["detail"]) == (404, "There is no cluster none")
    assert (await service.call("PUT", path, ADMIN, role="ADMIN", json={"reason": "new memory"})).status_code == 204
    shown = (await nodes(service))["sv3"]
    assert (shown["maintenance"], shown["maintenance_reason"]) == (True, "new memory")
    verdicts = {one["node"]: one for one in (await placed(service, user))["verdicts"]}
    assert verdicts["sv3"]["reasons"] == ["under maintenance: new memory"]
    refused = await service.call("POST", "/api/v1/vms", user, json=WISH | {"name": "web", "node": "sv3"})
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/no-node-fits")
    assert "under maintenance: new memory" in refused.json()["detail"]
    for _ in range(2):
        assert (await service.call("DELETE", path, ADMIN, role="ADMIN")).status_code == 204
    assert (await placed(service, user, node="sv3"))["node"] == "sv3"


async def test_a_node_that_gives_no_answers_is_left_alone(
    new_database_url: str, lab: RunningLab, eventually: Eventually
) -> None:
    async with running(new_database_url, lab, breaker_failures=3, breaker_open_s=3600.0) as service:
        user = await service.new_user()
        vm = await service.vm(user, node="sv5")
        async with service.fault("gateway_timeout", path="^/nodes/sv5/", applied=True):

            async def left_alone() -> bool:  # a call that was under way may still be answered: then it is counted anew
                await service.shown(vm["id"], user)
                return "calls in a row got no answer" in ((await nodes(service))["sv5"]["trouble"] or "")

            await eventually(left_alone)
        verdicts = {one["node"]: one for one in (await placed(service, user))["verdicts"]}
        assert verdicts["sv5"]["reasons"][0].startswith("left alone for now: ")
        assert (await service.shown(vm["id"], user))["live"] is None  # the node would answer, but is not asked
        service.lab.lab.vms.remove(service.machine(vm))


async def test_packing_fills_one_node_after_the_other(new_database_url: str, lab: RunningLab) -> None:
    async with running(new_database_url, lab, placement="pack") as service:
        user = await service.new_user()
        made = [await service.vm(user, name=f"vm-{number}", start=False) for number in range(3)]
        assert len({vm["node"] for vm in made}) == 1
        for vm in made:
            await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)


async def test_space_that_is_kept_free_is_not_given_away(new_database_url: str, lab: RunningLab) -> None:
    async with running(new_database_url, lab, disk_reserve_gib=4000) as service:
        user = await service.new_user()
        verdict = (await placed(service, user, disk_gib=200))["verdicts"][0]
        assert "200 GiB of disk are wanted" in verdict["reasons"][0]


@contextlib.asynccontextmanager
async def two_clusters(database_url: str, folder: Path, **second: str) -> AsyncIterator[tuple[Service, Service]]:
    """One service with two clusters, seen with the one lab and with the other; `second` changes its settings."""
    async with lab_at(folder / "one") as one, lab_at(folder / "two", cluster_name="two") as two, catalog() as images:
        both = [cluster_of(one, name="one"), cluster_of(two, name="two", **second)]
        chosen = settings(database_url, None).model_copy(
            update={"clusters": tuple(ClusterSettings.model_validate(given) for given in both)}
        )
        async with serving("vms", partial(create_app, images=images), migrate, chosen, timeout_s=60) as served:
            parts = vars(served) | {"images": images}
            yield Service(**parts, lab=one), Service(**parts, lab=two)


async def test_machines_go_to_the_cluster_where_they_fit_best(new_database_url: str, tmp_path: Path) -> None:
    async with two_clusters(new_database_url, tmp_path) as (one, two):
        user = await one.new_user()
        first = await one.vm(user, cluster="two", cores=8, memory_mib=20_000)
        assert first["cluster"] == "two"
        assert list(two.machines()) == [first["vmid"]]
        judged = await placed(one, user)
        assert {verdict["cluster"] for verdict in judged["verdicts"]} == {"one", "two"}
        several = await one.call("PUT", "/api/v1/nodes/sv1/maintenance", ADMIN, role="ADMIN")
        assert (several.status_code, "?cluster=" in several.json()["detail"]) == (404, True)
        for node in ("sv1", "sv2", "sv3", "sv4", "sv5"):
            path = f"/api/v1/nodes/{node}/maintenance?cluster=one"
            assert (await one.call("PUT", path, ADMIN, role="ADMIN")).status_code == 204
        second = await one.vm(user)
        assert second["cluster"] == "two"
        async with one.fault("error", path="/cluster/resources", status=500, message="broken"):
            third = await one.vm(user)  # the other cluster still works
        assert third["cluster"] == "two"
        for vm in (first, second, third):
            await one.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
        assert two.machines() == {}


async def test_a_cluster_that_is_away_keeps_nobody_from_the_other_one(
    new_database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with two_clusters(new_database_url, tmp_path) as (one, _two):
        await one.change(
            "INSERT INTO vmid_leases (cluster, vmid, state, vm_id, reason, since)"
            " SELECT cluster, 15000, 'leftover', gen_random_uuid(), '', now() - interval '1 hour'"
            " FROM (VALUES ('one'), ('two')) AS given(cluster)"
        )
        async with one.fault("error", path="/cluster/resources", status=500, message="broken"):
            shown = await one.call("GET", "/api/v1/nodes", ADMIN, role="ADMIN")
            assert {node["cluster"] for node in shown.json()["items"]} == {"two"}
            await eventually(lambda: one.rows("SELECT cluster FROM vmid_leases WHERE vmid = 15000") == [("one",)])
        await eventually(lambda: one.rows("SELECT cluster FROM vmid_leases WHERE vmid = 15000") == [])


async def test_a_cluster_that_refuses_the_token_keeps_nobody_from_the_other_one(
    new_database_url: str, tmp_path: Path
) -> None:
    async with two_clusters(new_database_url, tmp_path, token_secret="wrong") as (one, _two):
        user = await one.new_user()
        assert (await one.vm(user, start=False))["cluster"] == "one"
        async with one.fault("error", path="/cluster/resources", status=500, message="broken"):
            shown = await one.call("GET", "/api/v1/nodes", ADMIN, role="ADMIN")
            assert shown.status_code == 502


async def test_a_cluster_that_is_away_is_waited_for_by_the_operation(service: Service) -> None:
    user = await service.new_user()
    await placed(service, user)  # what it offers was seen
    async with service.fault("error", path="/cluster/resources", status=599, message="away"):
        begun = await service.begin(user, start=False)
        seen = await service.call("GET", f"/api/v1/operations/{begun['id']}", user)
        assert seen.json()["state"] in ("pending", "running")
    assert (await service.ended(begun["id"], user))["state"] == "succeeded"
    await service.done("DELETE", f"/api/v1/vms/{begun['vm']['id']}", user)
