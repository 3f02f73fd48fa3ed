"""What the use cases of vms need from outside: clusters of machines, and a place for a secret in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.vms.domain.cluster import Inventory, MachineConfig, PendingChange, Power, Template
from services.vms.domain.history import History, Timeframe
from services.vms.domain.seed import Seed
from services.vms.domain.snapshots import SnapshotTree
from services.vms.domain.storages import StorageChoice


class Cluster(Protocol):
    """One Proxmox VE cluster.

    Ids are checked before any call (UnsafeId). Every method may raise ProxmoxUnavailable, NodeDown, ProxmoxBusy,
    VmLocked, PermissionMissing, MachineMissing or ProxmoxRefused; those that change something also OutcomeUnknown,
    after which the change may or may not have happened. Methods that give a UPID have only begun their work: `wait`
    tells how it ended.
    """

    name: str
    storages: StorageChoice
    """The operator's choice of storages."""

    @property
    def files(self) -> "Files": ...

    @property
    def ha(self) -> "HighAvailability": ...

    def trouble(self, node: str) -> str | None:
        """Why a node is left alone just now: too many calls in a row got no answer from it."""
        ...

    @property
    def displays(self) -> "Displays": ...

    @property
    def snapshots(self) -> "Snapshots": ...

    @property
    def histories(self) -> "Histories": ...

    async def inventory(self, *, max_age_s: float) -> Inventory:
        """All of the cluster, not older than `max_age_s` (0: asked for after this call)."""
        ...

    def seen(self, *, max_age_s: float) -> Inventory | None:
        """What was seen last, if it is young enough; asks nobody."""
        ...

    async def templates(self, *, max_age_s: float) -> Sequence[Template]: ...

    async def config(self, node: str, vmid: int) -> MachineConfig: ...

    async def power(self, node: str, vmid: int) -> Power: ...

    async def pending(self, node: str, vmid: int) -> Sequence[PendingChange]:
        """What waits for a machine's next start."""
        ...

    async def addresses(self, node: str, vmid: int) -> Sequence[str]:
        """What the guest agent reports, without loopback and link-local ones; empty while it does not answer."""
        ...

    async def clone(self, template: Template, vmid: int, *, name: str, notes: str, target: str) -> str:
        """Begin to clone; gives the UPID. Raises VmidTaken, as may `wait`."""
        ...

    async def create(self, node: str, vmid: int, options: Mapping[str, str | int]) -> str:
        """Begin to make a machine of these options; gives the UPID. Raises VmidTaken."""
        ...

    async def convert(self, node: str, vmid: int) -> str:
        """Begin to make a stopped machine a template; gives the UPID."""
        ...

    async def configure(self, node: str, vmid: int, options: Mapping[str, str | int], *, digest: str) -> None:
        """Set options of a machine whose configuration still has that digest."""
        ...

    async def resize(self, node: str, vmid: int, slot: str, gib: int) -> str | None:
        """Begin to grow a disk; gives the UPID, or None if it is done already (Proxmox VE 7)."""
        ...

    async def act(self, node: str, vmid: int, verb: str, options: Mapping[str, int]) -> str:
        """Begin a power action: start, shutdown, stop, reboot, suspend or resume; gives the UPID.

        Raises WrongPowerState, as may `wait`.
        """
        ...

    async def destroy(self, node: str, vmid: int) -> str:
        """Begin to remove a stopped machine with all its disks, jobs and HA resource; gives the UPID."""
        ...

    async def tasks(self, node: str, vmid: int, kind: str, *, since: float) -> Sequence[str]:
        """UPIDs of a machine's tasks of a kind, started since then (Unix s), newest first."""
        ...

    async def wait(self, upid: str) -> None:
        """Return when a task has succeeded. Raises TaskFailed, or what its text means, or NodeDown."""
        ...

    async def interrupt(self, upid: str) -> None:
        """Break a task off; one that has ended is left as it is."""
        ...


