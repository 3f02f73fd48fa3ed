from tests.contract.vms.harness import Service


async def test_the_older_vm_api_keeps_working_with_integer_ids(service: Service) -> None:
    user = await service.new_user()
    base = "/api/v1/virtual-machines/"
    made = await service.done(
        "POST",
        base,
        user,
        json={"name": "old", "cores": 1, "ram": 1024, "disk": 10, "os": "Debian", "status": "stopped"},
    )
    number = made["id"]
    assert isinstance(number, int)
    assert (made["ram"], made["disk"], made["os"], made["status"]) == (1024, 10, "debian-13", "creating")
    assert made["operation"]["kind"] == "vm.create"
    listed = (await service.call("GET", base, user)).json()
    assert [vm["id"] for vm in listed] == [number]
    assert listed[0]["status"] == "enabled"
    put = await service.done("PUT", f"{base}{number}", user, json={"name": "new", "ram": 2048, "disk": 12})
    assert put["operation"]["kind"] == "vm.update"
    shown = (await service.call("GET", f"{base}{number}", user)).json()
    assert (shown["name"], shown["ram"], shown["disk"], shown["owner_id"]) == ("new", 2048, 12, user)
    assert (await service.call("PUT", f"{base}{number}", user, json={"name": "new"})).status_code == 200
    await service.done("PUT", f"{base}{number}", user, json={"status": "paused"})
    assert (await service.call("GET", f"{base}{number}", user)).json()["status"] == "paused"
    await service.done("PUT", f"{base}{number}", user, json={"status": "running"})
    etag = (await service.call("GET", f"{base}{number}", user)).headers["etag"]
    await service.done("PUT", f"{base}{number}", user, json={"name": "newer"}, headers={"if-match": etag})
    stale = {"if-match": etag}
    refused = await service.call("PUT", f"{base}{number}", user, json={"status": "stopped"}, headers=stale)
    assert refused.status_code == 412
    for wrong in ({"status": "levitating"}, {"os": "windows"}, {"status": "paused", "ram": 4096}):
        assert (await service.call("PUT", f"{base}{number}", user, json=wrong)).status_code == 422
    stranger = await service.new_user()
    assert (await service.call("GET", f"{base}{number}", stranger)).status_code == 404
    await service.done("DELETE", f"{base}{number}", user)
    assert (await service.call("GET", f"{base}{number}", user)).status_code == 404
    for hostile in ("1%2f..%2f..", "0x1", "-1", "\uff19", "1;", "99999999999999999999", "null"):
        assert (await service.call("GET", f"{base}{hostile}", user)).status_code in (404, 422), hostile


async def test_the_older_vm_and_stack_api_keeps_working_with_forms_and_vmids(service: Service) -> None:
    user = await service.new_user(external_id="u-42")
    form = {"userid": "u-42", "vm_name": "box", "os_type": "Ubuntu", "disksize": "10", "memory": "1024", "cores": "1"}
    made = await service.done("POST", "/vm", user, files={name: (None, value) for name, value in form.items()})
    assert (made["status"], made["state"], made["vm_name"], made["disksize"]) == ("creating", "creating", "box", 10)
    vmid = made["vm_id"]
    assert service.settings.vmid_first <= vmid <= service.settings.vmid_last
    shown = (await service.call("GET", f"/vm/{vmid}", user)).json()
    assert (shown["vm_id"], shown["status"], shown["state"]) == (vmid, "enabled", "running")
    await service.done("POST", f"/vm/update/{vmid}", user, files={"memory": (None, "2048"), "disksize": (None, "12")})
    shown = (await service.call("GET", f"/vm/{vmid}", user)).json()
    assert (shown["memory"], shown["disksize"], shown["status"]) == (2048, 12, "enabled")
    assert service.machine({"vmid": vmid}).memory_mib == 2048
    for control, status in (("pause", "paused"), ("start", "enabled")):
        await service.done("POST", f"/control-vm/{vmid}/{control}", user)
        assert (await service.call("GET", f"/vm/{vmid}", user)).json()["status"] == status
    await service.done("POST", f"/control-vm/{vmid}/shutdown", user, files={"node": (None, shown["node"])})
    assert (await service.call("GET", f"/vm/{vmid}", user)).json()["status"] == "disabled"
    shrinking = await service.call("POST", f"/vm/update/{vmid}", user, data={"disksize": "10"})
    assert shrinking.status_code == 409
    await service.done("POST", f"/control-vm/{vmid}/delete", user)
    assert (await service.call("GET", f"/vm/{vmid}", user)).status_code == 404


