"""What Proxmox VE's failures mean: it tells them in words, in the reason phrase or in the body, not by status."""

import re
from collections.abc import Callable

import structlog

from services.vms.errors import (
    FileDamaged,
    MachineMissing,
    NodeDown,
    OutcomeUnknown,
    PermissionMissing,
    ProxmoxBusy,
    ProxmoxFailure,
    ProxmoxRefused,
    ProxmoxUnavailable,
    SnapshotMissing,
    SnapshotNotNewest,
    SnapshotsImpossible,
    SnapshotTaken,
    TaskFailed,
    TaskInterrupted,
    VmidTaken,
    VmLocked,
    WrongPowerState,
)

_CONNECT_FAILED = 595
_RELAY_FAILURES = range(596, 600)
"""pveproxy's own: the other node's answer did not come in time, whatever that node did."""
SILENCE = range(_CONNECT_FAILED, 600)
"""The node that a call was about gave no answer, while the node that took the call did."""
LOST = "connection lost"
"""The reason of a call whose connection broke: the server may have been about to close it."""
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_PRIVILEGE = "Telar's token lacks a privilege; an administrator finds in the log which"
_SUCCESS = re.compile(r"OK|WARNINGS: [0-9]+")

_log = structlog.get_logger()

Maker = Callable[..., ProxmoxFailure]


def _of(kind: type[ProxmoxFailure], detail: str) -> Maker:
    def make(**known: str | None) -> ProxmoxFailure:
        return kind(detail, **known)  # type: ignore[arg-type] # `reason` and `node` only

    return make


# Source of the texts: the Perl modules qemu-server, guest-common, pve-common, pve-cluster and pve-storage.
_BY_TEXT: tuple[tuple[re.Pattern[str], Maker], ...] = tuple(
    (re.compile(pattern), _of(kind, detail))
    for pattern, kind, detail in (
        (
            r"snapshot feature is not available",
            SnapshotsImpossible,
            "The storage of the machine's disks keeps no snapshots",
        ),
        (
            r"is not most recent snapshot",
            SnapshotNotNewest,
            "The storage of the machine's disks only goes back to the newest snapshot: delete the newer ones first",
        ),
        (r"snapshot name '[^']*' already used", SnapshotTaken, "The machine has a snapshot of that name"),
        (r"snapshot '[^']*' does not exist", SnapshotMissing, "The machine has no snapshot of that name"),
        (
            r"Failed to obtain guest migration lock",
            ProxmoxBusy,
            "The machine is being moved or replicated; it is tried again",
        ),
        (r"is locked \([^)]*\)", VmLocked, "Another task works on the machine; it is tried again"),
        (
            r"can't lock file .*got timeout|cfs-lock .*got lock request timeout|-locked command timed out",
            ProxmoxBusy,
            "A lock of the cluster was not free in time; it is tried again",
        ),
        (
            r"config file already exists|already exists on node|\.conf' failed: File exists",
            VmidTaken,
            "Another machine has this VMID",
        ),
        (
            r"[Cc]onfiguration file '?[^ ]*'? does not exist|unable to find configuration file for VM",
            MachineMissing,
            "The cluster has no machine of this VMID on this node",
        ),
        (
            r"checksum mis+match: got",
            FileDamaged,
            "The file that arrived is not the one that was asked for",
        ),
        (
            r"checksum mis+match|detected modified configuration",
            ProxmoxBusy,
            "Somebody else changed the machine's configuration at the same moment; it is tried again",
        ),
        (r"no quorum", ProxmoxUnavailable, "The cluster has no quorum"),
        (
            r"protection mode enabled",
            ProxmoxRefused,
            "The machine is protected on the cluster; an administrator has to take its protection off there first",
        ),
        (
            r"interrupted by signal|received interrupt|^unexpected status$|unable to get last line from task log",
            TaskInterrupted,
            "A task of the cluster ended before its work was done",
        ),
        (
            r"VM [0-9]+ (?:already|not) running|is paused - cannot shutdown|is running - destroy failed",
            WrongPowerState,
            "The machine's power state does not allow it",
        ),
        (r"hostname lookup '.*' failed|no such cluster node", NodeDown, "The cluster has no such node"),
        (
            r"VM quit/powerdown failed",
            TaskFailed,
            "The guest did not shut down in time; stop it instead, or look at its console",
        ),
        (
            r"[Pp]ermission check failed",
            PermissionMissing,
            "Telar's token lacks a privilege; an administrator sees which",
        ),
    )
)


def call_failure(status: int, text: str, *, node: str | None, changes: bool) -> ProxmoxFailure:
    """What an HTTP failure means. `text` is its reason phrase or message, `changes` says whether it was no GET."""
    text = text.strip()
    # A guest agent that is not up yet is no news: details of a machine ask for it each time.
    log = _log.debug if "guest agent" in text.lower() else _log.warning
    log("proxmox_call_failed", status=status, reason=text[:300], node=node)
    if status == _CONNECT_FAILED:
        return NodeDown(f"The node {node} cannot be reached", reason=text, node=node)
    if status in _RELAY_FAILURES:
        return unanswered(text, node=node, changes=changes)
    if status == _UNAUTHORIZED:
        return PermissionMissing("The cluster refuses Telar's token", reason=text, node=node)
    if status == _FORBIDDEN:
        return PermissionMissing(_PRIVILEGE, reason=text, node=node)
    return _by_text(text, node) or ProxmoxRefused("The cluster refused the call", reason=text, node=node)


def unanswered(reason: str, *, node: str | None, changes: bool) -> ProxmoxFailure:
    """A call without an answer that can be used: a change may have happened."""
    if changes:
        return OutcomeUnknown("The cluster gave no usable answer; what it did is looked up", reason=reason, node=node)
    return ProxmoxUnavailable("The cluster gave no usable answer", reason=reason, node=node)


def task_failure(exitstatus: str, *, node: str) -> ProxmoxFailure | None:
    """What a finished task's exit status means; None is success (also with warnings)."""
    text = exitstatus.strip()
    if _SUCCESS.fullmatch(text):
        return None
    _log.warning("proxmox_task_failed", reason=text[:300], node=node)
    return _by_text(text, node) or TaskFailed("A task of the cluster failed", reason=text, node=node)


def _by_text(text: str, node: str | None) -> ProxmoxFailure | None:
    for pattern, make in _BY_TEXT:
        if pattern.search(text):
            return make(reason=text, node=node)
    return None
