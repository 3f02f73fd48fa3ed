"""What the vms service keeps in PostgreSQL."""

from services.vms.repository.listing import DEFAULT_SORT, VmFilter, sort_value
from services.vms.repository.machines import FOREIGN, HELD, LEFTOVER, Promised, VmidRepository, VmRepository
from services.vms.repository.nodes import NodeRepository
from services.vms.repository.templates import TemplateRepository

__all__ = [
    "DEFAULT_SORT",
    "FOREIGN",
    "HELD",
    "LEFTOVER",
    "NodeRepository",
    "Promised",
    "TemplateRepository",
    "VmFilter",
    "VmRepository",
    "VmidRepository",
    "sort_value",
]
