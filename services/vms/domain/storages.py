"""Which storages take what: where a template's disk and its file go, and a machine's seed; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.vms.domain.cluster import Inventory, Storage
from services.vms.errors import NoStorageFits

_IMPORT_HINT = "a folder, NFS or CIFS storage with the content type `import` (Proxmox VE 8.4 or newer)"


@dataclass(frozen=True, slots=True)
class StorageChoice:
    """What the operator has chosen; None leaves it to what the cluster shows."""

    images: str | None = None
    imports: str | None = None
    isos: str | None = None


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """One copy of a template: on that node, its disk on `storage`, its file passing through `import_storage`."""

    node: str
    storage: str
    import_storage: str


def _there(known: Inventory, node: str, content: str, chosen: str | None) -> list[Storage]:
    """The storages of a node for that content, the best first: shared ones, then those with most space."""
    found = [
        storage
        for storage in known.storages.values()
        if storage.node == node and storage.available and content in storage.content and chosen in (None, storage.name)
    ]
    return sorted(found, key=lambda storage: (not storage.shared, -storage.free_gib, storage.name))


def plan_copies(
    known: Inventory, choice: StorageChoice, *, need_gib: float, avoided: Mapping[str, str]
) -> list[CopyPlan]:
    """Where a template is made: once if its disk lies on shared storage, else on every node that is online.

    Raises NoStorageFits, saying of each node what it lacks.
    """
    plans: dict[str, CopyPlan] = {}
    shared: list[CopyPlan] = []
    lacks: list[str] = []
    for node in sorted(known.nodes):
        if node in avoided or not known.online(node):
            lacks.append(f"{node}: {avoided.get(node, 'offline')}")
            continue
        disks = [one for one in _there(known, node, "images", choice.images) if one.free_gib >= need_gib]
        files = [one for one in _there(known, node, "import", choice.imports) if one.free_gib >= need_gib]
        if not disks or not files:
            missing = _IMPORT_HINT if disks else f"a storage for images with {need_gib:.0f} GiB free"
            lacks.append(f"{node}: needs {missing}")
            continue
        plans[node] = CopyPlan(node, disks[0].name, files[0].name)
        if disks[0].shared:
            shared.append(plans[node])
    if not plans:
        raise NoStorageFits("; ".join(lacks) or "The cluster shows no nodes")
    return shared[:1] or list(plans.values())


def place_seed(known: Inventory, choice: StorageChoice, node: str, *, ha: bool) -> Storage:
    """The storage of a node that a seed goes to: a shared one where there is one, so that it pins no machine.

    Raises NoStorageFits if there is none, or with `ha` no shared one: the machine could start nowhere else.
    """
    found = [one for one in _there(known, node, "iso", choice.isos) if one.shared or not ha]
    if not found:
        kind, named = "shared storage" if ha else "storage", f" called {choice.isos}" if choice.isos else ""
        why = "which high availability with user_data needs" if ha else "which user_data needs"
        raise NoStorageFits(f"The node {node} has no {kind}{named} with the content type iso, {why}")
    return found[0]
