"""Privileges and the roles that Proxmox VE ships, plus the lab's least-privilege role for a provisioner."""

from libs.pvesim.releases import Release

_AUDIT = {
    "Datastore.Audit", "Mapping.Audit", "Pool.Audit", "SDN.Audit", "Sys.Audit", "VM.Audit", "VM.GuestAgent.Audit",
}  # fmt: skip
_VM_USER = {
    "VM.Audit",
    "VM.Backup",
    "VM.Config.CDROM",
    "VM.Config.Cloudinit",
    "VM.Console",
    "VM.GuestAgent.Audit",
    "VM.PowerMgmt",
}
_VM_ADMIN = _VM_USER | {
    "VM.Allocate", "VM.Clone", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.HWType", "VM.Config.Memory",
    "VM.Config.Network", "VM.Config.Options", "VM.GuestAgent.FileRead", "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite", "VM.GuestAgent.Unrestricted", "VM.Migrate", "VM.Replicate", "VM.Snapshot",
    "VM.Snapshot.Rollback",
}  # fmt: skip
_DATASTORE_ADMIN = {"Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"}
_POOL_ADMIN = {"Pool.Allocate", "Pool.Audit"}
_SYS = {"Sys.AccessNetwork", "Sys.Audit", "Sys.Console", "Sys.Incoming", "Sys.Modify", "Sys.PowerMgmt", "Sys.Syslog"}
_USERS = {"Group.Allocate", "Permissions.Modify", "Realm.Allocate", "Realm.AllocateUser", "User.Modify"}
_SDN = {"SDN.Allocate", "SDN.Audit", "SDN.Use"}
_MAPPING = {"Mapping.Audit", "Mapping.Modify", "Mapping.Use"}

ALL_PRIVILEGES = frozenset(_AUDIT | _VM_ADMIN | _DATASTORE_ADMIN | _POOL_ADMIN | _SYS | _USERS | _SDN | _MAPPING)
_MONITOR = "VM.Monitor"

_BUILT_IN: dict[str, frozenset[str]] = {
    "Administrator": ALL_PRIVILEGES,
    "NoAccess": frozenset(),
    "PVEAdmin": ALL_PRIVILEGES
    - {"Permissions.Modify", "Realm.Allocate", "Sys.Incoming", "Sys.Modify", "Sys.PowerMgmt"},
    "PVEAuditor": frozenset(_AUDIT),
    "PVEDatastoreAdmin": frozenset(_DATASTORE_ADMIN),
    "PVEDatastoreUser": frozenset({"Datastore.AllocateSpace", "Datastore.Audit"}),
    "PVEPoolAdmin": frozenset(_POOL_ADMIN),
    "PVEPoolUser": frozenset({"Pool.Audit"}),
    "PVESDNAdmin": frozenset(_SDN),
    "PVESDNUser": frozenset({"SDN.Audit", "SDN.Use"}),
    "PVESysAdmin": frozenset({"Sys.Audit", "Sys.Console", "Sys.Syslog"}),
    "PVETemplateUser": frozenset({"VM.Audit", "VM.Clone"}),
    "PVEUserAdmin": frozenset({"Group.Allocate", "Realm.AllocateUser", "User.Modify"}),
    "PVEVMAdmin": frozenset(_VM_ADMIN),
    "PVEVMUser": frozenset(_VM_USER),
}

PROVISIONER_ROLE = "TelarProvisioner"
PROVISIONER_PRIVILEGES = frozenset({
    "Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit", "Pool.Allocate",
    "Pool.Audit", "SDN.Use", "Sys.AccessNetwork", "Sys.Audit", "Sys.Console", "VM.Allocate", "VM.Audit", "VM.Clone",
    "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Cloudinit", "VM.Config.Disk", "VM.Config.HWType",
    "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options", "VM.Console", "VM.GuestAgent.Audit",
    "VM.Migrate", "VM.PowerMgmt", "VM.Snapshot", "VM.Snapshot.Rollback",
})  # fmt: skip


def spoken(privileges: frozenset[str], release: Release) -> frozenset[str]:
    """Privileges in a release's own words: one privilege opened the whole guest agent before it was split."""
    if release.splits_agent_privileges:
        return privileges
    kept = frozenset(name for name in privileges if not name.startswith("VM.GuestAgent."))
    return kept | {_MONITOR} if kept != privileges else kept


def all_privileges(release: Release) -> frozenset[str]:
    return spoken(ALL_PRIVILEGES, release)


def built_in(release: Release) -> dict[str, frozenset[str]]:
    """The roles that a release ships. A user's role did not reach into the guest before the agent's was split."""
    roles = {name: spoken(privileges, release) for name, privileges in _BUILT_IN.items()}
    if not release.splits_agent_privileges:
        for name in ("PVEAuditor", "PVEVMUser"):
            roles[name] -= {_MONITOR}
    return roles


def area_of(privilege: str) -> str:
    """The `cap` area a privilege belongs to in the answer to a login."""
    areas = {"VM": "vms", "Datastore": "storage", "SDN": "sdn", "Mapping": "mapping", "Sys": "nodes"}
    return areas.get(privilege.split(".", 1)[0], "access")
