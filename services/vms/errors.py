"""What the vms service refuses, and what Proxmox VE answers, by slug."""

from libs.common.errors import Conflict, Forbidden, Invalid, NotFound, TelarError, Unavailable, UpstreamFailed
from libs.common.errors import UpstreamTimeout as CommonUpstreamTimeout


class VmNotFound(NotFound):
    slug = "vm-not-found"
    title = "No such virtual machine"


class VmAmbiguous(Conflict):
    slug = "vm-ambiguous"
    title = "Several virtual machines have this number"


class OwnerNotFound(NotFound):
    slug = "owner-not-found"
    title = "No such user"


class ForeignOwner(Forbidden):
    slug = "foreign-owner"
    title = "Only an administrator acts for another user"


class TemplateNotFound(Invalid):
    slug = "template-not-found"
    title = "No such template"


class TemplateUnknown(NotFound):
    slug = "template-unknown"
    title = "No such template"


class TemplateInUse(Conflict):
    slug = "template-in-use"
    title = "Machines are made of this template"


class TemplateState(Conflict):
    slug = "template-state"
    title = "The template's state does not allow it"


class ImageUnknown(Invalid):
    slug = "image-unknown"
    title = "No such image"


class ImageUnfit(Conflict):
    slug = "image-unfit"
    title = "No template can be made of this image"


class ImagesAway(Unavailable):
    slug = "images-away"
    title = "The images service does not answer"


class NoStorageFits(Conflict):
    slug = "no-storage-fits"
    title = "The cluster has no storage for it"


class NetworkRefused(Invalid):
    slug = "network-refused"
    title = "This network is not offered"


class SeedRefused(Invalid):
    slug = "seed-refused"
    title = "The machine cannot be given this at its first start"


class NodeUnknown(NotFound):
    slug = "node-unknown"
    title = "No such node"


class DiskTooSmall(Invalid):
    slug = "disk-too-small"
    title = "The template needs a larger disk"


class DiskShrinks(Conflict):
    slug = "disk-only-grows"
    title = "A disk only grows"


class VmBusy(Conflict):
    slug = "vm-busy"
    title = "Another operation on this virtual machine is under way"


class VmState(Conflict):
    slug = "vm-state"
    title = "The virtual machine's state does not allow it"


class NoNodeFits(Conflict):
    slug = "no-node-fits"
    title = "No node can take the virtual machine"


class NoCluster(Unavailable):
    slug = "no-cluster"
    title = "No Proxmox VE cluster is configured"


class VmidsExhausted(Unavailable):
    slug = "vmids-exhausted"
    title = "No VMID is left in Telar's range"


class UnsafeId(Invalid):
    slug = "unsafe-id"
    title = "Not an id that Proxmox VE knows"


class TurnedBack(Conflict):
    slug = "turned-back"
    title = "The operation was cancelled"


class ProxmoxFailure(TelarError):
    """A cluster's refusal. `reason` is its own text, for logs and decisions only; `node` is where it happened."""

    def __init__(
        self, detail: str = "", *, reason: str = "", node: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.reason = reason
        self.node = node
        self.silent = False
        """Whether it means that the node itself gave no answer, while the cluster did."""


class ProxmoxUnavailable(ProxmoxFailure, Unavailable):
    slug = "proxmox-unavailable"
    title = "The cluster does not answer"


class NodeDown(ProxmoxFailure, Unavailable):
    slug = "node-down"
    title = "The node does not answer"


class ProxmoxBusy(ProxmoxFailure, Unavailable):
    """A lock was not free in time; the call changed nothing."""

    slug = "proxmox-busy"
    title = "The cluster is busy"


class VmLocked(ProxmoxBusy):
    slug = "vm-locked"
    title = "The machine is locked by another task"


class TaskInterrupted(ProxmoxFailure, Unavailable):
    """A task died without finishing its work; what it left has to be looked at."""

    slug = "task-interrupted"
    title = "A task of the cluster was interrupted"


class OutcomeUnknown(ProxmoxFailure, CommonUpstreamTimeout):
    """A change was sent and no usable answer came: it may or may not have happened."""

    slug = "proxmox-outcome-unknown"
    title = "The cluster did not tell whether a change was made"


class VmidTaken(ProxmoxFailure, Conflict):
    slug = "vmid-taken"
    title = "The VMID is taken"


class WrongPowerState(ProxmoxFailure, Conflict):
    slug = "wrong-power-state"
    title = "The machine's power state does not allow it"


class MachineNotOurs(ProxmoxFailure, Conflict):
    slug = "machine-not-ours"
    title = "The machine of that VMID does not carry Telar's mark"


class MachineMissing(ProxmoxFailure, UpstreamFailed):
    slug = "machine-missing"
    title = "The machine is not where it should be"


class PermissionMissing(ProxmoxFailure, UpstreamFailed):
    slug = "proxmox-permission"
    title = "Telar's token lacks a privilege on the cluster"


class ProxmoxRefused(ProxmoxFailure, UpstreamFailed):
    slug = "proxmox-refused"
    title = "The cluster refused"


class FileDamaged(ProxmoxFailure, UpstreamFailed):
    slug = "file-damaged"
    title = "A file did not reach the cluster whole"


class TaskFailed(ProxmoxRefused):
    slug = "task-failed"
    title = "A task of the cluster failed"


class SnapshotNotFound(NotFound):
    slug = "snapshot-not-found"
    title = "No such snapshot"


class SnapshotLimit(Conflict):
    slug = "snapshot-limit"
    title = "The machine has as many snapshots as it may have"


class SnapshotsImpossible(ProxmoxFailure, Conflict):
    slug = "snapshots-impossible"
    title = "The machine's storage keeps no snapshots"


class SnapshotTaken(ProxmoxFailure, Conflict):
    slug = "snapshot-name-taken"
    title = "The machine has a snapshot of that name"


class SnapshotMissing(ProxmoxFailure, Conflict):
    """The cluster's word that there is none, met in the middle of an operation."""

    slug = "snapshot-missing"
    title = "The snapshot is gone"


class SnapshotNotNewest(ProxmoxFailure, Conflict):
    slug = "snapshot-not-newest"
    title = "The machine's storage only goes back to the newest snapshot"


class DriftNotFound(NotFound):
    slug = "drift-not-found"
    title = "No such difference"


class DriftSettled(Conflict):
    slug = "drift-settled"
    title = "The difference is there no more"


class DriftUnresolvable(Conflict):
    slug = "drift-unresolvable"
    title = "The difference cannot be resolved so"


class DisplayRefused(ProxmoxFailure, UpstreamFailed):
    slug = "display-refused"
    title = "The machine's display could not be opened"


class NoSpiceDisplay(Conflict):
    slug = "no-spice-display"
    title = "The machine has no SPICE display"


class ViewerUnfit(Invalid):
    slug = "viewer-unfit"
    title = "The viewer does not speak as a VNC client does"


class TicketRefused(Forbidden):
    slug = "console-ticket-refused"
    title = "The console ticket is used, too old, or another's"


class ConsolesTaken(Unavailable):
    slug = "consoles-taken"
    title = "Too many consoles are open"
