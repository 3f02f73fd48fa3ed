"""What an image is allowed to be: formats, visibility, the status machine and the rules of acceptance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from libs.common.errors import FieldError, Invalid, QuotaExceeded
from services.images.errors import ImageProtected, ImageRejected, ImageState, NotConvertible

MIN_FILE_BYTES = 512
"""Smaller files cannot be judged: inspectors call a tiny QCOW2 with a backing file raw and safe."""

UNREADABLE = "unreadable"
"""Stands for the format of a file over which an inspector stumbled."""
VMDK_DESCRIPTOR = "vmdk-descriptor"
"""Stands for the format of a text that tells where a VMDK disk's data lies."""


class Format(StrEnum):
    ISO = "iso"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHD = "vhd"
    RAW = "raw"


class Visibility(StrEnum):
    PRIVATE = "private"
    SHARED = "shared"
    PUBLIC = "public"


class Arrival(StrEnum):
    """How an image's file comes in."""

    MULTIPART = "multipart"
    TUS = "tus"
    IMPORT = "import"
    CONVERSION = "conversion"


class Status(StrEnum):
    QUEUED = "queued"
    UPLOADING = "uploading"
    VERIFYING = "verifying"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    REJECTED = "rejected"
    DELETED = "deleted"


SHOWN_TO_OTHERS = frozenset({Status.ACTIVE, Status.DEACTIVATED})
"""Before it is active an image concerns its owner alone."""

_NEXT: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.UPLOADING, Status.REJECTED, Status.DELETED}),
    Status.UPLOADING: frozenset({Status.VERIFYING, Status.REJECTED, Status.DELETED}),
    Status.VERIFYING: frozenset({Status.ACTIVE, Status.REJECTED, Status.DELETED}),
    Status.ACTIVE: frozenset({Status.DEACTIVATED, Status.DELETED}),
    Status.DEACTIVATED: frozenset({Status.ACTIVE, Status.DELETED}),
    Status.REJECTED: frozenset({Status.DELETED}),
    Status.DELETED: frozenset(),
}


def next_status(now: Status, wanted: Status) -> Status:
    """Move an image to another status; raises ImageState if there is no such step."""
    if wanted not in _NEXT[now]:
        raise ImageState(f"The image is {now}; it cannot become {wanted}")
    return wanted


class Action(StrEnum):
    """What people do with an image's record; the value completes "it cannot be …"."""

    CHANGE = "changed"
    DEACTIVATE = "deactivated"
    ACTIVATE = "activated"
    VERIFY = "verified again"
    DELETE = "deleted"


_ALLOWED: Mapping[Action, frozenset[Status]] = {
    Action.CHANGE: frozenset(Status) - {Status.DELETED},
    Action.DEACTIVATE: frozenset({Status.ACTIVE}),
    Action.ACTIVATE: frozenset({Status.DEACTIVATED}),
    Action.VERIFY: SHOWN_TO_OTHERS,
    Action.DELETE: frozenset(Status) - {Status.DELETED},
}
_BECAUSE: Mapping[Status, str] = {
    Status.QUEUED: "its file has not begun to arrive; wait until it is active, or delete it",
    Status.UPLOADING: "its file is still arriving; wait until it is active, or delete it",
    Status.VERIFYING: "its file is being verified; wait until it is active",
    Status.ACTIVE: "it is active already",
    Status.DEACTIVATED: "it is deactivated already",
    Status.REJECTED: "its file was refused; delete it and upload another file",
    Status.DELETED: "it is gone",
}


def require_allowed(action: Action, status: Status) -> None:
    """Raise ImageState, saying what to do instead, if an image's status does not allow an action."""
    if status not in _ALLOWED[action]:
        raise ImageState(f"The image is {status} and cannot be {action}: {_BECAUSE[status]}")


def require_deletable(status: Status, *, protected: bool) -> None:
    """Raise ImageProtected or ImageState if an image must stay."""
    require_allowed(Action.DELETE, status)
    if protected:
        raise ImageProtected("Set protected to false before you delete it")


_EXTENSIONS: Mapping[str, Format] = {
    "iso": Format.ISO,
    "qcow2": Format.QCOW2,
    "vmdk": Format.VMDK,
    "vhd": Format.VHD,
    "img": Format.RAW,
    "raw": Format.RAW,
}


def declared_format(filename: str) -> Format:
    """The format that a file's extension declares; raises Invalid for any other extension."""
    _, dot, extension = filename.rpartition(".")
    found = _EXTENSIONS.get(extension.lower()) if dot else None
    if found is None:
        allowed = ", ".join(f".{name}" for name in _EXTENSIONS)
        raise Invalid(
            f"The file's name must end in one of {allowed}",
            errors=[FieldError("/body/file", f"the name does not end in one of {allowed}")],
        )
    return found


class Compression(StrEnum):
    """How a published file is packed; the value is the extension that says so."""

    GZIP = "gz"
    XZ = "xz"
    ZSTD = "zst"


