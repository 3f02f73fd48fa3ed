"""Finding a record's machine on its cluster, and proving that it is Telar's."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.vms.domain.cluster import MachineConfig, carries_mark
from services.vms.errors import MachineMissing, MachineNotOurs, NodeDown, ProxmoxFailure
from services.vms.ports import Cluster
from services.vms.service.fleet import Fleet


class Ours(Protocol):
    """What a record tells of its machine: a machine's own, or that of a template's copy."""

    @property
    def id(self) -> UUID: ...
    @property
    def cluster(self) -> str: ...
    @property
    def node(self) -> str | None: ...
    @property
    def vmid(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A machine where it is, proven to be Telar's."""

    cluster: Cluster
    node: str
    vmid: int
    config: MachineConfig


async def locate(fleet: Fleet, vm: Ours, *, near: str | None = None) -> Found:
    """Find a record's machine, on the node it was last seen on or wherever it moved to.

    Raises MachineMissing, MachineNotOurs if another machine has its VMID, and NodeDown.
    """
    cluster = fleet.get(vm.cluster)
    vmid = vm.vmid
    if vmid is None:
        raise MachineMissing("The machine has no VMID")
    node = near or vm.node
    config: MachineConfig | None = None
    if node is not None:
        try:
            config = await cluster.config(node, vmid)
        except (MachineMissing, NodeDown) as error:
            node = await _moved_to(cluster, vmid, error)
    if config is None:
        node = node or await _moved_to(cluster, vmid, MachineMissing("The cluster does not show the machine"))
        config = await cluster.config(node, vmid)
    if node is None or not carries_mark(config.notes, str(vm.id)):
        raise MachineNotOurs(f"The machine {vmid} does not carry the mark of {vm.id}; it is left alone", node=node)
    return Found(cluster, node, vmid, config)


async def _moved_to(cluster: Cluster, vmid: int, error: ProxmoxFailure) -> str:
    """The node that the cluster shows, if it is another one than the one that failed."""
    machine = (await cluster.inventory(max_age_s=0)).machines.get(vmid)
    if machine is None or machine.node == error.node:
        raise error
    return machine.node