async def test_only_an_administrator_acts_for_another_userid(service: Service) -> None:
    owner, other = await service.new_user(external_id="u-77"), await service.new_user(external_id="u-78")
    form = {"userid": "u-77", "vm_name": "box", "os_type": "debian"}
    assert (await service.call("POST", "/vm", other, data=form)).status_code == 403
    made = await service.call("POST", "/vm", other, data=form, role="ADMIN")
    assert (made.json()["userid"], made.json()["owner_id"]) == ("u-77", owner)
    await service.ended(made.json()["operation"]["id"], owner)
    assert service.used(owner)["vms"] == 1
    assert service.used(other) == {}
    missing = await service.call("POST", "/vm", other, data={**form, "userid": "nobody"}, role="ADMIN")
    assert missing.status_code == 404
    for wrong in ({"disksize": "9"}, {"disksize": "501"}, {"ssh_pub_key": "x"}, {"vm_name": "a\x00b"}):
        refused = await service.call("POST", "/vm", owner, data={**form, **wrong})
        assert refused.status_code == 422, wrong


async def test_older_clients_see_a_display_by_a_ticket_in_json(service: Service) -> None:
    user = await service.new_user(external_id="u-90")
    vm = await service.vm(user, name="shown")
    for by in (vm["vmid"], vm["number"]):
        answer = await service.call("POST", f"/vm/connect/{by}", user)
        shown = answer.json()
        assert (answer.status_code, shown["type"], shown["vm_id"], shown["vm_name"]) == (
            200,
            "vnc",
            vm["vmid"],
            "shown",
        )
        assert shown["url"] == f"/api/v1/vms/{vm['id']}/console/ws?ticket={shown['ticket']}"
        assert shown["expires_at"]
    spice = await service.call("POST", f"/vm/connect/{vm['vmid']}", user, files={"type": (None, "spice")})
    assert (spice.status_code, spice.json()["type"]) == (409, "/problems/no-spice-display")
    service.machine(vm).config["vga"] = "qxl"
    spice = await service.call("POST", f"/vm/connect/{vm['vmid']}", user, files={"type": (None, "spice")})
    assert spice.json()["viewer_file"]["type"] == "spice"
    assert spice.json()["ticket"] is None
    wrong = await service.call("POST", f"/vm/connect/{vm['vmid']}", user, files={"type": (None, "telnet")})
    assert wrong.status_code == 422
    assert (await service.call("POST", f"/vm/connect/{vm['vmid']}", await service.new_user())).status_code == 404


async def test_a_number_means_a_machine_of_the_callers_and_one_alone(service: Service) -> None:
    user, other = await service.new_user(), await service.new_user()
    mine, theirs = await service.vm(user, start=False), await service.vm(other, start=False)
    elsewhere = "UPDATE vms SET vmid = %s, cluster = 'elsewhere' WHERE id = %s"
    await service.change(elsewhere, mine["vmid"], theirs["id"])
    for caller, vm in ((user, mine), (other, theirs)):
        shown = await service.call("GET", f"/vm/{mine['vmid']}", caller)
        assert shown.json()["id"] == vm["id"], shown.text
    unclear = await service.call("POST", f"/control-vm/{mine['vmid']}/delete", "an-administrator", role="ADMIN")
    assert (unclear.status_code, unclear.json()["type"]) == (409, "/problems/vm-ambiguous")
    assert {mine["id"], theirs["id"]} <= set(unclear.json()["detail"].replace(",", "").split())
