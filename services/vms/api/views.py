"""How machines, templates, nodes and verdicts are shown."""

from collections.abc import Sequence
from typing import Any

from fastapi import Response

from libs.common.etag import etag
from libs.common.operations import Operation
from libs.common.operations_api import accepted
from services.vms.domain.cluster import PendingChange
from services.vms.domain.placement import Candidate
from services.vms.domain.states import State, older_status
from services.vms.domain.templates import TemplateStatus
from services.vms.models import Vm
from services.vms.schemas import LiveOut, NodeOut, PendingOut, PlacementOut, TemplateOut, VerdictOut, VmDetail, VmOut
from services.vms.service import Listed, Placement
from services.vms.service.machines import Live


def vm_out(vm: Any) -> VmOut:
    """A record, or a row with its columns."""
    return VmOut(
        id=vm.id,
        number=vm.number or 0,
        name=vm.name,
        owner_id=vm.owner_id,
        state=State(vm.state),
        status=older_status(State(vm.state)),
        reason=vm.reason,
        os_type=vm.os_type,
        template=vm.template,
        image_id=vm.image_id,
        cluster=vm.cluster,
        node=vm.node,
        vmid=vm.vmid,
        cores=vm.cores,
        memory_mib=vm.memory_mib,
        disk_gib=vm.disk_gib,
        ha=vm.ha,
        network=vm.network,
        restart_needed=vm.restart_needed,
        addresses=vm.addresses if State(vm.state) in (State.RUNNING, State.PAUSED) else [],
        created_at=vm.created_at,
        updated_at=vm.updated_at,
        etag=etag(vm.version),
    )


def vm_detail(vm: Vm, seen: Live) -> VmDetail:
    live = None
    if seen.power is not None:
        live = LiveOut(
            status=seen.power.status,
            uptime_s=seen.power.uptime_s,
            cpu_load=seen.power.cpu_load,
            memory_bytes=seen.power.memory_bytes,
        )
    shown = vm_out(vm).model_dump()
    if seen.addresses:
        shown["addresses"] = list(seen.addresses)
    return VmDetail(**shown, live=live, pending=[_pending(change) for change in seen.pending])


def _pending(change: PendingChange) -> PendingOut:
    """In the words of a change: `memory` is `memory_mib`."""

    def number(value: str | None) -> int | None:
        return int(value) if value is not None and value.isdigit() else None

    name = "memory_mib" if change.name == "memory" else change.name
    return PendingOut(name=name, now=number(change.now), then=number(change.then))


def begun(vm: Vm, operation: Operation) -> Response:
    """202 with the operation and the machine it works on."""
    return accepted(operation, vm=vm_out(vm).model_dump(mode="json"))


def template_out(listed: Listed) -> TemplateOut:
    """Copies of one template are one entry; its record's words come first."""
    record = listed.record
    sized = listed.copies[0] if listed.copies else record
    if sized is None:
        raise ValueError("neither copies nor a record")
    out = TemplateOut(
        name=sized.name,
        os_type=sized.os_type,
        cluster=listed.cluster,
        cores=sized.cores,
        memory_mib=sized.memory_mib,
        disk_gib=sized.disk_gib,
        cloud_init=listed.copies[0].cloud_init if listed.copies else True,
        vmids=sorted(copy.vmid for copy in listed.copies),
    )
    if record is not None:
        out.id, out.image_id, out.offered = record.id, record.image_id, record.offered
        out.state, out.reason, out.etag = TemplateStatus(record.state), record.reason, etag(record.version)
    return out


def node_out(cluster: str, found: Candidate) -> NodeOut:
    return NodeOut(
        name=found.node.name,
        cluster=cluster,
        online=found.node.online,
        cores=found.node.cores,
        memory_mib=found.node.memory_mib,
        memory_used_mib=found.node.memory_used_mib,
        cpu_load=found.node.cpu_load,
        uptime_s=found.node.uptime_s,
        machines=found.machines,
        promised_cores=found.promised_cores,
        promised_memory_mib=found.promised_memory_mib,
        maintenance=found.maintenance is not None,
        maintenance_reason=found.maintenance,
        trouble=found.trouble,
    )


def placement_out(placements: Sequence[Placement]) -> PlacementOut:
    """The first is the cluster that would be chosen."""
    verdicts = [
        VerdictOut(
            cluster=placement.offer.cluster.name,
            node=one.node,
            fits=one.fits,
            reasons=list(one.reasons),
            score=round(one.score, 6),
            weights=dict(one.weights),
        )
        for placement in placements
        for one in placement.verdicts
    ]
    chosen = placements[0]
    return PlacementOut(
        cluster=chosen.offer.cluster.name,
        template=chosen.offer.copies[0].name,
        node=None if chosen.score is None else chosen.verdicts[0].node,
        verdicts=sorted(verdicts, key=lambda one: not one.fits),
    )
