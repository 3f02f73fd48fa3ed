"""The first day of a lab: accounts, the provisioner's role and token, ready-made templates on shared storage."""

from dataclasses import dataclass

from libs.pvesim.access.accounts import ROOT, password_digest
from libs.pvesim.access.roles import PROVISIONER_PRIVILEGES, PROVISIONER_ROLE, spoken
from libs.pvesim.cluster.nodes import GIB
from libs.pvesim.lab import Lab
from libs.pvesim.qemu.model import Vm, new_generation, new_smbios
from libs.pvesim.qemu.properties import size_text
from libs.pvesim.storage.volume import CLOUDINIT_BYTES, Volume

PROVISIONER = "telar@pve"
TOKEN_NAME = "telar"  # noqa: S105  (a name, not a secret)
TOKEN_ID = f"{PROVISIONER}!{TOKEN_NAME}"
_STORAGE = "shared"


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    vmid: int
    os: str
    ostype: str
    disk_bytes: int
    used_bytes: int
    cores: int
    memory_mib: int


TEMPLATES = (
    TemplateSpec(9000, "ubuntu-24.04", "l26", 3584 * 1024**2, 1700 * 1024**2, 2, 2048),
    TemplateSpec(9001, "debian-13", "l26", 3 * GIB, 1100 * 1024**2, 2, 2048),
    TemplateSpec(9002, "centos-stream-10", "l26", 10 * GIB, 1400 * 1024**2, 2, 2048),
    TemplateSpec(9003, "windows-2025", "win11", 32 * GIB, 14 * GIB, 4, 4096),
)


def found(lab: Lab) -> None:
    """Fill an empty lab."""
    lab.accounts.add(ROOT, lab.root_password.get_secret_value())
    lab.accounts.add(PROVISIONER, comment="provisions machines over the API")
    lab.accounts.add_token(PROVISIONER, TOKEN_NAME, lab.token_secret.get_secret_value(), privsep=1)
    lab.access.set_role(PROVISIONER_ROLE, spoken(PROVISIONER_PRIVILEGES, lab.settings.release))
    for authid in (PROVISIONER, TOKEN_ID):
        lab.access.grant("/", authid, PROVISIONER_ROLE)
    nodes = list(lab.nodes)
    for position, spec in enumerate(TEMPLATES):
        _template(lab, spec, nodes[position % len(nodes)].name)


def renew_secrets(lab: Lab) -> None:
    """Let the secrets given in the settings open a lab that was founded with other ones."""
    token = lab.token_secret.get_secret_value()
    if lab.accounts.token(TOKEN_ID) is not None and not lab.accounts.token_opens(TOKEN_ID, token):
        lab.accounts.add_token(PROVISIONER, TOKEN_NAME, token, privsep=1)
    password = lab.root_password.get_secret_value()
    if not lab.accounts.password_opens(ROOT, password):
        lab.accounts.set_password(ROOT, password_digest(password))


def _template(lab: Lab, spec: TemplateSpec, node: str) -> None:
    now = lab.clock.epoch()
    disk = lab.storages.put(
        Volume(
            f"{_STORAGE}:{spec.vmid}/base-{spec.vmid}-disk-0.qcow2", "", "images", "qcow2", spec.disk_bytes,
            spec.used_bytes, now, spec.vmid, None, spec.os,
        )
    )  # fmt: skip
    cloudinit = lab.storages.put(
        Volume(
            f"{_STORAGE}:{spec.vmid}/vm-{spec.vmid}-cloudinit.qcow2",
            "",
            "images",
            "qcow2",
            CLOUDINIT_BYTES,
            0,
            now,
            spec.vmid,
        )
    )
    config = {
        "name": f"template-{spec.os}",
        "template": 1,
        "tags": f"os-{spec.os};template",
        "ostype": spec.ostype,
        "agent": "enabled=1",
        "cores": spec.cores,
        "memory": str(spec.memory_mib),
        "scsihw": "virtio-scsi-single",
        "scsi0": f"{disk.volid},size={size_text(spec.disk_bytes)}",
        "ide2": f"{cloudinit.volid},media=cdrom",
        "net0": f"virtio={lab.datacenter.new_mac()},bridge=vmbr0",
        "ipconfig0": "ip=dhcp",
        "serial0": "socket",
        "boot": "order=scsi0",
        "smbios1": new_smbios(),
        "vmgenid": new_generation(),
        "meta": f"creation-qemu=10.1.2,ctime={now}",
    }
    vm = Vm(spec.vmid, node, config, created=now)
    lab.vms.add(vm)
    # A template has been there for a while: its statistics are known from the start.
    vm.latest_tick = 0
    lab.vms.save(vm)
