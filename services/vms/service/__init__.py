"""Use cases of the vms service."""

from services.vms.service.addresses import AddressBook
from services.vms.service.catalog import Catalog, Offer, Placement
from services.vms.service.consoles import Consoles
from services.vms.service.drift import DriftWatch
from services.vms.service.fleet import Fleet
from services.vms.service.histories import Histories
from services.vms.service.machines import Vms
from services.vms.service.nodes import Nodes
from services.vms.service.resolving import Drifts
from services.vms.service.snapshots import Snapshots
from services.vms.service.sync import StateSync
from services.vms.service.templates import Listed, TemplateDefaults, Templates
from services.vms.service.vmids import Vmids

__all__ = [
    "AddressBook",
    "Catalog",
    "Consoles",
    "DriftWatch",
    "Drifts",
    "Fleet",
    "Histories",
    "Listed",
    "Nodes",
    "Offer",
    "Placement",
    "Snapshots",
    "StateSync",
    "TemplateDefaults",
    "Templates",
    "Vmids",
    "Vms",
]
