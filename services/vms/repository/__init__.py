"""What the vms service keeps in PostgreSQL."""

from services.vms.repository.machines import (
    DEFAULT_SORT,
    FOREIGN,
    HELD,
    LEFTOVER,
    Promised,
    VmFilter,
    VmidRepository,
    VmRepository,
    sort_value,
)
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
