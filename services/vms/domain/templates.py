"""Templates that Telar keeps records of: their states, what an image has to be, and how a copy is configured; pure."""

import math
import re
from enum import StrEnum

from services.vms.domain.cluster import mark_of
from services.vms.domain.storages import CopyPlan
from services.vms.errors import ImageUnfit, TemplateState

_GIB = 1024**3
_FORMATS = {"qcow2": "qcow2", "raw": "raw", "img": "raw", "vmdk": "vmdk"}
_WINDOWS = re.compile(r"win(?:dows)?", re.IGNORECASE)


class TemplateStatus(StrEnum):
    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


def require_fit(*, status: str, image_format: str, sha256: str | None) -> str:
    """The extension of the file that a cluster imports; raises ImageUnfit."""
    if status != "active" or sha256 is None:
        raise ImageUnfit(f"The image is {status}; only an active one becomes a template")
    extension = _FORMATS.get(image_format)
    if extension is None:
        raise ImageUnfit(f"An image of the format {image_format} is not a disk that starts; convert it to qcow2 first")
    return extension


def require_deletable_template(state: str) -> None:
    if state == TemplateStatus.DELETING:
        raise TemplateState("It is being deleted already")
    if state == TemplateStatus.CREATING:
        raise TemplateState("It is being made; wait for its operation, or cancel it")


def disk_gib(virtual_size_bytes: int) -> int:
    """The size of an image's disk, rounded up."""
    return max(1, math.ceil(virtual_size_bytes / _GIB))


def os_word(os_type: str, version: str) -> str:
    """`ubuntu` and `24.04 LTS` → `ubuntu-24.04-lts`: the tag that says what a template holds."""
    parts = [part for part in re.split(r"[^a-z0-9.]+", f"{os_type} {version}".lower()) if part]
    if len(parts) > 1 and parts[1].startswith(parts[0]):
        parts = parts[1:]
    return "-".join(parts)[:60].strip(".-") or "other"


def template_name(os_type: str, template_id: str) -> str:
    """A name that no other template has, whatever images are called."""
    return f"template-{re.sub(r'[^a-z0-9]+', '-', os_type)[:40].strip('-')}-{template_id.replace('-', '')[-8:]}"


def file_name(template_id: str, extension: str) -> str:
    return f"telar-{template_id}.{extension}"


def machine_options(
    plan: CopyPlan, *, template_id: str, name: str, os_type: str, extension: str, cores: int, memory_mib: int
) -> dict[str, str | int]:
    """The options of the machine that becomes a template: the image's disk, a cloud-init drive, the agent on."""
    windows = _WINDOWS.search(os_type) is not None
    source = f"{plan.import_storage}:import/{file_name(template_id, extension)}"
    return {
        "name": name,
        "description": mark_of(template_id),
        "tags": f"os-{os_type};template",
        "ostype": "win11" if windows else "l26",
        "cores": cores,
        "memory": memory_mib,
        "agent": "enabled=1",
        "scsihw": "virtio-scsi-single",
        "scsi0": f"{plan.storage}:0,import-from={source}",
        "ide2": f"{plan.storage}:cloudinit",
        "net0": "virtio,bridge=vmbr0",
        "serial0": "socket",
        "boot": "order=scsi0",
    }
