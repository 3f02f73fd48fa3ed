"""Requests and responses of the vms service."""

from services.vms.schemas.cluster import (
    CreateTemplate,
    MaintenanceWish,
    NodeList,
    NodeOut,
    PlacementOut,
    PlacementRequest,
    TemplateList,
    TemplateOut,
    VerdictOut,
)
from services.vms.schemas.drift import DifferenceOut, DriftList, DriftOut, Resolved, ResolveDrift
from services.vms.schemas.machines import (
    CreateVm,
    LiveOut,
    MetricsOut,
    NetworkWish,
    PendingOut,
    UpdateVm,
    VmDetail,
    VmOut,
    VmPage,
    Wish,
)
from services.vms.schemas.older import CreateOlderVm, OlderConsole, OlderMachine, OlderVm, UpdateOlderVm
from services.vms.schemas.snapshots import RollBack, SnapshotList, SnapshotOut, TakeSnapshot

__all__ = [
    "CreateOlderVm",
    "CreateTemplate",
    "CreateVm",
    "DifferenceOut",
    "DriftList",
    "DriftOut",
    "LiveOut",
    "MaintenanceWish",
    "MetricsOut",
    "NetworkWish",
    "NodeList",
    "NodeOut",
    "OlderConsole",
    "OlderMachine",
    "OlderVm",
    "PendingOut",
    "PlacementOut",
    "PlacementRequest",
    "ResolveDrift",
    "Resolved",
    "RollBack",
    "SnapshotList",
    "SnapshotOut",
    "TakeSnapshot",
    "TemplateList",
    "TemplateOut",
    "UpdateOlderVm",
    "UpdateVm",
    "VerdictOut",
    "VmDetail",
    "VmOut",
    "VmPage",
    "Wish",
]