class Display(Protocol):
    """A machine's display, logged in: a stream of bytes both ways, whose next is the viewer's ClientInit (RFC 6143)."""

    async def read(self) -> bytes:
        """The next piece; empty when the display has ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Pass bytes on; waits while the display takes none. Raises EOFError when it has ended."""
        ...

    async def close(self) -> None: ...


class Displays(Protocol):
    """Displays of a cluster's machines; the errors are those of `Cluster`."""

    async def vnc(self, node: str, vmid: int) -> Display:
        """Open a running machine's display now; raises DisplayRefused."""
        ...

    async def spice(self, node: str, vmid: int) -> Mapping[str, str]:
        """What a SPICE viewer's file says, each value one line; good for half a minute. Raises NoSpiceDisplay."""
        ...


class Snapshots(Protocol):
    """Snapshots of a cluster's machines; the errors are those of `Cluster`. Names are checked before any call."""

    async def tree(self, node: str, vmid: int) -> SnapshotTree: ...

    async def possible(self, node: str, vmid: int) -> bool:
        """Whether the storages of a machine's disks keep snapshots."""
        ...

    async def config(self, node: str, vmid: int, name: str) -> MachineConfig:
        """What the machine was configured to be at a snapshot. Raises SnapshotMissing."""
        ...

    async def take(self, node: str, vmid: int, name: str, *, description: str, memory: bool) -> str:
        """Begin to take one; gives the UPID. `wait` may raise SnapshotTaken or SnapshotsImpossible."""
        ...

    async def roll_back(self, node: str, vmid: int, name: str) -> str:
        """Begin to go back; gives the UPID. `wait` may raise SnapshotMissing or SnapshotNotNewest."""
        ...

    async def delete(self, node: str, vmid: int, name: str) -> str:
        """Begin to delete one; gives the UPID. `wait` may raise SnapshotMissing."""
        ...


class Histories(Protocol):
    """What a cluster's machines used over time."""

    async def of(self, node: str, vmid: int, timeframe: Timeframe) -> History: ...


class Files(Protocol):
    """Files on a cluster's storages; the errors are those of `Cluster`, and names are checked before any call."""

    async def download(self, node: str, storage: str, *, url: str, name: str, sha256: str) -> str:
        """Begin to download a file to import; gives the UPID. One that is there with that digest is kept."""
        ...

    async def upload(self, node: str, storage: str, *, name: str, content: bytes) -> str:
        """Bring an ISO image to a storage, over one of that name; gives the UPID."""
        ...

    async def remove(self, node: str, volume: str) -> str | None:
        """Begin to remove a file (`storage:iso/name`); gives the UPID, or None if it is gone."""
        ...


class HighAvailability(Protocol):
    """A cluster's HA manager. Each call may be repeated."""

    async def protect(self, vmid: int, *, nodes: Sequence[str], started: bool) -> None:
        """Have the manager keep a machine on one of those nodes, running or off. `started` starts it."""
        ...

    async def release(self, vmid: int) -> None:
        """Take a machine from the manager, with its rule or group; it stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class CatalogImage:
    """What the images service tells of an image."""

    id: UUID
    owner_id: str
    name: str
    os_type: str
    version: str
    format: str
    status: str
    visibility: str
    sha256: str | None
    virtual_size_bytes: int


class Images(Protocol):
    """The catalog of images, at another service. Raises ImagesAway while it does not answer."""

    async def get(self, image_id: UUID, *, bearer: str | None = None) -> CatalogImage:
        """An image; with `bearer` as the user of that token sees it. Raises ImageUnknown."""
        ...

    async def link(self, image_id: UUID, *, expires_s: int) -> str:
        """A URL at which a cluster gets the image's file. Raises ImageUnknown, or ImageUnfit unless it is active."""
        ...


class Seeds(Protocol):
    """Makes images that a guest reads at its first start."""

    async def build(self, seed: Seed, *, password: str | None) -> bytes:
        """An ISO image of the seed; the password is kept in it as a hash alone."""
        ...
