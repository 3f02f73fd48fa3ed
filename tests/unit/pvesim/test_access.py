from pathlib import Path
from typing import Any

from libs.pvesim.access.accounts import Accounts
from libs.pvesim.access.control import AccessControl
from libs.pvesim.clock import LabClock
from libs.pvesim.store import Store

USER, TOKEN = "ann@pve", "ann@pve!ci"


async def control(tmp_path: Path, **token: Any) -> AccessControl:
    store = Store(tmp_path / "lab.sqlite")
    await store.open()
    accounts = Accounts(store, LabClock(1), {})
    accounts.add(USER)
    accounts.add_token(USER, "ci", "secret", **token)
    return AccessControl(store, accounts, {}, {})


async def test_a_deeper_entry_replaces_what_is_inherited(tmp_path: Path) -> None:
    access = await control(tmp_path)
    access.grant("/", USER, "PVEAdmin")
    access.grant("/vms/100", USER, "PVEAuditor")
    assert access.allows(USER, "/vms/101", ("VM.Allocate",))
    assert not access.allows(USER, "/vms/100", ("VM.Allocate",))
    assert access.allows(USER, "/vms/100", ("VM.Audit",))


async def test_an_entry_that_does_not_propagate_holds_for_its_path_only(tmp_path: Path) -> None:
    access = await control(tmp_path)
    access.grant("/vms", USER, "PVEAuditor", propagate=0)
    assert access.allows(USER, "/vms", ("VM.Audit",))
    assert not access.allows(USER, "/vms/100", ("VM.Audit",))


async def test_a_separated_token_has_at_most_what_its_owner_has(tmp_path: Path) -> None:
    access = await control(tmp_path)
    access.grant("/", USER, "PVEAuditor")
    assert not access.allows(TOKEN, "/vms/100", ("VM.Audit",))
    access.grant("/", TOKEN, "PVEAdmin")
    assert access.allows(TOKEN, "/vms/100", ("VM.Audit",))
    assert not access.allows(TOKEN, "/vms/100", ("VM.Allocate",))


async def test_a_token_without_separation_has_its_owners_rights(tmp_path: Path) -> None:
    access = await control(tmp_path, privsep=0)
    access.grant("/", USER, "PVEAuditor")
    assert access.allows(TOKEN, "/vms/100", ("VM.Audit",))


async def test_a_pools_rights_reach_its_machines(tmp_path: Path) -> None:
    access = await control(tmp_path)
    access.grant("/pool/lab", USER, "PVEVMAdmin")
    access.pool_of = {100: "lab"}.get
    assert access.allows(USER, "/vms/100", ("VM.PowerMgmt",))
    assert not access.allows(USER, "/vms/101", ("VM.PowerMgmt",))