def published_as(filename: str, declared: Format | None) -> tuple[Format, Compression | None]:
    """The format of a file that somebody publishes under that name, and how it is packed.

    `declared` is what its importer says of it. Raises Invalid if neither tells the format.
    """
    stem, _, extension = filename.rpartition(".")
    packed = next((one for one in Compression if stem and extension.lower() == one), None)
    if declared is not None:
        return declared, packed
    bare = stem if packed else filename
    found = _EXTENSIONS.get(bare.rpartition(".")[2].lower()) if "." in bare else None
    if found is None:
        said = f"The name {filename!r} does not tell the format" if filename else "The URL does not tell a file's name"
        raise Invalid(
            f"{said}; give `format` ({', '.join(Format)}), or a `filename` such as disk.qcow2.xz",
            errors=[FieldError("/body/format", "the format is not known")],
        )
    return found, packed


CONVERTIBLE = frozenset({Format.QCOW2, Format.RAW, Format.VMDK, Format.VHD})
_LARGEST_VHD_BYTES = 0xFF000000 * 512
"""What QEMU writes at most into a VHD (block/vpc.c: VHD_MAX_SECTORS)."""


def require_convertible(source: Format, target: Format, virtual_size_bytes: int, *, compress: bool) -> None:
    """Raise NotConvertible or Invalid unless a disk can be brought from one format into the other."""
    if source not in CONVERTIBLE:
        raise NotConvertible("An ISO image is a disc and not a disk; there is nothing to convert it to")
    if target not in CONVERTIBLE:
        raise _wrong_target(f"a disk cannot become an ISO image; choose one of {', '.join(sorted(CONVERTIBLE))}")
    if source is target:
        raise _wrong_target(f"the image is {target} already")
    if compress and target is not Format.QCOW2:
        raise _wrong_target(f"only qcow2 can be compressed, {target} cannot", field="compress")
    if target is Format.VHD and virtual_size_bytes > _LARGEST_VHD_BYTES:
        raise _wrong_target(f"a VHD holds at most {human_size(_LARGEST_VHD_BYTES)}")


def _wrong_target(reason: str, *, field: str = "format") -> Invalid:
    return Invalid(f"The image cannot be converted: {reason}", errors=[FieldError(f"/body/{field}", reason)])


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen while a file passed by.

    `formats` are the names of all formats whose marks it bears (`raw` alone if none, `gpt` for an MBR or GPT partition
    table, words with spaces for what is no disk image), `violations` says per format what makes it unsafe,
    `virtual_size_bytes` is the disk that it claims to hold.
    """

    size_bytes: int
    formats: frozenset[str]
    virtual_size_bytes: int
    violations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_ACCEPTED: Mapping[Format, frozenset[frozenset[str]]] = {
    Format.ISO: frozenset({frozenset({"iso"}), frozenset({"iso", "gpt"})}),  # hybrid ISOs also boot from a stick
    Format.QCOW2: frozenset({frozenset({"qcow2"})}),
    Format.VMDK: frozenset({frozenset({"vmdk"})}),
    # A fixed VHD is a raw disk with a footer, so that its partition table shows.
    Format.VHD: frozenset({frozenset({"vhd"}), frozenset({"vhd", "gpt"})}),
    Format.RAW: frozenset({frozenset({"raw"}), frozenset({"gpt"})}),
}


def require_safe(declared: Format, seen: Observation, *, max_virtual_size_bytes: int) -> None:
    """Raise ImageRejected, with a reason for people, unless the file is whole, safe and what it was declared to be.

    Raises QuotaExceeded if it claims a larger disk than allowed.
    """
    if seen.size_bytes < MIN_FILE_BYTES:
        raise ImageRejected(f"The file has {seen.size_bytes} bytes; no disk image is smaller than {MIN_FILE_BYTES}")
    if seen.formats not in _ACCEPTED[declared]:
        raise ImageRejected(_mismatch(declared, seen.formats))
    # An ISO's partition table is for booting from a stick; as a CD it is never read, and real ones bend the rules.
    judged = seen.formats - {"gpt"} if declared is Format.ISO else seen.formats
    unsafe = [reason for name in sorted(judged) for reason in seen.violations.get(name, ())]
    if seen.virtual_size_bytes > max_virtual_size_bytes:
        raise QuotaExceeded(
            f"The image claims a disk of {human_size(seen.virtual_size_bytes)};"
            f" the largest allowed is {human_size(max_virtual_size_bytes)}"
        )
    if unsafe:
        raise ImageRejected("; ".join(unsafe))
    if seen.virtual_size_bytes <= 0:
        raise ImageRejected("The image's header claims an empty disk")


_SHOWN: Mapping[str, str] = {
    "gpt": "a partitioned disk",
    "raw": "RAW, that is of no format known here",
    UNREADABLE: "damaged or disguised",
    VMDK_DESCRIPTOR: "a VMDK descriptor, which refers to other files",
}


def _mismatch(declared: Format, seen: frozenset[str]) -> str:
    for other in (Format.ISO, Format.QCOW2, Format.VMDK, Format.VHD):
        if seen in _ACCEPTED[other]:
            shown = f"{other.upper()}; let its name end in .{other}"
            return f"The file was declared as {declared}, but its content is {shown}"
    named = [_SHOWN.get(name, name if " " in name else name.upper()) for name in sorted(seen)]
    if len(named) > 1:
        return f"The file was declared as {declared} but is {' and '.join(named)} at once, which hides one in another"
    return f"The file was declared as {declared}, but its content is {named[0]}"


_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def human_size(size_bytes: int) -> str:
    """Write a size as people read it, in decimal units: `2.4 GB`."""
    value, unit = float(size_bytes), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - from here on it would show as 1000.0
        value /= 1000
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size_bytes} B"
