"""What the driver's parts share: one more try for reads, checked shapes out, and the paths of machines."""

from collections.abc import Callable
from typing import Any, TypeVar

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.failures import LOST, unanswered
from services.vms.adapters.proxmox.session import Session
from services.vms.domain.cluster import safe_name, safe_upid, safe_vmid
from services.vms.errors import ProxmoxUnavailable, UnsafeId

T = TypeVar("T")


async def read(
    session: Session, path: str, parse: Callable[[object], T], *, node: str | None = None, **options: Any
) -> T:
    """Read something. A read changes nothing, so that one lost with its connection is sent once more."""
    try:
        answer = await session.call("get", path, node=node, **options)
    except ProxmoxUnavailable as error:
        if error.reason != LOST:
            raise
        answer = await session.call("get", path, node=node, **options)
    try:
        return parse(answer)
    except parsing.BadShape as error:
        raise unanswered(f"bad shape: {error}", node=node, changes=False) from error


async def begin(session: Session, method: str, path: str, node: str, **options: Any) -> str:
    """Begin a task; gives its UPID."""
    return upid_of(await session.call(method, path, node=node, **options), node)


def machine_path(node: str, vmid: int) -> str:
    return f"nodes/{safe_name(node)}/qemu/{safe_vmid(vmid)}"


def upid_of(answer: object, node: str) -> str:
    """The UPID that a call gave; anything else leaves open what happened."""
    try:
        return safe_upid(str(answer))
    except UnsafeId as error:
        raise unanswered("not a UPID", node=node, changes=True) from error
