"""Looks at a file as it streams past: whose marks it bears, what disk it claims to be and what makes it unsafe."""

from collections.abc import Iterable
from typing import IO, Any, cast

from oslo_utils.imageutils.format_inspector import ImageFormatError, InspectWrapper, SafetyCheckFailed

from services.images.adapters.inspection import layout, qcow2, vhd, vmdk
from services.images.adapters.inspection.excerpt import HEAD_BYTES, SECTOR_BYTES, TAIL_BYTES, Excerpt
from services.images.adapters.inspection.marks import marks
from services.images.domain import UNREADABLE, VMDK_DESCRIPTOR, Observation
from services.images.ports import Chunk

_REASONS = {
    "backing_file": qcow2.BACKING_FILE,
    "data_file": qcow2.DATA_FILE,
    "descriptor": vmdk.DESCRIPTOR,
    "footer": vmdk.FOOTER,
    "banned": "This format is not allowed",
}
_JUDGED_HERE = frozenset({"unknown_features", "mbr"})
"""Checks of oslo.utils that refuse what is safe: known features of QCOW2, and disks of other partitioning tools."""


class _Feed:
    """The file-like source that InspectWrapper reads from: always the chunk at hand."""

    chunk: Chunk = b""

    def read(self, _size: int) -> Chunk:
        return self.chunk


class StreamInspector:
    """One file's inspection; keeps at most its first 64 KiB, its last 1 KiB and what oslo.utils captures (1 MiB)."""

    def __init__(self) -> None:
        self._feed = _Feed()
        self._wrapper = InspectWrapper(cast("IO[bytes]", self._feed))  # it needs `read` alone
        self._size = 0
        self._head = bytearray()
        self._tail = b""

    def eat(self, chunk: Chunk) -> None:
        self._feed.chunk = chunk
        self._wrapper.read(len(chunk))
        self._size += len(chunk)
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + chunk[-TAIL_BYTES:])[-TAIL_BYTES:]

    def finish(self) -> Observation:
        self._feed.chunk = b""
        self._wrapper.close()
        file = Excerpt(bytes(self._head), self._tail, self._size)
        foreign = marks(file)
        try:
            inspectors = {str(inspector): inspector for inspector in self._wrapper.formats or ()}
        except Exception:  # noqa: BLE001 - an inspector that stumbles over a file has not found it harmless
            return Observation(self._size, frozenset({VMDK_DESCRIPTOR} & foreign or {UNREADABLE}), 0)
        formats = set(inspectors) | foreign
        if "gpt" in formats and layout.is_volume(file.head):
            formats = (formats - {"gpt"}) or {"raw"}
        if len(formats) > 1:
            formats.discard("raw")
        if VMDK_DESCRIPTOR in formats:  # whether or not oslo.utils took the text for one, too
            formats.discard("vmdk")
        violations = {
            name: tuple(dict.fromkeys([*_violations(inspectors.get(name)), *_faults(name, file)])) for name in formats
        }
        return Observation(self._size, frozenset(formats), self._virtual_size(formats, inspectors, file), violations)

    def _virtual_size(self, formats: set[str], inspectors: dict[str, Any], file: Excerpt) -> int:
        if "vhd" in formats and file.size_bytes >= SECTOR_BYTES:
            return vhd.virtual_size(file)
        claimed = max((_claimed_size(inspector) for inspector in inspectors.values()), default=0)
        # A disc is its file; some have no volume size in the descriptor that is looked at.
        return max(claimed, file.size_bytes) if "iso" in formats else claimed


def _faults(format_name: str, file: Excerpt) -> Iterable[str]:
    if file.size_bytes < SECTOR_BYTES:  # refused whatever it is
        return ()
    if format_name == "gpt":
        # A fixed VHD is a raw disk with a footer behind it.
        has_footer = file.last_sector.startswith(b"conectix")
        return layout.partition_faults(file.head, file.size_bytes - (SECTOR_BYTES if has_footer else 0))
    looks = {"qcow2": qcow2.faults, "vmdk": vmdk.faults, "vhd": vhd.faults, "iso": layout.volume_faults}
    return looks[format_name](file) if format_name in looks else ()


def _violations(inspector: Any) -> Iterable[str]:
    """What oslo.utils finds unsafe, in words for people."""
    if inspector is None:
        return
    try:
        inspector.safety_check()
    except SafetyCheckFailed as failed:
        for name in failed.failures:
            if name not in _JUDGED_HERE:
                yield _REASONS.get(name, "The image did not pass the safety check of its format")
    except ImageFormatError:
        yield f"The {str(inspector).upper()} image is cut off or damaged"


def _claimed_size(inspector: Any) -> int:
    try:
        return int(inspector.virtual_size)
    except Exception:  # noqa: BLE001 - a header too damaged to tell claims nothing
        return 0
