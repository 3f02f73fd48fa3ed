import asyncio

from tests.contract.vms.harness import Service


async def test_fifty_creations_at_once_have_fifty_vmids_and_spread_over_the_nodes(service: Service) -> None:
    user = await service.new_user()
    begun = await asyncio.gather(*(service.begin(user, name=f"vm-{number}") for number in range(50)))
    vmids = [one["vm"]["vmid"] for one in begun]
    assert len(set(vmids)) == 50
    ended = await asyncio.gather(*(service.ended(one["id"], user, deadline_s=80) for one in begun))
    assert {one["state"] for one in ended} == {"succeeded"}
    assert sorted(service.machines()) == sorted(vmids)
    assert all(machine.running for machine in service.machines().values())
    nodes = {machine.node for machine in service.machines().values()}
    assert nodes == {"sv1", "sv2", "sv3", "sv4", "sv5"}
    assert service.used(user) == {"vms": 50, "cores": 50, "memory_mib": 50 * 512, "disk_gib": 50 * 4}


async def test_parallel_requests_never_exceed_a_quota(service: Service) -> None:
    user = await service.new_user(vms=5, cores=7)
    body = {"name": "web", "os_type": "debian", "cores": 2, "memory_mib": 512, "start": False}
    answers = await asyncio.gather(*(service.call("POST", "/api/v1/vms", user, json=body) for _ in range(50)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(set(statuses)) == [202, 409]
    assert statuses.count(202) == 3
    assert service.used(user)["cores"] == 6
    for answer in answers:
        if answer.status_code == 202:
            await service.ended(answer.json()["id"], user)
    assert len(service.machines()) == 3


async def test_creations_that_are_recorded_together_answer_and_tell_each_its_own(service: Service) -> None:
    user = await service.new_user()
    wishes = [{"name": f"vm-{number}", "os_type": "debian", "cores": 1 + number % 3} for number in range(12)]
    requests = [
        service.call("POST", "/api/v1/vms", user, json=wish, headers={"Idempotency-Key": wish["name"]})
        for wish in wishes * 2
    ]
    answers = [answer.json() for answer in await asyncio.gather(*requests)]
    assert answers[:12] == answers[12:]
    for wish, answer in zip(wishes, answers, strict=False):
        assert {name: answer["vm"][name] for name in ("name", "cores")} == {
            "name": wish["name"],
            "cores": wish["cores"],
        }
        assert (await service.ended(answer["id"], user, deadline_s=60))["state"] == "succeeded"
    assert len(service.machines()) == 12
    assert service.used(user)["vms"] == 12
    told = [event for event in service.heard if event.type == "vms.vm.created.v1" and event.owner == user]
    assert sorted(event.data["name"] for event in told) == sorted(str(wish["name"]) for wish in wishes)


async def test_parallel_growth_never_exceeds_a_quota(service: Service) -> None:
    user = await service.new_user(disk_gib=30)
    made = [await service.begin(user, name=f"vm-{number}", start=False) for number in range(4)]
    for one in made:
        await service.ended(one["id"], user)
    answers = await asyncio.gather(
        *(service.call("PATCH", f"/api/v1/vms/{one['vm']['id']}", user, json={"disk_gib": 10}) for one in made)
    )
    assert sorted(answer.status_code for answer in answers) == [202, 202, 409, 409]
    for answer in answers:
        if answer.status_code == 202:
            await service.ended(answer.json()["id"], user)
    assert service.used(user)["disk_gib"] == 2 * 10 + 2 * 4


async def test_a_node_is_never_promised_more_than_it_has(service: Service) -> None:
    user = await service.new_user()
    wish = {"cores": 1, "memory_mib": 40_000, "disk_gib": 3, "start": False, "node": "sv4"}
    begun = await asyncio.gather(*(service.begin(user, **wish) for _ in range(4)))
    ended = [await service.ended(one["id"], user) for one in begun]
    assert sorted(one["state"] for one in ended) == ["failed", "failed", "failed", "succeeded"]
    refused = next(one for one in ended if one["state"] == "failed")
    assert "another node was asked for: sv4" in refused["error"]["detail"]
